//! The one TLS port: handshakes, tells who calls, and serves HTTP/1.1 and HTTP/2.

mod multiplexed;
mod stalling;

use std::{
    error::Error,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{multiplexed::Multiplexed, stalling::Stalling};
use crate::{
    certificates::Credentials,
    identity::Caller,
    inflow::Inflow,
    newcomers::{Newcomers, Place},
    service::{Front, Service},
};

/// HTTP/2 as a protocol that TLS agrees on.
const HTTP2: &[u8] = b"h2";

/// Connections at a time, where as many files may be open; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16 * 1024;

/// Of the files that may be open so many are left to the log, snapshots, blobs and connections to other members.
const FILES_RESERVED: u64 = 256;

/// Of the connections so many may be of callers that have not shown who they are.
const NEWCOMERS_MAX: usize = 1024;

/// Until a client must have finished the handshake, and sent the head of an HTTP/1.1 request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// HTTP/2 of members and users: streams of one connection, bytes that a client may send ahead, and of a request's head,
/// the last for HTTP/1.1 as well.
const STREAMS_MAX: u32 = 4096;
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// The same of nodes, which have one link and few requests.
const NODE_STREAMS_MAX: u32 = 256;
const NODE_WINDOW_BYTES: u32 = 1024 * 1024;

/// The same of callers without a certificate, who join or ask how the cluster does. HTTP/2 allows no smaller window of a
/// connection.
const ANONYMOUS_STREAMS_MAX: u32 = 16;
const ANONYMOUS_WINDOW_BYTES: u32 = 64 * 1024 - 1;
const ANONYMOUS_HEAD_BYTES_MAX: u32 = 8 * 1024;

/// Pings to clients that are silent.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A peer that was silent for so long is asked by TCP whether it is there, as often again, and so many times; and how long
/// it may acknowledge nothing.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// After an accept that failed, for lack of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long requests may go on when the port closes, or when the caller is no longer trusted. Watches and links never end
/// by themselves.
const GRACE: Duration = Duration::from_millis(300);

/// How long what is under way may go on when the certificate ends that it was asked for with.
const TURNOVER_GRACE: Duration = Duration::from_secs(300);

/// What every connection is served with.
#[derive(Clone)]
pub struct Port {
    pub credentials: Arc<Credentials>,
    pub front: Arc<Front>,
    pub inflow: Arc<Inflow>,
}

/// How many connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    connections: usize,
    newcomers: usize,
}

impl Bounds {
    /// Connections at a time.
    pub fn connections(self) -> usize {
        self.connections
    }

    /// For a process that may have so many files open; `None` for no limit.
    pub fn within(open_files: Option<u64>) -> Self {
        let files = open_files.unwrap_or(u64::MAX);
        // With very few files half of them is all that can be spared.
        let spared = files.saturating_sub(FILES_RESERVED).max(files / 2).max(1);
        let connections = usize::try_from(spared).unwrap_or(usize::MAX).min(CONNECTIONS_MAX);
        Self { connections, newcomers: (connections / 2).clamp(1, NEWCOMERS_MAX) }
    }
}

/// Serves until `closing` is cancelled and all connections have ended, soon after.
pub async fn serve(listener: TcpListener, port: Port, bounds: Bounds, closing: CancellationToken) {
    let room = Arc::new(Semaphore::new(bounds.connections));
    let newcomers = Newcomers::new(bounds.newcomers);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            accepted = async {
                let permit = room.clone().acquire_owned().await;
                (listener.accept().await, permit)
            } => accepted,
        };
        match accepted {
            (Ok((tcp, _)), Ok(permit)) => {
                let (port, closing, place) = (port.clone(), closing.clone(), newcomers.enter());
                connections.spawn(async move {
                    serve_connection(tcp, port, place, closing).await;
                    drop(permit);
                });
            }
            (Err(error), _) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
            (_, Err(_)) => break,
        }
    }
    connections.close();
    connections.wait().await;
}

async fn serve_connection(tcp: TcpStream, port: Port, place: Place, closing: CancellationToken) {
    notice_loss(&tcp);
    let acceptor = TlsAcceptor::from(port.credentials.server().get());
    let accepted = tokio::select! {
        accepted = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)) => accepted,
        () = place.lost() => return tracing::debug!("handshake given up: too many are under way"),
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
        Err(_) => return tracing::debug!("handshake not finished in time"),
    };
    let peer = Arc::new(port.credentials.callers().peer(stream.get_ref().1.peer_certificates()));
    let anonymous = matches!(peer.caller, Caller::Anonymous);
    let lost = anonymous.then(|| place.lost());
    let lost = async {
        match lost {
            Some(lost) => lost.await,
            None => std::future::pending().await,
        }
    };
    let Some(share) = port.inflow.enter(&peer.caller, place) else {
        return tracing::debug!(caller = ?peer.caller, "too many connections of this caller");
    };
    let judge = &port.front.judge;
    let ends = Ends { lost, turnover: judge.turnover(&peer), gone: judge.gone(&peer), closing: &closing };
    let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
    let (front, inflow) = (port.front.clone(), port.inflow.clone());
    let ended = if speaks_http2 {
        let bounds = Http2Bounds::of(&peer.caller);
        let service = Service { front, peer: peer.clone(), share, inflow, shares_task: true };
        let mut connection =
            Multiplexed::new(stream, TowerToHyperService::new(service), |builder| bounds.set(builder));
        attend(Pin::new(&mut connection), ends, |mut it| it.graceful_shutdown()).await
    } else {
        let service = Service { front, peer: peer.clone(), share, inflow, shares_task: false };
        let builder = http1(anonymous);
        // HTTP/2 asks its clients for signs of life.
        let stream = TokioIo::new(Stalling::new(stream));
        let connection = builder.serve_connection_with_upgrades(stream, TowerToHyperService::new(service));
        attend(pin!(connection), ends, |it| it.graceful_shutdown()).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke");
    }
}

