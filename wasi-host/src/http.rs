//! HTTP components: requests in, by a direct call or over the pod's network, and requests out.
//!
//! Each request is served by a guest on the guests' executor; the caller waits for the response's head with the time
//! limit in its own hands. What is under way is bounded, and refused beyond the bound.

mod capability;
mod clients;
mod contents;
mod delivery;
mod failure;
mod growing;
mod guest_body;
mod listen;
mod outgoing;
mod p2;
mod p3;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, HeaderValue, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use wasmtime_wasi_http::{Error as WasiError, WasiBody};

use crate::artifact::Pre;
use crate::exit::Exit;
use crate::net::{BoxError, Client, HttpBody, HttpError, HttpService, RequestId, Unanswered};
use crate::refusals::{Bound, Refused, What};
use crate::sandbox::{Sandbox, StartError};
use crate::serving::PROBES_MAX;

pub(crate) use capability::PodHttp;
use clients::{Clients, UnderWay};
use contents::fields_bytes;
use failure::Failed;
use guest_body::GivenBody;

/// Requests of one container that may be under way; more are answered with 503.
const IN_FLIGHT_MAX: usize = 1024;

/// Instances that a request is given to where the one before ended without coming to it.
const INSTANCE_TRIES: u32 = 3;

/// How often requests are looked for whose time is over after their response began.
const SWEEP_PERIOD: Duration = Duration::from_millis(250);

/// Bytes of a request's head that are part of what its instance takes anyway.
const HEAD_BYTES_FREE: u64 = 4 << 10;

const ENDED: &str = "the container has ended";

/// How a guest's task tells the caller the response.
type Reply = oneshot::Sender<Answer>;

/// What becomes of a request.
type Answer = Result<Response<HttpBody>, NoResponse>;

enum NoResponse {
    /// A guest had the request.
    Failed(HttpError),
    /// No guest has seen anything of it.
    Unserved { request: Box<Request<WasiBody>>, error: HttpError },
}

impl From<HttpError> for NoResponse {
    fn from(error: HttpError) -> Self {
        Self::Failed(error)
    }
}

/// Whose pod made a request, where it is another namespace's, as an extension of it.
#[derive(Clone)]
struct Foreign(Arc<str>);

/// The mark of a request that the node makes to see whether the container serves, as an extension of it. What came over a
/// connection of clients never has it.
#[derive(Clone)]
struct Probe;

/// Serves an HTTP component, as a value and on the pod's port.
pub(crate) fn start(sandbox: &Arc<Sandbox>, port: u16, timeout: Duration) -> Result<(), StartError> {
    let listener = sandbox.listen(port)?;
    let server = Arc::new(Server {
        sandbox: Arc::clone(sandbox),
        timeout,
        in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        probes: Arc::new(Semaphore::new(PROBES_MAX)),
        is_probed: AtomicBool::new(false),
        clients: Arc::default(),
        busy: Notify::new(),
        pool: p3::Pool::default(),
    });
    let service: Arc<dyn HttpService> = Arc::new(Service { server: Arc::clone(&server) });
    sandbox.grants.namespace.serve_http(port, Arc::clone(&service));
    let runtime = &sandbox.host.runtime;
    runtime.spawn(sweep(Arc::clone(&server)));
    runtime.spawn(async move {
        listen::serve(&server, listener, service).await;
        // Also where the listener failed without anybody asking for a stop.
        server.sandbox.grants.namespace.withdraw_http();
        // All permits are free once the last request is done and its response has gone out; while they are waited
        // for, no other request gets one.
        let drained = async {
            let _all = server.in_flight.acquire_many(IN_FLIGHT_MAX as u32).await;
            let _probes = server.probes.acquire_many(PROBES_MAX as u32).await;
        };
        let ended = &server.sandbox.ended;
        let exit = tokio::select! {
            biased;
            () = ended.cancelled() => Exit::Killed,
            () = drained => Exit::Completed { code: 0 },
        };
        server.sandbox.end(exit);
    });
    Ok(())
}

/// One container's HTTP.
struct Server {
    sandbox: Arc<Sandbox>,
    timeout: Duration,
    in_flight: Arc<Semaphore>,
    /// What the node asks has places of its own: clients that fill all of theirs fail no probe.
    probes: Arc<Semaphore>,
    is_probed: AtomicBool,
    clients: Arc<Clients>,
    /// Told at each request's begin.
    busy: Notify,
    pool: p3::Pool,
}

/// A request on its way to a guest. Where it is dropped before a guest has it, whatever the reason, its caller gets it
/// back.
struct Call {
    delivery: Option<Handover>,
}

/// What the guest that serves a request needs.
struct Handover {
    request: Request<WasiBody>,
    id: RequestId,
    /// Its response has no body whatever its headers say.
    is_head: bool,
    reply: Reply,
    /// Free again when the guest is done with the request and the response's body has ended.
    permit: Permit,
}

impl Call {
    fn new(id: RequestId, request: Request<WasiBody>, reply: Reply, permit: Permit) -> Self {
        let is_head = request.method() == http::Method::HEAD;
        Self { delivery: Some(Handover { request, id, is_head, reply, permit }) }
    }

