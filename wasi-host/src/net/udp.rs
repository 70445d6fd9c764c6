//! Datagram sockets.

use super::NetError;
use super::callers::Caller;
use super::mailbox::Mailbox;
use super::namespace::{Route, Shared, loopback_for_unspecified};
use super::seat::Seat;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The most that one datagram carries over IPv4.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

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
        self.mailbox.state().peer
    }

    /// Connects the socket to one peer, or frees it from its peer. Nothing is sent.
    pub fn connect(&self, peer: Option<SocketAddr>) -> Result<(), NetError> {
        let peer = peer.map(loopback_for_unspecified);
        if let Some(peer) = peer {
            let route = self.shared.route(peer.ip())?;
            self.shared.source(Some(self.address), route)?;
        }
        let mut state = self.mailbox.state();
        state.peer = peer;
        state.error = None;
        // What others sent before is not for a connected socket.
        if let Some(peer) = peer {
            self.mailbox.keep_only(&mut state, peer);
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
            let mut state = self.mailbox.state();
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
            Route::Own { .. } => self.shared.deliver_datagram(from, to, &Caller::Own, payload),
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
        let mut state = self.mailbox.state();
        if state.is_receivable() {
            return Poll::Ready(());
        }
        state.receivers.register(cx.waker());
        Poll::Pending
    }

    /// The next datagram and its sender; `WouldBlock` when none waits.
    pub fn try_recv(&self) -> Result<(Bytes, SocketAddr), NetError> {
        let mut state = self.mailbox.state();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        match self.mailbox.take(&mut state) {
            Some((from, payload)) => Ok((payload, from)),
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
