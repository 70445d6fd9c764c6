//! Which endpoint of a service takes a connection.

use crate::model::Protocol;
use crate::names::Name;
use crate::place::{Destination, Hop, Target};
use crate::policy::Policy;
use crate::tables::{Service, Tables};
use coracle_wasi_host::net::NetError;
use coracle_wasi_host::refusals::What;
use coracle_wasi_host::serving::source_of;
use coracle_wasi_host::shares::{Holder, Permit, Shares};
use parking_lot::Mutex;
use rand::seq::IteratorRandom;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Clients remembered for sessionAffinity on one node, of all services together. The services of a namespace have at most
/// as many as are free, one service half of that.
const AFFINITIES_MAX: usize = 65_536;

/// Clients whose affinity is over are looked for at most so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

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
    /// Remembers that this endpoint failed, and where it is at a node that cannot be reached, that node.
    pub(crate) fn note(&mut self, endpoint: SocketAddr, target: Option<Target>, error: NetError) {
        let unreachable =
            matches!(error, NetError::HostUnreachable | NetError::NetworkDown | NetError::TimedOut);
        if unreachable && let Some(node) = target.and_then(node_of) {
            self.nodes.push(node);
        }
        self.endpoints.push(endpoint);
        self.last = Some(error);
    }

    pub(crate) fn excludes(&self, endpoint: SocketAddr, policy: &Policy, tables: &Tables) -> bool {
        if self.endpoints.contains(&endpoint) {
            return true;
        }
        !self.nodes.is_empty()
            && policy
                .place(tables, endpoint, Protocol::Tcp)
                .ok()
                .and_then(node_of)
                .is_some_and(|node| self.nodes.contains(&node))
    }

    /// The last error; `None` where nothing was tried.
    pub(crate) fn last(self) -> Option<NetError> {
        self.last
    }
}

/// The other node that something goes to.
fn node_of(target: Target) -> Option<Arc<str>> {
    match target {
        Target::Peer(Destination { hop: Hop::Node { name, .. }, .. }) => Some(name),
        Target::Peer(_) | Target::Service { .. } => None,
    }
}

/// Chooses endpoints, and remembers whom clients with affinity were sent to.
pub(crate) struct Balancer {
    places: Arc<Shares>,
    affinities: Mutex<Affinities>,
}

struct Affinities {
    /// By the service's full name, then by the client: one of IPv6 is as good as any other of its network.
    by_service: HashMap<String, HashMap<IpAddr, Affinity>>,
    swept: Instant,
}

impl Affinities {
    /// Forgets those that are over, but not at every turn.
    fn sweep(&mut self) {
        if self.swept.elapsed() < SWEEP_EVERY {
            return;
        }
        self.swept = Instant::now();
        self.by_service.retain(|_, clients| {
            clients.retain(|_, affinity| affinity.last.elapsed() < affinity.timeout);
            !clients.is_empty()
        });
    }

    fn clients_of(&self, service: &str) -> usize {
        self.by_service.get(service).map_or(0, HashMap::len)
    }
}

struct Affinity {
    endpoint: SocketAddr,
    last: Instant,
    /// The service's, when the client was there last.
    timeout: Duration,
    /// On the account of the service's namespace.
    _place: Permit,
}

