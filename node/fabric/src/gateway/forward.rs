//! One request from a client to an endpoint and its response back.

use super::answer;
use super::headers::{self, host_of};
use super::pool::{Pair, Pool};
use super::upgrade::{self, Upgrade};
use crate::fabric::{ENDPOINT_TRIES, Inner};
use crate::model::{BackendPort, Protocol};
use crate::policy::Place;
use crate::service::{Choice, Failed};
use crate::tables::{OpenConnection, Service};
use bytes::Bytes;
use coracle_wasi_host::net::{
    BoxError, Client, HttpBody, HttpError, HttpService, NetError, UNSEEN, Unanswered, announce_body,
};
use coracle_wasi_host::serving::source_of;
use coracle_wasi_host::shares::{Holder, Permit, Shares};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, uri::Authority};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// How long an endpoint may take until its response begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Forwards requests by the fabric's tables.
pub(super) struct Forwarder {
    fabric: Arc<Inner>,
    pool: Arc<Pool>,
    /// Requests under way, by the namespaces that serve them: one that does not answer leaves a part to others.
    under_way: Arc<Shares>,
    /// The ports that the gateway's own connections come from, as endpoints see them.
    next_port: AtomicU16,
}

/// A way to an endpoint.
enum Reached {
    Component(Arc<dyn HttpService>),
    /// A new connection.
    Connection(SendRequest<HttpBody>),
    /// One that an earlier request has left open.
    Kept(SendRequest<HttpBody>),
}

/// What the client is told of a request that could not be served.
type Fault = (StatusCode, String);

/// Why one attempt at a request has no response.
enum Failure {
    /// Another endpoint may have the request: it was not sent, or may be sent twice.
    Again {
        request: Box<Request<HttpBody>>,
        error: NetError,
        /// What the client is told where there is no other.
        fault: Option<Fault>,
    },
    Final(Fault),
}

impl Failure {
    fn again(request: Request<HttpBody>, error: NetError) -> Self {
        Self::Again { request: Box::new(request), error, fault: None }
    }

    /// A component has no response.
    fn of_component(service: &Service, unanswered: Unanswered) -> Self {
        let fault = component_failed(service, &unanswered.error);
        match unanswered.request {
            Some(request) => Self::Again { request, error: NetError::ConnectionRefused, fault: Some(fault) },
            None => Self::Final(fault),
        }
    }
}

impl Forwarder {
    pub(super) fn new(fabric: Arc<Inner>) -> Self {
        let (pool, under_way) = (fabric.kept().clone(), fabric.gateway_requests().clone());
        Self { pool, fabric, under_way, next_port: AtomicU16::new(1024) }
    }

    /// Answers one request; what goes wrong is a response as well.
    pub(super) async fn serve(&self, peer: SocketAddr, request: Request<HttpBody>) -> Response<HttpBody> {
        match self.forward(peer, request).await {
            Ok(response) => response,
            Err((status, text)) => answer(status, &text),
        }
    }

