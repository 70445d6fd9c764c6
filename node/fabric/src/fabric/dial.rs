//! Connections: to a service's endpoints, pods here and elsewhere, and the outside.

use super::{ENDPOINT_TRIES, Inner};
use crate::caller::Caller;
use crate::model::Protocol;
use crate::place::{Destination, Hop, Target};
use crate::service::{Choice, Failed};
use crate::tables::{OpenConnection, Service};
use coracle_wasi_host::net::{Conn, NetError};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

impl Inner {
    /// Opens a connection for a pod of this node.
    pub(crate) async fn dial(
        self: &Arc<Self>,
        caller: &Caller,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Conn, NetError> {
        let target = self.policy.place(&self.tables.load(), to, Protocol::Tcp)?;
        match target {
            Target::Service { service, port } => {
                self.dial_service_for(caller, from, to, &service, port).await
            }
            Target::Peer(found) => self.dial_peer(caller, from, to, found).await,
        }
    }

    /// Connects a client from outside to one of a service's endpoints.
    pub(crate) async fn dial_service(
        self: &Arc<Self>,
        from: SocketAddr,
        to: SocketAddr,
        service: &Arc<Service>,
        port: usize,
    ) -> Result<Conn, NetError> {
        let caller = Caller::outside(from.ip(), service, &self.outside);
        self.dial_service_for(&caller, from, to, service, port).await
    }

    /// Connects to one of a service's endpoints, and to others where that one is not to be had.
    async fn dial_service_for(
        self: &Arc<Self>,
        caller: &Caller,
        from: SocketAddr,
        to: SocketAddr,
        service: &Arc<Service>,
        port: usize,
    ) -> Result<Conn, NetError> {
        let mut failed = Failed::default();
        for _ in 0..ENDPOINT_TRIES {
            let Some(choice) = self.choose(service, port, from.ip(), &failed) else { break };
            // Counted from the attempt on, so that many dials at once do not all see the same empty endpoint.
            let open = OpenConnection::count(&service.open[choice.index]);
            match self.dial_endpoint_for(caller, from, choice.address, service).await {
                Ok(mut conn) => {
                    self.remember(service, from.ip(), choice);
                    conn.hold(open);
                    return Ok(conn.with_addresses(from, to));
                }
                Err(error) => self.note(&mut failed, choice, error),
            }
        }
        Err(failed.last().unwrap_or(NetError::ConnectionRefused))
    }

    /// An endpoint that was not tried yet, on a node that was not found unreachable.
    pub(crate) fn choose(
        &self,
        service: &Arc<Service>,
        port: usize,
        client: IpAddr,
        failed: &Failed,
    ) -> Option<Choice> {
        let tables = self.tables.load();
        self.balancer
            .choose(service, port, client, |endpoint| !failed.excludes(endpoint, &self.policy, &tables))
    }

    /// Remembers a failed attempt.
    pub(crate) fn note(&self, failed: &mut Failed, choice: Choice, error: NetError) {
        let target = self.policy.place(&self.tables.load(), choice.address, Protocol::Tcp).ok();
        failed.note(choice.address, target, error);
    }

    /// Connects the gateway to one endpoint of a service, for a client.
    pub(crate) async fn dial_endpoint(
        self: &Arc<Self>,
        from: SocketAddr,
        client: IpAddr,
        endpoint: SocketAddr,
        service: &Service,
    ) -> Result<Conn, NetError> {
        let caller = Caller::outside(client, service, &self.outside);
        self.dial_endpoint_for(&caller, from, endpoint, service).await
    }

    async fn dial_endpoint_for(
        self: &Arc<Self>,
        caller: &Caller,
        from: SocketAddr,
        endpoint: SocketAddr,
        service: &Service,
    ) -> Result<Conn, NetError> {
        let found = self.policy.place_endpoint(&self.tables.load(), service, endpoint, Protocol::Tcp)?;
        self.dial_peer(caller, from, endpoint, found).await
    }

    /// Connects to who was found at `to`, if he may be reached.
    async fn dial_peer(
        self: &Arc<Self>,
        caller: &Caller,
        from: SocketAddr,
        to: SocketAddr,
        found: Destination,
    ) -> Result<Conn, NetError> {
        let Destination { peer, hop } = found;
        self.policy.decide(&self.tables.load(), &caller.source, &peer, to.port(), Protocol::Tcp).ok()?;
        match hop {
            Hop::Pod(network) => match caller.source.as_client() {
                None => network.deliver_when_room(from, to).await,
                Some(client) => {
                    let from = self.policy.client_source(&self.tables.load(), from);
                    network.deliver_for(client, from, to).await
                }
            },
            Hop::Node { name, fabric } => {
                let from = match caller.source.as_client() {
                    None => from,
                    // The other node lets this one speak for its own addresses only.
                    Some(_) => SocketAddr::new(self.policy.own_address(&self.tables.load()), from.port()),
                };
                let (tunnels, caller) = (self.tunnels.clone(), caller.clone());
                self.on_runtime(async move { tunnels.dial(&name, &fabric, &caller, (from, to)).await }).await
            }
            Hop::Outside => {
                let (inner, caller) = (self.clone(), caller.clone());
                self.on_runtime(async move { inner.egress.dial(&caller, from, to).await }).await
            }
        }
    }

    /// Runs what does I/O where I/O is done: a dial is polled by the guest's executor. It ends with a caller who gives up.
    async fn on_runtime(
        &self,
        dial: impl Future<Output = Result<Conn, NetError>> + Send + 'static,
    ) -> Result<Conn, NetError> {
        AbortOnDropHandle::new(self.runtime.spawn(dial)).await.unwrap_or(Err(NetError::NetworkDown))
    }
}