    /// Bytes of the host that the request's head takes; few are not counted.
    fn head_bytes(&self) -> u64 {
        let Some(Handover { request, .. }) = &self.delivery else { return 0 };
        let uri = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
        let bytes = fields_bytes(request.headers()) + uri as u64;
        if bytes <= HEAD_BYTES_FREE { 0 } else { bytes }
    }

    fn id(&self) -> Option<RequestId> {
        self.delivery.as_ref().map(|delivery| delivery.id)
    }

    /// Whether the node itself asks.
    fn is_probe(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.permit.is_probe)
    }

    /// Hands the request to a guest: from here on it is served once or never.
    fn hand_over(mut self) -> Option<Handover> {
        self.delivery.take()
    }

    /// Gives the request back, with the reason.
    fn refuse(mut self, error: HttpError) {
        self.give_back(error);
    }

    fn give_back(&mut self, error: HttpError) {
        if let Some(Handover { request, reply, .. }) = self.delivery.take() {
            // Whoever asked may have gone away.
            let _ = reply.send(Err(NoResponse::Unserved { request: Box::new(request), error }));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.give_back(unavailable("the instance ended before it came to the request"));
    }
}

/// A request's place among those under way, held by the guest that serves it and by its response's body.
type Permit = Arc<InFlight>;

struct InFlight {
    _of_all: OwnedSemaphorePermit,
    _of_its_client: Option<UnderWay>,
    is_probe: bool,
}

struct Service {
    server: Arc<Server>,
}

impl HttpService for Service {
    fn call(&self, request: Request<HttpBody>) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>> {
        let server = Arc::clone(&self.server);
        Box::pin(async move { server.call(request).await })
    }
}

impl Server {
    /// Serves a request, or says in a log why it has no response.
    async fn call(self: &Arc<Server>, request: Request<HttpBody>) -> Result<Response<HttpBody>, Unanswered> {
        let id = RequestId::of(request.headers());
        self.answer(id, request).await.inspect_err(|unanswered| self.log_unanswered(unanswered))
    }

    async fn answer(
        self: &Arc<Server>,
        id: RequestId,
        request: Request<HttpBody>,
    ) -> Result<Response<HttpBody>, Unanswered> {
        let sandbox = &self.sandbox;
        let failed = |error| Unanswered { error, id, request: None };
        let unserved = |request, error| Unanswered { error, id, request: Some(Box::new(request)) };
        if sandbox.ended.is_cancelled() {
            return Err(unserved(request, ended()));
        }
        let permit = match self.admit(request.extensions()) {
            Ok(permit) => permit,
            Err(reason) => return Err(unserved(request, HttpError::Unavailable { reason })),
        };
        let target = request.uri().clone();
        let request = complete(request, sandbox.grants.namespace.hostname()).map_err(failed)?;
        let deadline = Instant::now() + self.timeout;
        self.busy.notify_one();
        self.serve(id, request, Arc::new(permit), deadline).await.map_err(|failure| match failure {
            NoResponse::Failed(error) => failed(error),
            NoResponse::Unserved { request, error } => {
                let mut request =
                    request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
                *request.uri_mut() = target;
                unserved(request, error)
            }
        })
    }

    /// A place among what is under way, or why there is none. A request that comes while the container stops was on its way
    /// before: it is served until the last ones are waited for.
    fn admit(&self, marks: &Extensions) -> Result<InFlight, String> {
        let is_probe = marks.get::<Probe>().is_some();
        let (places, places_max) =
            if is_probe { (&self.probes, PROBES_MAX) } else { (&self.in_flight, IN_FLIGHT_MAX) };
        let of_all = Arc::clone(places).try_acquire_owned().map_err(|_| {
            if self.sandbox.stop.is_cancelled() || self.sandbox.ended.is_cancelled() {
                return "the container is stopping".to_owned();
            }
            self.refused(Refused::full(What::Requests, Bound::Container, places_max))
        })?;
        let mut of_its_client = None;
        if is_probe {
            self.is_probed.store(true, Ordering::Relaxed);
        } else if let Some(Client(client)) = marks.get() {
            let namespace = marks.get().map(|Foreign(namespace)| namespace.clone());
            let share = self.clients.begin(*client, namespace, || self.could_begin());
            of_its_client = Some(share.map_err(|refused| self.refused(refused))?);
        }
        Ok(InFlight { _of_all: of_all, _of_its_client: of_its_client, is_probe })
    }

    /// What the node's log says of a refusal; the pod's owner is told of it too.
    #[cold]
    fn refused(&self, refused: Refused) -> String {
        self.sandbox.account.note(refused);
        refused.to_string()
    }

    /// Whether anything is under way.
    fn is_busy(&self) -> bool {
        self.in_flight.available_permits() < IN_FLIGHT_MAX || self.probes.available_permits() < PROBES_MAX
    }

