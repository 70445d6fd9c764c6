//! Requests that guests send: over the pod's network to names and addresses that it resolves, and nowhere else.
//!
//! A component of the same pod is called directly; everything else goes over a connection that the pod's uplink
//! dials. The host's own network is out of reach from here.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, BodyStream, Empty, StreamBody};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::contents::{BODY_CHUNK_BYTES, BODY_CHUNK_BYTES_SQUEEZED};
use super::guest_body::{GivenBody, GuestBodies, GuestBody};
use crate::ledger::{Account, Charge, Holding};
use crate::net::{BoxError, Conn, HttpBody, HttpError, Namespace, NetError, Unanswered, announce_body};
use crate::refusals::{Bound, Refused, What};

/// Outgoing requests of one container at once.
pub(crate) const OUTGOING_MAX: usize = 256;

/// Bytes that a connection reads ahead, a response's head among them, and that it may have to write.
const BUFFER_BYTES: usize = 64 << 10;

/// Bytes of the host that an outgoing request takes until its response has ended, beside its body.
const OUTGOING_BYTES: u64 = 64 << 10;

/// Where the guest says nothing: as long as a caller is likely to wait.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// How long a guest may take to begin the body of a request that usually has none, before its head is sent without.
const BODY_BEGIN_TIMEOUT: Duration = Duration::from_millis(50);

const HTTP_PORT: u16 = 80;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

/// The part of a store that sends its guest's requests.
pub(crate) struct OutgoingHttp {
    namespace: Namespace,
    permits: Arc<Semaphore>,
    account: Arc<Account>,
    /// Of requests that it has sent.
    bodies: GuestBodies,
    /// Fields or bodies of the guest may have become larger.
    changed: bool,
    /// The guest gets only small bodies.
    squeezed: bool,
}

impl OutgoingHttp {
    pub(crate) fn new(namespace: Namespace, permits: Arc<Semaphore>, account: Arc<Account>) -> OutgoingHttp {
        let bodies = GuestBodies::default();
        OutgoingHttp { namespace, permits, account, bodies, changed: false, squeezed: false }
    }

    /// True where something has become larger since it was asked last.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Has the guest make do with what it has, or no longer so.
    pub(crate) fn squeeze(&mut self, squeezed: bool) {
        self.squeezed = squeezed;
    }

    /// The guest ends: so do the requests that it has not.
    pub(crate) fn cut_bodies(&self) {
        self.bodies.cut();
    }

    /// Notes a change that no hook tells of.
    pub(crate) fn note_change(&mut self) {
        self.changed = true;
    }

    fn body_chunk(&mut self) -> usize {
        self.changed = true;
        if self.squeezed { BODY_CHUNK_BYTES_SQUEEZED } else { BODY_CHUNK_BYTES }
    }
}

impl WasiHttpHooks for OutgoingHttp {
    /// Asked at each change of a set of fields, and for each field of those that come in.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        self.changed = true;
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        self.body_chunk()
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        self.body_chunk()
    }

    /// Within a cluster plain HTTP is what is meant.
    fn default_scheme(&mut self) -> Option<Scheme> {
        Some(Scheme::HTTP)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let namespace = self.namespace.clone();
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let options = options.unwrap_or_default();
        let account = Arc::clone(&self.account);
        let request = request.map(|body| self.bodies.add(body));
        Box::new(async move {
            let permit = permit.map_err(|_| {
                account.note(Refused::full(What::OutgoingRequests, Bound::Container, OUTGOING_MAX));
                Error::ConnectionLimitReached
            })?;
            let charge = account.charge(Holding::Heap, OUTGOING_BYTES);
            let charge = charge.map_err(|refused| Error::InternalError(Some(refused.to_string())))?;
            let request = request.map(|body| HeldBody { body, account }.boxed_unsync());
            let first_byte = options.first_byte_timeout.unwrap_or(TIMEOUT_DEFAULT);
            let between_bytes = options.between_bytes_timeout.unwrap_or(TIMEOUT_DEFAULT);
            let connect = options.connect_timeout.unwrap_or(TIMEOUT_DEFAULT);
            let (response, io) = send(&namespace, request, connect, first_byte).await?;
            let response = response.map(|body| {
                let timer = Box::pin(tokio::time::sleep(between_bytes));
                GivenBody(Received { body, between_bytes, timer, _permit: permit, _charge: charge })
                    .boxed_unsync()
            });
            Ok((response, io))
        })
    }
}

