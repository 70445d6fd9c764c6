//! The whole of what a fabric knows, for tests that would rather say it whole.

use super::{Counters, Tables};
use crate::Fabric;
use crate::model::{
    Cidr, NetworkChange, NodeEntry, NodeIdentity, PodEntry, PodIdentity, RouteSet, RouteSource, ServiceEntry,
};
use crate::names::Name;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything that a fabric knows of the cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkState {
    pub(crate) services: Vec<ServiceEntry>,
    /// The nodes that hand out pod addresses.
    pub(crate) pod_blocks: Vec<(Cidr, String)>,
    /// Node name to the `host:port` of its fabric.
    pub(crate) nodes: BTreeMap<String, String>,
    pub(crate) node_identities: BTreeMap<String, NodeIdentity>,
    pub(crate) routes: Vec<(RouteSource, RouteSet)>,
    pub(crate) pods: Vec<(Name, PodEntry)>,
    pub(crate) egress_namespaces: BTreeSet<String>,
}

impl NetworkState {
    fn parts(&self) -> Vec<NetworkChange> {
        let service = |entry: &ServiceEntry| {
            NetworkChange::Service(Name::new(&entry.namespace, &entry.name), Some(entry.clone()))
        };
        let node = |(name, fabric): (&String, &String)| {
            let identity = self.node_identities.get(name).cloned();
            NetworkChange::Node(name.clone(), Some(NodeEntry { fabric: fabric.clone(), identity }))
        };
        let routes = |(source, routes): &(RouteSource, RouteSet)| {
            NetworkChange::Routes(source.clone(), Some(routes.clone()))
        };
        let block = |(cidr, node): &(Cidr, String)| NetworkChange::PodBlock(*cidr, Some(node.clone()));
        let pod = |(name, pod): &(Name, PodEntry)| NetworkChange::Pod(name.clone(), Some(pod.clone()));
        let egress = |namespace: &String| NetworkChange::Egress(namespace.clone(), true);
        let services = self.services.iter().map(service);
        let rest = self.pod_blocks.iter().map(block).chain(self.routes.iter().map(routes));
        let rest = rest.chain(self.pods.iter().map(pod)).chain(self.egress_namespaces.iter().map(egress));
        services.chain(self.nodes.iter().map(node)).chain(rest).collect()
    }
}

impl Tables {
    pub(crate) fn build(state: NetworkState, counters: &Counters) -> Tables {
        let mut tables = Tables::default();
        tables.change(state.parts(), counters);
        tables
    }

    /// Everything that was told and is there still.
    fn parts(&self) -> Vec<NetworkChange> {
        let nodes = self.nodes.iter().map(|(name, node)| (name.to_string(), node));
        let state = NetworkState {
            services: self.services.values().map(|service| service.entry.clone()).collect(),
            pod_blocks: self.blocks.values().map(|(cidr, node)| (*cidr, node.to_string())).collect(),
            nodes: nodes.clone().map(|(name, node)| (name, node.fabric.to_string())).collect(),
            node_identities: nodes.filter_map(|(name, node)| Some((name, node.identity.clone()?))).collect(),
            routes: self.router.sets().collect(),
            pods: self
                .pods
                .iter()
                .map(|(name, (address, pod))| (name.clone(), entry(*address, pod)))
                .collect(),
            egress_namespaces: self.egress.iter().map(ToString::to_string).collect(),
        };
        state.parts()
    }
}

impl Fabric {
    /// Has the fabric know this and nothing else.
    pub(crate) fn update(&self, state: NetworkState) {
        let (now, then) = (state.parts(), self.inner().tables().parts());
        let gone = then.iter().map(gone).filter(|part| !now.iter().any(|other| gone(other) == *part));
        self.change(gone.chain(now.iter().filter(|part| !then.contains(part)).cloned()).collect());
    }
}

