//! HTTP over the pod's network: HTTP/1.1 and HTTP/2 with prior knowledge on a listener of the namespace.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tokio_util::task::TaskTracker;

use super::{Foreign, Probe, Server};
use crate::ledger::Holding;
use crate::net::{Client, Conn, HttpBody, HttpService, Listener, UNSEEN};
use crate::serving::{self, POD_PORT, POD_WINDOW_BYTES, PROBES, Place, Places};

/// Bytes of the host that a connection takes while it is idle.
const CONNECTION_BYTES: u64 = 8 << 10;

/// How long a container that has ended still sends what it owes an answer to: who asked it last is told that it failed.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_millis(250);

/// Who asks over a connection.
#[derive(Clone)]
enum Asker {
    /// The node, which asks by the way of its probes alone. Nobody's address makes him one.
    Node,
    /// With the namespace of its pod where that is not the component's own.
    Client(Client, Option<Foreign>),
}

/// Accepts and serves connections until the container is stopped; returns when the last of them has ended.
pub(super) async fn serve(server: &Arc<Server>, listener: Listener, service: Arc<dyn HttpService>) {
    let connections = TaskTracker::new();
    let places = Places::with_window(POD_PORT, POD_WINDOW_BYTES);
    let probes = Places::with_window(PROBES, POD_WINDOW_BYTES);
    let sandbox = &server.sandbox;
    // A place and what it costs the pod; probes cost it nothing, so that what others make it hold fails none.
    let enter = |conn: &mut Conn, asker: &Asker, ip: IpAddr| match asker {
        Asker::Node => probes.enter(ip),
        Asker::Client(_, foreign) => {
            let charge = if conn.is_from_elsewhere() {
                sandbox.account.charge_for_other(Holding::Heap, CONNECTION_BYTES)
            } else {
                sandbox.account.charge(Holding::Heap, CONNECTION_BYTES)
            };
            let charge = charge.ok()?;
            let namespace = foreign.as_ref().map(|Foreign(namespace)| namespace.clone());
            let place = places.enter_of(ip, namespace)?;
            conn.hold(charge);
            Some(place)
        }
    };
    let accepting = async {
        // The listener fails once the pod's network is taken down, and for good; after a stop it fails when those that
        // waited have been accepted.
        while let Ok((mut conn, peer)) = listener.accept().await {
            let client = conn.client().unwrap_or(peer.ip());
            let asker = asker(&conn, client);
            match enter(&mut conn, &asker, client) {
                Some(place) => {
                    let (server, service) = (Arc::clone(server), Arc::clone(&service));
                    connections.spawn(serve_connection(server, conn, place, asker, service));
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

fn asker(conn: &Conn, ip: IpAddr) -> Asker {
    if conn.is_probe() {
        return Asker::Node;
    }
    Asker::Client(Client(ip), conn.foreign_namespace().cloned().map(Foreign))
}

async fn serve_connection(
    server: Arc<Server>,
    conn: Conn,
    place: Place,
    asker: Asker,
    service: Arc<dyn HttpService>,
) {
    let sandbox = &server.sandbox;
    let respond = move |mut request: Request<HttpBody>| {
        let marks = request.extensions_mut();
        match asker.clone() {
            Asker::Node => {
                marks.insert(Probe);
            }
            Asker::Client(client, foreign) => {
                marks.insert(client);
                if let Some(foreign) = foreign {
                    marks.insert(foreign);
                }
            }
        }
        respond(Arc::clone(&service), request)
    };
    let overdue = async {
        sandbox.ended.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS_TIMEOUT).await;
    };
    let ended = tokio::select! {
        biased;
        ended = serving::serve(conn, place, sandbox.stop.cancelled(), respond) => ended,
        () = overdue => return,
    };
    if let Err(error) = ended {
        tracing::debug!(container = sandbox.name, %error, "connection failed");
    }
}

async fn respond(service: Arc<dyn HttpService>, request: Request<HttpBody>) -> Response<HttpBody> {
    match service.call(request).await {
        Ok(mut response) => {
            // Only the host can know.
            response.headers_mut().remove(UNSEEN);
            response
        }
        Err(unanswered) => {
            let mut response = serving::bland_answer(serving::status_of(&unanswered.error), unanswered.id);
            if unanswered.request.is_some() {
                response.headers_mut().insert(UNSEEN, HeaderValue::from_static("true"));
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use http::StatusCode;

    use super::*;
    use crate::net::{HttpError, RequestId, Unanswered, empty_body};

    /// Fails, and hands the request back where it was asked for that; or says of itself that it has not seen it.
    struct Failing;

    impl HttpService for Failing {
        fn call(
            &self,
            request: Request<HttpBody>,
        ) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>> {
            if request.uri().path() == "/forged" {
                let forged = Response::builder().status(503).header(UNSEEN, "true").body(empty_body());
                return Box::pin(async { Ok(forged.expect("a response")) });
            }
            let error = HttpError::Unavailable { reason: "the container is stopping".into() };
            let request = (request.uri().path() == "/unseen").then(|| Box::new(request));
            Box::pin(async { Err(Unanswered { error, id: RequestId::random(), request }) })
        }
    }

    #[tokio::test]
    async fn what_no_guest_has_seen_is_marked() {
        for (path, is_marked) in [("/unseen", true), ("/seen", false), ("/forged", false)] {
            let request = Request::get(path).body(empty_body()).expect("a request");
            let response = respond(Arc::new(Failing), request).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers().contains_key(UNSEEN), is_marked, "{path}");
        }
    }
}
