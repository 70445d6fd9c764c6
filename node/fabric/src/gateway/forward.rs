//! One request from a client to an endpoint and its response back.

use super::access_log::Asked;
use super::backend::{Backends, Failure, Fault, Pair, copy_without_body, not_serving};
use super::demand::UnderWay;
use super::function_meter::FunctionMeter;
use super::headers::{self, host_of};
use super::upgrade::{self, Upgrade};
use crate::fabric::{ENDPOINT_TRIES, Inner};
use crate::model::{BackendPort, Protocol};
use crate::service::{Choice, Failed};
use crate::tables::{OpenConnection, Service};
use bytes::Bytes;
use coracle_wasi_host::HTTP_TIMEOUT_DEFAULT;
use coracle_wasi_host::net::{BoxError, Client, HttpBody, NetError, RequestId, UNSEEN};
use coracle_wasi_host::serving::source_of;
use coracle_wasi_host::shares::{Holder, Permit, Shares};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, uri::Authority};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long an endpoint may take until its response begins: longer than a component, so that its own node gives it up, and
/// says so in its log.
const RESPONSE_TIMEOUT: Duration = HTTP_TIMEOUT_DEFAULT.saturating_add(Duration::from_secs(2));

/// How long a request waits for an instance of a function.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a host and path lead to.
struct Way {
    service: Arc<Service>,
    /// Which of its ports.
    port: usize,
    is_function: bool,
}

/// Forwards requests by the fabric's tables.
pub(super) struct Forwarder {
    fabric: Arc<Inner>,
    backends: Backends,
    /// Requests under way, by the namespaces that serve them: one that does not answer leaves a part to others.
    under_way: Arc<Shares>,
}

impl Forwarder {
    pub(super) fn new(fabric: Arc<Inner>) -> Self {
        let (backends, under_way) = (Backends::new(fabric.clone()), fabric.gateway_requests().clone());
        Self { fabric, backends, under_way }
    }

    /// Answers one request; what goes wrong is a response as well.
    pub(super) async fn serve(&self, peer: SocketAddr, request: Request<HttpBody>) -> Response<HttpBody> {
        let (begun, id) = (Instant::now(), RequestId::given(request.headers()));
        let line = self.fabric.access_log().map(|log| log.begin(peer, &request));
        let mut function = None;
        let response = match self.forward(peer, request, &mut function).await {
            Ok(response) => response,
            Err(fault) => fault.answer(id),
        };
        if let Some(meter) = function {
            meter.answered(response.status(), begun.elapsed());
        }
        self.fabric.gateway_meter().answered(response.status(), begun.elapsed());
        match line {
            Some(line) => line.answered(response),
            None => response,
        }
    }

