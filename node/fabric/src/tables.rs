//! What the cluster looks like, made ready for lookups.

mod counters;
mod service;
#[cfg(test)]
pub(crate) mod whole;

pub(crate) use counters::{Counters, OpenConnection};
pub(crate) use service::Service;

use crate::gateway::Router;
use crate::model::{
    Cidr, Claim, Endpoint, NetworkChange, NodeEntry, NodeIdentity, PodEntry, PodIdentity, Protocol,
    ServiceEntry,
};
use crate::names::{Name, Names};
use crate::peer::Known;
use crate::whereabouts::{Host, host_and_port};
use service::is_api_server;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// All lookups of one moment. What is in use is never changed: a copy shares everything with the original, and a change of
/// it costs what has changed and the logarithm of the rest.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    services: imbl::HashMap<Name, Arc<Service>>,
    /// Endpoints of services that are pods of this node and serve, and those services as they were told.
    served: imbl::HashMap<Name, Arc<BTreeSet<SocketAddr>>>,
    told: imbl::HashMap<Name, Arc<ServiceEntry>>,
    /// By the service's number behind the address.
    by_address: imbl::OrdMap<(IpAddr, u64), Arc<Service>>,
    /// TCP node ports by the service's number behind the port, with the index of the service's port.
    node_ports: imbl::OrdMap<(u16, u64), (Arc<Service>, usize)>,
    /// Blocks by their first address.
    blocks: imbl::OrdMap<IpAddr, (Cidr, Arc<str>)>,
    /// The bases of each node's blocks, and which is the first.
    bases: imbl::OrdSet<(Arc<str>, IpAddr)>,
    first_bases: imbl::HashMap<Arc<str>, IpAddr>,
    nodes: imbl::OrdMap<Arc<str>, Node>,
    /// Nodes and the hosts of their fabrics, by the port.
    fabrics: Arc<Fabrics>,
    pods: imbl::HashMap<Name, PodAt>,
    /// The pods of which an address is said: where they are of several namespaces it is nobody's.
    owners: imbl::OrdMap<(IpAddr, Name), Arc<PodIdentity>>,
    /// The API server's real addresses: reached through its service alone.
    control: Arc<BTreeSet<SocketAddr>>,
    /// Namespaces whose pods may leave the cluster.
    egress: imbl::OrdSet<Arc<str>>,
    pub(crate) router: Router,
}

/// A pod with its address.
pub(crate) type PodAt = (IpAddr, Arc<PodIdentity>);

type Fabrics = HashMap<u16, Vec<(Arc<str>, Host)>>;

#[derive(Clone)]
struct Node {
    fabric: Arc<str>,
    identity: Option<NodeIdentity>,
}

/// What changes have touched, for those who keep something of their own by the tables.
#[derive(Default)]
pub(crate) struct Touched {
    pub(crate) services: Vec<Name>,
    pub(crate) node_ports: BTreeSet<u16>,
    pub(crate) nodes: bool,
    pub(crate) pods: Vec<Name>,
}

/// Has endpoints take part that serve, whatever is told of them.
fn add_served(entry: &mut ServiceEntry, served: &BTreeSet<SocketAddr>) {
    for at in served {
        match entry.endpoints.iter_mut().find(|endpoint| endpoint.address == at.ip()) {
            Some(known) => known.ready = true,
            None => {
                let ports = entry.ports.iter().map(|port| (port.name.clone(), at.port())).collect();
                let (address, ports) = (at.ip(), Arc::new(ports));
                entry.endpoints.push(Endpoint { address, ready: true, hostname: None, ports });
            }
        }
    }
}

