//! Backends: what answers a request. A component of this node is called directly; an endpoint elsewhere is reached over a
//! connection, new or kept.

use super::pool::Pool;
use crate::fabric::Inner;
use crate::model::Protocol;
use crate::peer::Peer;
use crate::place::Hop;
use crate::tables::Service;
use coracle_wasi_host::net::{
    BoxError, HttpBody, HttpService, NetError, RequestId, UNSEEN, Unanswered, announce_body,
};
use coracle_wasi_host::serving::{bland_answer, status_of};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

pub(super) use super::pool::Pair;

/// Bytes of an answer that are read ahead of who takes them: its head is no larger.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The ways to endpoints.
pub(super) struct Backends {
    fabric: Arc<Inner>,
    pool: Arc<Pool>,
    /// The ports that the gateway's own connections come from, as endpoints see them.
    next_port: AtomicU16,
}

/// A way to an endpoint of a service, by which a request is answered.
pub(super) enum Backend {
    /// A component of this node, called directly.
    Component(Arc<dyn HttpService>),
    /// A new connection to an endpoint.
    Connection(SendRequest<HttpBody>),
    /// One that an earlier request has left open.
    Kept(SendRequest<HttpBody>),
}

/// Why a request could not be served.
pub(super) struct Fault {
    /// All that the client is told.
    pub(super) status: StatusCode,
    /// For the node's log.
    pub(super) reason: String,
    /// What the request is called where it failed, if somebody said that.
    pub(super) id: Option<RequestId>,
}

impl From<(StatusCode, String)> for Fault {
    fn from((status, reason): (StatusCode, String)) -> Self {
        Self { status, reason, id: None }
    }
}

impl Fault {
    /// What the client is answered whose request came with this id, or with none. The log has the same with the reason.
    #[cold]
    pub(super) fn answer(self, given: Option<RequestId>) -> Response<HttpBody> {
        let Self { status, reason, id } = self;
        let id = given.or(id).unwrap_or_else(RequestId::random);
        tracing::debug!(request = %id, status = status.as_u16(), reason, "request not answered");
        bland_answer(status, id)
    }

    /// A request that is tried elsewhere keeps the id by which it failed.
    pub(super) fn keep_id(&self, request: &mut Request<HttpBody>) {
        if let Some(id) = self.id {
            id.write_to(request.headers_mut());
        }
    }
}

/// Why one attempt at a request has no response.
pub(super) enum Failure {
    /// Another endpoint may have the request: it was not sent, or may be sent twice.
    Again {
        request: Box<Request<HttpBody>>,
        error: NetError,
        /// What it is where there is no other.
        fault: Option<Fault>,
    },
    Final(Fault),
}

impl Failure {
    pub(super) fn again(request: Request<HttpBody>, error: NetError) -> Self {
        Self::Again { request: Box::new(request), error, fault: None }
    }

    /// No guest has seen the request.
    fn unseen(mut request: Box<Request<HttpBody>>, fault: Fault) -> Self {
        fault.keep_id(&mut request);
        Self::Again { request, error: NetError::ConnectionRefused, fault: Some(fault) }
    }

    /// A component has no response.
    fn of_component(service: &Service, Unanswered { error, id, request }: Unanswered) -> Self {
        let reason = format!("service {}: {error}", service.full_name());
        let fault = Fault { status: status_of(&error), reason, id: Some(id) };
        match request {
            Some(request) => Self::unseen(request, fault),
            None => Self::Final(fault),
        }
    }
}

impl Backends {
    pub(super) fn new(fabric: Arc<Inner>) -> Self {
        Self { pool: fabric.kept().clone(), fabric, next_port: AtomicU16::new(1024) }
    }

    /// A component of this node, a kept connection, or a new one.
    pub(super) async fn reach(&self, pair: Pair, service: &Service) -> Result<Backend, NetError> {
        if let Some(component) = self.component(pair, service)? {
            return Ok(Backend::Component(component));
        }
        // That it may be reached was decided when it was opened.
        if let Some(sender) = self.pool.take(pair) {
            return Ok(Backend::Kept(sender));
        }
        Ok(Backend::Connection(self.connect(pair, service).await?))
    }

    /// The component of this node that an endpoint is.
    fn component(&self, pair: Pair, service: &Service) -> Result<Option<Arc<dyn HttpService>>, NetError> {
        let (policy, tables, to) = (self.fabric.policy(), self.fabric.tables(), pair.endpoint);
        let found = policy.place_endpoint(&tables, service, to, Protocol::Tcp)?;
        let Hop::Pod(network) = found.hop else { return Ok(None) };
        let Some(component) = network.http_service(to.port()) else { return Ok(None) };
        let client = Peer::client(pair.client, service.namespace.clone());
        policy.decide(&tables, &client, &found.peer, to.port(), Protocol::Tcp).ok()?;
        Ok(Some(component))
    }

