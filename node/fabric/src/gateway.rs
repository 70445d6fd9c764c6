//! The gateway: HTTP from the outside to services, by the rules of Ingresses.
//!
//! A component on this node is called directly; all else is reached over pooled connections. Nothing is retried
//! but what never reached an endpoint.

mod forward;
mod pool;
mod router;
mod upgrade;

pub(crate) use router::Router;

use crate::fabric::Inner;
use coracle_wasi_host::net::{HttpBody, full_body};
use forward::Forwarder;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections open at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16_384;

/// How long a client may take for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 256;

/// The pause after an accept that failed, which is for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The gateway of one node.
pub(crate) struct Gateway {
    forwarder: Arc<Forwarder>,
}

impl Gateway {
    pub(crate) fn new(fabric: Arc<Inner>) -> Self {
        Self { forwarder: Arc::new(Forwarder::new(fabric)) }
    }

    /// Serves until `stopped` is cancelled.
    pub(crate) async fn serve(self, listener: TcpListener, stopped: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped.cancelled() => return,
            };
            match accepted {
                Ok((stream, client)) => {
                    let forwarder = self.forwarder.clone();
                    let stopped = stopped.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = serve_connection(stream, client, forwarder) => {}
                            () = stopped.cancelled() => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "gateway connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// What a client begins an HTTP/2 connection with (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear which HTTP the client speaks.
async fn read_preface(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(HTTP2_PREFACE.len());
    while read.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&read) {
        let rest = (HTTP2_PREFACE.len() - read.len()) as u64;
        if (&mut *stream).take(rest).read_buf(&mut read).await? == 0 {
            break;
        }
    }
    Ok(read)
}

async fn serve_connection(mut stream: TcpStream, client: SocketAddr, forwarder: Arc<Forwarder>) {
    // Hyper's own timeout begins after it has told the versions apart.
    let Ok(Ok(begun)) = tokio::time::timeout(HEAD_TIMEOUT, read_preface(&mut stream)).await else {
        tracing::debug!(%client, "gateway connection without a request");
        return;
    };
    if begun.is_empty() {
        return;
    }
    // Waiting for more to send would cost latency; failing to say so costs nothing else.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let forwarder = forwarder.clone();
        async move { Ok::<_, Infallible>(forwarder.serve(client, request).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(true);
    server.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let (read, write) = stream.into_split();
    let stream = tokio::io::join(io::Cursor::new(begun).chain(read), write);
    let served = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(%client, error = %error, "gateway connection ended");
    }
}

/// An answer of the gateway itself, in words.
fn answer(status: StatusCode, text: &str) -> Response<HttpBody> {
    let mut response = Response::new(full_body(format!("{} {text}\n", status.as_u16())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
