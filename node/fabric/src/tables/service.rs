//! A service made ready for lookups.

use super::counters::{Counter, Counters};
use crate::model::{Endpoint, Protocol, ServiceEntry};
use crate::names::Names;
use crate::service::Choice;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

/// A service, with counters at its endpoints.
pub(crate) struct Service {
    pub(crate) entry: ServiceEntry,
    /// The entry's namespace, for those who keep it.
    pub(crate) namespace: Arc<str>,
    /// A number of its name that no two services have, as long as nobody can choose it.
    pub(crate) id: u64,
    /// How many connections through services are open to each endpoint, in the entry's order.
    pub(crate) open: Vec<Arc<Counter>>,
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
    pub(super) fn new(entry: ServiceEntry, counters: &Counters) -> Self {
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
        is_api_server(&(self.entry.namespace.as_str(), self.entry.name.as_str()))
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
pub(super) fn is_api_server(name: &impl Names) -> bool {
    name.parts() == ("default", "kubernetes")
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
