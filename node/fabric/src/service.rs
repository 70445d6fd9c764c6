//! Which endpoint of a service takes a connection.

use crate::model::Protocol;
use crate::policy::{Place, Policy};
use crate::tables::{Service, Tables};
use coracle_wasi_host::net::NetError;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
    affinities: Mutex<HashMap<(String, IpAddr), Affinity>>,
}

struct Affinity {
    endpoint: SocketAddr,
    last: Instant,
}

impl Balancer {
    /// An endpoint for a client, none where no ready one is left to try. With affinity it is the client's last one
    /// while that is ready; else the less loaded of two random ones.
    pub(crate) fn choose(
        &self,
        service: &Arc<Service>,
        port: usize,
        client: IpAddr,
        allowed: impl Fn(SocketAddr) -> bool,
    ) -> Option<Choice> {
        let name = &service.entry.ports.get(port)?.name;
        let candidates: Vec<Choice> = service
            .serving()
            .filter_map(|(index, endpoint)| {
                let address = SocketAddr::new(endpoint.address, *endpoint.ports.get(name)?);
                allowed(address).then_some(Choice { index, address })
            })
            .collect();
        if let Some(choice) = self.affine(service, client, &candidates) {
            return Some(choice);
        }
        let load = |choice: &Choice| service.open[choice.index].load(Ordering::Relaxed);
        match candidates.len() {
            0 => None,
            1 => Some(candidates[0]),
            count => {
                let first = rand::random_range(0..count);
                let second = (first + rand::random_range(1..count)) % count;
                let (first, second) = (candidates[first], candidates[second]);
                Some(if load(&second) < load(&first) { second } else { first })
            }
        }
    }

    /// Remembers where a client was sent, for services with affinity.
    pub(crate) fn remember(&self, service: &Service, client: IpAddr, choice: Choice) {
        let Some(timeout) = service.entry.client_affinity else { return };
        let mut affinities = self.affinities.lock();
        if affinities.len() >= AFFINITIES_MAX {
            affinities.retain(|_, affinity| affinity.last.elapsed() < timeout);
        }
        if affinities.len() >= AFFINITIES_MAX {
            // All are live: this client is balanced like one without affinity.
            return;
        }
        let affinity = Affinity { endpoint: choice.address, last: Instant::now() };
        affinities.insert((service.full_name(), client), affinity);
    }

    fn affine(&self, service: &Service, client: IpAddr, candidates: &[Choice]) -> Option<Choice> {
        let timeout = service.entry.client_affinity?;
        let affinities = self.affinities.lock();
        let affinity = affinities.get(&(service.full_name(), client))?;
        if affinity.last.elapsed() >= timeout {
            return None;
        }
        candidates.iter().find(|choice| choice.address == affinity.endpoint).copied()
    }
}
