//! Datagram sockets.

use super::NetError;
use super::namespace::{Route, Shared, loopback_for_unspecified};
use super::seat::{Budget, Seat};
use super::waker_set::WakerSet;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The most that one datagram carries over IPv4.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

/// What a datagram that waits is counted for beside its payload, so that empty ones are bounded as well.
const DATAGRAM_OVERHEAD_BYTES: usize = 64;

/// A bound UDP socket. Dropping it frees the port.
#[derive(Debug)]
pub struct UdpSocket {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    address: SocketAddr,
    _seat: Seat,
}

impl UdpSocket {
    pub(crate) fn new(shared: Arc<Shared>, mailbox: Arc<Mailbox>, address: SocketAddr, seat: Seat) -> Self {
        Self { shared, mailbox, address, _seat: seat }
    }

    /// The address of the socket. Bound to all addresses, it shows the one that its peer sees once connected.
    pub fn local_addr(&self) -> SocketAddr {
        let route = self.peer_addr().and_then(|peer| self.shared.route(peer.ip()).ok());
        route.and_then(|route| self.shared.source(Some(self.address), route).ok()).unwrap_or(self.address)
    }

    /// The peer of a connected socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.mailbox.state.lock().peer
    }

    /// Connects the socket to one peer, or frees it from its peer. Nothing is sent.
    pub fn connect(&self, peer: Option<SocketAddr>) -> Result<(), NetError> {
        let peer = peer.map(loopback_for_unspecified);
        if let Some(peer) = peer {
            let route = self.shared.route(peer.ip())?;
            self.shared.source(Some(self.address), route)?;
        }
        let mut state = self.mailbox.state.lock();
        state.peer = peer;
        state.error = None;
        // What others sent before is not for a connected socket.
        if let Some(peer) = peer {
            state.waiting.retain(|(from, _)| *from == peer);
            let kept = state.waiting.iter().map(|(_, payload)| cost(payload)).sum();
            self.mailbox.budget.remove(state.bytes - kept);
            state.bytes = kept;
        }
        Ok(())
    }

    /// Sends to `to`, or to the peer of a connected socket. Never waits: what finds no room is lost.
    /// A refusal by an earlier datagram of a connected socket comes out here or at the next receive, as on Linux.
    pub fn try_send(&self, payload: Bytes, to: Option<SocketAddr>) -> Result<(), NetError> {
        if payload.len() > DATAGRAM_BYTES_MAX {
            return Err(NetError::MessageTooLarge);
        }
        let (peer, earlier) = {
            let mut state = self.mailbox.state.lock();
            (state.peer, state.error.take())
        };
        if let Some(error) = earlier {
            return Err(error);
        }
        let to = loopback_for_unspecified(to.or(peer).ok_or(NetError::NotConnected)?);
        if to.port() == 0 {
            return Err(NetError::InvalidInput);
        }
        let route = self.shared.route(to.ip())?;
        let from = self.shared.source(Some(self.address), route)?;
        let sent = match route {
            Route::Own { .. } => self.shared.deliver_datagram(from, to, payload),
            Route::Beyond { .. } => self.shared.uplink.send(from, to, payload),
        };
        match sent {
            Err(NetError::ConnectionRefused) => {
                if peer == Some(to) {
                    self.mailbox.fail(NetError::ConnectionRefused);
                }
                Ok(())
            }
            sent => sent,
        }
    }

    /// Ready when a receive would give a datagram or an error.
    pub fn poll_receivable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.mailbox.state.lock();
        if state.error.is_some() || state.closed || !state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.receivers.register(cx.waker());
        Poll::Pending
    }

    /// The next datagram and its sender; `WouldBlock` when none waits.
    pub fn try_recv(&self) -> Result<(Bytes, SocketAddr), NetError> {
        let mut state = self.mailbox.state.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        match state.waiting.pop_front() {
            Some((from, payload)) => {
                state.bytes -= cost(&payload);
                self.mailbox.budget.remove(cost(&payload));
                Ok((payload, from))
            }
            None if state.closed => Err(NetError::NetworkDown),
            None => Err(NetError::WouldBlock),
        }
    }

    /// [`UdpSocket::try_recv`] that leaves the waker when none waits.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<(Bytes, SocketAddr), NetError>> {
        loop {
            match self.try_recv() {
                Err(NetError::WouldBlock) => std::task::ready!(self.poll_receivable(cx)),
                done => return Poll::Ready(done),
            }
        }
    }

    /// Waits for the next datagram.
    pub async fn recv(&self) -> Result<(Bytes, SocketAddr), NetError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.shared.release_udp(self.address);
    }
}

/// The datagrams that wait at one socket.
#[derive(Debug)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    bytes_max: usize,
    /// What all sockets of the namespace may hold together.
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(SocketAddr, Bytes)>,
    bytes: usize,
    peer: Option<SocketAddr>,
    error: Option<NetError>,
    closed: bool,
    receivers: WakerSet,
}

impl Mailbox {
    pub(crate) fn new(bytes_max: usize, budget: Arc<Budget>) -> Self {
        Self { state: Mutex::default(), bytes_max, budget }
    }

    /// Puts a datagram in. A full mailbox drops it; one that is connected to another peer refuses it.
    pub(crate) fn put(&self, from: SocketAddr, payload: Bytes) -> Result<(), NetError> {
        let mut state = self.state.lock();
        if state.peer.is_some_and(|peer| peer != from) {
            return Err(NetError::ConnectionRefused);
        }
        let cost = cost(&payload);
        if state.bytes + cost > self.budget.room_of_mailbox(self.bytes_max, state.waiting.is_empty()) {
            return Ok(());
        }
        state.bytes += cost;
        self.budget.add(cost);
        state.waiting.push_back((from, payload));
        let receivers = state.receivers.take();
        drop(state);
        receivers.wake();
        Ok(())
    }

    fn fail(&self, error: NetError) {
        let mut state = self.state.lock();
        state.error = Some(error);
        let receivers = state.receivers.take();
        drop(state);
        receivers.wake();
    }

    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let receivers = state.receivers.take();
        drop(state);
        receivers.wake();
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.budget.remove(self.state.get_mut().bytes);
    }
}

fn cost(payload: &Bytes) -> usize {
    payload.len() + DATAGRAM_OVERHEAD_BYTES
}
