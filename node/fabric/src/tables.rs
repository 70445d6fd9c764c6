//! A [`NetworkState`] made ready for lookups, and what of it outlives an update.

use crate::gateway::Router;
use crate::model::{Cidr, Endpoint, NetworkState, PodEntry, Protocol, ServiceEntry};
use crate::service::Choice;
use crate::whereabouts::{Host, host_and_port};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

/// All lookups of one moment. Never changed, only replaced.
#[derive(Default)]
pub(crate) struct Tables {
    by_name: HashMap<String, HashMap<String, Arc<Service>>>,
    by_address: HashMap<IpAddr, Arc<Service>>,
    /// TCP node ports, with the index of the service's port.
    pub(crate) node_ports: BTreeMap<u16, (Arc<Service>, usize)>,
    /// Blocks by their first address.
    blocks: BTreeMap<IpAddr, (Cidr, Arc<str>)>,
    /// The base of each node's first block.
    first_blocks: HashMap<Arc<str>, IpAddr>,
    nodes: HashMap<Arc<str>, Arc<str>>,
    /// Nodes and the hosts of their fabrics, by the port.
    fabrics: HashMap<u16, Vec<(Arc<str>, Host)>>,
    pods: HashMap<String, HashMap<String, IpAddr>>,
    /// Whose pod has an address; none where it is said of pods of several namespaces.
    namespaces: HashMap<IpAddr, Option<Arc<str>>>,
    /// The API server's real addresses: reached through its service alone.
    control: BTreeSet<SocketAddr>,
    /// Namespaces whose pods may leave the cluster.
    egress: BTreeSet<String>,
    pub(crate) router: Router,
}

/// A service, with counters at its endpoints.
pub(crate) struct Service {
    pub(crate) entry: ServiceEntry,
    /// The entry's namespace, for those who keep it.
    pub(crate) namespace: Arc<str>,
    /// A number of its name that no two services have, as long as nobody can choose it.
    pub(crate) id: u64,
    /// How many connections through services are open to each endpoint, in the entry's order.
    pub(crate) open: Vec<Arc<AtomicUsize>>,
    /// The endpoints that traffic may go to, by the slices' ports that they share. An endpoint is not kept for each of
    /// its ports: a service of many of both would fill the node.
    ready: Vec<Ready>,
    /// The index of each port by what it is asked for.
    numbers: HashMap<(Protocol, u16), usize>,
    /// All endpoints, and whether traffic may go to them.
    addresses: HashMap<IpAddr, bool>,
    /// Those that traffic may go to and that have a name of their own.
    hostnames: HashMap<String, Vec<IpAddr>>,
}

/// Endpoints that are looked at for each address that is wanted.
const LOOKED_AT: usize = 4;

/// The endpoints of a service that have the same ports.
struct Ready {
    /// The number on the endpoints by the index of the service's port, for those that they have.
    numbers: HashMap<usize, u16>,
    /// (index in the service's entry, address)
    endpoints: Vec<(usize, IpAddr)>,
    /// The index of each address, the first where it is there twice.
    indices: HashMap<IpAddr, usize>,
}

impl Service {
    fn new(entry: ServiceEntry, counters: &Counters) -> Self {
        let open = entry.endpoints.iter().map(|endpoint| counters.of(endpoint.address)).collect();
        let (ready, numbers, addresses, hostnames) = Default::default();
        static NAMES: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let id = NAMES.hash_one((&entry.namespace, &entry.name));
        let namespace = entry.namespace.as_str().into();
        let mut service = Self { entry, namespace, id, open, ready, numbers, addresses, hostnames };
        service.ready = service.by_ports();
        for endpoint in &service.entry.endpoints {
            let serves = service.may_serve(endpoint);
            *service.addresses.entry(endpoint.address).or_default() |= serves;
            if let Some(hostname) = endpoint.hostname.as_ref().filter(|_| serves) {
                service.hostnames.entry(hostname.clone()).or_default().push(endpoint.address);
            }
        }
        for (index, port) in service.entry.ports.iter().enumerate().rev() {
            service.numbers.insert((port.protocol, port.port), index);
        }
        service
    }

