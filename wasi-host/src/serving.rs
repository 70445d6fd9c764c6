//! Serving HTTP to whoever connects: the one way of the gateway and of pods' ports, with one set of bounds.
//!
//! A client owes something at every moment: a request within [`HEAD_TIMEOUT`], then a body that comes, then reading what
//! it is sent. Who owes for too long is cut off. Who owes nothing and is served nothing has a place only until another
//! needs it: silent connections keep nobody out, however many they are.
//!
//! HTTP/2: hyper and h2 bound streams, header lists, CONTINUATION frames, empty DATA frames and resets before a stream is
//! accepted. What they leave open is bounded here: requests that are given up again and again ([`GIVEN_UP_MAX`]), and
//! floods of frames that only cause work ([`frames`]). Who is cut off for such a fault and comes back for more is held back
//! ([`HELD_BACK`]), with few connections at a time ([`HELD_BACK_MAX`]).

mod answers;
mod body;
mod fault;
mod frames;
mod heads;
mod pace;
mod places;
mod stream;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, UPGRADE};
use http::uri::Authority;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::net::{BoxError, HttpBody, RequestId};
use crate::refusals::{Bound, Refused};
use body::ServedBody;
use stream::ServedStream;

pub use answers::{bland_answer, status_of, text_answer};
pub use stream::BreakOff;

pub use places::{
    Bounds, HELD_BACK, HELD_BACK_BYTES, HELD_BACK_MAX, InFlight, Place, Places, WeakPlaces, source_of,
};

/// How long a client may take, from its connect on, until its first request's head is whole.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is kept without a request, and how long a later request's head may take.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection that has been asked to end may take to do so where no request is under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may be waited for in all, beyond what it makes good by [`CLIENT_BYTES_PER_SECOND_MIN`]: while it
/// sends a body, and while it does not take what it is sent.
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// How fast a client has to send and to take, where it is what is waited for.
pub const CLIENT_BYTES_PER_SECOND_MIN: u32 = 1024;

/// How long a response's body may stand still for want of the component or endpoint that makes it.
pub const RESPONSE_PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a request's head, in HTTP/1.1 with what is read ahead.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Requests of one HTTP/2 connection at once.
pub const STREAMS_MAX: u32 = 128;

/// Bytes that a client may send ahead of the reader on all streams of an HTTP/2 connection, to the gateway and to a pod; on
/// one stream a quarter of that at most. What comes to a pod comes from near by. Streams that nobody reads stop the others
/// of their connection once they are four, to the gateway sixteen.
const GATEWAY_WINDOW_BYTES: u32 = 1024 * 1024;
pub(crate) const POD_WINDOW_BYTES: u32 = 128 * 1024;

/// Bytes that a client may send ahead on one HTTP/2 stream, and bytes of one that wait for their turn on the wire. With the
/// requests of a source they bound what it can have the gateway hold for bodies that stand still: 32 MiB each way.
const STREAM_WINDOW_BYTES_MAX: u32 = 64 * 1024;
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Streams of an HTTP/2 connection that the client may have reset before they were looked at, and that may have been reset
/// for the client's own faults: beyond either the connection ends.
const RESETS_WAITING_MAX: usize = 20;
const RESETS_FOR_FAULTS_MAX: usize = 256;

/// Requests of one connection that were given up before their response began, beyond those that were answered.
pub const GIVEN_UP_MAX: u32 = 128;

const PLACE_LOST: &str = "its place was needed, or it gave up too many requests";

/// How often an HTTP/2 client is asked whether it is there, and how long it has to answer.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What one component serves on its port. A source has half at most, so that no one can take all; so have the pods of
/// another namespace together, and of requests no more than what is free.
pub const POD_PORT: Bounds = Bounds {
    connections_max: 1024,
    connections_per_source_max: 512,
    requests_max: 1024,
    requests_per_source_max: 512,
};

/// What one component is asked at once by its node's own probes.
pub(crate) const PROBES: Bounds = Bounds {
    connections_max: PROBES_MAX,
    connections_per_source_max: PROBES_MAX,
    requests_max: PROBES_MAX,
    requests_per_source_max: PROBES_MAX,
};

/// A container has three probes, and others of its pod may probe its port too.
pub(crate) const PROBES_MAX: usize = 8;

/// What a node's gateway serves. Of requests a source has half of what one component takes.
pub const GATEWAY: Bounds = Bounds {
    connections_max: 16 * 1024,
    connections_per_source_max: 4096,
    requests_max: 16 * 1024,
    requests_per_source_max: 512,
};