fn entry(address: IpAddr, pod: &PodIdentity) -> PodEntry {
    PodEntry { address, uid: pod.uid.clone(), labels: pod.labels.clone() }
}

/// That a part is gone.
fn gone(part: &NetworkChange) -> NetworkChange {
    match part.clone() {
        NetworkChange::Service(name, _) => NetworkChange::Service(name, None),
        NetworkChange::Unclaimed(..) | NetworkChange::Served(..) => unreachable!("it is no part"),
        NetworkChange::PodBlock(cidr, _) => NetworkChange::PodBlock(cidr, None),
        NetworkChange::Node(name, _) => NetworkChange::Node(name, None),
        NetworkChange::Routes(source, _) => NetworkChange::Routes(source, None),
        NetworkChange::Pod(name, _) => NetworkChange::Pod(name, None),
        NetworkChange::Egress(namespace, _) => NetworkChange::Egress(namespace, false),
    }
}

mod tests {
    use super::*;
    use crate::model::{Claim, Endpoint, Protocol, ServicePort};
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use std::sync::Arc;

    fn pod(at: u8) -> IpAddr {
        [10, 128, at / 4, at % 4].into()
    }

    fn service(rng: &mut StdRng, name: &Name) -> ServiceEntry {
        let ports = Arc::new([("p".to_owned(), 8080)].into());
        let endpoint = |address| Endpoint { address, ready: true, hostname: None, ports: Arc::clone(&ports) };
        let port = |rng: &mut StdRng| ServicePort {
            name: "p".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: rng.random_bool(0.5).then(|| rng.random_range(1..4)),
        };
        ServiceEntry {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            addresses: vec![[10, 96, 0, rng.random_range(0..4)].into()],
            ports: vec![port(rng)],
            endpoints: (0..rng.random_range(0..3)).map(|_| endpoint(pod(rng.random_range(0..16)))).collect(),
            ..ServiceEntry::default()
        }
    }

    fn change(rng: &mut StdRng) -> NetworkChange {
        let some = |rng: &mut StdRng| rng.random_bool(0.6);
        let namespace = ["default", "d"][rng.random_range(0..2)];
        let name = Name::new(namespace, ["kubernetes", "one", "two"][rng.random_range(0..3)]);
        let node = ["n1", "n2"][rng.random_range(0..2)].to_owned();
        match rng.random_range(0..5) {
            0 => {
                let entry = some(rng).then(|| service(rng, &name));
                NetworkChange::Service(name, entry)
            }
            1 => {
                let cidr = Cidr::new(pod(4 * rng.random_range(0..4)), 24).unwrap();
                NetworkChange::PodBlock(cidr, some(rng).then_some(node))
            }
            2 => {
                let fabric = format!("host-{}:{}", rng.random_range(0..3), rng.random_range(1..3));
                NetworkChange::Node(node, some(rng).then_some(NodeEntry { fabric, identity: None }))
            }
            3 => {
                let uid = ["u1", "u2"][rng.random_range(0..2)];
                let entry = |address| PodEntry { address, uid: uid.into(), labels: Default::default() };
                NetworkChange::Pod(name, some(rng).then(|| entry(pod(rng.random_range(0..16)))))
            }
            _ => NetworkChange::Egress(namespace.to_owned(), some(rng)),
        }
    }

    #[test]
    fn who_loses_an_address_or_a_port_keeps_the_rest() {
        let (mut tables, counters) = (Tables::default(), Counters::default());
        let name = Name::new("d", "web");
        let mut web = service(&mut StdRng::seed_from_u64(0), &name);
        web.ports[0].node_port = Some(7);
        let address = web.addresses[0];
        tables.change(vec![NetworkChange::Service(name.clone(), Some(web.clone()))], &counters);
        let unclaim = |tables: &mut Tables, claim| {
            tables.change(vec![NetworkChange::Unclaimed(name.clone(), claim)], &counters).node_ports
        };
        assert!(unclaim(&mut tables, Claim::Address(address)).is_empty());
        assert!(tables.service_at(address).is_none() && tables.node_port(7).is_some());
        assert_eq!(unclaim(&mut tables, Claim::NodePort(7)), [7].into());
        assert!(tables.node_port(7).is_none() && tables.service("d", "web").is_some());
        tables.change(vec![NetworkChange::Service(name.clone(), Some(web))], &counters);
        assert!(tables.service_at(address).is_some() && tables.node_port(7).is_some());
    }