    fn by_ports(&self) -> Vec<Ready> {
        let names: HashMap<&str, usize> =
            self.entry.ports.iter().enumerate().map(|(index, port)| (port.name.as_str(), index)).collect();
        let mut ready: Vec<Ready> = Vec::new();
        let mut alike: BTreeMap<Vec<(usize, u16)>, usize> = BTreeMap::new();
        // Endpoints of one slice share their ports: each list is read once.
        let mut read: HashMap<*const BTreeMap<String, u16>, usize> = HashMap::new();
        for (index, endpoint) in self.serving() {
            let at = *read.entry(Arc::as_ptr(&endpoint.ports)).or_insert_with(|| {
                let number = |(name, number): (&String, &u16)| Some((*names.get(name.as_str())?, *number));
                let mut numbers: Vec<(usize, u16)> = endpoint.ports.iter().filter_map(number).collect();
                numbers.sort_unstable();
                *alike.entry(numbers).or_insert_with_key(|numbers| {
                    let (endpoints, indices) = Default::default();
                    ready.push(Ready { numbers: numbers.iter().copied().collect(), endpoints, indices });
                    ready.len() - 1
                })
            });
            ready[at].endpoints.push((index, endpoint.address));
            ready[at].indices.entry(endpoint.address).or_insert(index);
        }
        ready
    }

    /// How many endpoints traffic for a port may go to, by the index of the port.
    pub(crate) fn ready(&self, port: usize) -> usize {
        self.with_port(port).map(|(_, ready)| ready.endpoints.len()).sum()
    }

    /// One of those endpoints, by its place among them.
    pub(crate) fn choice(&self, port: usize, place: usize) -> Option<Choice> {
        let mut rest = place;
        for (number, ready) in self.with_port(port) {
            match ready.endpoints.get(rest) {
                Some((index, address)) => {
                    return Some(Choice { index: *index, address: SocketAddr::new(*address, number) });
                }
                None => rest -= ready.endpoints.len(),
            }
        }
        None
    }

    /// The one with this address, if it is one of those.
    pub(crate) fn choice_at(&self, port: usize, address: SocketAddr) -> Option<Choice> {
        let mut with_number = self.with_port(port).filter(|(number, _)| *number == address.port());
        let index = with_number.find_map(|(_, ready)| ready.indices.get(&address.ip()))?;
        Some(Choice { index: *index, address })
    }

    /// Some of the addresses that traffic may go to, in no order: all, where they are no more than so many.
    pub(crate) fn some_addresses(&self, max: usize) -> Vec<IpAddr> {
        let endpoints = || self.ready.iter().flat_map(|ready| &ready.endpoints);
        let all: usize = self.ready.iter().map(|ready| ready.endpoints.len()).sum();
        let first = if all > max { rand::random_range(0..all) } else { 0 };
        // An address may be there twice: not all are looked at for one more.
        let looked_at = endpoints().skip(first).chain(endpoints()).take(all.min(LOOKED_AT * max));
        let mut seen = HashSet::new();
        looked_at.map(|(_, address)| *address).filter(|address| seen.insert(*address)).take(max).collect()
    }

    /// The addresses of an endpoint by its hostname, those that traffic may go to.
    pub(crate) fn addresses_of(&self, hostname: &str) -> &[IpAddr] {
        self.hostnames.get(hostname).map_or(&[], Vec::as_slice)
    }

    /// All of them.
    pub(crate) fn choices(&self, port: usize) -> impl Iterator<Item = Choice> {
        self.with_port(port).flat_map(|(number, ready)| {
            let choice = move |(index, address): &(usize, IpAddr)| Choice {
                index: *index,
                address: SocketAddr::new(*address, number),
            };
            ready.endpoints.iter().map(choice)
        })
    }

