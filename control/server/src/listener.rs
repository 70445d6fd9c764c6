//! The one TLS port: handshakes, tells who calls, and serves HTTP/1.1 and HTTP/2.

mod multiplexed;

use std::{error::Error, future::Future, pin::Pin, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::multiplexed::Multiplexed;
use crate::{
    certificates::Credentials,
    identity::Caller,
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

/// HTTP/2: streams of one connection, bytes that a client may send ahead, and pings to clients that are silent.
const STREAMS_MAX: u32 = 4096;
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// After an accept that failed, for lack of file descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long requests may go on when the port closes. Watches and links never end by themselves.
const GRACE: Duration = Duration::from_millis(300);

/// What every connection is served with.
#[derive(Clone)]
pub struct Port {
    pub credentials: Arc<Credentials>,
    pub front: Arc<Front>,
}

/// How many connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    connections: usize,
    newcomers: usize,
}

impl Bounds {
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
    // Small answers must not wait for more; a socket that refuses this works all the same.
    let _ = tcp.set_nodelay(true);
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
    let caller = port.credentials.callers().identify(stream.get_ref().1.peer_certificates());
    // Who has shown a certificate makes room for others.
    let place = matches!(caller, Caller::Anonymous).then_some(place);
    let lost = async {
        match &place {
            Some(place) => place.lost().await,
            None => std::future::pending().await,
        }
    };
    let ended = if stream.get_ref().1.alpn_protocol() == Some(HTTP2) {
        let service = Service { front: port.front, caller, shares_task: true };
        let mut connection = Multiplexed::new(stream, TowerToHyperService::new(service), bound);
        attend(Pin::new(&mut connection), lost, &closing, |mut it| it.graceful_shutdown()).await
    } else {
        let service = Service { front: port.front, caller, shares_task: false };
        let builder = http1();
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
        attend(std::pin::pin!(connection), lost, &closing, |it| it.graceful_shutdown()).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke");
    }
}

/// Serves a connection to its end; for a while only, where it has lost its place or the port closes.
async fn attend<C: Future<Output = Result<(), Box<dyn Error + Send + Sync>>>>(
    mut connection: Pin<&mut C>,
    lost: impl Future<Output = ()>,
    closing: &CancellationToken,
    shut_down: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = lost => Err("too many without a certificate are open".into()),
        () = closing.cancelled() => {
            shut_down(connection.as_mut());
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    }
}

fn http1() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
}

fn bound<E>(builder: &mut http2::Builder<E>) {
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
}

/// The body of requests as they come from the network.
pub type NetworkBody = Incoming;

#[cfg(test)]
mod tests {
    use super::*;

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
