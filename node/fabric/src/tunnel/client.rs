//! The tunnels that this node opens.

use super::wire::{Datagram, Opening, refused, tcp_request};
use super::{
    CONNECTION_WINDOW_BYTES, Counted, FRAME_BYTES_MAX, HEAD_BYTES_MAX, Members, SEND_BUFFER_BYTES,
    STREAM_WINDOW_BYTES, STREAMS_CERTAIN, STREAMS_MAX, STREAMS_SHARED, datagrams, identity, pump, watch_life,
};
use crate::caller::Caller;
use crate::whereabouts::Whereabouts;
use arc_swap::ArcSwap;
use bytes::Bytes;
use coracle_wasi_host::net::{Conn, NetError};
use coracle_wasi_host::refusals::{Refusals, What};
use coracle_wasi_host::shares::{Holder, Permit, Shares};
use h2::client::SendRequest;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// How long TCP, TLS and HTTP/2 have until a tunnel stands.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the other node has to answer one dial.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// After a tunnel could not be opened, dials to the node fail at once for this long.
const BACKOFF: Duration = Duration::from_millis(250);

/// All tunnels that this node has opened, one to each other node.
pub(crate) struct Tunnels {
    tls: Arc<ArcSwap<rustls::ClientConfig>>,
    peers: Mutex<HashMap<Arc<str>, Arc<Remote>>>,
    members: Arc<Members>,
    whereabouts: Arc<Whereabouts>,
    refusals: Refusals,
    stopped: CancellationToken,
}

/// One other node.
struct Remote {
    name: Arc<str>,
    fabric: Arc<str>,
    /// Held while the tunnel is being opened, so that many dials open one.
    link: tokio::sync::Mutex<LinkState>,
    datagrams: Mutex<Option<mpsc::Sender<(Datagram, Permit)>>>,
    /// The places of the queue of datagrams.
    waiting: Arc<Shares>,
    /// The connections of this node's pods to that node's.
    streams: Arc<Shares>,
}

enum LinkState {
    Closed,
    Open(Link),
    Failed { until: tokio::time::Instant, error: NetError },
}

#[derive(Clone)]
struct Link {
    sender: SendRequest<Bytes>,
    dead: CancellationToken,
}

impl Remote {
    /// The tunnel, where it stands and is not being looked after.
    fn open_link(&self) -> Option<Link> {
        match &*self.link.try_lock().ok()? {
            LinkState::Open(link) if !link.dead.is_cancelled() => Some(link.clone()),
            _ => None,
        }
    }
}

impl Tunnels {
    /// No tunnel yet. All end when `stopped` is cancelled.
    pub(crate) fn new(
        tls: Arc<ArcSwap<rustls::ClientConfig>>,
        members: Arc<Members>,
        whereabouts: Arc<Whereabouts>,
        refusals: Refusals,
        stopped: CancellationToken,
    ) -> Self {
        Self { tls, peers: Mutex::default(), members, whereabouts, refusals, stopped }
    }

    /// With the certificate of this moment.
    fn connector(&self) -> TlsConnector {
        let mut config = rustls::ClientConfig::clone(&self.tls.load());
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// Connects to a pod of another node, from the first address to the second. Needs a tokio runtime.
    pub(crate) async fn dial(
        self: &Arc<Self>,
        node: &Arc<str>,
        fabric: &Arc<str>,
        caller: &Caller,
        (from, to): (SocketAddr, SocketAddr),
    ) -> Result<Conn, NetError> {
        let peer = self.peer(node, fabric);
        let permit = peer.streams.take(&caller.holder).map_err(|refused| {
            self.refusals.note(&caller.holder, refused);
            NetError::TooManySockets
        })?;
        let link = match peer.open_link() {
            Some(link) => link,
            None => {
                // In a task of its own: a caller who gives up does not tear down the tunnel that others wait for.
                let (tunnels, peer) = (self.clone(), peer.clone());
                let opening = tokio::spawn(async move { tunnels.link(&peer).await });
                opening.await.unwrap_or(Err(NetError::NetworkDown))?
            }
        };
        let opening = Opening { from, to, client: caller.source.as_client() };
        let open = async {
            let mut sender = link.sender.clone().ready().await.map_err(|_| NetError::HostUnreachable)?;
            let request = tcp_request(&opening).ok_or(NetError::InvalidInput)?;
            let (response, send) =
                sender.send_request(request, false).map_err(|_| NetError::HostUnreachable)?;
            let response = response.await.map_err(|_| NetError::HostUnreachable)?;
            if !response.status().is_success() {
                return Err(refused(response.headers()));
            }
            Ok(pump::Stream { send, receive: response.into_body() })
        };
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, open).await;
        let stream = opened.unwrap_or(Err(NetError::TimedOut))?;
        let (near, far) = caller.buffers.connection(from, to);
        let (gone, unread) = (caller.gone().clone(), caller.buffers.unread());
        tokio::spawn(async move {
            pump::pump(far, stream, unread, gone).await;
            drop(permit);
        });
        Ok(near)
    }

