//! Datagrams of this node's pods, and their answers.

use super::Inner;
use crate::caller::Caller;
use crate::flows::Way;
use crate::model::Protocol;
use crate::peer::Peer;
use crate::place::{Destination, Hop, Target};
use crate::tunnel::Datagram;
use bytes::Bytes;
use coracle_wasi_host::net::{Namespace, NetError};
use std::net::SocketAddr;

impl Inner {
    /// Sends a datagram of a pod of this node.
    pub(crate) fn send(
        &self,
        caller: &Caller,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) -> Result<(), NetError> {
        let (tables, holder) = (self.tables.load(), &caller.holder);
        let may = |found: &Destination, port| {
            self.policy.decide(&tables, &caller.source, &found.peer, port, Protocol::Udp).ok()
        };
        let (way, found) = match self.policy.place(&tables, to, Protocol::Udp)? {
            Target::Service { service, port } => {
                let serves = |endpoint: SocketAddr| service.serves(endpoint.ip());
                let choose = || {
                    let choice = self.balancer.choose(&service, port, from.ip(), |_| true);
                    choice.map(|choice| choice.address).ok_or(NetError::ConnectionRefused)
                };
                // Without room for its flow the datagram is lost: its answer could not be told from others.
                let Some(way) = self.flows.way(holder, from, to, serves, choose)? else { return Ok(()) };
                let found = self.policy.place_endpoint(&tables, &service, way.endpoint, Protocol::Udp)?;
                may(&found, way.endpoint.port())?;
                (way, found)
            }
            Target::Peer(found) => {
                may(&found, to.port())?;
                (self.flows.direct(holder, from, to), found)
            }
        };
        let Way { source: from, endpoint: to } = way;
        match found.hop {
            Hop::Pod(network) => self.deliver_datagram(&network, &caller.source, from, to, payload),
            Hop::Node { name, fabric } => {
                let _runtime = self.runtime.enter();
                self.tunnels.send(&name, &fabric, holder, Datagram { from, to, payload });
                Ok(())
            }
            // No socket of this kind is opened for pods.
            Hop::Outside => Err(NetError::HostUnreachable),
        }
    }

    /// Hands a datagram to a pod of this node; an answer goes to the socket that asked, in the name that it asked.
    pub(super) fn deliver_datagram(
        &self,
        network: &Namespace,
        source: &Peer,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) -> Result<(), NetError> {
        let speaks = |asked: SocketAddr, endpoint: SocketAddr| self.speaks(asked, endpoint);
        match self.flows.answered(from, to, speaks) {
            Some((asker, asked)) => network.deliver_datagram(asked, asker, payload),
            None => network.deliver_datagram_of(source.of_pods(), from, to, payload),
        }
    }

    /// Whether an endpoint may answer for what was asked: the address of a pod that is gone is another's later.
    fn speaks(&self, asked: SocketAddr, endpoint: SocketAddr) -> bool {
        let service = || self.tables.load().service_at(asked.ip()).cloned();
        asked == endpoint || service().is_some_and(|service| service.lists(endpoint.ip()))
    }
}
