//! One node's share of the cluster network.

use crate::dns::{self, Found, OutsideResolver, PodLookups};
use crate::door::Door;
use crate::egress::Egress;
use crate::error::FabricError;
use crate::flows::Flows;
use crate::gateway::Gateway;
use crate::model::{Cidr, NetworkState, Protocol};
use crate::node_port::NodePorts;
use crate::policy::{Place, Policy};
use crate::service::{Balancer, Choice, Failed};
use crate::tables::{Counters, OpenConnection, Service, Tables};
use crate::tunnel::{self, Arrivals, Datagram, FabricTls, Members, Peers};
use arc_swap::ArcSwap;
use bytes::Bytes;
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use coracle_wasi_host::net::{Conn, Namespace, NetError, Uplink};
use coracle_wasi_host::serving;
use futures::future::BoxFuture;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Where pods' addresses come from: 10.128.0.0/9.
const POD_POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 9);

/// Where services' addresses come from: 10.96.0.0/12.
const SERVICE_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 96, 0, 0), 12);

/// The domain of the cluster's names.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Endpoints that a connect to a service tries: one, and others where that one refuses or its node is gone.
pub(crate) const ENDPOINT_TRIES: usize = 4;

/// Names that a name may stand for, one after the other.
const ALIASES_MAX: usize = 4;

/// The namespace of a pod that says none.
const DEFAULT_NAMESPACE: &str = "default";

/// What a fabric is made of.
pub struct FabricConfig {
    /// The node's name, as in its certificate.
    pub node_name: String,
    /// Where other nodes' tunnels arrive; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the gateway listens; node ports are on the same address. None for a node that serves neither.
    pub gateway_listen: Option<SocketAddr>,
    /// The node's certificate.
    pub tls: FabricTls,
    /// Proxies before the gateway: what they say in `X-Forwarded-*` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// The descriptors that connections are taken from.
    pub descriptors: Descriptors,
}

/// One node's share of the cluster network. Clones are the same fabric.
#[derive(Clone)]
pub struct Fabric {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    policy: Policy,
    tables: ArcSwap<Tables>,
    counters: Counters,
    balancer: Balancer,
    flows: Flows,
    resolver: OutsideResolver,
    egress: Egress,
    peers: Arc<Peers>,
    members: Arc<Members>,
    node_ports: Option<NodePorts>,
    runtime: Handle,
    stopped: CancellationToken,
    address: SocketAddr,
    gateway_address: Option<SocketAddr>,
    trusted_proxies: Arc<[Cidr]>,
}

impl Fabric {
    /// Binds the listeners and begins to serve them on this tokio runtime.
    pub async fn start(config: FabricConfig) -> Result<Fabric, FabricError> {
        let tunnels = listen(config.listen, "tunnels of other nodes").await?;
        let gateway = match config.gateway_listen {
            Some(address) => Some(listen(address, "the gateway").await?),
            None => None,
        };
        let local = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
        let gateway_address =
            gateway.as_ref().zip(config.gateway_listen).map(|(bound, asked)| local(bound, asked));
        let stopped = CancellationToken::new();
        let members = Arc::new(Members::new());
        let descriptors = config.descriptors;
        let trusted_proxies: Arc<[Cidr]> = config.trusted_proxies.into();
        let inner = Arc::new(Inner {
            policy: Policy {
                node: config.node_name.into(),
                pod_pool: range(POD_POOL),
                service_range: range(SERVICE_RANGE),
                egress: true,
                pods: Default::default(),
            },
            tables: ArcSwap::default(),
            counters: Counters::default(),
            balancer: Balancer::default(),
            flows: Flows::default(),
            resolver: OutsideResolver::default(),
            egress: Egress::new(descriptors.clone()),
            peers: Arc::new(Peers::new(config.tls.client.clone(), members.clone(), stopped.clone())),
            members: members.clone(),
            node_ports: gateway_address
                .map(|address| NodePorts::new(address.ip(), descriptors.clone(), stopped.clone())),
            runtime: Handle::current(),
            address: local(&tunnels, config.listen),
            gateway_address,
            trusted_proxies: trusted_proxies.clone(),
            stopped: stopped.clone(),
        });
        let arrivals = Arc::new(Fabric { inner: inner.clone() });
        let door = Door::new(tunnels, tunnel::NEWCOMERS, descriptors.clone(), Purpose::Tunnels);
        tokio::spawn(tunnel::serve(door, config.tls.server.clone(), arrivals, members, stopped.clone()));
        if let Some(listener) = gateway {
            let door = Door::new(listener, serving::GATEWAY, descriptors, Purpose::Clients);
            let door = door.for_many(trusted_proxies);
            tokio::spawn(Gateway::new(inner.clone()).serve(door, stopped));
        }
        Ok(Fabric { inner })
    }