    /// Sends a datagram to a pod of another node, or drops it. Needs a tokio runtime.
    pub(crate) fn send(
        self: &Arc<Self>,
        node: &Arc<str>,
        fabric: &Arc<str>,
        holder: &Holder,
        datagram: Datagram,
    ) {
        let peer = self.peer(node, fabric);
        // Without a place the datagram is lost, as on a full link; but nobody fills the link for the others.
        let place = match peer.waiting.take(holder) {
            Ok(place) => place,
            Err(refused) => return self.refusals.note(holder, refused),
        };
        let mut datagrams = peer.datagrams.lock();
        let waiting = match &*datagrams {
            Some(waiting) if !waiting.is_closed() => waiting,
            _ => {
                let (sender, receiver) = mpsc::channel(datagrams::WAITING_MAX + datagrams::CERTAIN.all);
                let (tunnels, peer) = (self.clone(), peer.clone());
                tokio::spawn(async move {
                    if let Ok(link) = tunnels.link(&peer).await {
                        datagrams::send_all(link.sender, receiver).await;
                    }
                });
                datagrams.insert(sender)
            }
        };
        let _ = waiting.try_send((datagram, place));
    }

    /// Forgets nodes that are gone or have moved. What is carried to one that has moved goes on until it ends; the tunnel
    /// to one that is gone ends by itself.
    pub(crate) fn retain(&self, known: impl Fn(&str, &str) -> bool) {
        self.peers.lock().retain(|name, peer| known(name, &peer.fabric));
    }

    /// Connections to other nodes' pods, and datagrams that wait.
    pub(crate) fn held(&self) -> (usize, usize) {
        let peers = self.peers.lock();
        peers.values().fold((0, 0), |(streams, waiting), peer| {
            (streams + peer.streams.held(), waiting + peer.waiting.held())
        })
    }

    #[cfg(test)]
    pub(crate) fn shares_to(&self, node: &str) -> Option<Arc<Shares>> {
        self.peers.lock().get(node).map(|peer| peer.streams.clone())
    }

    #[cfg(test)]
    pub(crate) fn streams_to(&self, node: &str) -> usize {
        self.peers.lock().get(node).map_or(0, |peer| peer.streams.held())
    }

    fn peer(&self, node: &Arc<str>, fabric: &Arc<str>) -> Arc<Remote> {
        let mut peers = self.peers.lock();
        match peers.get(node) {
            Some(peer) if peer.fabric == *fabric => peer.clone(),
            _ => {
                let peer = Arc::new(Remote {
                    name: node.clone(),
                    fabric: fabric.clone(),
                    link: tokio::sync::Mutex::new(LinkState::Closed),
                    datagrams: Mutex::new(None),
                    waiting: Shares::with_certain(
                        What::Datagrams,
                        datagrams::WAITING_MAX,
                        datagrams::CERTAIN,
                    ),
                    streams: Shares::with_certain(What::Streams, STREAMS_SHARED, STREAMS_CERTAIN),
                });
                peers.insert(node.clone(), peer.clone());
                peer
            }
        }
    }

    /// The open tunnel to a peer, opened where there is none.
    async fn link(&self, peer: &Remote) -> Result<Link, NetError> {
        let mut state = peer.link.lock().await;
        match &*state {
            LinkState::Open(link) if !link.dead.is_cancelled() => return Ok(link.clone()),
            LinkState::Failed { until, error } if *until > tokio::time::Instant::now() => return Err(*error),
            _ => {}
        }
        let opened = match tokio::time::timeout(OPEN_TIMEOUT, self.open(peer)).await {
            Ok(result) => result,
            Err(_) => Err(NetError::TimedOut),
        };
        match opened {
            Ok(link) => {
                tracing::debug!(peer = %peer.name, fabric = %peer.fabric, "tunnel opened");
                *state = LinkState::Open(link.clone());
                Ok(link)
            }
            Err(error) => {
                tracing::warn!(peer = %peer.name, fabric = %peer.fabric, %error, "tunnel not opened");
                *state = LinkState::Failed { until: tokio::time::Instant::now() + BACKOFF, error };
                Err(error)
            }
        }
    }

    async fn open(&self, peer: &Remote) -> Result<Link, NetError> {
        let stream = TcpStream::connect(&*peer.fabric).await.map_err(|_| NetError::HostUnreachable)?;
        // Waiting for more to send would cost latency; failing to say so costs nothing else.
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(peer.name.to_string()).map_err(|_| NetError::InvalidInput)?;
        let stream = self.connector().connect(name, stream).await.map_err(|_| NetError::AccessDenied)?;
        let found = identity::peer_node(stream.get_ref().1.peer_certificates());
        let found = found.filter(|found| found.name == peer.name && self.members.knows(found));
        let Some(found) = found else { return Err(NetError::AccessDenied) };
        if let Ok(at) = stream.get_ref().0.peer_addr() {
            self.whereabouts.meet(&found.name, at.ip());
        }
        let (stream, read) = Counted::new(stream);
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_concurrent_streams(STREAMS_MAX)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|_| NetError::HostUnreachable)?;
        let dead = self.stopped.child_token();
        if let Some(pings) = connection.ping_pong() {
            tokio::spawn(watch_life(pings, read, dead.clone()));
        }
        let (members, ended) = (self.members.clone(), dead.clone());
        tokio::spawn(async move {
            // Dropping the connection ends its streams with an error, which resets the pods' connections.
            tokio::select! {
                _ = connection => {}
                () = ended.cancelled() => {}
                () = members.lost(&found) => {}
            }
            ended.cancel();
            tracing::debug!(peer = %found.name, "tunnel closed");
        });
        Ok(Link { sender, dead })
    }
}
