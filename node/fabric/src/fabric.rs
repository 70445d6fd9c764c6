//! One node's share of the cluster network.

mod arrivals;
mod datagrams;
mod dial;
mod held;

use crate::caller::Attached;
use crate::dns::{self, Found};
use crate::door::{self, Door};
use crate::egress::Egress;
use crate::error::FabricError;
use crate::flows::Flows;
use crate::gateway::{AccessLog, AskedOfFunction, Demand, Gateway, Meter, Pool};
use crate::model::{Cidr, NetworkChange, PodIdentity};
use crate::names::Name;
use crate::node_port::NodePorts;
use crate::policy::Policy;
use crate::resolver::{Family, PodLookups, Resolver};
use crate::service::{Balancer, Choice};
use crate::tables::{Counters, Service, Tables};
use crate::tunnel::{self, FabricTls, Members, Reception, Tunnels};
use crate::uplink::PodUplink;
use crate::whereabouts::{self, Whereabouts};
use arc_swap::ArcSwap;
use coracle_proto::metrics::Text;
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use coracle_wasi_host::net::{Namespace, NetError, TenantBuffers, Uplink};
use coracle_wasi_host::refusals::Refusals;
use coracle_wasi_host::serving;
use coracle_wasi_host::shares::{Holder, Shares};
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
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
    /// Whether the pods of all namespaces may open connections to beyond the cluster; otherwise those of
    /// [`NetworkChange::Egress`] names may.
    pub egress: bool,
    /// Proxies before the gateway: what they say in `X-Forwarded-*` is believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Where the gateway's requests are told of, if anywhere.
    pub access_log: Option<AccessLog>,
    /// Requests that the gateway has under way: namespaces and their clients have shares.
    pub gateway_requests: Arc<Shares>,
    /// The descriptors that connections are taken from.
    pub descriptors: Descriptors,
    /// Where what comes to namespaces' services from outside is counted while it is carried on.
    pub outside: TenantBuffers,
    /// Where it is noted what pods, and those who come to services, are refused.
    pub refusals: Refusals,
}

/// One node's share of the cluster network. Clones are the same fabric.
#[derive(Clone)]
pub struct Fabric {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    policy: Policy,
    tables: ArcSwap<Tables>,
    /// Whether anything was told yet; who changes the tables holds it.
    told: Mutex<bool>,
    /// Counts the changes of nodes.
    changes: watch::Sender<u64>,
    counters: Counters,
    balancer: Balancer,
    flows: Flows,
    resolver: Resolver,
    egress: Egress,
    /// The gateway's connections to endpoints.
    kept: Arc<Pool>,
    descriptors: Descriptors,
    outside: TenantBuffers,
    refusals: Refusals,
    tunnels: Arc<Tunnels>,
    members: Arc<Members>,
    node_ports: Option<NodePorts>,
    runtime: Handle,
    stopped: CancellationToken,
    address: SocketAddr,
    gateway_address: Option<SocketAddr>,
    gateway_requests: Arc<Shares>,
    gateway_meter: Meter,
    demand: Demand,
    trusted_proxies: Arc<[Cidr]>,
    access_log: Option<AccessLog>,
}

impl Fabric {
    /// Binds the listeners and begins to serve them on this tokio runtime.
    pub async fn start(config: FabricConfig) -> Result<Fabric, FabricError> {
        let resolver = Resolver::of_machine(&config.descriptors);
        Self::start_with(config, resolver).await
    }

