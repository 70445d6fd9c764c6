//! Whether a connection or datagram may be carried. This is the only place that decides it: first who sends, which
//! [`Policy::pod_source`] and [`Policy::node_source`] take for proven or not, then with both ends [`Policy::decide`].

use crate::caller::Attached;
use crate::closed::{carried, is_closed, is_this_machine, was_this_machine};
use crate::model::{Cidr, Protocol};
use crate::peer::{At, Peer, Who};
use crate::tables::Tables;
use crate::whereabouts::Whereabouts;
use coracle_wasi_host::net::{NetError, Uplink};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// What a node that holds no block of pod addresses comes from. It is the last of the pods' pool and never a pod's.
pub(crate) const NODE_WITHOUT_BLOCK: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 255, 255));

/// What becomes of a connection or datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// With what its sender is told.
    Refused(NetError),
}

/// What another node says of whom it sends for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeSource {
    /// It may speak for this one.
    Proven(Peer),
    /// It may not speak for the address.
    Forged,
    /// Of no node's block that is known yet: a new block may be heard of in a moment.
    Unheard,
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

impl Verdict {
    pub(crate) fn ok(self) -> Result<(), NetError> {
        match self {
            Self::Allowed => Ok(()),
            Self::Refused(error) => Err(error),
        }
    }
}

impl Policy {
    /// The pod of this node that sends from an address by this uplink: it sends from its own and no other, and from none once
    /// it is off the network.
    pub(crate) fn pod_source(&self, uplink: &impl Uplink, from: IpAddr) -> Result<Attached, NetError> {
        let own = self.pod(from);
        let is_own = |pod: &Attached| std::ptr::addr_eq(Arc::as_ptr(pod.network.uplink()), uplink);
        own.filter(is_own).ok_or(NetError::AddressNotAvailable)
    }

    /// Whom another node sends for: only for the pods of its blocks and for itself, and then it may say for which client.
    pub(crate) fn node_source(
        &self,
        tables: &Tables,
        node: &Arc<str>,
        from: IpAddr,
        client: Option<IpAddr>,
    ) -> NodeSource {
        let whose = tables.node_of(from);
        match whose {
            Some(whose) if whose == node => {}
            Some(_) => return NodeSource::Forged,
            None if from == NODE_WITHOUT_BLOCK => {}
            None if self.pod_pool.contains(from) => return NodeSource::Unheard,
            None => return NodeSource::Forged,
        }
        let who = self.who_at(tables, from, Some(node));
        NodeSource::Proven(match (who, client) {
            (Who::Node { .. }, Some(client)) => {
                Peer { address: client, who: Who::Client { at: At::Node(node.clone()), service: None } }
            }
            // A pod's connection is its own, whatever else is said of it.
            (who, _) => Peer { address: from, who },
        })
    }

    /// Whether what `source` sends to this port of `destination` is carried. Both nodes ask it of what goes through a tunnel.
    /// Where NetworkPolicies select one of the two they are asked here.
    pub(crate) fn decide(
        &self,
        tables: &Tables,
        source: &Peer,
        destination: &Peer,
        port: u16,
        protocol: Protocol,
    ) -> Verdict {
        let verdict = self.judge(tables, source, destination, port, protocol);
        if let Verdict::Refused(error) = verdict {
            tracing::debug!(%source, %destination, port, ?protocol, %error, "not carried");
        }
        verdict
    }

    fn judge(
        &self,
        tables: &Tables,
        source: &Peer,
        destination: &Peer,
        port: u16,
        protocol: Protocol,
    ) -> Verdict {
        // Nobody outside is a source by himself, this machine's loopback included: a node connects for him, as for a client.
        if matches!(source.who, Who::Outside | Who::ApiServer) {
            return Verdict::Refused(NetError::AccessDenied);
        }
        match (&destination.who, protocol) {
            // That a node is no pod it says itself.
            (Who::Pod { .. } | Who::Node { .. }, _) => Verdict::Allowed,
            // Datagrams do not leave the cluster yet.
            (Who::ApiServer | Who::Outside, Protocol::Udp) => Verdict::Refused(NetError::HostUnreachable),
            (Who::ApiServer, Protocol::Tcp) => Verdict::Allowed,
            (Who::Outside, Protocol::Tcp) => {
                let to = SocketAddr::new(destination.address, port);
                let may =
                    source.namespace().is_some_and(|namespace| self.may_leave_to(tables, namespace, to));
                if may { Verdict::Allowed } else { Verdict::Refused(NetError::AccessDenied) }
            }
            // A client is somebody who asks, and has no address here.
            (Who::Client { .. }, _) => Verdict::Refused(NetError::HostUnreachable),
        }
    }

    /// Whether the pods of a namespace may leave the cluster: by its label, or because all may on this node.
    pub(crate) fn may_leave(&self, tables: &Tables, namespace: &str) -> bool {
        self.egress || tables.allows_egress(namespace)
    }

    /// Whether who asks for `namespace` may open a real connection to `to`. Never to what trusts its caller for being
    /// near, nor to the cluster's own daemons, nor to what only looks as if it were outside.
    fn may_leave_to(&self, tables: &Tables, namespace: &str, to: SocketAddr) -> bool {
        let is_daemon = |ip: IpAddr| {
            let to = SocketAddr::new(ip, to.port());
            tables.is_control(to) || self.whereabouts.is_fabric(tables, to)
        };
        self.may_leave(tables, namespace)
            && self.is_open(to.ip(), is_this_machine)
            && !is_daemon(to.ip())
            && !carried(to.ip()).is_some_and(|ip| is_daemon(ip.into()))
    }

    /// Of the addresses that a name stands for, those that may be reached at all. A name of none is refused, so that no
    /// name opens what its address would not. Which are this machine's may be a second old: a name may have a thousand
    /// addresses, each is judged again by who connects to it, and a guest's thread is not to look at all of them each time.
    pub(crate) fn nameable(&self, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, NetError> {
        addresses.retain(|ip| self.is_cluster(*ip) || self.is_open(*ip, was_this_machine));
        if addresses.is_empty() { Err(NetError::AccessDenied) } else { Ok(addresses) }
    }

    pub(crate) fn is_cluster(&self, ip: IpAddr) -> bool {
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
