//! One end of a connection.

use super::buffers::Buffers;
use super::callers::Caller;
use super::pipe::{Gone, Pipe};
use super::seat::{Budget, Seat};
use super::{NetError, TRANSFER_BYTES_MAX};
use bytes::Bytes;
use std::any::Any;
use std::fmt;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One end of a duplex of two bounded pipes; a tokio stream, and a non-blocking socket for those who poll.
///
/// Dropping it closes it: in order when everything that came was read, with a reset otherwise, as close(2) does.
pub struct Conn {
    rx: Arc<Pipe>,
    tx: Arc<Pipe>,
    local: SocketAddr,
    peer: SocketAddr,
    seat: Option<Seat>,
    guards: Vec<Box<dyn Any + Send + Sync>>,
    is_probe: bool,
}

impl Conn {
    /// Two ends that speak to each other: the first has the address `local` and sees `peer`, the second the
    /// reverse. Each direction holds at most `capacity` bytes.
    pub fn pair(local: SocketAddr, peer: SocketAddr, capacity: usize) -> (Conn, Conn) {
        Self::pair_within(local, peer, capacity, None)
    }

    pub(crate) fn pair_within(
        local: SocketAddr,
        peer: SocketAddr,
        capacity: usize,
        budget: Option<&Arc<Budget>>,
    ) -> (Conn, Conn) {
        let out = Arc::new(Pipe::new(capacity, budget.cloned()));
        let back = Arc::new(Pipe::new(capacity, budget.cloned()));
        let end = |rx: &Arc<Pipe>, tx: &Arc<Pipe>, local, peer| Conn {
            rx: rx.clone(),
            tx: tx.clone(),
            local,
            peer,
            seat: None,
            guards: Vec::new(),
            is_probe: false,
        };
        (end(&back, &out, local, peer), end(&out, &back, peer, local))
    }

    /// The address of this end.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The address of the other end as this one sees it: for a connection to a service, the service's.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The same connection under other addresses.
    #[must_use]
    pub fn with_addresses(mut self, local: SocketAddr, peer: SocketAddr) -> Conn {
        self.local = local;
        self.peer = peer;
        self
    }

    /// Keeps `guard` until this end is dropped: a count of open connections, a permit.
    pub fn hold(&mut self, guard: impl Any + Send + Sync) {
        self.guards.push(Box::new(guard));
    }

    /// Marks this end as one over which the node asks whether who has it serves.
    pub(crate) fn mark_as_probe(&mut self) {
        self.is_probe = true;
    }

    /// On whose account it is; none where it is on nobody's.
    pub fn buffers(&self) -> Option<Buffers> {
        Some(Buffers::new(self.tx.budget()?.clone(), self.tx.capacity()))
    }

    /// The namespace of the pod that opened it to one of another namespace.
    pub(crate) fn foreign_namespace(&self) -> Option<&Arc<str>> {
        self.seat.as_ref()?.caller().namespace()
    }

    /// Whose part of its pod it is, where it was opened by another than the pod: the caller, or the client for whom the
    /// node opened it.
    pub(crate) fn client(&self) -> Option<IpAddr> {
        self.seat.as_ref()?.caller().source()
    }

    /// Whether it came by [`super::Namespace::deliver_probe`], which is the node's alone.
    pub(crate) fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Whether it was opened to its pod by somebody of another namespace, or of none.
    pub(crate) fn is_from_elsewhere(&self) -> bool {
        self.seat.as_ref().is_some_and(|seat| seat.caller().is_other())
    }

    pub(crate) fn take_seat(&mut self, mut seat: Seat) {
        seat.seat_connection(&self.rx, &self.tx);
        self.seat = Some(seat);
    }

    /// Ready once the other end has gone altogether: closed or reset, not only shut down. A carrier of bytes that is
    /// held up elsewhere learns of it here.
    pub fn poll_peer_gone(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.rx.poll_writer_reset(cx).is_ready() {
            return Poll::Ready(Gone::Reset);
        }
        self.tx.poll_reader_gone(cx)
    }

    /// Ready when a read would give bytes, the end or an error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.rx.poll_readable(cx)
    }

    /// Takes at most `max` bytes without copying them. Empty means that the peer has ended;
    /// `WouldBlock` means that nothing is here now.
    pub fn try_read(&self, max: usize) -> Result<Bytes, NetError> {
        self.rx.try_read(max)
    }

    /// Reads into `buffer`; 0 means that the peer has ended.
    pub fn poll_read_into(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, NetError>> {
        self.rx.poll_read_into(cx, buffer)
    }

    /// Ready when a write would take bytes or give an error.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.tx.poll_writable(cx)
    }

    /// Writes as much of `data` as there is room for; `WouldBlock` when there is none.
    pub fn try_write(&self, data: &[u8]) -> Result<usize, NetError> {
        self.tx.try_write(data)
    }

    /// Writes as much of the front of `data` as there is room for and removes it there, without copying.
    pub fn try_write_bytes(&self, data: &mut Bytes) -> Result<usize, NetError> {
        self.tx.try_write_bytes(data)
    }

    /// Writes from `data`, leaving the waker when there is no room.
    pub fn poll_write_from(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, NetError>> {
        self.tx.poll_write(cx, data)
    }

    /// Bytes, at most [`TRANSFER_BYTES_MAX`], that the next [`Conn::write_permitted`] takes whole;
    /// 0 while the pipe is full.
    pub fn write_permit(&self) -> Result<usize, NetError> {
        Ok(self.tx.permit()?.min(TRANSFER_BYTES_MAX))
    }

    /// Writes all of `data`, which must be no longer than the last [`Conn::write_permit`].
    pub fn write_permitted(&self, data: Bytes) -> Result<(), NetError> {
        self.tx.write_permitted(data)
    }

    /// Whether bytes are here to be read.
    pub fn has_unread(&self) -> bool {
        self.rx.has_unread()
    }

    /// Whether the other end is closed altogether, not only for writing.
    pub fn is_peer_gone(&self) -> bool {
        self.tx.is_unread()
    }

    /// Shuts down reading, writing or both, as shutdown(2) does.
    pub fn shutdown(&self, how: Shutdown) {
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.rx.deafen();
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.tx.finish();
        }
    }

    /// Ends the connection in disorder: the peer's next read after what was sent, or its next write, fails.
    pub fn reset(&self) {
        self.tx.reset_writer();
        self.rx.reset_reader();
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.rx.has_unread() {
            self.reset();
        } else {
            self.tx.finish();
            self.rx.close_reader();
        }
        // What this pod wrote for a caller who does not read it is the pod's as long as it waits: so long the caller has
        // one connection less, or he could have it hold any number of them.
        if let Some(seat) = self.seat.take().filter(|seat| *seat.caller() != Caller::Own) {
            self.tx.keep(seat);
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("local", &self.local).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = std::task::ready!(self.rx.poll_read_into(cx, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.tx.poll_write(cx, data).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tx.finish();
        Poll::Ready(Ok(()))
    }
}