    pub(crate) async fn start_with(config: FabricConfig, resolver: Resolver) -> Result<Fabric, FabricError> {
        let tunnels = listen(config.listen, "tunnels of other nodes")?;
        let gateway = match config.gateway_listen {
            Some(address) => Some(listen(address, "the gateway")?),
            None => None,
        };
        let local = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
        let gateway_address =
            gateway.as_ref().zip(config.gateway_listen).map(|(bound, asked)| local(bound, asked));
        let stopped = CancellationToken::new();
        let (members, whereabouts) = (Arc::new(Members::new()), Arc::<Whereabouts>::default());
        let descriptors = config.descriptors;
        let trusted_proxies: Arc<[Cidr]> = config.trusted_proxies.into();
        let inner = Arc::new(Inner {
            policy: Policy {
                node: config.node_name.into(),
                pod_pool: range(POD_POOL),
                service_range: range(SERVICE_RANGE),
                egress: config.egress,
                pods: Default::default(),
                whereabouts: whereabouts.clone(),
            },
            tables: ArcSwap::default(),
            told: Mutex::default(),
            changes: watch::Sender::new(0),
            counters: Counters::default(),
            balancer: Balancer::default(),
            flows: Flows::new(config.refusals.clone()),
            resolver,
            egress: Egress::new(descriptors.clone(), config.refusals.clone()),
            kept: Arc::default(),
            descriptors: descriptors.clone(),
            outside: config.outside,
            refusals: config.refusals.clone(),
            tunnels: Arc::new(Tunnels::new(
                config.tls.client.clone(),
                members.clone(),
                whereabouts.clone(),
                config.refusals.clone(),
                stopped.clone(),
            )),
            members: members.clone(),
            node_ports: gateway_address
                .map(|address| NodePorts::new(address.ip(), descriptors.clone(), stopped.clone())),
            runtime: Handle::current(),
            address: local(&tunnels, config.listen),
            gateway_address,
            gateway_requests: config.gateway_requests,
            gateway_meter: Meter::new(),
            demand: Demand::default(),
            trusted_proxies: trusted_proxies.clone(),
            access_log: config.access_log,
            stopped: stopped.clone(),
        });
        let arrivals = Box::new(Fabric { inner: inner.clone() });
        let reception = Arc::new(Reception { tls: config.tls.server, arrivals, members, whereabouts });
        let door = Door::new(tunnels, tunnel::NEWCOMERS, descriptors.clone(), Purpose::Tunnels);
        let door = door.noting(config.refusals.clone());
        tokio::spawn(tunnel::serve(door, reception, stopped.clone()));
        let changes = inner.changes.subscribe();
        tokio::spawn(whereabouts::keep(Arc::downgrade(&inner), changes, stopped.clone()));
        if let Some(listener) = gateway {
            let door = Door::new(listener, serving::GATEWAY, descriptors, Purpose::Clients);
            let door = door.for_many(trusted_proxies).noting(config.refusals);
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

    /// What the gateway has answered, for whoever monitors it; nothing where there is none.
    pub fn write_gateway(&self, text: &mut Text) {
        if self.inner.gateway_address.is_some() {
            self.inner.gateway_meter.write(text, self.inner.gateway_requests.held());
            self.inner.demand.meters.write(text);
            if let Some(log) = &self.inner.access_log {
                log.write(text);
            }
        }
    }

    /// What was asked of functions at the gateway since the last time.
    pub fn take_demand(&self) -> Vec<AskedOfFunction> {
        self.inner.demand.take()
    }

    /// The revisions of functions for an instance of which a request waits and none did before, once there are some.
    pub async fn instances_wanted(&self) -> Vec<Name> {
        self.inner.demand.wanted().await
    }

    /// Takes in what has changed of the cluster, all at once. Connections that stand stay as they are, but those with
    /// nodes that are gone.
    pub fn change(&self, changes: Vec<NetworkChange>) {
        let inner = &self.inner;
        let mut told = inner.told.lock();
        let mut tables = Tables::clone(&inner.tables.load());
        let touched = tables.change(changes, &inner.counters);
        let is_first = !std::mem::replace(&mut *told, true);
        if touched.nodes || is_first {
            inner.members.set(tables.identities());
        }
        let tables = Arc::new(tables);
        inner.tables.store(tables.clone());
        inner.policy.relabel(touched.pods.iter().filter_map(|name| tables.pod_named(name)));
        inner.balancer.forget(&touched.services, &tables);
        inner.demand.changed(&touched.services, &tables);
        if touched.nodes {
            inner.changes.send_modify(|count| *count += 1);
            inner
                .tunnels
                .retain(|node, fabric| tables.fabric_of(node).is_some_and(|known| &**known == fabric));
            inner.policy.whereabouts.retain(|node| tables.fabric_of(node).is_some());
        }
        if let Some(node_ports) = &inner.node_ports {
            let _runtime = inner.runtime.enter();
            node_ports.update(inner, &tables, touched.node_ports);
        }
    }

    /// Makes a pod of this node reachable by its address. Its labels are those that it has now, or newer ones that the fabric
    /// was told already; they follow what it is told later.
    pub fn attach(&self, address: IpAddr, network: Namespace, pod: PodIdentity) {
        let replaced = {
            let mut pods = self.inner.policy.pods.write();
            // The tables that are asked while this is held have what nobody will tell again.
            let tables = self.inner.tables.load();
            let told = tables.pod_named(&pod.name).filter(|(_, told)| told.uid == pod.uid);
            let pod = told.map_or_else(|| Arc::new(pod), |(_, told)| told.clone());
            pods.insert(address, Attached::new(network, pod))
        };
        if let Some(former) = replaced {
            former.gone.cancel();
        }
    }

    /// Makes the address unreachable, and ends what still carries its pod's connections. The namespace itself is left to
    /// its owner.
    pub fn detach(&self, address: IpAddr) {
        let removed = self.inner.policy.pods.write().remove(&address);
        if let Some(former) = removed {
            former.gone.cancel();
        }
        self.inner.flows.forget_pod(address);
    }

    /// What one pod of a Kubernetes namespace has beyond itself; names are searched there first. It sends from the
    /// addresses with which the network namespace that was made with it is attached.
    pub fn uplink(&self, pod_namespace: &str) -> Arc<dyn Uplink> {
        Arc::new(PodUplink::new(self.inner.clone(), pod_namespace))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Closes the listeners and tunnels. What the tunnels carried is reset.
    pub fn shutdown(&self) {
        self.inner.stopped.cancel();
    }
}

pub(crate) fn listen(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, FabricError> {
    door::listen(address).map_err(|source| FabricError::Listen { address, purpose, source })
}

fn range((base, bits): (Ipv4Addr, u8)) -> Cidr {
    Cidr::new(base.into(), bits).expect("the constant has at most 32 bits")
}

impl Inner {
    pub(crate) fn tables(&self) -> arc_swap::Guard<Arc<Tables>> {
        self.tables.load()
    }

    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What the gateway's connections come from: an address of the pods' network that is this node's own, so that no pod
    /// takes it for itself, and other nodes can tell that it is ours.
    pub(crate) fn gateway_ip(&self) -> Option<IpAddr> {
        Some(self.policy.own_address(&self.tables.load()))
    }

    /// Connections of pods to those of another node.
    #[cfg(test)]
    pub(crate) fn streams_to(&self, node: &str) -> usize {
        self.tunnels.streams_to(node)
    }

    /// By what those are shared.
    #[cfg(test)]
    pub(crate) fn stream_shares_to(&self, node: &str) -> Option<Arc<Shares>> {
        self.tunnels.shares_to(node)
    }

    pub(crate) fn whereabouts(&self) -> &Arc<Whereabouts> {
        &self.policy.whereabouts
    }

    pub(crate) fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(crate) fn kept(&self) -> &Arc<Pool> {
        &self.kept
    }

    pub(crate) fn gateway_requests(&self) -> &Arc<Shares> {
        &self.gateway_requests
    }

    pub(crate) fn access_log(&self) -> Option<&AccessLog> {
        self.access_log.as_ref()
    }

    pub(crate) fn gateway_meter(&self) -> &Meter {
        &self.gateway_meter
    }

    pub(crate) fn trusted_proxies(&self) -> &[Cidr] {
        &self.trusted_proxies
    }

    /// Cancelled when the fabric is shut down.
    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    /// Remembers where a client was sent, for services with affinity.
    pub(crate) fn remember(&self, service: &Service, client: IpAddr, choice: Choice) {
        self.balancer.remember(service, client, choice, || self.tables.load());
    }

    pub(crate) async fn resolve(
        &self,
        holder: &Holder,
        lookups: &PodLookups,
        name: &str,
        family: Family,
    ) -> Result<Vec<IpAddr>, NetError> {
        let mut name = name.trim_end_matches('.').to_ascii_lowercase();
        for _ in 0..ALIASES_MAX {
            let found = dns::find(&self.tables.load(), CLUSTER_DOMAIN, &holder.namespace, &name);
            match found {
                Found::Addresses(addresses) => return self.policy.nameable(addresses),
                Found::Alias(other) => name = other,
                Found::Nothing => return Err(NetError::NameUnknown),
                Found::NotOurs if !self.policy.may_leave(&self.tables.load(), &holder.namespace) => {
                    return Err(NetError::AccessDenied);
                }
                Found::NotOurs => {
                    let asked = self.resolver.resolve(&self.runtime, lookups, holder, &name, family);
                    return self.policy.nameable(asked.await?);
                }
            }
        }
        Err(NetError::NameUnknown)
    }
}