    /// A new connection to an endpoint.
    pub(super) async fn connect(
        &self,
        pair: Pair,
        service: &Service,
    ) -> Result<SendRequest<HttpBody>, NetError> {
        let conn = self.fabric.dial_endpoint(self.source(), pair.client, pair.endpoint, service).await?;
        let handshake =
            http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(conn)).await;
        let (sender, connection) = handshake.map_err(|_| NetError::ConnectionReset)?;
        // It ends with its last request, or with the endpoint; how is told to the request.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Ok(sender)
    }

    /// What endpoints see the gateway's connections come from. Connections are told apart by their pipes, so
    /// a port that comes round again does no harm.
    fn source(&self) -> SocketAddr {
        let loopback = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        let ip = self.fabric.gateway_ip().unwrap_or(loopback);
        SocketAddr::new(ip, self.next_port.fetch_add(1, Ordering::Relaxed).max(1024))
    }

    /// Has a backend answer a request. What comes with the response is held until its body has ended.
    pub(super) async fn ask(
        &self,
        backend: Backend,
        request: Request<HttpBody>,
        pair: Pair,
        service: &Service,
    ) -> Result<(Response<HttpBody>, Option<Back>), Failure> {
        let sent = match backend {
            Backend::Component(component) => {
                let answered = component.call(request).await;
                let response = answered.map_err(|unanswered| Failure::of_component(service, unanswered))?;
                return Ok((response, None));
            }
            Backend::Connection(sender) => send_over(sender, request, service).await,
            Backend::Kept(sender) => match send_over(sender, request, service).await {
                // The endpoint may have closed it in this moment: a new one tells whether the endpoint is there.
                Err(Failure::Again { request, fault: None, .. }) => match self.connect(pair, service).await {
                    Ok(sender) => send_over(sender, *request, service).await,
                    Err(error) => Err(Failure::again(*request, error)),
                },
                sent => sent,
            },
        };
        let (response, sender) = sent?;
        let namespace = service.namespace.clone();
        let back = Back { pool: self.pool.clone(), pair, namespace, sender: Some(sender) };
        Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), Some(back)))
    }
}

/// Sends over a connection. A request that was not sent, or has no body and by its method may be sent twice
/// (RFC 9110, 9.2.2), comes back where the connection breaks before its response; one without a body also where the other
/// end says that no guest has seen it.
async fn send_over(
    mut sender: SendRequest<HttpBody>,
    mut request: Request<HttpBody>,
    service: &Service,
) -> Result<(Response<Incoming>, SendRequest<HttpBody>), Failure> {
    announce_body(&mut request);
    let copy = copy_without_body(&request);
    match sender.try_send_request(request).await {
        Ok(mut response) => match (response.headers_mut().remove(UNSEEN), copy) {
            (Some(_), Some(request)) => {
                Err(Failure::unseen(Box::new(request), not_serving(service, &response)))
            }
            _ => Ok((response, sender)),
        },
        Err(mut error) => match error.take_message().or(copy.filter(|copy| copy.method().is_idempotent())) {
            Some(request) => Err(Failure::again(request, NetError::ConnectionReset)),
            None => {
                let text = format!("service {} broke off: {}", service.full_name(), error.error());
                Err(Failure::Final((StatusCode::BAD_GATEWAY, text).into()))
            }
        },
    }
}

/// A copy of a request, if it has no body.
pub(super) fn copy_without_body(request: &Request<HttpBody>) -> Option<Request<HttpBody>> {
    if !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

/// An endpoint has said that no guest has seen the request.
pub(super) fn not_serving(service: &Service, response: &Response<Incoming>) -> Fault {
    let reason = format!("service {}: not serving", service.full_name());
    Fault { status: response.status(), reason, id: RequestId::given(response.headers()) }
}

/// A connection that goes back to the pool with the end of its response.
pub(super) struct Back {
    pool: Arc<Pool>,
    pair: Pair,
    /// The service's.
    namespace: Arc<str>,
    sender: Option<SendRequest<HttpBody>>,
}

impl Drop for Back {
    /// One whose response was not read to its end is not ready again, and the pool closes it.
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.pool.keep(self.pair, &self.namespace, sender);
        }
    }
}
