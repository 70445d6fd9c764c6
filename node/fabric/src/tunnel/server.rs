//! The tunnels that other nodes open to this one.

use super::wire::{DATAGRAMS_PATH, Datagram, TCP_PATH, addresses, refusal};
use super::{
    CONNECTION_WINDOW_BYTES, Counted, FRAME_BYTES_MAX, Members, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES,
    STREAMS_MAX, datagrams, identity, pump, watch_life,
};
use crate::door::{Arrival, Door};
use arc_swap::ArcSwap;
use bytes::Bytes;
use coracle_wasi_host::net::{Buffers, Conn, NetError};
use coracle_wasi_host::serving::Bounds;
use futures::future::BoxFuture;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
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

/// What arrives through tunnels, judged and delivered by the fabric.
pub(crate) trait Arrivals: Send + Sync + 'static {
    /// A connection from a pod of the node `peer` to one of ours.
    fn arrive(
        &self,
        peer: &str,
        from: SocketAddr,
        to: SocketAddr,
    ) -> BoxFuture<'static, Result<Arrived, NetError>>;

    /// A datagram from a pod of the node `peer` to one of ours.
    fn arrive_datagram(&self, peer: &str, datagram: Datagram);
}

/// A connection to one of our pods.
pub(crate) struct Arrived {
    pub(crate) conn: Conn,
    /// Cancelled when the pod goes.
    pub(crate) pod: CancellationToken,
    /// Whose account it is on.
    pub(crate) buffers: Buffers,
}

/// Accepts tunnels until `stopped` is cancelled.
pub(crate) async fn serve(
    mut door: Door,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    arrivals: Arc<dyn Arrivals>,
    members: Arc<Members>,
    stopped: CancellationToken,
) {
    loop {
        let arrival = tokio::select! {
            arrival = door.next() => arrival,
            () = stopped.cancelled() => return,
        };
        // With the certificate of this moment.
        let mut config = rustls::ServerConfig::clone(&tls.load());
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (arrivals, members) = (arrivals.clone(), members.clone());
        let stopped = stopped.child_token();
        tokio::spawn(async move { serve_peer(arrival, acceptor, arrivals, members, stopped).await });
    }
}

async fn serve_peer(
    arrival: Arrival,
    acceptor: TlsAcceptor,
    arrivals: Arc<dyn Arrivals>,
    members: Arc<Members>,
    dead: CancellationToken,
) {
    let Arrival { stream, client, place, descriptor: _descriptor } = arrival;
    let handshake = async {
        let stream = acceptor.accept(stream).await.ok()?;
        let peer = identity::peer_node(stream.get_ref().1.peer_certificates())?;
        let (stream, read) = Counted::new(stream);
        let connection = h2::server::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .handshake::<_, Bytes>(stream)
            .await
            .ok()?;
        Some((peer, connection, read))
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => shaken.ok().flatten(),
        () = place.lost() => None,
    };
    drop(place);
    let Some((peer, mut connection, read)) = shaken else {
        tracing::debug!(%client, "tunnel refused");
        return;
    };
    if let Some(pings) = connection.ping_pong() {
        tokio::spawn(watch_life(pings, read, dead.clone()));
    }
    let mut lost = std::pin::pin!(members.lost(&peer));
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = dead.cancelled() => None,
            () = lost.as_mut() => None,
        };
        let Some(Ok((request, mut respond))) = accepted else { break };
        if !members.knows(&peer) {
            answer(&mut respond, refusal(NetError::AccessDenied));
            continue;
        }
        let (arrivals, peer) = (arrivals.clone(), peer.name.clone());
        tokio::spawn(async move { serve_stream(request, respond, arrivals, &peer).await });
    }
    // With the connection its streams end, and the pods' connections are reset.
    dead.cancel();
    tracing::debug!(peer = %peer.name, "tunnel from peer closed");
}

async fn serve_stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    arrivals: Arc<dyn Arrivals>,
    peer: &str,
) {
    let (head, body) = request.into_parts();
    match head.uri.path() {
        TCP_PATH => {
            let Some((from, to)) = addresses(&head.headers) else {
                return answer(&mut respond, refusal(NetError::InvalidInput));
            };
            let arrived = tokio::select! {
                arrived = arrivals.arrive(peer, from, to) => arrived,
                // The dialer has given up: nobody waits for a place in the backlog any more.
                _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
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
        DATAGRAMS_PATH => {
            datagrams::receive_all(body, |datagram| arrivals.arrive_datagram(peer, datagram)).await;
        }
        _ => {
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
