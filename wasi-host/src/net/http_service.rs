//! HTTP between parts of one process: a request handed over as a value, without a socket or a parser.

use std::net::IpAddr;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};

use super::RequestId;

/// Any error that a body may end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or response that crosses between the gateway, the fabric and a component.
pub type HttpBody = UnsyncBoxBody<Bytes, BoxError>;

/// Whose request it is, as an extension of it: clients share what serves them. A request without is nobody's in
/// particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client(pub IpAddr);

/// In an answer of the host's, over a connection: no guest has seen anything of the request, which may be sent to another
/// endpoint. What [`Unanswered::request`] is where there is no connection between.
pub const UNSEEN: HeaderName = HeaderName::from_static("coracle-unseen");

/// A component that serves HTTP, called directly.
pub trait HttpService: Send + Sync {
    /// Serves one request. Dropping the future gives the request up and frees what it held.
    fn call(&self, request: Request<HttpBody>) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>>;
}

/// A request that has no response.
#[derive(Debug)]
pub struct Unanswered {
    /// Why: for a log, not for whoever asked.
    pub error: HttpError,
    /// What the request is called where its component's log, or the node's, says more.
    pub id: RequestId,
    /// The request, where no guest has seen anything of it: it may be sent to another endpoint.
    pub request: Option<Box<Request<HttpBody>>>,
}

/// Why a component gave no response. The gateway turns each into the status named beside it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    /// 503: no instance may be made now, or the container is stopping.
    #[error("not serving: {reason}")]
    Unavailable {
        /// What stands in the way.
        reason: String,
    },
    /// 504: the request's time was up before the response began.
    #[error("no response within the time limit")]
    TimedOut,
    /// 502: the guest trapped, exited or answered nonsense, and the component's log has said how.
    #[error("the component failed, and its log says how")]
    Failed,
    /// 400: what was asked cannot be meant.
    #[error("{reason}")]
    Malformed {
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Says in a request for HTTP/1.1 that it has a body, where its length is not known: hyper takes a GET, HEAD or CONNECT
/// whose headers say nothing for one without, and drops what there is.
pub fn announce_body<B: Body>(request: &mut Request<B>) {
    let body = request.body();
    let is_known = body.is_end_stream() || body.size_hint().exact().is_some();
    let headers = request.headers_mut();
    if !is_known && !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// A body without bytes.
pub fn empty_body() -> HttpBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these bytes.
pub fn full_body(bytes: impl Into<Bytes>) -> HttpBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