async fn send(
    namespace: &Namespace,
    request: Request<WasiBody>,
    connect: Duration,
    first_byte: Duration,
) -> Sent {
    if request.uri().scheme() == Some(&Scheme::HTTPS) {
        let refused = "https is not offered yet: within the cluster use http and the service's name";
        return Err(Error::InternalError(Some(refused.to_owned())));
    }
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?;
    let port = authority.port_u16().unwrap_or(HTTP_PORT);
    let connecting = reach(namespace, authority.host(), port);
    let peer = tokio::time::timeout(connect, connecting).await.map_err(|_| Error::ConnectionTimeout)??;
    match peer {
        Peer::Local(service) => {
            let request =
                request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
            let answered = tokio::time::timeout(first_byte, service.call(request)).await;
            let answered = answered.map_err(|_| Error::HttpResponseTimeout)?;
            let response = answered.map_err(from_service)?;
            Ok((response.map(from_body), Box::new(std::future::ready(Ok(())))))
        }
        Peer::Remote(conn) => exchange(conn, request, first_byte).await,
    }
}

/// Who answers at an address.
enum Peer {
    /// A component of the same pod.
    Local(Arc<dyn crate::net::HttpService>),
    Remote(Conn),
}

/// Resolves the host and connects to the first of its addresses that answers.
async fn reach(namespace: &Namespace, host: &str, port: u16) -> Result<Peer, Error> {
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let addresses = match literal {
        Ok(address) => vec![address],
        Err(_) => namespace.resolve(host).await.map_err(from_net)?,
    };
    let mut failure = NetError::NameUnknown;
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        let own = address.is_loopback() || namespace.addresses().contains(&address);
        if own && let Some(service) = namespace.http_service(port) {
            return Ok(Peer::Local(service));
        }
        match namespace.connect(SocketAddr::new(address, port)).await {
            Ok(conn) => return Ok(Peer::Remote(conn)),
            Err(error) => failure = error,
        }
    }
    Err(from_net(failure))
}

/// One request over a connection of its own.
async fn exchange(conn: Conn, mut request: Request<WasiBody>, first_byte: Duration) -> Sent {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(conn)).await?;
    // The connection's own work is the network's, not the guest's: it runs on the I/O runtime.
    let connection = wasmtime_wasi::runtime::spawn(connection);
    // To an origin server a request names the path only; the host is in its header.
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let mut request = begun(request).await?;
    announce_body(&mut request);
    let answered = tokio::time::timeout(first_byte, sender.send_request(request)).await;
    let response = answered.map_err(|_| Error::HttpResponseTimeout)??;
    let io = Box::new(async move { connection.await.map_err(Error::from) });
    Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), io))
}

/// The request once it is known whether it has a body: guests make one for every request, and most that send a GET end it
/// empty. A guest that leaves it open is taken to have one.
async fn begun(request: Request<WasiBody>) -> Result<Request<WasiBody>, Error> {
    let body = request.body();
    if body.is_end_stream() || body.size_hint().exact().is_some() || !is_usually_bodiless(request.method()) {
        return Ok(request);
    }
    let (head, mut body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_BEGIN_TIMEOUT, body.frame()).await {
        Ok(None) => Empty::new().map_err(|never| match never {}).boxed_unsync(),
        Ok(Some(first)) => {
            let first = futures::stream::iter([first?]).map(Ok);
            StreamBody::new(first.chain(BodyStream::new(body))).boxed_unsync()
        }
        Err(_) => body,
    };
    Ok(Request::from_parts(head, body))
}

fn is_usually_bodiless(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::CONNECT)
}

/// A guest's body, whose bytes are on its container's account wherever they wait.
struct HeldBody {
    body: GuestBody,
    account: Arc<Account>,
}

