//! One protocol's ports in a namespace.

use super::NetError;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// The ports that are handed out where none was asked for; Linux' default range.
pub(crate) const EPHEMERAL_PORTS: RangeInclusive<u16> = 32768..=60999;

/// Which address and port belongs to which socket.
/// A port is free the moment its socket goes: there is no TIME_WAIT where no packet can come late.
#[derive(Debug)]
pub(crate) struct PortTable<T> {
    ports: BTreeMap<u16, Vec<(IpAddr, T)>>,
    next_ephemeral: u16,
}

impl<T> PortTable<T> {
    /// An empty table that begins to hand out ephemeral ports at `first`, which is random so that programs
    /// do not come to rely on it.
    pub(crate) fn new(first: u16) -> Self {
        let next_ephemeral = first.clamp(*EPHEMERAL_PORTS.start(), *EPHEMERAL_PORTS.end());
        Self { ports: BTreeMap::new(), next_ephemeral }
    }

    /// Binds `slot` to the address; port 0 takes a free ephemeral one. Returns the address with its port.
    pub(crate) fn bind(&mut self, address: SocketAddr, slot: T) -> Result<SocketAddr, NetError> {
        let port = match address.port() {
            0 => self.free_port(address.ip()).ok_or(NetError::AddressInUse)?,
            _ if self.conflicting(address).is_some() => return Err(NetError::AddressInUse),
            port => port,
        };
        self.ports.entry(port).or_default().push((address.ip(), slot));
        Ok(SocketAddr::new(address.ip(), port))
    }

    /// Frees what [`PortTable::bind`] returned.
    pub(crate) fn release(&mut self, address: SocketAddr) {
        if let Some(slots) = self.ports.get_mut(&address.port()) {
            slots.retain(|(ip, _)| *ip != address.ip());
            if slots.is_empty() {
                self.ports.remove(&address.port());
            }
        }
    }

    /// The socket that serves the address: one bound to exactly it, else one bound to all addresses.
    pub(crate) fn find(&self, address: SocketAddr) -> Option<&T> {
        let slots = self.ports.get(&address.port())?;
        let exact = slots.iter().find(|(ip, _)| *ip == address.ip());
        let wildcard =
            || slots.iter().find(|(ip, _)| ip.is_unspecified() && ip.is_ipv4() == address.is_ipv4());
        exact.or_else(wildcard).map(|(_, slot)| slot)
    }

    /// The slot that was bound to this very address.
    pub(crate) fn get_mut(&mut self, address: SocketAddr) -> Option<&mut T> {
        let slots = self.ports.get_mut(&address.port())?;
        slots.iter_mut().find(|(ip, _)| *ip == address.ip()).map(|(_, slot)| slot)
    }

    /// A free ephemeral port for an address, not taken.
    pub(crate) fn free_port(&mut self, ip: IpAddr) -> Option<u16> {
        for _ in EPHEMERAL_PORTS {
            let port = self.next_ephemeral;
            self.next_ephemeral =
                if port == *EPHEMERAL_PORTS.end() { *EPHEMERAL_PORTS.start() } else { port + 1 };
            if self.conflicting(SocketAddr::new(ip, port)).is_none() {
                return Some(port);
            }
        }
        None
    }

    /// All slots, in order of their ports.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &T> {
        self.ports.values().flatten().map(|(_, slot)| slot)
    }

    /// Who has the address, or a part of what it means.
    pub(crate) fn conflicting(&self, address: SocketAddr) -> Option<&T> {
        let ip = address.ip();
        let conflicts = |bound: &IpAddr| {
            bound.is_ipv4() == ip.is_ipv4() && (*bound == ip || bound.is_unspecified() || ip.is_unspecified())
        };
        let slots = self.ports.get(&address.port())?;
        slots.iter().find(|(bound, _)| conflicts(bound)).map(|(_, slot)| slot)
    }
}