impl Default for Balancer {
    fn default() -> Self {
        let affinities = Affinities { by_service: HashMap::new(), swept: Instant::now() };
        Self { places: Shares::new(What::Remembered, AFFINITIES_MAX), affinities: Mutex::new(affinities) }
    }
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
        let load = |choice: &Choice| service.open[choice.index].open();
        match [first, second].map(|place| service.choice(port, place).filter(allowed)) {
            [Some(first), Some(second)] if load(&second) < load(&first) => Some(second),
            [Some(one), _] | [None, Some(one)] => Some(one),
            [None, None] => service.choices(port).filter(allowed).choose(&mut rand::rng()),
        }
    }

    /// Remembers where a client was sent, for services with affinity. `tables` are the present ones: who was sent to a service
    /// that has gone meanwhile is not remembered.
    pub(crate) fn remember<T: Deref<Target = Arc<Tables>>>(
        &self,
        service: &Service,
        client: IpAddr,
        choice: Choice,
        tables: impl FnOnce() -> T,
    ) {
        let Some(timeout) = service.entry.client_affinity else { return };
        let (client, name) = (source_of(client), service.full_name());
        let mut affinities = self.affinities.lock();
        if tables().service(&service.namespace, &service.entry.name).is_none() {
            return;
        }
        let known = affinities.by_service.get_mut(&name).and_then(|clients| clients.get_mut(&client));
        if let Some(affinity) = known {
            (affinity.endpoint, affinity.last, affinity.timeout) = (choice.address, Instant::now(), timeout);
            return;
        }
        let mut place = self.place(&affinities, service, &name);
        if place.is_none() {
            affinities.sweep();
            place = self.place(&affinities, service, &name);
        }
        // Where all are live this client is balanced like one without affinity.
        let Some(place) = place else { return };
        let affinity = Affinity { endpoint: choice.address, last: Instant::now(), timeout, _place: place };
        affinities.by_service.entry(name).or_default().insert(client, affinity);
    }

    fn place(&self, affinities: &Affinities, service: &Service, name: &str) -> Option<Permit> {
        let free = AFFINITIES_MAX - self.places.held();
        if affinities.clients_of(name) >= free.div_ceil(2) {
            return None;
        }
        self.places.take(&Holder { namespace: service.namespace.clone(), pod: None }).ok()
    }

    /// Forgets the clients of those of these services that are gone, or have no affinity any more.
    pub(crate) fn forget(&self, services: &[Name], tables: &Tables) {
        let mut affinities = self.affinities.lock();
        for Name { namespace, name } in services {
            let known = tables.service(namespace, name);
            if known.is_none_or(|service| service.entry.client_affinity.is_none()) {
                affinities.by_service.remove(&format!("{namespace}/{name}"));
            }
        }
    }

    /// Clients that are remembered.
    pub(crate) fn held(&self) -> usize {
        self.places.held()
    }

    fn affine(&self, service: &Service, client: IpAddr, port: usize) -> Option<Choice> {
        let timeout = service.entry.client_affinity?;
        let endpoint = {
            let affinities = self.affinities.lock();
            let affinity = affinities.by_service.get(&service.full_name())?.get(&source_of(client))?;
            (affinity.last.elapsed() < timeout).then_some(affinity.endpoint)?
        };
        service.choice_at(port, endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkState;
    use crate::model::{Endpoint, ServiceEntry, ServicePort};

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

    const AFFINITY: Duration = Duration::from_secs(10_800);

    /// Services with affinity, of one endpoint each.
    fn tables_of(names: &[&str]) -> Arc<Tables> {
        let service = |name: &&str| {
            let (namespace, name) = name.split_once('/').unwrap_or(("d", name));
            let endpoint = Endpoint {
                address: [10, 128, 0, 5].into(),
                ready: true,
                hostname: None,
                ports: Arc::new([("a".to_owned(), 80)].into()),
            };
            let port = ServicePort { name: "a".into(), port: 1, ..ServicePort::default() };
            ServiceEntry {
                namespace: namespace.into(),
                name: name.into(),
                client_affinity: Some(AFFINITY),
                ports: vec![port],
                endpoints: vec![endpoint],
                ..ServiceEntry::default()
            }
        };
        let services = names.iter().map(service).collect();
        Tables::build(NetworkState { services, ..NetworkState::default() }, &Default::default()).into()
    }

    fn choice() -> Choice {
        Choice { index: 0, address: "10.128.0.5:80".parse().unwrap() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_service_leaves_others_room_for_their_clients() {
        let (balancer, tables) = (Balancer::default(), tables_of(&["a/one", "a/two", "b/one"]));
        let of = |namespace: &str, name: &str| tables.service(namespace, name).unwrap();
        let client = |number: u32| IpAddr::from((number + (10 << 24)).to_be_bytes());
        let fill = |name: &str| {
            (0..AFFINITIES_MAX as u32)
                .for_each(|at| balancer.remember(of("a", name), client(at), choice(), || &tables));
        };
        fill("one");
        assert_eq!(balancer.held(), AFFINITIES_MAX.div_ceil(3), "a third for one service");
        fill("two");
        assert!(balancer.held() <= AFFINITIES_MAX / 2, "half for a namespace");
        balancer.remember(of("b", "one"), client(7), choice(), || &tables);
        assert_eq!(balancer.affine(of("b", "one"), client(7), 0), Some(choice()));
        // Who is known already stays so; what is over makes room, and is looked for once a second at most.
        let (known, late) = (client(1), client(AFFINITIES_MAX as u32));
        tokio::time::advance(AFFINITY - Duration::from_millis(100)).await;
        balancer.remember(of("a", "one"), late, choice(), || &tables);
        balancer.remember(of("a", "one"), known, choice(), || &tables);
        tokio::time::advance(Duration::from_millis(200)).await;
        balancer.remember(of("a", "one"), late, choice(), || &tables);
        assert_eq!(balancer.affine(of("a", "one"), late, 0), None, "not looked for yet");
        tokio::time::advance(SWEEP_EVERY).await;
        balancer.remember(of("a", "one"), late, choice(), || &tables);
        assert_eq!(balancer.affine(of("a", "one"), late, 0), Some(choice()));
        assert_eq!(balancer.affine(of("a", "one"), known, 0), Some(choice()));
        assert_eq!(balancer.held(), 2);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (balancer, tables) = (Balancer::default(), tables_of(&["stays"]));
        let service = tables.service("d", "stays").unwrap();
        for last in 1..100 {
            balancer.remember(service, format!("2001:db8::{last}").parse().unwrap(), choice(), || &tables);
        }
        assert_eq!(balancer.held(), 1);
        assert!(balancer.affine(service, "2001:db8::ffff".parse().unwrap(), 0).is_some());
        assert!(balancer.affine(service, "2001:db8:0:1::1".parse().unwrap(), 0).is_none());
    }

    #[test]
    fn clients_are_forgotten_with_their_service() {
        let tables = tables_of;
        let (balancer, both) = (Balancer::default(), tables(&["stays", "goes"]));
        let choice = choice();
        for client in 0..100 {
            for name in ["stays", "goes"] {
                let service = both.service("d", name).unwrap();
                balancer.remember(service, [10, 0, 0, client].into(), choice, || &both);
                balancer.remember(service, [10, 0, 0, client].into(), choice, || &both);
            }
        }
        let changed = ["stays", "goes", "new"].map(|name| Name::new("d", name));
        balancer.forget(&changed, &both);
        assert_eq!(balancer.held(), 200);
        balancer.forget(&changed, &tables(&["stays", "new"]));
        assert_eq!(balancer.held(), 100);
        balancer.forget(&changed, &tables(&[]));
        assert!(balancer.held() == 0 && balancer.affinities.lock().by_service.is_empty());
    }
}