    /// What the tables answer to all that can be asked here. Of several services at one address or port any may have it.
    fn answers(tables: &Tables, services: &[ServiceEntry]) -> Vec<String> {
        let pods = (0..16).map(pod).map(|ip| format!("{:?} {:?}", tables.node_of(ip), tables.pod_at(ip)));
        let at = |last: u8| IpAddr::from([10, 96, 0, last]);
        let by_address = (0..4).map(|last| {
            let found = tables.service_at(at(last)).map(|service| service.entry.clone());
            let has = |entry: &ServiceEntry| entry.addresses.contains(&at(last));
            assert!(found.as_ref().is_none_or(|entry| services.contains(entry) && has(entry)));
            format!("{} {}", found.is_some(), services.iter().any(has))
        });
        let by_port = (1..4).map(|port| {
            let found = tables.node_port(port).map(|(service, index)| service.entry.ports[*index].node_port);
            assert!(found.is_none_or(|found| found == Some(port)));
            format!("{}", found.is_some())
        });
        let nodes = ["n1", "n2"].map(|name| (tables.own_address_of(name), tables.fabric_of(name).cloned()));
        let rest = format!("{nodes:?} {:?} {:?}", tables.fabric_names(), tables.control);
        pods.chain(by_address).chain(by_port).chain([rest]).collect()
    }

    #[test]
    fn what_comes_and_goes_leaves_the_same_as_if_it_had_never_been() {
        let mut rng = StdRng::seed_from_u64(11);
        let counters = Counters::default();
        let mut tables = Tables::default();
        for step in 0..2000 {
            tables.change(vec![change(&mut rng)], &counters);
            let mut fresh = Tables::default();
            fresh.change(tables.parts(), &Counters::default());
            let services: Vec<_> = fresh.services.values().map(|service| service.entry.clone()).collect();
            assert_eq!(answers(&tables, &services), answers(&fresh, &services), "at {step}");
        }
        let all: Vec<_> = tables.parts().iter().map(gone).collect();
        tables.change(all, &counters);
        let Tables { services, by_address, node_ports, blocks, bases, first_bases, .. } = &tables;
        assert!(services.is_empty() && by_address.is_empty() && node_ports.is_empty() && blocks.is_empty());
        assert!(bases.is_empty() && first_bases.is_empty() && tables.nodes.is_empty());
        assert!(tables.fabrics.is_empty() && tables.pods.is_empty() && tables.owners.is_empty());
        assert!(tables.control.is_empty() && tables.egress.is_empty());
        assert_eq!(counters.held(), 0);
    }

    #[test]
    fn a_change_makes_nothing_anew_but_what_it_names() {
        let mut rng = StdRng::seed_from_u64(13);
        let counters = Counters::default();
        let names: Vec<Name> = (0..1000).map(|at| Name::new("d", &format!("s{at}"))).collect();
        let mut put = |tables: &mut Tables, names: &[Name]| {
            let change = |name: &Name| NetworkChange::Service(name.clone(), Some(service(&mut rng, name)));
            tables.change(names.iter().map(change).collect(), &counters);
        };
        let mut tables = Tables::default();
        put(&mut tables, &names);
        let before = tables.clone();
        put(&mut tables, &names[7..8]);
        let is_same = |name: &&Name| Arc::ptr_eq(&before.services[*name], &tables.services[*name]);
        assert_eq!(names.iter().filter(is_same).count(), 999);
    }
}
