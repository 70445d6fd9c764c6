//! Datagrams of this node's pods, and their answers.

use super::Inner;
use crate::flows::Way;
use crate::model::Protocol;
use crate::policy::Place;
use crate::tables::Tables;
use crate::tunnel::Datagram;
use bytes::Bytes;
use coracle_wasi_host::net::{Namespace, NetError};
use coracle_wasi_host::shares::Holder;
use std::net::SocketAddr;

impl Inner {
    /// Sends a datagram of a pod of this node.
    pub(crate) fn send(
        &self,
        holder: &Holder,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) -> Result<(), NetError> {
        let tables = self.tables.load();
        let way = match self.policy.place(&tables, to, Protocol::Udp)? {
            Place::Service { service, port } => {
                let serves = |endpoint: SocketAddr| service.serves(endpoint.ip());
                let choose = || {
                    let choice = self.balancer.choose(&service, port, from.ip(), |_| true);
                    choice.map(|choice| choice.address).ok_or(NetError::ConnectionRefused)
                };
                // Without room for its flow the datagram is lost: its answer could not be told from others.
                let Some(way) = self.flows.way(holder, from, to, serves, choose)? else { return Ok(()) };
                way
            }
            Place::Outside => return Err(NetError::HostUnreachable),
            Place::Pod(_) | Place::Node { .. } => self.flows.direct(holder, from, to),
        };
        self.send_to_pod(&tables, holder, way, payload)
    }

    fn send_to_pod(
        &self,
        tables: &Tables,
        holder: &Holder,
        way: Way,
        payload: Bytes,
    ) -> Result<(), NetError> {
        let Way { source: from, endpoint: to } = way;
        match self.policy.place(tables, to, Protocol::Udp)? {
            Place::Pod(namespace) => self.deliver_datagram(&namespace, from, to, payload),
            Place::Node { name, fabric } => {
                let _runtime = self.runtime.enter();
                self.peers.send(&name, &fabric, holder, Datagram { from, to, payload });
                Ok(())
            }
            // Datagrams do not leave the cluster yet.
            Place::Service { .. } | Place::Outside => Err(NetError::HostUnreachable),
        }
    }

    /// Hands a datagram to a pod of this node; an answer goes to the socket that asked, in the name that it asked.
    pub(super) fn deliver_datagram(
        &self,
        namespace: &Namespace,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) -> Result<(), NetError> {
        let speaks = |asked: SocketAddr, endpoint: SocketAddr| self.speaks(asked, endpoint);
        let (to, from) = self.flows.answered(from, to, speaks).unwrap_or((to, from));
        namespace.deliver_datagram(from, to, payload)
    }

    /// Whether an endpoint may answer for what was asked: the address of a pod that is gone is another's later.
    fn speaks(&self, asked: SocketAddr, endpoint: SocketAddr) -> bool {
        let service = || self.tables.load().service_at(asked.ip()).cloned();
        asked == endpoint || service().is_some_and(|service| service.lists(endpoint.ip()))
    }
}
