//! Where a connection or datagram goes, and who is there. Whether it may is [`crate::policy`]'s.

use crate::caller::Attached;
use crate::model::{PodIdentity, Protocol};
use crate::peer::{At, Peer, Who};
use crate::policy::{NODE_WITHOUT_BLOCK, Policy};
use crate::tables::{PodAt, Service, Tables};
use coracle_wasi_host::net::{Namespace, NetError};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Where something goes.
pub(crate) enum Target {
    /// To one of a service's endpoints; the port's index is in the service's entry.
    Service { service: Arc<Service>, port: usize },
    /// To somebody.
    Peer(Destination),
}

/// Who has an address, and how he is reached.
pub(crate) struct Destination {
    pub(crate) peer: Peer,
    pub(crate) hop: Hop,
}

/// The next hop to a peer.
pub(crate) enum Hop {
    /// To a pod of this node.
    Pod(Namespace),
    /// Through the tunnel to a node's fabric.
    Node { name: Arc<str>, fabric: Arc<str> },
    /// To a real socket.
    Outside,
}

impl Policy {
    /// Where `to` is. Nobody there is an error; what is found has yet to be decided.
    pub(crate) fn place(
        &self,
        tables: &Tables,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<Target, NetError> {
        if let Some(service) = tables.service_at(to.ip()) {
            let port = service.port(protocol, to.port()).ok_or(NetError::ConnectionRefused)?;
            return Ok(Target::Service { service: service.clone(), port });
        }
        if self.service_range.contains(to.ip()) {
            return Err(NetError::ConnectionRefused);
        }
        if self.pod_pool.contains(to.ip()) {
            return self.place_pod(tables, to.ip()).map(Target::Peer);
        }
        let peer = Peer { address: to.ip(), who: Who::Outside };
        Ok(Target::Peer(Destination { peer, hop: Hop::Outside }))
    }

    /// Where one of a service's endpoints is.
    pub(crate) fn place_endpoint(
        &self,
        tables: &Tables,
        service: &Service,
        endpoint: SocketAddr,
        protocol: Protocol,
    ) -> Result<Destination, NetError> {
        match self.place(tables, endpoint, protocol)? {
            // A service is no endpoint of another: that could go round in circles.
            Target::Service { .. } => Err(match protocol {
                Protocol::Tcp => NetError::ConnectionRefused,
                Protocol::Udp => NetError::HostUnreachable,
            }),
            Target::Peer(mut found) => {
                if matches!(found.hop, Hop::Outside) && service.is_api_server() {
                    found.peer.who = Who::ApiServer;
                }
                Ok(found)
            }
        }
    }

    fn place_pod(&self, tables: &Tables, address: IpAddr) -> Result<Destination, NetError> {
        if let Some(Attached { network, pod, .. }) = self.pod(address) {
            return Ok(Destination { peer: Peer::here(address, pod), hop: Hop::Pod(network) });
        }
        let node = tables.node_of(address).ok_or(NetError::HostUnreachable)?;
        if *node == self.node {
            // The pod has gone, or has not come yet.
            return Err(NetError::HostUnreachable);
        }
        let fabric = tables.fabric_of(node).ok_or(NetError::HostUnreachable)?;
        let peer = Peer { address, who: self.who_at(tables, address, Some(node)) };
        Ok(Destination { peer, hop: Hop::Node { name: node.clone(), fabric: fabric.clone() } })
    }

    /// The pod of this node with the address.
    pub(crate) fn pod(&self, address: IpAddr) -> Option<Attached> {
        self.pods.read().get(&address).cloned()
    }

    /// Pods that are told of anew: those of this node have the labels now that they have there.
    pub(crate) fn relabel<'a>(&self, told: impl Iterator<Item = &'a PodAt>) {
        for (address, pod) in told {
            let is_same = |known: &PodIdentity| (&known.uid, &known.name) == (&pod.uid, &pod.name);
            let is_behind = |attached: &Attached| is_same(&attached.pod) && attached.pod != *pod;
            // Most of what is told is nothing new, and all who send read this.
            let is_new = self.pods.read().get(address).is_some_and(is_behind);
            if !is_new {
                continue;
            }
            if let Some(attached) = self.pods.write().get_mut(address).filter(|attached| is_behind(attached))
            {
                attached.pod = pod.clone();
            }
        }
    }

    /// Who has an address, as far as this node knows.
    pub(crate) fn peer(&self, tables: &Tables, address: IpAddr) -> Peer {
        if let Some(attached) = self.pods.read().get(&address) {
            return Peer::here(address, attached.pod.clone());
        }
        let who = if self.pod_pool.contains(address) {
            self.who_at(tables, address, tables.node_of(address))
        } else {
            Who::Outside
        };
        Peer { address, who }
    }

    /// Who has an address of the pods' pool, which this node hands out.
    pub(crate) fn who_at(&self, tables: &Tables, address: IpAddr, node: Option<&Arc<str>>) -> Who {
        if address == NODE_WITHOUT_BLOCK
            || node.is_some_and(|node| tables.own_address_of(node) == Some(address))
        {
            return Who::Node { name: node.cloned() };
        }
        let at = match node {
            Some(node) if *node == self.node => At::Here,
            Some(node) => At::Node(node.clone()),
            None => At::Unheard,
        };
        Who::Pod { at, known: tables.pod_at(address) }
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
}