    /// The endpoints that have a port, with its number there.
    fn with_port(&self, port: usize) -> impl Iterator<Item = (u16, &Ready)> {
        self.ready.iter().filter_map(move |ready| Some((*ready.numbers.get(&port)?, ready)))
    }

    /// `namespace/name`, for logs and messages.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.entry.namespace, self.entry.name)
    }

    /// Whether its endpoints may be the API server's real addresses.
    pub(crate) fn is_api_server(&self) -> bool {
        is_api_server(&self.entry)
    }

    /// The index of the port with this number.
    pub(crate) fn port(&self, protocol: Protocol, number: u16) -> Option<usize> {
        self.numbers.get(&(protocol, number)).copied()
    }

    /// The endpoints that traffic may go to.
    pub(crate) fn serving(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        self.entry.endpoints.iter().enumerate().filter(|(_, endpoint)| self.may_serve(endpoint))
    }

    fn may_serve(&self, endpoint: &Endpoint) -> bool {
        self.entry.publish_not_ready || endpoint.ready
    }

    /// Whether traffic may go to an endpoint of this address.
    pub(crate) fn serves(&self, endpoint: IpAddr) -> bool {
        self.addresses.get(&endpoint) == Some(&true)
    }

    /// Whether it has an endpoint of this address, which may be on its way out.
    pub(crate) fn lists(&self, endpoint: IpAddr) -> bool {
        self.addresses.contains_key(&endpoint)
    }
}

/// The service that the control plane itself keeps for its API.
fn is_api_server(entry: &ServiceEntry) -> bool {
    entry.namespace == "default" && entry.name == "kubernetes"
}

impl Tables {
    /// Makes tables of a state.
    pub(crate) fn build(state: NetworkState, counters: &Counters) -> Tables {
        let mut tables = Tables { router: Router::build(state.ingresses), ..Tables::default() };
        for entry in state.services {
            if is_api_server(&entry) {
                for endpoint in &entry.endpoints {
                    let address = endpoint.address.to_canonical();
                    let addresses = endpoint.ports.values().map(|port| SocketAddr::new(address, *port));
                    tables.control.extend(addresses);
                }
            }
            tables.add_service(entry, counters);
        }
        for block in state.pod_blocks {
            let (base, node): (_, Arc<str>) = (block.cidr.base(), block.node.into());
            let first = tables.first_blocks.entry(node.clone()).or_insert(base);
            *first = base.min(*first);
            tables.blocks.insert(base, (block.cidr, node));
        }
        tables.egress = state.egress_namespaces;
        tables.nodes = state.nodes.into_iter().map(|(name, address)| (name.into(), address.into())).collect();
        for (name, fabric) in &tables.nodes {
            if let Some((host, port)) = host_and_port(fabric) {
                tables.fabrics.entry(port).or_default().push((name.clone(), host));
            }
        }
        tables.add_pods(state.pods);
        tables
    }

    fn add_pods(&mut self, pods: Vec<PodEntry>) {
        // Each namespace's name is kept once.
        let mut names: HashSet<Arc<str>> = HashSet::new();
        for pod in pods {
            let name =
                names.get(pod.namespace.as_str()).cloned().unwrap_or_else(|| pod.namespace.as_str().into());
            names.insert(name.clone());
            let owner = self.namespaces.entry(pod.address).or_insert_with(|| Some(name.clone()));
            if owner.as_ref() != Some(&name) {
                *owner = None;
            }
            self.pods.entry(pod.namespace).or_default().insert(pod.name, pod.address);
        }
    }

    fn add_service(&mut self, entry: ServiceEntry, counters: &Counters) {
        let service = Arc::new(Service::new(entry, counters));
        for address in &service.entry.addresses {
            self.by_address.insert(*address, service.clone());
        }
        for (index, port) in service.entry.ports.iter().enumerate() {
            if let (Some(node_port), Protocol::Tcp) = (port.node_port, port.protocol) {
                self.node_ports.insert(node_port, (service.clone(), index));
            }
        }
        let namespace = self.by_name.entry(service.entry.namespace.clone()).or_default();
        namespace.insert(service.entry.name.clone(), service);
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.by_name.get(namespace)?.get(name)
    }

