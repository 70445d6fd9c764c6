//! One request from a client to an endpoint and its response back.

use super::answer;
use super::pool::Pool;
use super::upgrade;
use crate::fabric::{ENDPOINT_TRIES, Inner};
use crate::model::{BackendPort, Protocol};
use crate::policy::Place;
use crate::service::{Choice, Failed};
use crate::tables::{OpenConnection, Service};
use bytes::Bytes;
use coracle_wasi_host::net::{BoxError, HttpBody, HttpError, HttpService, NetError};
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, uri::Authority};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// How long an endpoint may take until its response begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Headers of one connection, which are nobody's business beyond it (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Forwards requests by the fabric's tables.
pub(super) struct Forwarder {
    fabric: Arc<Inner>,
    pool: Arc<Pool>,
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
    },
    Final(Fault),
}

impl Failure {
    fn again(request: Request<HttpBody>, error: NetError) -> Self {
        Self::Again { request: Box::new(request), error }
    }
}

impl Forwarder {
    pub(super) fn new(fabric: Arc<Inner>) -> Self {
        Self { fabric, pool: Arc::default(), next_port: AtomicU16::new(1024) }
    }

    /// Answers one request; what goes wrong is a response as well.
    pub(super) async fn serve(&self, client: SocketAddr, request: Request<Incoming>) -> Response<HttpBody> {
        match self.forward(client, request).await {
            Ok(response) => response,
            Err((status, text)) => answer(status, &text),
        }
    }