    /// Where other nodes' tunnels arrive.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Where the gateway listens.
    pub fn gateway_address(&self) -> Option<SocketAddr> {
        self.inner.gateway_address
    }

    /// Replaces what the fabric knows of the cluster. Connections that stand stay as they are, but those with nodes that
    /// are gone.
    pub fn update(&self, state: NetworkState) {
        let inner = &self.inner;
        let identity = |name: &String| (name.clone(), state.node_identities.get(name).cloned());
        inner.members.set(state.nodes.keys().map(identity).collect());
        let tables = Arc::new(Tables::build(state, &inner.counters));
        inner.tables.store(tables.clone());
        inner.counters.prune();
        inner.peers.retain(|node, fabric| tables.fabric_of(node).is_some_and(|known| &**known == fabric));
        if let Some(node_ports) = &inner.node_ports {
            let _runtime = inner.runtime.enter();
            node_ports.update(inner, &tables);
        }
    }

    /// Makes a pod of this node reachable by its address.
    pub fn attach(&self, address: IpAddr, namespace: Namespace) {
        self.inner.policy.pods.write().insert(address, namespace);
    }

    /// Makes the address unreachable. The namespace itself is left to its owner.
    pub fn detach(&self, address: IpAddr) {
        self.inner.policy.pods.write().remove(&address);
    }