impl Body for HeldBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map_ok(|frame| frame.map_data(|data| self.account.hold_bytes(data)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body with the time limit between its parts.
struct Received {
    body: WasiBody,
    between_bytes: Duration,
    timer: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
    _charge: Charge,
}

impl Body for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let next = Instant::now() + self.between_bytes;
            self.timer.as_mut().reset(next);
            return Poll::Ready(frame);
        }
        std::task::ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Some(Err(Error::HttpResponseTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn from_body(body: HttpBody) -> WasiBody {
    body.map_err(|error| Error::InternalError(Some(error.to_string()))).boxed_unsync()
}

fn from_service(Unanswered { error, id, .. }: Unanswered) -> Error {
    match error {
        HttpError::TimedOut => Error::HttpResponseTimeout,
        HttpError::Unavailable { .. } => Error::DestinationUnavailable,
        HttpError::Malformed { .. } => Error::HttpRequestUriInvalid,
        HttpError::Failed => Error::InternalError(Some(format!("{error}, of request {id}"))),
    }
}

fn from_net(error: NetError) -> Error {
    match error {
        NetError::NameUnknown => Error::DnsError { rcode: Some("NXDOMAIN".to_owned()), info_code: None },
        NetError::NameTemporarilyUnknown => {
            Error::DnsError { rcode: Some("SERVFAIL".to_owned()), info_code: None }
        }
        NetError::ConnectionRefused => Error::ConnectionRefused,
        NetError::ConnectionReset | NetError::ConnectionAborted => Error::ConnectionTerminated,
        NetError::TimedOut => Error::ConnectionTimeout,
        NetError::AccessDenied => Error::DestinationIpProhibited,
        NetError::TooManySockets => Error::ConnectionLimitReached,
        NetError::HostUnreachable | NetError::AddressNotAvailable => Error::DestinationIpUnroutable,
        other => Error::Connect(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::Ipv4Addr;

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use parking_lot::Mutex;

    use super::*;
    use crate::ledger::{Ledger, NodeBounds};
    use crate::net::{HttpService, Isolated, NamespaceConfig, NetLimits, full_body};

    /// A namespace where port 80 says how a request's body came, and what it was.
    fn echoing() -> Namespace {
        let addresses = vec![Ipv4Addr::new(10, 128, 0, 7).into()];
        let config = NamespaceConfig {
            hostname: "pod".into(),
            tenant: "default".into(),
            addresses,
            limits: NetLimits::default(),
        };
        let namespace = Namespace::new(config, Arc::new(Isolated));
        let listener = namespace.listen("0.0.0.0:80".parse().unwrap()).unwrap();
        tokio::spawn(async move {
            while let Ok((conn, _)) = listener.accept().await {
                let service = service_fn(|request: Request<Incoming>| async move {
                    let coding = request.headers().contains_key("transfer-encoding");
                    let body = request.collect().await.unwrap().to_bytes();
                    let text = format!("{coding} {}", String::from_utf8_lossy(&body));
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(conn), service),
                );
            }
        });
        namespace
    }

    async fn ask(namespace: &Namespace, method: &str, body: WasiBody) -> String {
        let request = Request::builder().method(method).uri("http://10.128.0.7/").header("host", "pod");
        let minute = Duration::from_secs(60);
        let (response, io) = send(namespace, request.body(body).unwrap(), minute, minute).await.unwrap();
        tokio::spawn(Box::into_pin(io));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_get_has_the_body_that_its_guest_gives_it() {
        let pod = echoing();
        let chunks = |chunks: &'static [&'static str]| -> WasiBody {
            let frames = chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes()))));
            // Of no length that is known, as a guest's.
            StreamBody::new(futures::stream::iter(frames).chain(futures::stream::empty())).boxed_unsync()
        };
        assert_eq!(ask(&pod, "GET", chunks(&["a", "bc"])).await, "true abc");
        assert_eq!(ask(&pod, "GET", chunks(&[])).await, "false ", "most have none, and say so");
        assert_eq!(ask(&pod, "POST", chunks(&["a"])).await, "true a");
        let late = futures::stream::once(async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(Frame::data(Bytes::from_static(b"late")))
        });
        assert_eq!(ask(&pod, "GET", StreamBody::new(late).boxed_unsync()).await, "true late");
    }

    /// Takes whatever comes and keeps it.
    #[derive(Default)]
    struct Keeps(Arc<Mutex<Vec<Bytes>>>);

    impl HttpService for Keeps {
        fn call(
            &self,
            request: Request<HttpBody>,
        ) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>> {
            let kept = Arc::clone(&self.0);
            async move {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    kept.lock().extend(frame.expect("a frame").into_data());
                }
                Ok(Response::new(full_body("done")))
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn a_request_and_its_bytes_are_held_wherever_they_wait() {
        const SENT: usize = 100 << 10;
        let bounds = NodeBounds { memory: None, heap: 1 << 20, files: 0, files_guaranteed: 0 };
        let account = Ledger::new(bounds).pod(&"default".into(), None).container(None);
        let held = || account.held(Holding::Heap);
        let (namespace, keeps) = (echoing(), Keeps::default());
        let kept = Arc::clone(&keeps.0);
        namespace.serve_http(8080, Arc::new(keeps));
        let permits = Arc::new(Semaphore::new(1));
        let mut outgoing = OutgoingHttp::new(namespace, Arc::clone(&permits), Arc::clone(&account));
        let mut ask = || {
            let frames = [Ok(Frame::data(Bytes::from(vec![b'x'; SENT])))];
            let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
            let request = Request::post("http://10.128.0.7:8080/").body(body).expect("a request");
            Box::into_pin(outgoing.send_request(request, None, Box::new(std::future::ready(Ok(())))))
        };
        let (response, _io) = ask().await.expect("answered");
        assert_eq!(
            held(),
            OUTGOING_BYTES + SENT as u64,
            "its response has not been read, its bytes are kept"
        );
        assert!(matches!(ask().await, Err(Error::ConnectionLimitReached)));
        drop(response);
        assert_eq!(held(), SENT as u64);
        kept.lock().clear();
        assert_eq!(held(), 0);
        // Where there is no room for another it is refused.
        let mut others = Charge::nothing(&account, Holding::Heap);
        while others.grow(1 << 10).is_ok() {}
        let Err(Error::InternalError(Some(told))) = ask().await else { panic!("there was room") };
        assert!(told.starts_with("the host's memory: "), "{told}");
        assert_eq!((held(), permits.available_permits()), (others.amount(), 1));
    }
}