    /// Whether clients' requests leave the first instance to the node's probes: a component of an instance for each
    /// request does, once there are probes, as long as it gets other ones.
    fn leaves_first(&self) -> bool {
        self.is_probed.load(Ordering::Relaxed)
    }

    /// Requests that could begin now beside those under way, one that is about to begin among the former.
    fn could_begin(&self) -> usize {
        let instances = self.sandbox.share.instances_max() as usize;
        let requests = match &self.sandbox.artifact.pre {
            Pre::HttpP3(_) => p3::requests_max(instances),
            _ => instances.saturating_sub(usize::from(self.leaves_first())).max(1),
        };
        let under_way = IN_FLIGHT_MAX - self.in_flight.available_permits();
        (requests.min(IN_FLIGHT_MAX) + 1).saturating_sub(under_way)
    }

    /// Serves a request by an instance, and by another where the first ended before it came to the request.
    async fn serve(
        self: &Arc<Server>,
        id: RequestId,
        mut request: Request<WasiBody>,
        permit: Permit,
        deadline: Instant,
    ) -> Answer {
        let mut tries = 0;
        loop {
            tries += 1;
            let (reply, response) = oneshot::channel();
            let call = Call::new(id, request, reply, Arc::clone(&permit));
            let answer = match &self.sandbox.artifact.pre {
                Pre::HttpP2(_) => {
                    let response = p2::call(self, (id, call), response, deadline).await?;
                    return Ok(holding(response, permit, None));
                }
                Pre::HttpP3(_) => p3::call(self, call, response, deadline, tries > 1).await,
                Pre::CommandP1(_) | Pre::CommandP2(_) | Pre::CommandP3(_) => {
                    return Err(unavailable("not an HTTP component").into());
                }
            };
            request = match answer {
                Ok((response, waiting)) => {
                    return Ok(holding(response, (permit, waiting), Some(deadline)));
                }
                Err(NoResponse::Unserved { request, .. })
                    if tries < INSTANCE_TRIES && !self.sandbox.ended.is_cancelled() =>
                {
                    *request
                }
                Err(failure) => return Err(failure),
            };
        }
    }
}

/// The response, with something that is kept until its body has ended or is dropped, at the latest until its time is
/// over.
fn holding<T: Overdue + Send + Unpin + 'static>(
    response: Response<HttpBody>,
    held: T,
    deadline: Option<Instant>,
) -> Response<HttpBody> {
    let timer = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
    response.map(|body| Holding { body, held: Some(held), timer }.boxed_unsync())
}

/// Something that is kept while a response's body goes on.
trait Overdue {
    /// The time for the body is over, and it has not ended.
    fn is_overdue(&mut self);
}

impl Overdue for Permit {
    /// The guest's own task has the same time.
    fn is_overdue(&mut self) {}
}

impl Overdue for (Permit, p3::Waiting) {
    fn is_overdue(&mut self) {
        self.1.give_up();
    }
}

struct Holding<T> {
    body: HttpBody,
    held: Option<T>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<T: Overdue + Unpin> Body for Holding<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let overdue = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(context).is_ready());
        let polled = if overdue {
            if let Some(held) = &mut self.held {
                held.is_overdue();
            }
            Poll::Ready(Some(Err(Box::new(HttpError::TimedOut) as BoxError)))
        } else {
            Pin::new(&mut self.body).poll_frame(context)
        };
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            (self.held, self.timer) = (None, None);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Ends guests' tasks whose time is over although their response has begun, while there are any.
async fn sweep(server: Arc<Server>) {
    let sweeping = async {
        loop {
            server.busy.notified().await;
            while server.is_busy() {
                tokio::time::sleep(SWEEP_PERIOD).await;
                server.sandbox.group.abort_expired(Instant::now());
            }
        }
    };
    tokio::select! {
        () = sweeping => {}
        () = server.sandbox.ended.cancelled() => {}
    }
}

/// Gives the request the absolute URI and the Host header that both versions of WASI need.
fn complete(request: Request<HttpBody>, hostname: &str) -> Result<Request<WasiBody>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let named = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let authority = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let host = authority.or(named).unwrap_or_else(|| hostname.to_owned());
    let malformed = |_| HttpError::Malformed { reason: "the request's host is malformed" };
    let authority: Authority = host.parse().map_err(malformed)?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(uri.scheme.unwrap_or(Scheme::HTTP));
    uri.authority = Some(authority);
    uri.path_and_query = Some(uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let malformed = |_| HttpError::Malformed { reason: "the request's target is malformed" };
    parts.uri = Uri::from_parts(uri).map_err(malformed)?;
    if !parts.headers.contains_key(HOST)
        && let Ok(value) = HeaderValue::try_from(host)
    {
        parts.headers.insert(HOST, value);
    }
    let body = body.map_err(|error| WasiError::InternalError(Some(error.to_string())));
    Ok(Request::from_parts(parts, GivenBody(body).boxed_unsync()))
}

fn ended() -> HttpError {
    unavailable(ENDED)
}

fn unavailable(reason: &str) -> HttpError {
    HttpError::Unavailable { reason: reason.to_owned() }
}
