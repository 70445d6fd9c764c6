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
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::net::{BoxError, Conn, HttpBody, HttpError, Namespace, NetError};

/// Outgoing requests of one container at once.
pub(crate) const OUTGOING_MAX: usize = 256;

/// Where the guest says nothing: as long as a caller is likely to wait.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

const HTTP_PORT: u16 = 80;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

/// The part of a store that sends its guest's requests.
pub(crate) struct OutgoingHttp {
    namespace: Namespace,
    permits: Arc<Semaphore>,
}

impl OutgoingHttp {
    pub(crate) fn new(namespace: Namespace, permits: Arc<Semaphore>) -> OutgoingHttp {
        OutgoingHttp { namespace, permits }
    }
}

impl WasiHttpHooks for OutgoingHttp {
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
        Box::new(async move {
            let permit = permit.map_err(|_| Error::ConnectionLimitReached)?;
            let first_byte = options.first_byte_timeout.unwrap_or(TIMEOUT_DEFAULT);
            let between_bytes = options.between_bytes_timeout.unwrap_or(TIMEOUT_DEFAULT);
            let connect = options.connect_timeout.unwrap_or(TIMEOUT_DEFAULT);
            let (response, io) = send(&namespace, request, connect, first_byte).await?;
            let response = response.map(|body| {
                let timer = Box::pin(tokio::time::sleep(between_bytes));
                Received { body, between_bytes, timer, _permit: permit }.boxed_unsync()
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
            let response = answered.map_err(|_| Error::HttpResponseTimeout)?.map_err(from_service)?;
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
    let (mut sender, connection) = http1::handshake(TokioIo::new(conn)).await?;
    // The connection's own work is the network's, not the guest's: it runs on the I/O runtime.
    let connection = wasmtime_wasi::runtime::spawn(connection);
    // To an origin server a request names the path only; the host is in its header.
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let answered = tokio::time::timeout(first_byte, sender.send_request(request)).await;
    let response = answered.map_err(|_| Error::HttpResponseTimeout)??;
    let io = Box::new(async move { connection.await.map_err(Error::from) });
    Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), io))
}

/// A response's body with the time limit between its parts.
struct Received {
    body: WasiBody,
    between_bytes: Duration,
    timer: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
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

fn from_service(error: HttpError) -> Error {
    match error {
        HttpError::TimedOut => Error::HttpResponseTimeout,
        HttpError::Unavailable { .. } => Error::DestinationUnavailable,
        HttpError::Failed { reason } => Error::InternalError(Some(reason)),
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