    async fn forward(
        &self,
        peer: SocketAddr,
        mut request: Request<HttpBody>,
    ) -> Result<Response<HttpBody>, Fault> {
        if request.method() == Method::CONNECT {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "the gateway opens no tunnels".to_owned()));
        }
        let host =
            host_of(&request).ok_or((StatusCode::BAD_REQUEST, "the request names no host".to_owned()))?;
        let (service, port) = self.service(&host, request.uri().path())?;
        let wanted = upgrade::wanted(&request);
        let client = SocketAddr::new(
            headers::prepare(&mut request, peer.ip(), &host, self.fabric.trusted_proxies()),
            peer.port(),
        );
        request.extensions_mut().insert(Client(client.ip()));
        let permit = self.permit(client.ip(), &service)?;
        if let Some(wanted) = wanted {
            return self.forward_upgrade(client, request, wanted, (&service, port), permit).await;
        }
        let mut permit = Some(permit);
        let (mut failed, mut told) = (Failed::default(), None);
        for _ in 0..ENDPOINT_TRIES {
            let Some(choice) = self.fabric.choose(&service, port, client.ip(), &failed) else { break };
            match self.attempt(request, client.ip(), choice, &service, &mut permit).await {
                Ok(response) => {
                    self.fabric.balancer().remember(&service, client.ip(), choice);
                    return Ok(response);
                }
                Err(Failure::Final(fault)) => return Err(fault),
                Err(Failure::Again { request: unserved, error, fault }) => {
                    self.fabric.note(&mut failed, choice, error);
                    (request, told) = (*unserved, fault);
                }
            }
        }
        Err(told.unwrap_or_else(|| unreachable(&service, failed.last())))
    }

    /// A part of all that may be under way: of the client and of the namespace that serves it, until the permit is dropped.
    fn permit(&self, client: IpAddr, service: &Service) -> Result<Permit, Fault> {
        let holder = Holder { namespace: service.namespace.clone(), pod: Some(source_of(client)) };
        self.under_way.take(&holder).ok_or_else(|| {
            let text = format!("too many requests to namespace {} are under way", service.entry.namespace);
            (StatusCode::SERVICE_UNAVAILABLE, text)
        })
    }

    /// One request to one endpoint. The endpoint counts as busy until the response's body has ended.
    async fn attempt(
        &self,
        request: Request<HttpBody>,
        client: IpAddr,
        choice: Choice,
        service: &Service,
        permit: &mut Option<Permit>,
    ) -> Result<Response<HttpBody>, Failure> {
        let open = OpenConnection::count(&service.open[choice.index]);
        let pair = Pair::new(client, choice.address, service);
        let reached = match self.reach(pair, service).await {
            Ok(reached) => reached,
            Err(error) => return Err(Failure::again(request, error)),
        };
        let sent = tokio::time::timeout(RESPONSE_TIMEOUT, self.send(reached, request, pair, service)).await;
        let (mut response, sender) = sent.map_err(|_| {
            let text = format!("service {} did not answer in time", service.full_name());
            Failure::Final((StatusCode::GATEWAY_TIMEOUT, text))
        })??;
        headers::strip_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        let namespace = service.namespace.clone();
        let back = Back { pool: self.pool.clone(), pair, namespace, sender };
        let held = (open, permit.take(), back);
        Ok(response.map(|body| Holding { body, _held: held }.boxed_unsync()))
    }

    /// The service that a host and path lead to, and which of its ports.
    fn service(&self, host: &str, path: &str) -> Result<(Arc<Service>, usize), Fault> {
        let tables = self.fabric.tables();
        let host = host.parse::<Authority>().map_or(host.to_owned(), |authority| authority.host().to_owned());
        let no_rule = || (StatusCode::NOT_FOUND, format!("no ingress has a rule for {host}{path}"));
        let target = tables.router.route(&host, path).ok_or_else(no_rule)?;
        let (namespace, name) = (&target.namespace, &target.backend.service);
        let missing = |what: String| (StatusCode::SERVICE_UNAVAILABLE, what);
        let service = tables.service(namespace, name).ok_or_else(|| {
            missing(format!("the ingress names service {namespace}/{name}, which does not exist"))
        })?;
        let port = match &target.backend.port {
            BackendPort::Number(number) => service.port(Protocol::Tcp, *number),
            BackendPort::Name(name) => service.entry.ports.iter().position(|port| port.name == *name),
        };
        let port = port.ok_or_else(|| missing(format!("service {namespace}/{name} has no such port")))?;
        Ok((service.clone(), port))
    }

    /// A component of this node, a kept connection, or a new one.
    async fn reach(&self, pair: Pair, service: &Service) -> Result<Reached, NetError> {
        let place = self.fabric.policy().place(&self.fabric.tables(), pair.endpoint, Protocol::Tcp)?;
        if let Place::Pod(namespace) = &place
            && let Some(component) = namespace.http_service(pair.endpoint.port())
        {
            return Ok(Reached::Component(component));
        }
        if let Some(sender) = self.pool.take(pair) {
            return Ok(Reached::Kept(sender));
        }
        Ok(Reached::Connection(self.connect(pair, service).await?))
    }

    async fn connect(&self, pair: Pair, service: &Service) -> Result<SendRequest<HttpBody>, NetError> {
        let conn = self.fabric.dial_endpoint(self.source(), pair.client, pair.endpoint, service).await?;
        let handshake = http1::handshake(TokioIo::new(conn)).await;
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

    async fn send(
        &self,
        reached: Reached,
        request: Request<HttpBody>,
        pair: Pair,
        service: &Service,
    ) -> Result<(Response<HttpBody>, Option<SendRequest<HttpBody>>), Failure> {
        let sent = match reached {
            Reached::Component(component) => {
                let answered = component.call(request).await;
                let response = answered.map_err(|unanswered| Failure::of_component(service, unanswered))?;
                return Ok((response, None));
            }
            Reached::Connection(sender) => send_over(sender, request, service).await,
            Reached::Kept(sender) => match send_over(sender, request, service).await {
                // The endpoint may have closed it in this moment: a new one tells whether the endpoint is there.
                Err(Failure::Again { request, fault: None, .. }) => match self.connect(pair, service).await {
                    Ok(sender) => send_over(sender, *request, service).await,
                    Err(error) => Err(Failure::again(*request, error)),
                },
                sent => sent,
            },
        };
        let (response, sender) = sent?;
        Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), Some(sender)))
    }

    async fn forward_upgrade(
        &self,
        client: SocketAddr,
        mut request: Request<HttpBody>,
        wanted: HeaderValue,
        (service, port): (&Arc<Service>, usize),
        permit: Permit,
    ) -> Result<Response<HttpBody>, Fault> {
        let mut upgrade = Some(Upgrade::begin(&mut request, wanted, permit, self.fabric.stopped().clone()));
        let (mut failed, mut told) = (Failed::default(), None);
        for _ in 0..ENDPOINT_TRIES {
            let Some(choice) = self.fabric.choose(service, port, client.ip(), &failed) else { break };
            let open = OpenConnection::count(&service.open[choice.index]);
            let pair = Pair::new(client.ip(), choice.address, service);
            let sender = match self.connect(pair, service).await {
                Ok(sender) => sender,
                Err(error) => {
                    self.fabric.note(&mut failed, choice, error);
                    continue;
                }
            };
            let copy = copy_without_body(&request);
            let asked = tokio::time::timeout(RESPONSE_TIMEOUT, upgrade::ask(sender, request)).await;
            let name = service.full_name();
            let (response, sender) = asked
                .map_err(|_| (StatusCode::GATEWAY_TIMEOUT, format!("service {name} did not answer in time")))?
                .map_err(|error| (StatusCode::BAD_GATEWAY, format!("service {name} broke off: {error}")))?;
            if response.headers().contains_key(UNSEEN)
                && let Some(again) = copy
            {
                self.fabric.note(&mut failed, choice, NetError::ConnectionRefused);
                told = Some((response.status(), format!("service {name}: not serving")));
                request = again;
                continue;
            }
            self.fabric.balancer().remember(service, client.ip(), choice);
            return Ok(match upgrade.take() {
                Some(upgrade) => upgrade.finish(response, sender, open),
                None => answer(StatusCode::BAD_GATEWAY, "it has been answered"),
            });
        }
        Err(told.unwrap_or_else(|| unreachable(service, failed.last())))
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
            (Some(_), Some(request)) => Err(Failure::Again {
                request: Box::new(request),
                error: NetError::ConnectionRefused,
                fault: Some((response.status(), format!("service {}: not serving", service.full_name()))),
            }),
            _ => Ok((response, sender)),
        },
        Err(mut error) => match error.take_message().or(copy.filter(|copy| copy.method().is_idempotent())) {
            Some(request) => Err(Failure::again(request, NetError::ConnectionReset)),
            None => {
                let text = format!("service {} broke off: {}", service.full_name(), error.error());
                Err(Failure::Final((StatusCode::BAD_GATEWAY, text)))
            }
        },
    }
}

/// A copy of a request, if it has no body.
fn copy_without_body(request: &Request<HttpBody>) -> Option<Request<HttpBody>> {
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

fn unreachable(service: &Service, error: Option<NetError>) -> Fault {
    let name = service.full_name();
    match error {
        None => (StatusCode::SERVICE_UNAVAILABLE, format!("service {name} has no ready endpoint")),
        Some(NetError::TimedOut) => {
            (StatusCode::GATEWAY_TIMEOUT, format!("service {name} cannot be reached in time"))
        }
        Some(error) => (StatusCode::BAD_GATEWAY, format!("service {name} cannot be reached: {error}")),
    }
}

fn component_failed(service: &Service, error: &HttpError) -> Fault {
    let status = match error {
        HttpError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        HttpError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        HttpError::Failed { .. } => StatusCode::BAD_GATEWAY,
    };
    (status, format!("service {}: {error}", service.full_name()))
}

/// A response's body, with what is held for as long as it lasts.
pub(super) struct Holding<T> {
    pub(super) body: HttpBody,
    pub(super) _held: T,
}

impl<T: Unpin> Body for Holding<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that goes back to the pool with the end of its response.
struct Back {
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