impl Tables {
    /// Takes changes in, in their order.
    pub(crate) fn change(&mut self, changes: Vec<NetworkChange>, counters: &Counters) -> Touched {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                NetworkChange::Service(name, entry) => {
                    self.put_service(&name, entry, counters, &mut touched);
                    touched.services.push(name);
                }
                NetworkChange::Served(name, endpoint, is_there) => {
                    self.serve(&name, endpoint, is_there, counters, &mut touched);
                    touched.services.push(name);
                }
                NetworkChange::Unclaimed(name, claim) => self.unclaim(&name, claim, &mut touched),
                NetworkChange::PodBlock(cidr, node) => self.put_block(cidr, node.map(Into::into)),
                NetworkChange::Node(name, node) => {
                    self.put_node(&name, node);
                    touched.nodes = true;
                }
                NetworkChange::Routes(source, routes) => self.router.put(&source, routes),
                NetworkChange::Pod(name, pod) => {
                    self.put_pod(&name, pod);
                    touched.pods.push(name);
                }
                NetworkChange::Egress(namespace, is_allowed) => {
                    if is_allowed {
                        self.egress.insert(namespace.as_str().into());
                    } else {
                        self.egress.remove(namespace.as_str());
                    }
                }
            }
        }
        if touched.nodes {
            self.fabrics = Arc::new(self.fabrics_by_port());
        }
        touched
    }

    fn put_service(
        &mut self,
        name: &Name,
        entry: Option<ServiceEntry>,
        counters: &Counters,
        touched: &mut Touched,
    ) {
        if let Some(former) = self.services.remove(name) {
            for address in &former.entry.addresses {
                self.by_address.remove(&(*address, former.id));
            }
            for (port, _) in node_ports(&former) {
                self.node_ports.remove(&(port, former.id));
                touched.node_ports.insert(port);
            }
        }
        if is_api_server(name) {
            self.control = Arc::new(entry.as_ref().map(real_addresses).unwrap_or_default());
        }
        let served = self.served.get(name).cloned();
        let Some(mut entry) = entry else {
            self.told.remove(name);
            return;
        };
        // One with an address is no revision of a function: what answers for it only its slices say.
        match served.filter(|_| entry.addresses.is_empty()) {
            None => drop(self.told.remove(name)),
            Some(served) => {
                self.told.insert(name.clone(), Arc::new(entry.clone()));
                add_served(&mut entry, &served);
            }
        }
        let service = Arc::new(Service::new(entry, counters));
        for address in &service.entry.addresses {
            self.by_address.insert((*address, service.id), service.clone());
        }
        for (port, index) in node_ports(&service) {
            self.node_ports.insert((port, service.id), (service.clone(), index));
            touched.node_ports.insert(port);
        }
        self.services.insert(name.clone(), service);
    }

    /// An endpoint on this node serves, or does so no more.
    fn serve(
        &mut self,
        name: &Name,
        endpoint: SocketAddr,
        is_there: bool,
        counters: &Counters,
        touched: &mut Touched,
    ) {
        let mut served = self.served.get(name).map(|served| BTreeSet::clone(served)).unwrap_or_default();
        if is_there {
            served.insert(endpoint);
        } else {
            served.remove(&endpoint);
        }
        if served.is_empty() {
            self.served.remove(name);
        } else {
            self.served.insert(name.clone(), Arc::new(served));
        }
        let told = self.told.get(name).map(|told| ServiceEntry::clone(told));
        let told = told.or_else(|| Some(self.services.get(name)?.entry.clone()));
        if told.as_ref().is_some_and(|told| told.addresses.is_empty()) {
            self.put_service(name, told, counters, touched);
        }
    }

    fn unclaim(&mut self, name: &Name, claim: Claim, touched: &mut Touched) {
        let Some(id) = self.services.get(name).map(|service| service.id) else { return };
        match claim {
            Claim::Address(address) => drop(self.by_address.remove(&(address, id))),
            Claim::NodePort(port) => {
                self.node_ports.remove(&(port, id));
                touched.node_ports.insert(port);
            }
        }
    }

    fn put_block(&mut self, cidr: Cidr, node: Option<Arc<str>>) {
        let base = cidr.base();
        if let Some((_, former)) = self.blocks.remove(&base) {
            self.bases.remove(&(former.clone(), base));
            self.note_first_base(&former);
        }
        if let Some(node) = node {
            self.blocks.insert(base, (cidr, node.clone()));
            self.bases.insert((node.clone(), base));
            self.note_first_base(&node);
        }
    }

    fn note_first_base(&mut self, node: &Arc<str>) {
        const LEAST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let first = self.bases.get_next(&(node.clone(), LEAST)).filter(|(of, _)| of == node);
        match first.map(|(_, base)| *base) {
            Some(base) => drop(self.first_bases.insert(node.clone(), base)),
            None => drop(self.first_bases.remove(node)),
        }
    }

    fn put_node(&mut self, name: &str, node: Option<NodeEntry>) {
        match node {
            Some(NodeEntry { fabric, identity }) => {
                self.nodes.insert(name.into(), Node { fabric: fabric.into(), identity });
            }
            None => drop(self.nodes.remove(name)),
        }
    }

    fn fabrics_by_port(&self) -> Fabrics {
        let mut fabrics = Fabrics::new();
        for (name, node) in &self.nodes {
            if let Some((host, port)) = host_and_port(&node.fabric) {
                fabrics.entry(port).or_default().push((name.clone(), host));
            }
        }
        fabrics
    }

    fn put_pod(&mut self, name: &Name, pod: Option<PodEntry>) {
        if let Some((former, _)) = self.pods.remove(name) {
            self.owners.remove(&(former, name.clone()));
        }
        if let Some(PodEntry { address, uid, labels }) = pod {
            let pod = Arc::new(PodIdentity { name: name.clone(), uid, labels });
            self.pods.insert(name.clone(), (address, pod.clone()));
            self.owners.insert((address, name.clone()), pod);
        }
    }

    /// How many endpoints of this node serve.
    pub(crate) fn served(&self) -> usize {
        self.served.values().map(|served| served.len()).sum()
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&(namespace, name) as &dyn Names)
    }

    pub(crate) fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        let ((at, _), service) = self.by_address.get_next(&(address, 0))?;
        (*at == address).then_some(service)
    }

    /// The service that has a TCP node port, with the index of its port.
    pub(crate) fn node_port(&self, port: u16) -> Option<&(Arc<Service>, usize)> {
        let ((at, _), service) = self.node_ports.get_next(&(port, 0))?;
        (*at == port).then_some(service)
    }

    /// The node that hands out a pod address.
    pub(crate) fn node_of(&self, pod: IpAddr) -> Option<&Arc<str>> {
        let (_, (cidr, node)) = self.blocks.get_prev(&pod)?;
        cidr.contains(pod).then_some(node)
    }

    /// The node's own address among its pods': the first of its first block, which no pod gets.
    pub(crate) fn own_address_of(&self, node: &str) -> Option<IpAddr> {
        Some(match *self.first_bases.get(node)? {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | 1).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | 1).into(),
        })
    }

    /// Whether the pods of a namespace may leave the cluster.
    pub(crate) fn allows_egress(&self, namespace: &str) -> bool {
        self.egress.contains(namespace)
    }

    /// The `host:port` of a node's fabric.
    pub(crate) fn fabric_of(&self, node: &str) -> Option<&Arc<str>> {
        self.nodes.get(node).map(|node| &node.fabric)
    }

    /// All nodes, and what their certificates must say.
    pub(crate) fn identities(&self) -> BTreeMap<String, Option<NodeIdentity>> {
        self.nodes.iter().map(|(name, node)| (name.to_string(), node.identity.clone())).collect()
    }

    /// Whether the address is an API server's real one.
    pub(crate) fn is_control(&self, address: SocketAddr) -> bool {
        self.control.contains(&address)
    }

    /// The nodes whose fabric is at this port, and where they say that it is.
    pub(crate) fn fabrics_at(&self, port: u16) -> &[(Arc<str>, Host)] {
        self.fabrics.get(&port).map_or(&[], Vec::as_slice)
    }

    /// The names by which nodes say where their fabrics are.
    pub(crate) fn fabric_names(&self) -> BTreeSet<Arc<str>> {
        let name =
            |(_, host): &(_, Host)| if let Host::Name(name) = host { Some(name.clone()) } else { None };
        self.fabrics.values().flatten().filter_map(name).collect()
    }

    /// What is known of the pod with this address: nothing where pods of two namespaces claim it, and no more than the
    /// namespace where two of one do.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Known {
        let from = |least: Name| {
            let later = self.owners.range((address, least)..);
            later.take_while(|((at, _), _)| *at == address).map(|(_, pod)| pod)
        };
        let mut owners = from(Name { namespace: Arc::default(), name: Arc::default() });
        let Some(first) = owners.next() else { return Known::Nothing };
        if owners.next().is_none() {
            return Known::Pod(first.clone());
        }
        let namespace = &first.name.namespace;
        // No other namespace comes before this.
        let is_anothers = from(Name::new(&format!("{namespace}\0"), "")).next().is_some();
        if is_anothers { Known::Nothing } else { Known::Namespace(namespace.clone()) }
    }

    /// The address of the pod with this name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<IpAddr> {
        self.pods.get(&(namespace, name) as &dyn Names).map(|(address, _)| *address)
    }

    /// The pod with this name.
    pub(crate) fn pod_named(&self, name: &Name) -> Option<&PodAt> {
        self.pods.get(name)
    }
}

/// A service's TCP node ports, with the indices of its ports.
fn node_ports(service: &Service) -> impl Iterator<Item = (u16, usize)> {
    let tcp = service.entry.ports.iter().enumerate().filter(|(_, port)| port.protocol == Protocol::Tcp);
    tcp.filter_map(|(index, port)| Some((port.node_port?, index)))
}

fn real_addresses(entry: &ServiceEntry) -> BTreeSet<SocketAddr> {
    let of_endpoint = |address: IpAddr, ports: &BTreeMap<String, u16>| {
        ports.values().map(|port| SocketAddr::new(address, *port)).collect::<Vec<_>>()
    };
    let endpoints = entry.endpoints.iter();
    endpoints.flat_map(|endpoint| of_endpoint(endpoint.address.to_canonical(), &endpoint.ports)).collect()
}
