//! Which endpoint of a service takes a connection.

use crate::model::Protocol;
use crate::policy::{Place, Policy};
use crate::tables::{Service, Tables};
use coracle_wasi_host::net::NetError;
use parking_lot::Mutex;
use rand::seq::IteratorRandom;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Clients remembered for sessionAffinity on one node, of all services together.
const AFFINITIES_MAX: usize = 65_536;

/// An endpoint that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Its index in the service's entry.
    pub(crate) index: usize,
    /// Where to connect to.
    pub(crate) address: SocketAddr,
}

/// What one connection has found out of reach so far, so that it is not tried there again.
#[derive(Default)]
pub(crate) struct Failed {
    endpoints: Vec<SocketAddr>,
    /// Nodes that do not answer: all their endpoints are out of reach.
    nodes: Vec<Arc<str>>,
    last: Option<NetError>,
}

impl Failed {
    /// Remembers that this endpoint failed, and where `place` is a node that cannot be reached, that node.
    pub(crate) fn note(&mut self, endpoint: SocketAddr, place: Option<Place>, error: NetError) {
        let unreachable =
            matches!(error, NetError::HostUnreachable | NetError::NetworkDown | NetError::TimedOut);
        if let (Some(Place::Node { name, .. }), true) = (place, unreachable) {
            self.nodes.push(name);
        }
        self.endpoints.push(endpoint);
        self.last = Some(error);
    }

    pub(crate) fn excludes(&self, endpoint: SocketAddr, policy: &Policy, tables: &Tables) -> bool {
        if self.endpoints.contains(&endpoint) {
            return true;
        }
        !self.nodes.is_empty()
            && matches!(policy.place(tables, endpoint, Protocol::Tcp),
                Ok(Place::Node { name, .. }) if self.nodes.contains(&name))
    }

    /// The last error; `None` where nothing was tried.
    pub(crate) fn last(self) -> Option<NetError> {
        self.last
    }
}

/// Chooses endpoints, and remembers whom clients with affinity were sent to.
#[derive(Default)]
pub(crate) struct Balancer {
    affinities: Mutex<Affinities>,
}

#[derive(Default)]
struct Affinities {
    /// By the service's full name, then by the client.
    by_service: HashMap<String, HashMap<IpAddr, Affinity>>,
    count: usize,
}

impl Affinities {
    /// Keeps those that `keep` wants.
    fn retain(&mut self, mut keep: impl FnMut(&str, &Affinity) -> bool) {
        self.count = 0;
        self.by_service.retain(|service, clients| {
            clients.retain(|_, affinity| keep(service, affinity));
            self.count += clients.len();
            !clients.is_empty()
        });
    }
}

struct Affinity {
    endpoint: SocketAddr,
    last: Instant,
    /// The service's, when the client was there last.
    timeout: Duration,
}

impl Balancer {
    /// An endpoint for a client, none where no ready one is left to try. With affinity it is the client's last one
    /// while that is ready; else the less loaded of two random ones. Looks at all only where neither is allowed.
    pub(crate) fn choose(
        &self,
        service: &Arc<Service>,
        port: usize,
        client: IpAddr,
        allowed: impl Fn(SocketAddr) -> bool,
    ) -> Option<Choice> {
        let ready = service.ready(port);
        let allowed = |choice: &Choice| allowed(choice.address);
        if let Some(choice) = self.affine(service, client, port).filter(allowed) {
            return Some(choice);
        }
        if ready <= 1 {
            return service.choice(port, 0).filter(allowed);
        }
        let first = rand::random_range(0..ready);
        let second = (first + rand::random_range(1..ready)) % ready;
        let load = |choice: &Choice| service.open[choice.index].load(Ordering::Relaxed);
        match [first, second].map(|place| service.choice(port, place).filter(allowed)) {
            [Some(first), Some(second)] if load(&second) < load(&first) => Some(second),
            [Some(one), _] | [None, Some(one)] => Some(one),
            [None, None] => service.choices(port).filter(allowed).choose(&mut rand::rng()),
        }
    }

