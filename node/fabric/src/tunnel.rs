//! The tunnel between two nodes: one mTLS connection each way, one HTTP/2 stream a TCP connection.
//!
//! HTTP/2 gives streams with half-close, reset and a window each, so that one slow reader stops nobody else.
//! Every byte of a stream is given back to its window only when the pod's pipe has taken it. Until then it is on the account
//! of who receives it, as what is in the pipe is; where that is full the stream that has stood still for the longest is reset.
//! A peer that answers no ping and sends nothing for [`SILENCE_MAX`] is dead: its connections are reset.

mod client;
mod datagrams;
mod identity;
mod pump;
mod server;
mod wire;

pub(crate) use client::Tunnels;
pub(crate) use identity::Members;
pub(crate) use server::{Arrivals, Arrived, NEWCOMERS, Reception, serve};
pub(crate) use wire::{Datagram, Opening};

use arc_swap::ArcSwap;
use coracle_wasi_host::shares::Certain;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// The node's certificate as both ends of tunnels show it. Both configurations trust the CA that signs nodes'
/// certificates; the server asks for one. They may be replaced: each tunnel takes those of the moment when it is opened.
#[derive(Clone)]
pub struct FabricTls {
    /// For tunnels that others open.
    pub server: Arc<ArcSwap<rustls::ServerConfig>>,
    /// For tunnels that this node opens.
    pub client: Arc<ArcSwap<rustls::ClientConfig>>,
}

/// Bytes that a stream may hold ahead of its reader, where there is room for them on its account.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// The window of a whole connection: as much as all its streams may fill together. Those that stand still, whoever's they
/// are, take nothing of it from others.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;

/// The largest piece of a stream in one frame, the least that HTTP/2 has: streams take turns by frames, whoever's they are.
const FRAME_BYTES_MAX: u32 = 16 * 1024;

/// Bytes of a stream that wait for their turn on the wire.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Bytes of the head of one request or answer, reckoned as RFC 9113 has it: two addresses and a word.
const HEAD_BYTES_MAX: u32 = 2 * 1024;

/// Streams to another node that its peers' pods share, and those that a pod has for certain beside them.
const STREAMS_SHARED: usize = 4096;
const STREAMS_CERTAIN: Certain = Certain { each: 2, all: 2048 };

/// Streams open at once on one connection.
const STREAMS_MAX: u32 = (STREAMS_SHARED + STREAMS_CERTAIN.all) as u32;

/// How often a peer is asked whether it lives.
const PING_EVERY: Duration = Duration::from_millis(500);

/// How long a peer may be silent altogether after a ping.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// How long the answer to one ping may take, whatever the peer sends meanwhile. Who takes nothing for so long has this node
/// hold what all its pods send there.
const PONG_MAX: Duration = Duration::from_secs(30);

/// A byte stream that counts what it has read, so that a busy peer is not taken for a dead one.
struct Counted<S> {
    stream: S,
    read: Arc<AtomicU64>,
}

impl<S> Counted<S> {
    fn new(stream: S) -> (Self, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        (Self { stream, read: read.clone() }, read)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Asks the peer for a sign of life until there is none; then cancels `dead`.
async fn watch_life(mut pings: h2::PingPong, read: Arc<AtomicU64>, dead: CancellationToken) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let before = read.load(Ordering::Relaxed);
        match tokio::time::timeout(SILENCE_MAX, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => break,
            // The answer may be queued behind much data: then the peer lives, and only one ping may be under way.
            Err(_) if read.load(Ordering::Relaxed) != before => {
                let late = wait_for_pong(&mut pings, &read);
                if !matches!(tokio::time::timeout(PONG_MAX, late).await, Ok(Ok(()))) {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    dead.cancel();
}

/// Waits for the answer of a ping that is late, as long as the peer sends anything at all.
async fn wait_for_pong(pings: &mut h2::PingPong, read: &AtomicU64) -> Result<(), ()> {
    loop {
        let before = read.load(Ordering::Relaxed);
        let pong = std::future::poll_fn(|cx| pings.poll_pong(cx));
        match tokio::time::timeout(SILENCE_MAX, pong).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => return Err(()),
            Err(_) if read.load(Ordering::Relaxed) != before => {}
            Err(_) => return Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_and_takes_nothing_is_given_up() {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        const UNKNOWN: [u8; 9] = [0, 0, 0, 99, 0, 0, 0, 0, 0];
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let (near, read) = Counted::new(near);
        let handshake = h2::client::Builder::new().handshake::<_, bytes::Bytes>(near);
        far.write_all(&SETTINGS).await.unwrap();
        let (_sender, mut connection) = handshake.await.unwrap();
        let (pings, dead) = (connection.ping_pong().unwrap(), CancellationToken::new());
        tokio::spawn(connection);
        tokio::spawn(watch_life(pings, read, dead.clone()));
        let (mut from, mut to) = tokio::io::split(far);
        // What it is asked is in the pipe, and never read.
        let begun = Instant::now();
        let talks = async {
            loop {
                to.write_all(&UNKNOWN).await.unwrap();
                tokio::time::sleep(SILENCE_MAX / 2).await;
            }
        };
        tokio::select! {
            ended = tokio::time::timeout(10 * PONG_MAX, dead.cancelled()) => ended.expect("it is given up"),
            () = talks => unreachable!("it goes on"),
        }
        assert!(begun.elapsed() >= PONG_MAX, "it has its time");
        assert!(from.read(&mut [0; 64]).await.unwrap() > 0, "it was asked");
    }
}
