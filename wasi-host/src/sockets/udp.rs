//! A guest's UDP socket, whichever WASI version it speaks.

use super::convert::Family;
use super::tcp::nonzero;
use crate::net::{Namespace, NetError, UdpSocket as PodUdpSocket};
use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A UDP socket that may not be bound yet.
pub(crate) struct UdpSocket {
    family: Family,
    socket: Option<Arc<PodUdpSocket>>,
    hop_limit: u8,
    receive_buffer: u64,
    send_buffer: u64,
}

/// Linux' default for net.core.rmem_default and wmem_default.
const BUFFER_DEFAULT: u64 = 212_992;

impl UdpSocket {
    pub(crate) fn new(family: Family) -> Self {
        let (receive_buffer, send_buffer) = (BUFFER_DEFAULT, BUFFER_DEFAULT);
        Self { family, socket: None, hop_limit: 64, receive_buffer, send_buffer }
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    pub(crate) fn bind(&mut self, namespace: &Namespace, address: SocketAddr) -> Result<(), NetError> {
        if self.socket.is_some() {
            return Err(NetError::InvalidState);
        }
        self.family.check_local(address)?;
        self.socket = Some(Arc::new(namespace.bind_udp(address)?));
        Ok(())
    }

    /// Binds to a free port unless the socket is bound.
    pub(crate) fn bind_if_needed(&mut self, namespace: &Namespace) -> Result<&Arc<PodUdpSocket>, NetError> {
        if self.socket.is_none() {
            let any: IpAddr = match self.family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            self.bind(namespace, SocketAddr::new(any, 0))?;
        }
        self.bound()
    }

    /// The socket, which must be bound.
    pub(crate) fn bound(&self) -> Result<&Arc<PodUdpSocket>, NetError> {
        self.socket.as_ref().ok_or(NetError::InvalidState)
    }

    pub(crate) fn connect(&self, peer: SocketAddr) -> Result<(), NetError> {
        self.family.check_remote(peer)?;
        self.bound()?.connect(Some(peer))
    }

    pub(crate) fn disconnect(&self) -> Result<(), NetError> {
        let socket = self.bound()?;
        if socket.peer_addr().is_none() {
            return Err(NetError::InvalidState);
        }
        socket.connect(None)
    }

    pub(crate) fn local_address(&self) -> Result<SocketAddr, NetError> {
        Ok(self.bound()?.local_addr())
    }

    pub(crate) fn remote_address(&self) -> Result<SocketAddr, NetError> {
        self.bound()?.peer_addr().ok_or(NetError::InvalidState)
    }

    pub(crate) fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    pub(crate) fn set_hop_limit(&mut self, value: u8) -> Result<(), NetError> {
        self.hop_limit = nonzero(value)?;
        Ok(())
    }

    pub(crate) fn receive_buffer(&self) -> u64 {
        self.receive_buffer
    }

    pub(crate) fn set_receive_buffer(&mut self, value: u64) -> Result<(), NetError> {
        self.receive_buffer = nonzero(value)?;
        Ok(())
    }

    pub(crate) fn send_buffer(&self) -> u64 {
        self.send_buffer
    }

    pub(crate) fn set_send_buffer(&mut self, value: u64) -> Result<(), NetError> {
        self.send_buffer = nonzero(value)?;
        Ok(())
    }
}

/// Sends one datagram; a connected socket takes no other address than its peer's.
pub(crate) fn send(socket: &PodUdpSocket, data: Vec<u8>, to: Option<SocketAddr>) -> Result<(), NetError> {
    let peer = socket.peer_addr();
    match (to, peer) {
        (None, None) => return Err(NetError::InvalidInput),
        (Some(to), Some(peer)) if to != peer => return Err(NetError::InvalidInput),
        (Some(to), _) => Family::of(socket.local_addr()).check_remote(to)?,
        (None, Some(_)) => {}
    }
    socket.try_send(Bytes::from(data), to)
}