    async fn forward(
        &self,
        peer: SocketAddr,
        mut request: Request<HttpBody>,
        function: &mut Option<Arc<FunctionMeter>>,
    ) -> Result<Response<HttpBody>, Fault> {
        if request.method() == Method::CONNECT {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "the gateway opens no tunnels".to_owned()).into());
        }
        let host =
            host_of(&request).ok_or((StatusCode::BAD_REQUEST, "the request names no host".to_owned()))?;
        let mut way = self.way(&host, request.uri().path())?;
        let wanted = upgrade::wanted(&request);
        let client = SocketAddr::new(
            headers::prepare(&mut request, peer.ip(), &host, self.fabric.trusted_proxies()),
            peer.port(),
        );
        request.extensions_mut().insert(Client(client.ip()));
        let permit = self.permit(client.ip(), &way.service)?;
        let under_way = way.is_function.then(|| self.fabric.demand().begin(&way.service));
        *function = under_way.as_ref().and_then(|under_way| under_way.meter().cloned());
        if let Some(under_way) = &under_way
            && self.fabric.choose(&way.service, way.port, client.ip(), &Failed::default()).is_none()
        {
            self.await_instance(&mut way, client.ip(), under_way, false).await?;
        }
        if let Some(wanted) = wanted {
            let to = (&way.service, way.port);
            let response = self.forward_upgrade(client, request, wanted, to, permit).await?;
            let response = self.told(response, client.ip(), &way.service);
            return Ok(response.map(|body| Holding { body, _held: under_way }.boxed_unsync()));
        }
        let mut held = Some((permit, under_way));
        let (mut failed, mut told) = (Failed::default(), None);
        let (mut tries, mut may_wait) = (0, true);
        while tries < ENDPOINT_TRIES {
            let choice = self.fabric.choose(&way.service, way.port, client.ip(), &failed);
            let Some(choice) = choice else {
                // Instances that were there have ended: others may be on their way.
                let Some((_, Some(under_way))) = held.as_ref().filter(|_| may_wait) else { break };
                self.await_instance(&mut way, client.ip(), under_way, true).await?;
                (failed, tries, may_wait) = (Failed::default(), 0, false);
                continue;
            };
            tries += 1;
            match self.attempt(request, client.ip(), choice, &way.service, &mut held).await {
                Ok(response) => {
                    self.fabric.remember(&way.service, client.ip(), choice);
                    return Ok(self.told(response, client.ip(), &way.service));
                }
                Err(Failure::Final(fault)) => return Err(fault),
                Err(Failure::Again { request: unserved, error, fault }) => {
                    self.fabric.note(&mut failed, choice, error);
                    (request, told) = (*unserved, fault);
                }
            }
        }
        Err(told.unwrap_or_else(|| unreachable(&way.service, &request, failed.last())))
    }

    /// Waits until a function's revision has an instance: `another` than those of which the way knows, where they fail.
    async fn await_instance(
        &self,
        way: &mut Way,
        client: IpAddr,
        under_way: &UnderWay,
        another: bool,
    ) -> Result<(), Fault> {
        let (namespace, name) = (way.service.namespace.clone(), way.service.entry.name.clone());
        let missing =
            |what: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("revision {namespace}/{name} {what}"));
        let (begun, waiting) = (Instant::now(), self.fabric.demand().wait(under_way));
        let awaited = async {
            loop {
                let mut changed = std::pin::pin!(waiting.changed());
                // What changes from here on is told.
                changed.as_mut().enable();
                let found = self.fabric.tables().service(&namespace, &name).cloned();
                let service = found.ok_or_else(|| missing("is gone"))?;
                let is_other = !another || !Arc::ptr_eq(&service, &way.service);
                if is_other && self.fabric.choose(&service, way.port, client, &Failed::default()).is_some() {
                    way.service = service;
                    return Ok::<_, Fault>(());
                }
                changed.await;
            }
        };
        let awaited = tokio::time::timeout(INSTANCE_TIMEOUT, awaited).await;
        awaited.map_err(|_| missing("had no instance in time"))??;
        if let Some(meter) = under_way.meter() {
            meter.waited(begun.elapsed());
        }
        Ok(())
    }

    /// The response, with what the access log tells of who was asked.
    fn told(
        &self,
        mut response: Response<HttpBody>,
        client: IpAddr,
        service: &Arc<Service>,
    ) -> Response<HttpBody> {
        if self.fabric.access_log().is_some() {
            response.extensions_mut().insert(Asked { client, service: service.clone() });
        }
        response
    }

    /// A part of all that may be under way: of the client and of the namespace that serves it, until the permit is dropped.
    fn permit(&self, client: IpAddr, service: &Service) -> Result<Permit, Fault> {
        let holder = Holder { namespace: service.namespace.clone(), pod: Some(source_of(client)) };
        self.under_way.take(&holder).map_err(|refused| {
            let refused = refused.of_client();
            self.fabric.refusals().note(&Holder { pod: None, ..holder }, refused);
            let text = format!("namespace {}: {refused}", service.entry.namespace);
            (StatusCode::SERVICE_UNAVAILABLE, text).into()
        })
    }

    /// One request to one endpoint. The endpoint counts as busy until the response's body has ended.
    async fn attempt(
        &self,
        request: Request<HttpBody>,
        client: IpAddr,
        choice: Choice,
        service: &Service,
        with: &mut Option<(Permit, Option<UnderWay>)>,
    ) -> Result<Response<HttpBody>, Failure> {
        let open = OpenConnection::count(&service.open[choice.index]);
        let pair = Pair::new(client, choice.address, service);
        let backend = match self.backends.reach(pair, service).await {
            Ok(backend) => backend,
            Err(error) => return Err(Failure::again(request, error)),
        };
        let answered = self.backends.ask(backend, request, pair, service);
        let answered = tokio::time::timeout(RESPONSE_TIMEOUT, answered).await;
        let (mut response, back) = answered.map_err(|_| {
            let text = format!("service {} did not answer in time", service.full_name());
            Failure::Final((StatusCode::GATEWAY_TIMEOUT, text).into())
        })??;
        headers::strip_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        let held = (open, with.take(), back);
        Ok(response.map(|body| Holding { body, _held: held }.boxed_unsync()))
    }

    /// What a host and path lead to.
    fn way(&self, host: &str, path: &str) -> Result<Way, Fault> {
        let tables = self.fabric.tables();
        let host = host.parse::<Authority>().map_or(host.to_owned(), |authority| authority.host().to_owned());
        let no_rule =
            || (StatusCode::NOT_FOUND, format!("no ingress and no function has a rule for {host}{path}"));
        let target = tables.router.route(&host, path).ok_or_else(no_rule)?;
        let backend = target.backend.choose(rand::random());
        let (namespace, name) = (&target.namespace, &backend.service);
        let missing = |what: String| (StatusCode::SERVICE_UNAVAILABLE, what);
        let service = tables.service(namespace, name).ok_or_else(|| {
            missing(format!("the rule names service {namespace}/{name}, which does not exist"))
        })?;
        let port = match &backend.port {
            BackendPort::Number(number) => service.port(Protocol::Tcp, *number),
            BackendPort::Name(name) => service.entry.ports.iter().position(|port| port.name == *name),
        };
        let port = port.ok_or_else(|| missing(format!("service {namespace}/{name} has no such port")))?;
        Ok(Way { service: service.clone(), port, is_function: target.is_function })
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
            let sender = match self.backends.connect(pair, service).await {
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
                let fault = not_serving(service, &response);
                request = again;
                fault.keep_id(&mut request);
                told = Some(fault);
                continue;
            }
            self.fabric.remember(service, client.ip(), choice);
            return match upgrade.take() {
                Some(upgrade) => Ok(upgrade.finish(response, sender, open)),
                None => Err((StatusCode::BAD_GATEWAY, "it has been answered".to_owned()).into()),
            };
        }
        Err(told.unwrap_or_else(|| unreachable(service, &request, failed.last())))
    }
}

/// No endpoint is left. What has failed at one of them before is told under the id that the request has from there.
fn unreachable(service: &Service, request: &Request<HttpBody>, error: Option<NetError>) -> Fault {
    let name = service.full_name();
    let (status, reason) = match error {
        None => (StatusCode::SERVICE_UNAVAILABLE, format!("service {name} has no ready endpoint")),
        Some(NetError::TimedOut) => {
            (StatusCode::GATEWAY_TIMEOUT, format!("service {name} cannot be reached in time"))
        }
        Some(error) => (StatusCode::BAD_GATEWAY, format!("service {name} cannot be reached: {error}")),
    };
    Fault { status, reason, id: RequestId::given(request.headers()) }
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