    /// What one pod of a Kubernetes namespace has beyond itself; names are searched there first.
    pub fn uplink(&self, pod_namespace: &str) -> Arc<dyn Uplink> {
        Arc::new(PodUplink {
            inner: self.inner.clone(),
            namespace: pod_namespace.into(),
            lookups: PodLookups::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn policy(&self) -> &Policy {
        &self.inner.policy
    }

    /// Closes the listeners and tunnels. What the tunnels carried is reset.
    pub fn shutdown(&self) {
        self.inner.stopped.cancel();
    }
}

async fn listen(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, FabricError> {
    TcpListener::bind(address).await.map_err(|source| FabricError::Listen { address, purpose, source })
}

fn range((base, bits): (Ipv4Addr, u8)) -> Cidr {
    Cidr::new(base.into(), bits).expect("the constant has at most 32 bits")
}

impl Inner {
    pub(crate) fn tables(&self) -> arc_swap::Guard<Arc<Tables>> {
        self.tables.load()
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn gateway_ip(&self) -> Option<IpAddr> {
        self.gateway_address.map(|address| address.ip())
    }

    pub(crate) fn trusted_proxies(&self) -> &[Cidr] {
        &self.trusted_proxies
    }

    /// Cancelled when the fabric is shut down.
    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    pub(crate) fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Opens a connection for a pod of this node.
    async fn dial(self: &Arc<Self>, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
        let place = self.policy.place(&self.tables.load(), to, Protocol::Tcp)?;
        match place {
            Place::Service { service, port } => self.dial_service(from, to, &service, port).await,
            Place::Outside => {
                self.policy.check_egress(&self.tables.load(), to)?;
                self.dial_outside(from, to).await
            }
            place => self.dial_pod(from, to, place).await,
        }
    }

    /// Connects to one of a service's endpoints, and to others where that one is not to be had.
    pub(crate) async fn dial_service(
        self: &Arc<Self>,
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
            match self.dial_endpoint(from, choice.address, service).await {
                Ok(mut conn) => {
                    self.balancer.remember(service, from.ip(), choice);
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
        let place = self.policy.place(&self.tables.load(), choice.address, Protocol::Tcp).ok();
        failed.note(choice.address, place, error);
    }

    /// Connects to one endpoint of a service.
    pub(crate) async fn dial_endpoint(
        self: &Arc<Self>,
        from: SocketAddr,
        endpoint: SocketAddr,
        service: &Service,
    ) -> Result<Conn, NetError> {
        let place = self.policy.place(&self.tables.load(), endpoint, Protocol::Tcp)?;
        match place {
            // A service is no endpoint of another: that could go round in circles.
            Place::Service { .. } => Err(NetError::ConnectionRefused),
            Place::Outside => {
                if !service.is_api_server() {
                    self.policy.check_egress(&self.tables.load(), endpoint)?;
                }
                self.dial_outside(from, endpoint).await
            }
            place => self.dial_pod(from, endpoint, place).await,
        }
    }

    async fn dial_pod(
        self: &Arc<Self>,
        from: SocketAddr,
        to: SocketAddr,
        place: Place,
    ) -> Result<Conn, NetError> {
        match place {
            Place::Pod(namespace) => namespace.deliver_when_room(from, to).await,
            Place::Node { name, fabric } => {
                let peers = self.peers.clone();
                self.on_runtime(async move { peers.dial(&name, &fabric, from, to).await }).await
            }
            Place::Service { .. } | Place::Outside => Err(NetError::HostUnreachable),
        }
    }

    async fn dial_outside(self: &Arc<Self>, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
        let inner = self.clone();
        self.on_runtime(async move { inner.egress.dial(from, to).await }).await
    }

    /// Runs what does I/O where I/O is done: a dial is polled by the guest's executor. A caller who gives up
    /// does not tear down a tunnel that others wait for.
    async fn on_runtime(
        &self,
        dial: impl Future<Output = Result<Conn, NetError>> + Send + 'static,
    ) -> Result<Conn, NetError> {
        self.runtime.spawn(dial).await.unwrap_or(Err(NetError::NetworkDown))
    }

    async fn resolve(
        &self,
        namespace: &str,
        lookups: &PodLookups,
        name: &str,
    ) -> Result<Vec<IpAddr>, NetError> {
        let mut name = name.trim_end_matches('.').to_ascii_lowercase();
        for _ in 0..ALIASES_MAX {
            let found = dns::find(&self.tables.load(), CLUSTER_DOMAIN, namespace, &name);
            match found {
                Found::Addresses(addresses) => return Ok(addresses),
                Found::Alias(other) => name = other,
                Found::NotOurs if self.policy.egress => {
                    return self.resolver.resolve(&self.runtime, lookups, &name).await;
                }
                Found::Nothing | Found::NotOurs => return Err(NetError::NameUnknown),
            }
        }
        Err(NetError::NameUnknown)
    }

    /// Sends a datagram of a pod of this node.
    fn send(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Result<(), NetError> {
        let tables = self.tables.load();
        let Place::Service { service, port } = self.policy.place(&tables, to, Protocol::Udp)? else {
            return self.send_to_pod(&tables, from, to, payload);
        };
        let serves = |endpoint: SocketAddr| service.serving().any(|(_, one)| one.address == endpoint.ip());
        let choose =
            || self.balancer.choose(&service, port, from.ip(), |_| true).map(|choice| choice.address);
        let endpoint = self.flows.endpoint(from, to, serves, choose).ok_or(NetError::ConnectionRefused)?;
        self.send_to_pod(&tables, from, endpoint, payload)
    }

    fn send_to_pod(
        &self,
        tables: &Tables,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) -> Result<(), NetError> {
        match self.policy.place(tables, to, Protocol::Udp)? {
            Place::Pod(namespace) => self.deliver_datagram(&namespace, from, to, payload),
            Place::Node { name, fabric } => {
                let _runtime = self.runtime.enter();
                self.peers.send(&name, &fabric, Datagram { from, to, payload });
                Ok(())
            }
            // Datagrams do not leave the cluster yet.
            Place::Service { .. } | Place::Outside => Err(NetError::HostUnreachable),
        }
    }

    /// Hands a datagram to a pod of this node; the answer of a service's endpoint comes in the service's name.
    fn deliver_datagram(
        &self,
        namespace: &Namespace,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) -> Result<(), NetError> {
        let from = self.flows.service(to, from).unwrap_or(from);
        namespace.deliver_datagram(from, to, payload)
    }
}

impl Arrivals for Fabric {
    fn arrive(
        &self,
        peer: &str,
        from: SocketAddr,
        to: SocketAddr,
    ) -> BoxFuture<'static, Result<Conn, NetError>> {
        let inner = &self.inner;
        let checked = inner.policy.check_peer_source(&inner.tables.load(), peer, from.ip());
        let pod = inner.policy.pod(to.ip());
        Box::pin(async move {
            checked?;
            pod.ok_or(NetError::HostUnreachable)?.deliver_when_room(from, to).await
        })
    }

    fn arrive_datagram(&self, peer: &str, datagram: Datagram) {
        let inner = &self.inner;
        let Datagram { from, to, payload } = datagram;
        if inner.policy.check_peer_source(&inner.tables.load(), peer, from.ip()).is_err() {
            return;
        }
        if let Some(namespace) = inner.policy.pod(to.ip()) {
            // Whether a socket takes it is not told across nodes.
            let _ = inner.deliver_datagram(&namespace, from, to, payload);
        }
    }
}

/// The fabric as one pod of a Kubernetes namespace sees it.
struct PodUplink {
    inner: Arc<Inner>,
    namespace: Arc<str>,
    lookups: PodLookups,
}

impl Uplink for PodUplink {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.dial(from, to).await })
    }

    fn resolve(&self, _from: IpAddr, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        let (inner, namespace, name) = (self.inner.clone(), self.namespace.clone(), name.to_owned());
        let lookups = self.lookups.clone();
        Box::pin(async move { inner.resolve(&namespace, &lookups, &name).await })
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Result<(), NetError> {
        self.inner.send(from, to, payload)
    }
}

impl Uplink for Fabric {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        self.uplink(DEFAULT_NAMESPACE).dial(from, to)
    }

    fn resolve(&self, from: IpAddr, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        self.uplink(DEFAULT_NAMESPACE).resolve(from, name)
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Result<(), NetError> {
        self.inner.send(from, to, payload)
    }
}
