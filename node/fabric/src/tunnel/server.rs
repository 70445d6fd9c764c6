//! The tunnels that other nodes open to this one.

use super::identity::{self, PeerNode};
use super::wire::{DATAGRAMS_PATH, Datagram, Opening, TCP_PATH, opening, refusal};
use super::{
    CONNECTION_WINDOW_BYTES, Counted, FRAME_BYTES_MAX, HEAD_BYTES_MAX, Members, SEND_BUFFER_BYTES,
    STREAM_WINDOW_BYTES, STREAMS_MAX, datagrams, pump, watch_life,
};
use crate::door::{Arrival, Door};
use crate::whereabouts::Whereabouts;
use arc_swap::ArcSwap;
use bytes::Bytes;
use coracle_wasi_host::net::{Buffers, Conn, NetError};
use coracle_wasi_host::serving::Bounds;
use futures::future::BoxFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long a peer has for TLS and HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of peers that have not shown yet who they are. Where there are more the oldest makes room; who has shown
/// it has no place among them any more.
pub(crate) const NEWCOMERS: Bounds = Bounds {
    connections_max: 512,
    connections_per_source_max: 256,
    requests_max: 0,
    requests_per_source_max: 0,
};

/// Tunnels of one node that stand at once. It needs one; another is opened where the first was lost, which may be noticed
/// at the other end only. The newest are the ones that it means.
const TUNNELS_PER_PEER_MAX: usize = 4;

/// What arrives through tunnels, judged and delivered by the fabric.
pub(crate) trait Arrivals: Send + Sync + 'static {
    /// A connection from a pod of the node `peer`, or from itself for a client, to one of our pods.
    fn arrive(&self, peer: &Arc<str>, opening: Opening) -> BoxFuture<'static, Result<Arrived, NetError>>;

    /// A datagram from a pod of the node `peer` to one of ours.
    fn arrive_datagram(&self, peer: &Arc<str>, datagram: Datagram);
}

/// Streams of datagrams in one tunnel: a peer opens one, each holds what may be a part of a datagram.
const DATAGRAM_STREAMS_MAX: usize = 1;

/// A connection to one of our pods.
pub(crate) struct Arrived {
    pub(crate) conn: Conn,
    /// Cancelled when the pod goes.
    pub(crate) pod: CancellationToken,
    /// Whose account it is on.
    pub(crate) buffers: Buffers,
}

/// Who receives tunnels, and whose.
pub(crate) struct Reception {
    pub(crate) tls: Arc<ArcSwap<rustls::ServerConfig>>,
    pub(crate) arrivals: Box<dyn Arrivals>,
    pub(crate) members: Arc<Members>,
    pub(crate) whereabouts: Arc<Whereabouts>,
}