/// Lets a connection end whose client has vanished, also where nothing is sent to it. A socket that refuses any of this
/// works all the same.
fn notice_loss(tcp: &TcpStream) {
    // Small answers must not wait for more.
    let _ = tcp.set_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(PROBE_INTERVAL).with_interval(PROBE_INTERVAL).with_retries(PROBES);
    let socket = SockRef::from(tcp);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// What ends a connection that would go on.
struct Ends<'a, L, T, G> {
    /// Its place is needed for another.
    lost: L,
    /// Its certificate ends soon: the client comes back with another.
    turnover: T,
    /// Its caller is none any more.
    gone: G,
    /// The port closes.
    closing: &'a CancellationToken,
}

/// Serves a connection to its end; for a while only, where its certificate ends, its caller is none any more or the port
/// closes.
async fn attend<C: Future<Output = Result<(), Box<dyn Error + Send + Sync>>>>(
    mut connection: Pin<&mut C>,
    ends: Ends<'_, impl Future<Output = ()>, impl Future<Output = ()>, impl Future<Output = ()>>,
    shut_down: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    let mut over = pin!(async {
        tokio::select! {
            () = ends.gone => {}
            () = ends.closing.cancelled() => {}
        }
    });
    let turns_over = tokio::select! {
        ended = connection.as_mut() => return ended,
        () = ends.lost => return Err("too many that have not shown who they are are open".into()),
        () = ends.turnover => true,
        () = over.as_mut() => false,
    };
    shut_down(connection.as_mut());
    if turns_over {
        tokio::select! {
            ended = timeout(TURNOVER_GRACE, connection.as_mut()) => return ended.unwrap_or(Ok(())),
            () = over => {}
        }
    }
    timeout(GRACE, connection).await.unwrap_or(Ok(()))
}

fn http1(anonymous: bool) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    // Also what is gathered of an answer before its client takes it.
    let buffered = if anonymous { ANONYMOUS_HEAD_BYTES_MAX } else { HEAD_BYTES_MAX };
    builder.http1().max_buf_size(buffered as usize);
    builder
}

/// What a caller may have of one HTTP/2 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Http2Bounds {
    streams: u32,
    stream_window: u32,
    connection_window: u32,
    head: u32,
}

impl Http2Bounds {
    fn of(caller: &Caller) -> Self {
        match caller {
            Caller::Anonymous => Self {
                streams: ANONYMOUS_STREAMS_MAX,
                stream_window: ANONYMOUS_WINDOW_BYTES,
                connection_window: ANONYMOUS_WINDOW_BYTES,
                head: ANONYMOUS_HEAD_BYTES_MAX,
            },
            caller if caller.is_node() => Self {
                streams: NODE_STREAMS_MAX,
                stream_window: NODE_WINDOW_BYTES,
                connection_window: NODE_WINDOW_BYTES,
                head: HEAD_BYTES_MAX,
            },
            _ => Self {
                streams: STREAMS_MAX,
                stream_window: STREAM_WINDOW_BYTES,
                connection_window: CONNECTION_WINDOW_BYTES,
                head: HEAD_BYTES_MAX,
            },
        }
    }

    fn set<E>(self, builder: &mut http2::Builder<E>) {
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.streams)
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_header_list_size(self.head)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    }
}

/// The body of requests as they come from the network.
pub type NetworkBody = Incoming;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_vanished_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_client, (tcp, _)) = (client.expect("connected"), accepted.expect("accepted"));
        notice_loss(&tcp);
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().expect("known") && tcp.nodelay().expect("known"));
        assert_eq!(socket.tcp_keepalive_time().expect("known"), PROBE_INTERVAL);
        assert_eq!(socket.tcp_user_timeout().expect("known"), Some(USER_TIMEOUT));
    }

    #[test]
    fn files_are_left_for_the_log() {
        let bounds = |files| {
            let Bounds { connections, newcomers } = Bounds::within(files);
            (connections, newcomers)
        };
        assert_eq!(bounds(None), (16384, 1024));
        assert_eq!(bounds(Some(1_048_576)), (16384, 1024));
        assert_eq!(bounds(Some(1024)), (768, 384));
        assert_eq!(bounds(Some(64)), (32, 16));
    }
}