    /// Remembers where a client was sent, for services with affinity.
    pub(crate) fn remember(&self, service: &Service, client: IpAddr, choice: Choice) {
        let Some(timeout) = service.entry.client_affinity else { return };
        let mut affinities = self.affinities.lock();
        if affinities.count >= AFFINITIES_MAX {
            affinities.retain(|_, affinity| affinity.last.elapsed() < affinity.timeout);
        }
        if affinities.count >= AFFINITIES_MAX {
            // All are live: this client is balanced like one without affinity.
            return;
        }
        let affinity = Affinity { endpoint: choice.address, last: Instant::now(), timeout };
        let clients = affinities.by_service.entry(service.full_name()).or_default();
        if clients.insert(client, affinity).is_none() {
            affinities.count += 1;
        }
    }

    /// Forgets the clients of services that are gone, or have no affinity any more.
    pub(crate) fn prune(&self, tables: &Tables) {
        let mut affinities = self.affinities.lock();
        let Affinities { by_service, count } = &mut *affinities;
        by_service.retain(|service, clients| {
            let (namespace, name) = service.split_once('/').unwrap_or_default();
            let known = tables.service(namespace, name);
            let keep = known.is_some_and(|service| service.entry.client_affinity.is_some());
            if !keep {
                *count -= clients.len();
            }
            keep
        });
    }

    /// Clients that are remembered.
    pub(crate) fn held(&self) -> usize {
        self.affinities.lock().count
    }

    fn affine(&self, service: &Service, client: IpAddr, port: usize) -> Option<Choice> {
        let timeout = service.entry.client_affinity?;
        let affinities = self.affinities.lock();
        let affinity = affinities.by_service.get(&service.full_name())?.get(&client)?;
        if affinity.last.elapsed() >= timeout {
            return None;
        }
        service.choices(port).find(|choice| choice.address == affinity.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, NetworkState, ServiceEntry, ServicePort};

    #[test]
    fn the_last_one_left_is_found_and_who_is_not_ready_is_not() {
        let endpoint = |last: u8, ready| Endpoint {
            address: [10, 128, 0, last].into(),
            ready,
            hostname: None,
            ports: Arc::new([("a".to_owned(), 80)].into()),
        };
        let port = |name: &str, port| ServicePort { name: name.into(), port, ..ServicePort::default() };
        let entry = ServiceEntry {
            namespace: "d".into(),
            name: "s".into(),
            ports: vec![port("a", 1), port("b", 2)],
            endpoints: (0..8).map(|last| endpoint(last, last != 0)).collect(),
            ..ServiceEntry::default()
        };
        let state = NetworkState { services: vec![entry], ..NetworkState::default() };
        let tables = Tables::build(state, &Default::default());
        let service = tables.service("d", "s").unwrap();
        let choose = |port, allowed: &dyn Fn(SocketAddr) -> bool| {
            Balancer::default().choose(service, port, [10, 0, 0, 1].into(), allowed)
        };
        let left: SocketAddr = "10.128.0.5:80".parse().unwrap();
        for _ in 0..32 {
            assert!(choose(0, &|_| true).unwrap().index > 0);
            assert_eq!(choose(0, &|address| address == left).unwrap(), Choice { index: 5, address: left });
        }
        assert_eq!(choose(0, &|_| false), None);
        assert_eq!(choose(1, &|_| true), None, "no endpoint has this port");
    }

    #[test]
    fn clients_are_forgotten_with_their_service() {
        let tables = |names: &[&str]| {
            let service = |name: &&str| ServiceEntry {
                namespace: "d".into(),
                name: (*name).into(),
                client_affinity: Some(Duration::from_secs(10_800)),
                ..ServiceEntry::default()
            };
            let services = names.iter().map(service).collect();
            Tables::build(NetworkState { services, ..NetworkState::default() }, &Default::default())
        };
        let (balancer, both) = (Balancer::default(), tables(&["stays", "goes"]));
        let choice = Choice { index: 0, address: "10.128.0.5:80".parse().unwrap() };
        for client in 0..100 {
            for name in ["stays", "goes"] {
                let service = both.service("d", name).unwrap();
                balancer.remember(service, [10, 0, 0, client].into(), choice);
                balancer.remember(service, [10, 0, 0, client].into(), choice);
            }
        }
        balancer.prune(&both);
        assert_eq!(balancer.held(), 200);
        balancer.prune(&tables(&["stays", "new"]));
        assert_eq!(balancer.held(), 100);
        balancer.prune(&tables(&[]));
        assert!(balancer.held() == 0 && balancer.affinities.lock().by_service.is_empty());
    }
}
