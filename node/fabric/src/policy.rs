//! Where a connection or datagram goes, and whether it may. This is the only place that decides it.

use crate::caller::Attached;
use crate::closed::{carried, is_closed, is_this_machine, was_this_machine};
use crate::model::{Cidr, Protocol};
use crate::tables::{Service, Tables};
use crate::whereabouts::Whereabouts;
use coracle_wasi_host::net::{Namespace, NetError};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// What a node that holds no block of pod addresses comes from. It is the last of the pods' pool and never a pod's.
const NODE_WITHOUT_BLOCK: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 255, 255));

/// Whether an address is one that a peer may send from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerSource {
    Its,
    NotIts,
    /// Of no node's block that is known yet: a new block may be heard of in a moment.
    Unknown,
}

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
    /// Whether the pods of all namespaces may leave the cluster.
    pub(crate) egress: bool,
    pub(crate) pods: RwLock<HashMap<IpAddr, Attached>>,
    pub(crate) whereabouts: Arc<Whereabouts>,
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
        if let Some(attached) = self.pod(pod) {
            return Ok(Place::Pod(attached.namespace));
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
    pub(crate) fn pod(&self, address: IpAddr) -> Option<Attached> {
        self.pods.read().get(&address).cloned()
    }

    /// The namespace of the pod that has an address. All those that are not known are of one of their own, the empty one:
    /// who is told of late must not be nobody's for so long. Nodes are no pods.
    pub(crate) fn namespace_of(&self, tables: &Tables, ip: IpAddr) -> Option<Arc<str>> {
        if let Some(attached) = self.pods.read().get(&ip) {
            return Some(attached.namespace.holder().namespace.clone());
        }
        let is_node = |node: &Arc<str>| tables.own_address_of(node) == Some(ip);
        if !self.pod_pool.contains(ip) || ip == NODE_WITHOUT_BLOCK || tables.node_of(ip).is_some_and(is_node)
        {
            return None;
        }
        Some(tables.namespace_of(ip).unwrap_or_default())
    }

    /// Whether another node may speak for `from`: only for the pods of its blocks and for itself.
    pub(crate) fn peer_source(&self, tables: &Tables, peer: &str, from: IpAddr) -> PeerSource {
        match tables.node_of(from) {
            Some(node) if &**node == peer => PeerSource::Its,
            Some(_) => PeerSource::NotIts,
            None if from == NODE_WITHOUT_BLOCK => PeerSource::Its,
            None if self.pod_pool.contains(from) => PeerSource::Unknown,
            None => PeerSource::NotIts,
        }
    }

    /// Whether an address that another node may speak for is that node's own, and no pod's.
    pub(crate) fn is_node(&self, tables: &Tables, peer: &str, from: IpAddr) -> bool {
        from == NODE_WITHOUT_BLOCK || tables.own_address_of(peer) == Some(from)
    }

    /// What the gateway and node ports of this node come from, as pods see them.
    pub(crate) fn own_address(&self, tables: &Tables) -> IpAddr {
        tables.own_address_of(&self.node).unwrap_or(NODE_WITHOUT_BLOCK)
    }

    /// What a pod of this node sees a client of a node port come from: itself, unless that could be taken for a pod, a
    /// service or the pod itself.
    pub(crate) fn client_source(&self, tables: &Tables, client: SocketAddr) -> SocketAddr {
        let ip = client.ip().to_canonical();
        let is_ours = self.is_cluster(ip) || ip.is_loopback() || ip.is_unspecified();
        SocketAddr::new(if is_ours { self.own_address(tables) } else { ip }, client.port())
    }

    /// Whether the pods of a namespace may leave the cluster: by its label, or because all may on this node.
    pub(crate) fn may_leave(&self, tables: &Tables, namespace: &str) -> bool {
        self.egress || tables.allows_egress(namespace)
    }

    /// Whether who asks for `namespace` may open a real connection to `to`. Never to what trusts its caller for being
    /// near, nor to the cluster's own daemons, nor to what only looks as if it were outside.
    pub(crate) fn check_egress(
        &self,
        tables: &Tables,
        namespace: &str,
        to: SocketAddr,
    ) -> Result<(), NetError> {
        let is_daemon = |ip: IpAddr| {
            let to = SocketAddr::new(ip, to.port());
            tables.is_control(to) || self.whereabouts.is_fabric(tables, to)
        };
        let open = self.may_leave(tables, namespace)
            && self.is_open(to.ip(), is_this_machine)
            && !is_daemon(to.ip())
            && !carried(to.ip()).is_some_and(|ip| is_daemon(ip.into()));
        if open { Ok(()) } else { Err(NetError::AccessDenied) }
    }

    /// Of the addresses that a name stands for, those that may be reached at all. A name of none is refused, so that no
    /// name opens what its address would not. Which are this machine's may be a second old: a name may have a thousand
    /// addresses, each is judged again by who connects to it, and a guest's thread is not to look at all of them each time.
    pub(crate) fn nameable(&self, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, NetError> {
        addresses.retain(|ip| self.is_cluster(*ip) || self.is_open(*ip, was_this_machine));
        if addresses.is_empty() { Err(NetError::AccessDenied) } else { Ok(addresses) }
    }

    fn is_cluster(&self, ip: IpAddr) -> bool {
        self.pod_pool.contains(ip) || self.service_range.contains(ip)
    }

    /// Whether an address beyond the cluster may be reached. What it carries is judged as well.
    fn is_open(&self, ip: IpAddr, is_this_machine: impl Fn(IpAddr) -> bool) -> bool {
        let carried = carried(ip).map(IpAddr::from);
        !is_closed(ip)
            && [Some(ip), carried]
                .into_iter()
                .flatten()
                .all(|ip| !self.is_cluster(ip) && !is_this_machine(ip))
    }
}