impl Reception {
    /// With the certificate of this moment.
    fn acceptor(&self) -> TlsAcceptor {
        let mut config = rustls::ServerConfig::clone(&self.tls.load());
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// The tunnels of each peer that stand, the oldest first.
#[derive(Default)]
struct Standing {
    by_peer: Mutex<HashMap<Arc<str>, Vec<CancellationToken>>>,
}

impl Standing {
    /// One more, which ends when `end` is cancelled. The oldest of the peer make room.
    fn enter(&self, peer: &Arc<str>, end: &CancellationToken) {
        let mut by_peer = self.by_peer.lock();
        let tunnels = by_peer.entry(peer.clone()).or_default();
        tunnels.push(end.clone());
        let spare = tunnels.len().saturating_sub(TUNNELS_PER_PEER_MAX);
        tunnels.drain(..spare).for_each(|oldest| oldest.cancel());
    }

    /// Forgets those of a peer that have ended.
    fn leave(&self, peer: &Arc<str>) {
        let mut by_peer = self.by_peer.lock();
        let Some(tunnels) = by_peer.get_mut(peer) else { return };
        tunnels.retain(|end| !end.is_cancelled());
        if tunnels.is_empty() {
            by_peer.remove(peer);
        }
    }
}

/// Accepts tunnels until `stopped` is cancelled.
pub(crate) async fn serve(mut door: Door, reception: Arc<Reception>, stopped: CancellationToken) {
    let standing = Arc::new(Standing::default());
    loop {
        let arrival = tokio::select! {
            arrival = door.next() => arrival,
            () = stopped.cancelled() => return,
        };
        let (reception, standing, dead) = (reception.clone(), standing.clone(), stopped.child_token());
        tokio::spawn(async move { serve_peer(arrival, &reception, &standing, dead).await });
    }
}

/// A tunnel whose peer has shown that it is a member.
struct Tunnel {
    peer: PeerNode,
    connection: h2::server::Connection<Counted<TlsStream<TcpStream>>, Bytes>,
    /// Counts what was read.
    read: Arc<AtomicU64>,
}

/// TLS, then who it is, then HTTP/2. Who is no member, and is not heard of at once either, has no tunnel.
async fn shake_hands(stream: TcpStream, reception: &Reception) -> Option<Tunnel> {
    let stream = reception.acceptor().accept(stream).await.ok()?;
    let peer = identity::peer_node(stream.get_ref().1.peer_certificates())?;
    if !reception.members.admits(&peer).await {
        return None;
    }
    let (stream, read) = Counted::new(stream);
    let connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .handshake(stream)
        .await
        .ok()?;
    Some(Tunnel { peer, connection, read })
}

async fn serve_peer(
    arrival: Arrival,
    reception: &Arc<Reception>,
    standing: &Standing,
    dead: CancellationToken,
) {
    let Arrival { stream, client, place, descriptor: _descriptor } = arrival;
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands(stream, reception)) => shaken.ok().flatten(),
        () = place.lost() => None,
    };
    drop(place);
    let Some(Tunnel { peer, mut connection, read }) = shaken else {
        tracing::debug!(%client, "tunnel refused");
        return;
    };
    reception.whereabouts.meet(&peer.name, client.ip());
    standing.enter(&peer.name, &dead);
    if let Some(pings) = connection.ping_pong() {
        tokio::spawn(watch_life(pings, read, dead.clone()));
    }
    let mut lost = std::pin::pin!(reception.members.lost(&peer));
    let datagrams = Arc::new(Semaphore::new(DATAGRAM_STREAMS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = dead.cancelled() => None,
            () = lost.as_mut() => None,
        };
        let Some(Ok((request, mut respond))) = accepted else { break };
        if !reception.members.knows(&peer) {
            answer(&mut respond, refusal(NetError::AccessDenied));
            continue;
        }
        let (reception, peer, datagrams) = (reception.clone(), peer.name.clone(), datagrams.clone());
        tokio::spawn(async move {
            serve_stream(request, respond, &*reception.arrivals, &peer, &datagrams).await;
        });
    }
    // With the connection its streams end, and the pods' connections are reset.
    dead.cancel();
    standing.leave(&peer.name);
    tracing::debug!(peer = %peer.name, "tunnel from peer closed");
}

/// What a peer wants of a stream.
enum Asked {
    /// None where the addresses cannot be read.
    Connection(Option<Opening>),
    Datagrams,
    Unknown,
}

impl Asked {
    fn of(head: &http::request::Parts) -> Self {
        match head.uri.path() {
            TCP_PATH => Self::Connection(opening(&head.headers)),
            DATAGRAMS_PATH => Self::Datagrams,
            _ => Self::Unknown,
        }
    }
}

async fn serve_stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    arrivals: &dyn Arrivals,
    peer: &Arc<str>,
    datagrams: &Semaphore,
) {
    let (head, mut body) = request.into_parts();
    let asked = Asked::of(&head);
    // It would be here for as long as what it asks for.
    drop(head);
    match asked {
        Asked::Connection(opening) => {
            let Some(opening) = opening else {
                return answer(&mut respond, refusal(NetError::InvalidInput));
            };
            let arrived = tokio::select! {
                arrived = arrivals.arrive(peer, opening) => arrived,
                // The dialer has given up: nobody waits for a place in the backlog any more.
                _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
                // A dialer waits for the answer. What is sent before would be on nobody's account.
                _ = body.data() => return respond.send_reset(Reason::PROTOCOL_ERROR),
            };
            match arrived {
                Ok(Arrived { conn, pod, buffers }) => match respond.send_response(Response::new(()), false) {
                    Ok(send) => {
                        let stream = pump::Stream { send, receive: body };
                        pump::pump(conn, stream, buffers.unread(), pod).await;
                    }
                    // The dialer has given up.
                    Err(_) => conn.reset(),
                },
                Err(error) => answer(&mut respond, refusal(error)),
            }
        }
        Asked::Datagrams => {
            let Ok(_one) = datagrams.try_acquire() else {
                return respond.send_reset(Reason::REFUSED_STREAM);
            };
            datagrams::receive_all(body, |datagram| arrivals.arrive_datagram(peer, datagram)).await;
        }
        Asked::Unknown => {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::NOT_FOUND;
            answer(&mut respond, response);
        }
    }
}

fn answer(respond: &mut SendResponse<Bytes>, response: Response<()>) {
    // A peer that is gone needs no answer.
    let _ = respond.send_response(response, true);
}
