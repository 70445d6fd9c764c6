//! HTTP over the pod's network: HTTP/1.1 and HTTP/2 with prior knowledge on a listener of the namespace.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use tokio_util::task::TaskTracker;

use super::Server;
use crate::ledger::Holding;
use crate::net::{Client, Conn, HttpBody, HttpError, HttpService, Listener};
use crate::serving::{self, POD_PORT, POD_WINDOW_BYTES, Place, Places};

/// Bytes of the host that a connection takes while it is idle.
const CONNECTION_BYTES: u64 = 8 << 10;

/// Accepts and serves connections until the container is stopped; returns when the last of them has ended.
pub(super) async fn serve(server: &Arc<Server>, listener: Listener, service: Arc<dyn HttpService>) {
    let connections = TaskTracker::new();
    let places = Places::with_window(POD_PORT, POD_WINDOW_BYTES);
    let sandbox = &server.sandbox;
    let accepting = async {
        // The listener fails once the pod's network is taken down, and for good; after a stop it fails when those that
        // waited have been accepted.
        while let Ok((conn, peer)) = listener.accept().await {
            let charge = sandbox.account.charge(Holding::Heap, CONNECTION_BYTES);
            match charge.ok().and_then(|charge| Some((places.enter(peer.ip())?, charge))) {
                Some((place, charge)) => {
                    let mut conn = conn;
                    conn.hold(charge);
                    connections.spawn(serve_connection(
                        Arc::clone(server),
                        conn,
                        place,
                        Client(peer.ip()),
                        Arc::clone(&service),
                    ));
                }
                None => conn.reset(),
            }
        }
    };
    let refusing = async {
        sandbox.stop.cancelled().await;
        listener.refuse();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = accepting => {}
        () = refusing => {}
        () = sandbox.ended.cancelled() => {}
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_connection(
    server: Arc<Server>,
    conn: Conn,
    place: Place,
    client: Client,
    service: Arc<dyn HttpService>,
) {
    let sandbox = &server.sandbox;
    let respond = move |mut request: Request<HttpBody>| {
        request.extensions_mut().insert(client);
        respond(Arc::clone(&service), request)
    };
    let ended = tokio::select! {
        biased;
        ended = serving::serve(conn, place, sandbox.stop.cancelled(), respond) => ended,
        () = sandbox.ended.cancelled() => return,
    };
    if let Err(error) = ended {
        tracing::debug!(container = sandbox.name, %error, "connection failed");
    }
}

async fn respond(service: Arc<dyn HttpService>, request: Request<HttpBody>) -> Response<HttpBody> {
    service.call(request).await.unwrap_or_else(|unanswered| failure(&unanswered.error))
}

/// The response that stands for a component that gave none.
fn failure(error: &HttpError) -> Response<HttpBody> {
    let status = match error {
        HttpError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        HttpError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        HttpError::Failed { .. } => StatusCode::BAD_GATEWAY,
    };
    serving::text_answer(status, &error.to_string())
}