/// Serves one connection until it ends, its place is needed for another, or its client owes something for too long.
/// Once `stop` resolves it is served only what it has asked already.
///
/// A request that asks for an upgrade carries its [`InFlight`] as an extension: who upgrades the connection keeps that as
/// long as the connection lasts.
pub async fn serve<S, R, F>(
    stream: S,
    place: Place,
    stop: impl Future<Output = ()>,
    respond: R,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + BreakOff + Unpin + Send + 'static,
    R: Fn(Request<HttpBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<HttpBody>> + Send + 'static,
{
    let mut stop = pin!(stop);
    if let Some(wait) = place.held_back() {
        let Some(_turn) = place.wait_held_back() else {
            return Err("too many connections of a client wait for its faults already".into());
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = place.lost() => return Err(PLACE_LOST.into()),
            () = stop.as_mut() => return Ok(()),
        }
    }
    let asked = place.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (place, respond) = (asked.clone(), respond.clone());
        async move {
            let upgrade = request.extensions().get::<OnUpgrade>().cloned();
            let response = answer_one(&place, request, respond).await;
            if let Some(upgrade) = upgrade.filter(|_| response.status() != StatusCode::SWITCHING_PROTOCOLS) {
                tokio::spawn(end_unchanged::<S>(upgrade, place));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let builder = builder(place.window_bytes());
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(ServedStream::new(stream, place.clone())), service);
    let mut connection = pin!(connection);
    let fresh = tokio::select! {
        // What the client has sent already is read before the connection is asked to end.
        biased;
        ended = connection.as_mut() => {
            if ended.as_ref().is_err_and(|error| fault::is_clients(&**error)) {
                place.was_at_fault();
            }
            return ended;
        }
        () = place.lost() => return Err(PLACE_LOST.into()),
        () = place.quiet() => !place.has_asked(),
        () = stop.as_mut() => false,
    };
    if fresh {
        return Err("no request came in time".into());
    }
    connection.as_mut().graceful_shutdown();
    let overdue = async {
        loop {
            tokio::time::sleep(CLOSE_TIMEOUT).await;
            if !place.is_busy() {
                return;
            }
        }
    };
    tokio::select! {
        ended = connection => ended,
        () = place.lost() => Ok(()),
        () = overdue => Ok(()),
    }
}

/// Ends the connection as others end that asked for no upgrade: hyper hands over, when it is through, what was asked to be
/// another and was not made so.
async fn end_unchanged<S>(upgrade: OnUpgrade, place: Place)
where
    S: AsyncRead + AsyncWrite + BreakOff + Unpin + Send + 'static,
{
    let end = async {
        let Ok(upgraded) = upgrade.await else { return };
        if let Ok(parts) = auto::upgrade::downcast::<TokioIo<ServedStream<S>>>(upgraded) {
            let _ = parts.io.into_inner().shutdown().await;
        }
    };
    tokio::select! {
        () = end => {}
        () = place.lost() => {}
    }
}

/// The connection that [`serve`] was given, once it was upgraded, and what was read of it beyond the request.
pub fn reclaim<S>(upgraded: Upgraded) -> Result<(S, Bytes), Upgraded>
where
    S: AsyncRead + AsyncWrite + BreakOff + Unpin + Send + 'static,
{
    let parts = auto::upgrade::downcast::<TokioIo<ServedStream<S>>>(upgraded)?;
    Ok((parts.io.into_inner().into_inner(), parts.read_buf))
}

async fn answer_one<R, F>(place: &Place, mut request: Request<Incoming>, respond: R) -> Response<ServedBody>
where
    R: Fn(Request<HttpBody>) -> F,
    F: Future<Output = Response<HttpBody>>,
{
    let in_flight = match place.begin() {
        Ok(in_flight) => in_flight,
        Err(refused) => {
            let refused = refusal(RequestId::of(request.headers()), refused);
            return refused.map(|body| ServedBody::new(body, None, None));
        }
    };
    if let Some(fault) = host_fault(&request) {
        let refused = host_refusal(RequestId::of(request.headers()), fault);
        return refused.map(|body| ServedBody::new(body, Some(in_flight), None));
    }
    if request.headers().contains_key(UPGRADE) {
        request.extensions_mut().insert(in_flight.clone());
    }
    // The end of the connection is the end of the answer: it has to look like none where there is more.
    let by_its_end = (request.version() == Version::HTTP_10).then(|| place.clone());
    let response = respond(request.map(body::paced)).await;
    in_flight.answered();
    response.map(|body| ServedBody::new(body, Some(in_flight), by_its_end))
}

/// What is wrong with the host that a request names, or does not name (RFC 9112, 3.2).
fn host_fault<B>(request: &Request<B>) -> Option<&'static str> {
    let mut named = request.headers().get_all(HOST).iter();
    match (named.next(), named.next()) {
        (Some(_), Some(_)) => Some("the request has more than one Host header"),
        (None, _) if request.version() == Version::HTTP_11 => Some("the request has no Host header"),
        (Some(host), None) if !host.is_empty() && Authority::try_from(host.as_bytes()).is_err() => {
            Some("the request's Host header names no host")
        }
        _ => None,
    }
}

/// One that is too many: who asked is told whose fault that is, and the log which bound it was.
fn refusal(id: RequestId, refused: Refused) -> Response<HttpBody> {
    tracing::debug!(request = %id, reason = %refused, "request refused");
    let status = match refused.bound {
        Bound::Caller => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    bland_answer(status, id)
}

/// One that nobody can be asked for. It says what is wrong with what the client has sent.
fn host_refusal(id: RequestId, reason: &'static str) -> Response<HttpBody> {
    tracing::debug!(request = %id, reason, "request refused");
    let mut refused = text_answer(StatusCode::BAD_REQUEST, reason);
    id.write_to(refused.headers_mut());
    refused
}

fn builder(window_bytes: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .keep_alive(true)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .initial_stream_window_size((window_bytes / 4).min(STREAM_WINDOW_BYTES_MAX))
        .initial_connection_window_size(window_bytes)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESETS_WAITING_MAX)
        .max_local_error_reset_streams(RESETS_FOR_FAULTS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

#[cfg(test)]
mod tests;