    async fn forward(
        &self,
        client: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<Response<HttpBody>, Fault> {
        let host =
            host_of(&request).ok_or((StatusCode::BAD_REQUEST, "the request names no host".to_owned()))?;
        let (service, port) = self.service(&host, request.uri().path())?;
        if upgrade::is_wanted(&request) {
            return self.forward_upgrade(client, request, &host, &service, port).await;
        }
        let (parts, body) = request.into_parts();
        let body = body.map_err(BoxError::from).boxed_unsync();
        let mut request = Request::from_parts(parts, body);
        prepare(&mut request, client, &host);
        let mut failed = Failed::default();
        for _ in 0..ENDPOINT_TRIES {
            let Some(choice) = self.fabric.choose(&service, port, client.ip(), &failed) else { break };
            match self.attempt(request, choice, &service).await {
                Ok(response) => {
                    self.fabric.balancer().remember(&service, client.ip(), choice);
                    return Ok(response);
                }
                Err(Failure::Final(fault)) => return Err(fault),
                Err(Failure::Again { request: unserved, error }) => {
                    self.fabric.note(&mut failed, choice, error);
                    request = *unserved;
                }
            }
        }
        Err(unreachable(&service, failed.last()))
    }

    /// One request to one endpoint. The endpoint counts as busy until the response's body has ended.
    async fn attempt(
        &self,
        request: Request<HttpBody>,
        choice: Choice,
        service: &Service,
    ) -> Result<Response<HttpBody>, Failure> {
        let open = OpenConnection::count(&service.open[choice.index]);
        let reached = match self.reach(choice, service).await {
            Ok(reached) => reached,
            Err(error) => return Err(Failure::again(request, error)),
        };
        let sent = tokio::time::timeout(RESPONSE_TIMEOUT, self.send(reached, request, choice, service)).await;
        let (mut response, sender) = sent.map_err(|_| {
            let text = format!("service {} did not answer in time", service.full_name());
            Failure::Final((StatusCode::GATEWAY_TIMEOUT, text))
        })??;
        strip_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        let back = sender.map(|sender| (self.pool.clone(), choice.address, sender));
        Ok(response.map(|body| Tracked { body, _open: open, back }.boxed_unsync()))
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
    async fn reach(&self, choice: Choice, service: &Service) -> Result<Reached, NetError> {
        let place = self.fabric.policy().place(&self.fabric.tables(), choice.address, Protocol::Tcp)?;
        if let Place::Pod(namespace) = &place
            && let Some(component) = namespace.http_service(choice.address.port())
        {
            return Ok(Reached::Component(component));
        }
        if let Some(sender) = self.pool.take(choice.address) {
            return Ok(Reached::Kept(sender));
        }
        Ok(Reached::Connection(self.connect(choice.address, service).await?))
    }

    async fn connect(
        &self,
        endpoint: SocketAddr,
        service: &Service,
    ) -> Result<SendRequest<HttpBody>, NetError> {
        let conn = self.fabric.dial_endpoint(self.source(), endpoint, service).await?;
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
        choice: Choice,
        service: &Service,
    ) -> Result<(Response<HttpBody>, Option<SendRequest<HttpBody>>), Failure> {
        let sent = match reached {
            Reached::Component(component) => {
                let answered = component.call(request).await;
                let response = answered.map_err(|error| Failure::Final(component_failed(service, &error)))?;
                return Ok((response, None));
            }
            Reached::Connection(sender) => send_over(sender, request, service).await,
            Reached::Kept(sender) => match send_over(sender, request, service).await {
                // The endpoint may have closed it in this moment: a new one tells whether the endpoint is there.
                Err(Failure::Again { request, .. }) => match self.connect(choice.address, service).await {
                    Ok(sender) => send_over(sender, *request, service).await,
                    Err(error) => Err(Failure::Again { request, error }),
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
        mut request: Request<Incoming>,
        host: &str,
        service: &Arc<Service>,
        port: usize,
    ) -> Result<Response<HttpBody>, Fault> {
        let wanted = request.headers().get(header::UPGRADE).cloned();
        prepare(&mut request, client, host);
        let mut failed = Failed::default();
        for _ in 0..ENDPOINT_TRIES {
            let Some(choice) = self.fabric.choose(service, port, client.ip(), &failed) else { break };
            let open = OpenConnection::count(&service.open[choice.index]);
            match self.connect(choice.address, service).await {
                Ok(sender) => {
                    self.fabric.balancer().remember(service, client.ip(), choice);
                    let late = tokio::time::timeout(
                        RESPONSE_TIMEOUT,
                        upgrade::forward(sender, request, wanted, open),
                    );
                    let name = service.full_name();
                    return match late.await {
                        Ok(Ok(response)) => Ok(response),
                        Ok(Err(error)) => {
                            Err((StatusCode::BAD_GATEWAY, format!("service {name} broke off: {error}")))
                        }
                        Err(_) => Err((
                            StatusCode::GATEWAY_TIMEOUT,
                            format!("service {name} did not answer in time"),
                        )),
                    };
                }
                Err(error) => self.fabric.note(&mut failed, choice, error),
            }
        }
        Err(unreachable(service, failed.last()))
    }
}

fn host_of<B>(request: &Request<B>) -> Option<String> {
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    authority.or_else(|| request.headers().get(header::HOST)?.to_str().ok().map(str::to_owned))
}

/// Makes a client's request the gateway's own: origin form, HTTP/1.1, told where it came from.
fn prepare<B>(request: &mut Request<B>, client: SocketAddr, host: &str) {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip_hop_by_hop(headers);
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host.clone());
        headers.insert(FORWARDED_HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    let before = headers.get(&FORWARDED_FOR).and_then(|value| value.to_str().ok());
    let chain = before.map_or_else(|| client.ip().to_string(), |before| format!("{before}, {}", client.ip()));
    if let Ok(chain) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain([&KEEP_ALIVE]) {
        headers.remove(name);
    }
}

/// Sends over a connection. A request that was not sent, or has no body and by its method may be sent twice
/// (RFC 9110, 9.2.2), comes back where the connection breaks before its response.
async fn send_over(
    mut sender: SendRequest<HttpBody>,
    request: Request<HttpBody>,
    service: &Service,
) -> Result<(Response<Incoming>, SendRequest<HttpBody>), Failure> {
    let copy = repeatable(&request);
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response, sender)),
        Err(mut error) => match error.take_message().or(copy) {
            Some(request) => Err(Failure::again(request, NetError::ConnectionReset)),
            None => {
                let text = format!("service {} broke off: {}", service.full_name(), error.error());
                Err(Failure::Final((StatusCode::BAD_GATEWAY, text)))
            }
        },
    }
}

/// A copy of a request that may be sent twice.
fn repeatable(request: &Request<HttpBody>) -> Option<Request<HttpBody>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
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

/// A response's body. While it lasts its endpoint is counted as busy; at its end its connection is kept.
struct Tracked {
    body: HttpBody,
    _open: OpenConnection,
    back: Option<(Arc<Pool>, SocketAddr, SendRequest<HttpBody>)>,
}

impl Body for Tracked {
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

impl Drop for Tracked {
    /// A connection whose response was not read to its end is not ready again, and the pool closes it.
    fn drop(&mut self) {
        if let Some((pool, endpoint, sender)) = self.back.take() {
            pool.keep(endpoint, sender);
        }
    }
}
