//! HTTP over the pod's network: HTTP/1.1 and HTTP/2 with prior knowledge on a listener of the namespace.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::Server;
use crate::net::{BoxError, Conn, HttpBody, HttpError, HttpService, Listener, full_body};

/// Connections of one container at once; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Streams of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 128;

/// Accepts and serves connections until the container is stopped; returns when the last of them has ended.
pub(super) async fn serve(server: &Arc<Server>, listener: Listener, service: Arc<dyn HttpService>) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let sandbox = &server.sandbox;
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            // The listener fails once the pod's network is taken down, and for good; after a stop it fails when those
            // that waited have been accepted.
            let Ok((conn, _peer)) = listener.accept().await else {
                return;
            };
            let serving = serve_connection(Arc::clone(server), conn, Arc::clone(&service));
            connections.spawn(async move {
                serving.await;
                drop(place);
            });
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

async fn serve_connection(server: Arc<Server>, conn: Conn, service: Arc<dyn HttpService>) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let respond = service_fn(move |request| respond(Arc::clone(&service), request));
    let connection = builder.serve_connection(TokioIo::new(conn), respond);
    let mut connection = std::pin::pin!(connection);
    let sandbox = &server.sandbox;
    let ended = tokio::select! {
        // What the client has sent already is read before the connection is asked to end.
        biased;
        ended = connection.as_mut() => ended,
        () = sandbox.ended.cancelled() => return,
        () = sandbox.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = sandbox.ended.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(container = sandbox.name, %error, "connection failed");
    }
}

async fn respond(
    service: Arc<dyn HttpService>,
    request: Request<Incoming>,
) -> Result<Response<HttpBody>, Infallible> {
    let request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
    Ok(service.call(request).await.unwrap_or_else(|error| failure(&error)))
}

/// The response that stands for a component that gave none.
fn failure(error: &HttpError) -> Response<HttpBody> {
    let status = match error {
        HttpError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        HttpError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        HttpError::Failed { .. } => StatusCode::BAD_GATEWAY,
    };
    let mut response = Response::new(full_body(format!("{error}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
