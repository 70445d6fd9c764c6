//! Where a connection or datagram goes, and whether it may. This is the only place that decides it.

use crate::model::{Cidr, Protocol};
use crate::tables::{Service, Tables};
use coracle_wasi_host::net::{Namespace, NetError};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Where something goes.
pub(crate) enum Place {
    /// To one of a service's endpoints; the port's index is in the service's entry.
    Service { service: Arc<Service>, port: usize },
    /// To a pod of this node.
    Pod(Namespace),
    /// Through the tunnel to a node's fabric.
    Node { name: Arc<str>, fabric: Arc<str> },
    /// To a real socket, once [`Policy::check_egress`] has agreed to the address.
    Outside,
}

/// What a node's decisions rest on beside the tables.
pub(crate) struct Policy {
    pub(crate) node: Arc<str>,
    pub(crate) pod_pool: Cidr,
    pub(crate) service_range: Cidr,
    /// Whether pods may leave the cluster. Kubernetes' default is that they may.
    pub(crate) egress: bool,
    pub(crate) pods: RwLock<HashMap<IpAddr, Namespace>>,
}

impl Policy {
    /// Where `to` is. NetworkPolicy will be asked here, where both ends are known.
    pub(crate) fn place(
        &self,
        tables: &Tables,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<Place, NetError> {
        if let Some(service) = tables.service_at(to.ip()) {
            let port = service.port(protocol, to.port()).ok_or(NetError::ConnectionRefused)?;
            return Ok(Place::Service { service: service.clone(), port });
        }
        if self.service_range.contains(to.ip()) {
            return Err(NetError::ConnectionRefused);
        }
        if self.pod_pool.contains(to.ip()) {
            return self.place_pod(tables, to.ip());
        }
        Ok(Place::Outside)
    }

    fn place_pod(&self, tables: &Tables, pod: IpAddr) -> Result<Place, NetError> {
        if let Some(namespace) = self.pods.read().get(&pod) {
            return Ok(Place::Pod(namespace.clone()));
        }
        let node = tables.node_of(pod).ok_or(NetError::HostUnreachable)?;
        if *node == self.node {
            // The pod has gone, or has not come yet.
            return Err(NetError::HostUnreachable);
        }
        let fabric = tables.fabric_of(node).ok_or(NetError::HostUnreachable)?;
        Ok(Place::Node { name: node.clone(), fabric: fabric.clone() })
    }

    /// The pod of this node with the address.
    pub(crate) fn pod(&self, address: IpAddr) -> Option<Namespace> {
        self.pods.read().get(&address).cloned()
    }

    /// Whether another node may speak for `from`: not for a pod that a third node has.
    pub(crate) fn check_peer_source(
        &self,
        tables: &Tables,
        peer: &str,
        from: IpAddr,
    ) -> Result<(), NetError> {
        match tables.node_of(from) {
            Some(node) if &**node != peer => Err(NetError::AccessDenied),
            _ => Ok(()),
        }
    }

    /// Whether a pod may open a real connection to `to`. Never to what trusts its caller for being near:
    /// this machine's own addresses, link-local ones (cloud metadata among them), and the cluster's own daemons.
    pub(crate) fn check_egress(&self, tables: &Tables, to: SocketAddr) -> Result<(), NetError> {
        let ip = to.ip().to_canonical();
        let to = SocketAddr::new(ip, to.port());
        let reserved = match ip {
            IpAddr::V4(ip) => is_reserved_v4(ip),
            IpAddr::V6(ip) => is_reserved_v6(ip),
        };
        let denied =
            !self.egress || reserved || tables.is_control(to) || tables.is_fabric(to) || is_this_machine(ip);
        if denied { Err(NetError::AccessDenied) } else { Ok(()) }
    }
}

fn is_reserved_v4(ip: Ipv4Addr) -> bool {
    ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0
}

fn is_reserved_v6(ip: Ipv6Addr) -> bool {
    let carries_v4 = match ip.segments() {
        // NAT64 and 6to4 lead to an IPv4 address that is judged as such.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4_of(high, low)),
        [0x2002, high, low, ..] => Some(v4_of(high, low)),
        _ => None,
    };
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_unicast_link_local()
        || ip.is_multicast()
        || carries_v4.is_some_and(is_reserved_v4)
}

fn v4_of(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))
}

/// Whether an address is one of this machine's. Only those can be bound.
fn is_this_machine(ip: IpAddr) -> bool {
    !is_foreign(&std::net::UdpSocket::bind((ip, 0)))
}

/// Whether an attempt to bind shows that the address is not this machine's. One that failed for another reason, such
/// as want of file descriptors, shows nothing.
fn is_foreign<T>(bound: &io::Result<T>) -> bool {
    matches!(bound, Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_counts_as_this_machine() {
        const TOO_MANY_FILES: i32 = 24;
        assert!(!is_foreign::<()>(&Err(io::Error::from_raw_os_error(TOO_MANY_FILES))));
        assert!(!is_foreign(&Ok(())));
        assert!(is_foreign::<()>(&Err(io::ErrorKind::AddrNotAvailable.into())));
        assert!(
            is_this_machine(Ipv4Addr::LOCALHOST.into())
                && !is_this_machine(Ipv4Addr::new(192, 0, 2, 7).into())
        );
    }
}