    pub(crate) fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.by_address.get(&address)
    }

    /// The node that hands out a pod address.
    pub(crate) fn node_of(&self, pod: IpAddr) -> Option<&Arc<str>> {
        let (_, (cidr, node)) = self.blocks.range(..=pod).next_back()?;
        cidr.contains(pod).then_some(node)
    }

    /// The node's own address among its pods': the first of its first block, which no pod gets.
    pub(crate) fn own_address_of(&self, node: &str) -> Option<IpAddr> {
        Some(match *self.first_blocks.get(node)? {
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
        self.nodes.get(node)
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

    /// The namespace of the pod with this address, where one is known and no other claims it.
    pub(crate) fn namespace_of(&self, pod: IpAddr) -> Option<Arc<str>> {
        self.namespaces.get(&pod)?.clone()
    }

    /// The address of the pod with this name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<IpAddr> {
        self.pods.get(namespace)?.get(name).copied()
    }
}

/// Open connections to each endpoint address. They outlive the tables, so that an update forgets no load.
#[derive(Default)]
pub(crate) struct Counters {
    by_address: Mutex<HashMap<IpAddr, Weak<AtomicUsize>>>,
}

impl Counters {
    fn of(&self, address: IpAddr) -> Arc<AtomicUsize> {
        let mut by_address = self.by_address.lock();
        if let Some(counter) = by_address.get(&address).and_then(Weak::upgrade) {
            return counter;
        }
        let counter = Arc::new(AtomicUsize::new(0));
        by_address.insert(address, Arc::downgrade(&counter));
        counter
    }

    /// Addresses that are counted.
    pub(crate) fn held(&self) -> usize {
        self.by_address.lock().len()
    }

    /// Forgets addresses that no service and no connection knows any more.
    pub(crate) fn prune(&self) {
        self.by_address.lock().retain(|_, counter| counter.strong_count() > 0);
    }
}

/// One open connection at an endpoint.
pub(crate) struct OpenConnection(Arc<AtomicUsize>);

impl OpenConnection {
    pub(crate) fn count(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServicePort;

    #[test]
    fn endpoints_are_not_kept_for_each_port() {
        let port = |at: u16| ServicePort { name: format!("p{at}"), port: at, ..ServicePort::default() };
        let shared: Arc<BTreeMap<String, u16>> =
            Arc::new((1..=2000).map(|at| (format!("p{at}"), at + 1)).collect());
        let one = Arc::new(BTreeMap::from([("p7".to_owned(), 70)]));
        let endpoint = |at: u16, ports: &Arc<BTreeMap<String, u16>>| Endpoint {
            address: [10, 128, (at >> 8) as u8, at as u8].into(),
            ready: true,
            hostname: None,
            ports: ports.clone(),
        };
        let mut endpoints: Vec<Endpoint> = (0..1000).map(|at| endpoint(at, &shared)).collect();
        // Each of these is of a slice of its own, and says the same as the others.
        endpoints.extend((1000..1100).map(|at| endpoint(at, &Arc::new((*one).clone()))));
        let entry =
            ServiceEntry { ports: (1..=2000).map(port).collect(), endpoints, ..ServiceEntry::default() };
        let service = Service::new(entry, &Counters::default());
        let kept: usize = service.ready.iter().map(|ready| ready.numbers.len() + ready.endpoints.len()).sum();
        assert_eq!(kept, 2000 + 1000 + 1 + 100);
        let index = service.port(Protocol::Tcp, 7).unwrap();
        assert_eq!((service.ready(index), service.choices(index).count()), (1100, 1100));
        assert_eq!(service.choice(index, 0).unwrap().address.port(), 8);
        assert_eq!(service.choice(index, 1099).unwrap().address.port(), 70);
        assert_eq!(service.choice(index, 1100), None);
        assert_eq!(service.ready(service.port(Protocol::Tcp, 8).unwrap()), 1000);
    }
}
