//! The objects that the network is made of, and what their changes mean for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use coracle_fabric::{
    Cidr, Claim, Endpoint, Name, NetworkChange, NodeEntry, NodeIdentity, RouteSet, RouteSource, ServiceEntry,
};
use coracle_objects::is_api_slice;
use serde_json::Value;

use super::{FABRIC_ANNOTATION, read, read::text};
use crate::decode::Key;

/// On node objects to which the certificates of their nodes are bound.
const JOINED_ANNOTATION: &str = "coracle.dev/joined";
/// The label of a namespace that says whether its pods may open connections to beyond the cluster, and what it says then.
const EGRESS_LABEL: &str = "coracle.dev/egress";
const EGRESS_ALLOWED: &str = "allow";
/// The label by which an endpoint slice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The objects, read once each, and what the fabric is yet to be told of them.
#[derive(Default)]
pub(super) struct NetworkObjects {
    /// Without endpoints.
    services: BTreeMap<Name, ServiceEntry>,
    /// Which service has an address, by the store's claims (`ipaddresses`).
    addresses: BTreeMap<IpAddr, Name>,
    /// Which service has a node port, by the store's claims (`portallocations`).
    node_ports: BTreeMap<u16, Name>,
    slices: Slices,
    blocks: BTreeMap<String, (Cidr, String)>,
    nodes: BTreeMap<String, NodeEntry>,
    routes: BTreeMap<RouteSource, RouteSet>,
    pods: BTreeMap<Name, IpAddr>,
    /// Those whose pods may leave the cluster.
    egress_namespaces: BTreeMap<String, ()>,
    /// Services that may look different now, by their namespaces.
    touched: BTreeMap<Arc<str>, Touched>,
    changes: Vec<NetworkChange>,
    /// Of the change that is taken in.
    number: u64,
}

/// Services that may look different now, in the order in which they were touched first.
#[derive(Default)]
struct Touched {
    order: VecDeque<(u64, Name)>,
    known: BTreeSet<Name>,
}

/// Endpoints of one service that a node goes by, those of the first slices by name: what one service costs to be told of is
/// what others wait for at most.
const ENDPOINTS_MAX: usize = 65_536;

/// Endpoint slices.
#[derive(Default)]
struct Slices {
    /// By the service, then by their names.
    by_service: BTreeMap<Name, BTreeMap<String, Vec<Endpoint>>>,
    /// The service of each.
    services: BTreeMap<Name, Name>,
}

impl NetworkObjects {
    /// An object is so now, or is gone.
    pub(super) fn take_in(&mut self, key: &Key, object: Option<&Value>) {
        let (resource, namespace, name) = key;
        let own = Name::new(namespace, name);
        match resource.as_str() {
            "services" => self.put_service(own, object),
            "ipaddresses.networking.k8s.io" => self.claim_address(name, object.and_then(address_owner)),
            "portallocations.coracle.dev" => {
                let Ok(port) = name.parse() else { return };
                let claimed = claim(&mut self.node_ports, port, object.and_then(port_owner));
                self.hand_over(Claim::NodePort(port), claimed);
            }
            "endpointslices.discovery.k8s.io" => {
                let slice = object.and_then(|object| endpoints_of(namespace, object));
                self.slices.put(own, slice).into_iter().for_each(|service| self.touch(service));
            }
            "podblocks.coracle.dev" => self.put_block(name, object.and_then(block)),
            "nodes" => {
                let node = object.and_then(node);
                if set(&mut self.nodes, name.clone(), node.clone()) {
                    self.changes.push(NetworkChange::Node(name.clone(), node));
                }
            }
            "ingresses.networking.k8s.io" => {
                let routes = object.map(read::ingress);
                let source = RouteSource::Ingress(own);
                if set(&mut self.routes, source.clone(), routes.clone()) {
                    self.changes.push(NetworkChange::Routes(source, routes));
                }
            }
            "namespaces" => {
                let label = |object: &Value| object["metadata"]["labels"][EGRESS_LABEL] == EGRESS_ALLOWED;
                let allowed = object.filter(|object| label(object)).map(|_| ());
                if set(&mut self.egress_namespaces, name.clone(), allowed) {
                    self.changes.push(NetworkChange::Egress(name.clone(), allowed.is_some()));
                }
            }
            "pods" => {
                let address = object.and_then(pod_address);
                if set(&mut self.pods, own.clone(), address) {
                    self.changes.push(NetworkChange::Pod(own, address));
                }
            }
            _ => {}
        }
    }

    fn put_service(&mut self, own: Name, object: Option<&Value>) {
        let entry = object.map(|object| read::service(&own.namespace, &own.name, object));
        if set(&mut self.services, own.clone(), entry) {
            self.touch(own);
        }
    }

    fn touch(&mut self, service: Name) {
        let touched = self.touched.entry(service.namespace.clone()).or_default();
        if touched.known.insert(service.clone()) {
            touched.order.push_back((self.number, service));
        }
    }

    /// The next that is taken in is the change of this number.
    pub(super) fn changed_by(&mut self, number: u64) {
        self.number = number;
    }

    /// The number of the first change that touched a service of this namespace which the fabric is yet to be told of.
    pub(super) fn touched_since(&self, namespace: &str) -> Option<u64> {
        self.touched.get(namespace)?.order.iter().map(|(number, _)| *number).min()
    }

    /// An address or a node port is another service's. Who had it loses it at once, and not only when it is told of anew,
    /// which may take a while: nobody keeps the traffic of another.
    fn hand_over(&mut self, claim: Claim, claimed: Claimed) {
        if let Some(former) = claimed.former {
            self.changes.push(NetworkChange::Unclaimed(former.clone(), claim));
            self.touch(former);
        }
        claimed.now.into_iter().for_each(|service| self.touch(service));
    }

    fn claim_address(&mut self, address: &str, owner: Option<Name>) {
        let Ok(address) = address.parse() else { return };
        let had_any = !self.addresses.is_empty();
        let claimed = claim(&mut self.addresses, address, owner);
        self.hand_over(Claim::Address(address), claimed);
        if had_any == self.addresses.is_empty() {
            let all: Vec<Name> = self.services.keys().cloned().collect();
            all.into_iter().for_each(|service| self.touch(service));
        }
    }

    fn put_block(&mut self, name: &str, block: Option<(Cidr, String)>) {
        let former = self.blocks.get(name).cloned();
        if !set(&mut self.blocks, name.to_owned(), block.clone()) {
            return;
        }
        self.changes.extend(former.map(|(cidr, _)| NetworkChange::PodBlock(cidr, None)));
        self.changes.extend(block.map(|(cidr, node)| NetworkChange::PodBlock(cidr, Some(node))));
    }

    /// The namespaces of services that the fabric is to be told of.
    pub(super) fn touched(&self) -> impl Iterator<Item = &Arc<str>> {
        self.touched.keys()
    }

    /// What the fabric is to be told since the last time, of services those of this namespace, at least one of them, until it
    /// is enough.
    pub(super) fn take_changes(
        &mut self,
        namespace: &str,
        mut is_enough: impl FnMut() -> bool,
    ) -> Vec<NetworkChange> {
        let mut changes = std::mem::take(&mut self.changes);
        while let Some(name) = self.pop_touched(namespace) {
            let entry = self.service(&name);
            changes.push(NetworkChange::Service(name, entry));
            if is_enough() {
                break;
            }
        }
        changes
    }

    fn pop_touched(&mut self, namespace: &str) -> Option<Name> {
        let touched = self.touched.get_mut(namespace)?;
        let (_, name) = touched.order.pop_front()?;
        touched.known.remove(&name);
        if touched.order.is_empty() {
            self.touched.remove(namespace);
        }
        Some(name)
    }

    /// A service as the fabric is told of it.
    fn service(&self, name: &Name) -> Option<ServiceEntry> {
        let mut service = self.services.get(name)?.clone();
        self.keep_what_is_claimed(name, &mut service);
        // What is of the control plane's service may be reached wherever it is: that is not for others to say.
        let is_api = (&*name.namespace, &*name.name) == ("default", "kubernetes");
        for (slice, endpoints) in self.slices.by_service.get(name).into_iter().flatten() {
            if !is_api || is_api_slice(slice) {
                let room = ENDPOINTS_MAX - service.endpoints.len();
                service.endpoints.extend(endpoints.iter().take(room).cloned());
            }
        }
        Some(service)
    }

    /// What a service's object says of addresses and node ports counts only where the store's claim says so too:
    /// an object must not get itself the traffic of another.
    fn keep_what_is_claimed(&self, name: &Name, service: &mut ServiceEntry) {
        // Every cluster has the claim of its API's address. A control node that sends none is of an older build.
        if self.addresses.is_empty() {
            return;
        }
        service.addresses.retain(|address| self.addresses.get(address) == Some(name));
        for port in &mut service.ports {
            port.node_port = port.node_port.filter(|port| self.node_ports.get(port) == Some(name));
        }
    }

    /// How many objects there are.
    pub(super) fn held(&self) -> usize {
        let claims = self.addresses.len() + self.node_ports.len();
        let others = self.blocks.len() + self.nodes.len() + self.egress_namespaces.len();
        let slices = self.slices.services.len();
        self.services.len() + slices + self.routes.len() + self.pods.len() + claims + others
    }
}

impl Slices {
    /// A slice is so now, with its service, or is gone. Says which services look different.
    fn put(&mut self, own: Name, slice: Option<(Name, Vec<Endpoint>)>) -> Vec<Name> {
        let former = self.services.get(&own).cloned();
        let (service, endpoints) = slice.unzip();
        if former == service
            && service.as_ref().and_then(|service| self.by_service.get(service)?.get(&*own.name))
                == endpoints.as_ref()
        {
            return Vec::new();
        }
        if let Some(of) = &former
            && let Some(slices) = self.by_service.get_mut(of)
        {
            slices.remove(&*own.name);
            if slices.is_empty() {
                self.by_service.remove(of);
            }
        }
        if let (Some(of), Some(endpoints)) = (&service, endpoints) {
            self.by_service.entry(of.clone()).or_default().insert(own.name.to_string(), endpoints);
        }
        set(&mut self.services, own, service.clone());
        former.into_iter().chain(service).collect()
    }
}

/// Sets a value or removes it; true where it was not so before.
fn set<K: Ord, V: PartialEq>(table: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    let Some(value) = value else { return table.remove(&key).is_some() };
    if table.get(&key) == Some(&value) {
        return false;
    }
    table.insert(key, value);
    true
}

/// The service that something was with, and the one that it is with, where that is not the same.
#[derive(Default)]
struct Claimed {
    former: Option<Name>,
    now: Option<Name>,
}

/// Gives something to a service, or to none.
fn claim<K: Ord>(table: &mut BTreeMap<K, Name>, key: K, owner: Option<Name>) -> Claimed {
    let former = match &owner {
        Some(owner) => table.insert(key, owner.clone()),
        None => table.remove(&key),
    };
    if former == owner { Claimed::default() } else { Claimed { former, now: owner } }
}

fn address_owner(object: &Value) -> Option<Name> {
    let parent = &object["spec"]["parentRef"];
    let of_a_service = parent["resource"] == "services";
    of_a_service.then(|| Name::new(&text(&parent["namespace"]), &text(&parent["name"])))
}

fn port_owner(object: &Value) -> Option<Name> {
    let (namespace, name) = object["spec"]["service"].as_str()?.split_once('/')?;
    Some(Name::new(namespace, name))
}

/// An endpoint slice's service, and its endpoints.
fn endpoints_of(namespace: &str, object: &Value) -> Option<(Name, Vec<Endpoint>)> {
    let service = object["metadata"]["labels"][SERVICE_LABEL].as_str()?;
    Some((Name::new(namespace, service), read::endpoints(object)))
}

fn block(object: &Value) -> Option<(Cidr, String)> {
    let spec = &object["spec"];
    Some((spec["cidr"].as_str()?.parse().ok()?, text(&spec["nodeName"])))
}

fn node(object: &Value) -> Option<NodeEntry> {
    let metadata = &object["metadata"];
    let fabric = metadata["annotations"][FABRIC_ANNOTATION].as_str()?.to_owned();
    let bound = metadata["annotations"][JOINED_ANNOTATION].is_string();
    Some(NodeEntry { fabric, identity: Some(NodeIdentity { uid: text(&metadata["uid"]), bound }) })
}

/// One that has ended has given its address back; another pod may have it.
fn pod_address(object: &Value) -> Option<IpAddr> {
    let status = &object["status"];
    let has_ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    if has_ended { None } else { status["podIP"].as_str()?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::time::Duration;

    use coracle_fabric::{BackendPort, PathKind, ServiceBackend};

    use super::*;

    /// All that the fabric is to be told.
    fn all_changes(objects: &mut NetworkObjects) -> Vec<NetworkChange> {
        let mut changes = objects.take_changes("", || false);
        let touched: Vec<_> = objects.touched().cloned().collect();
        touched.iter().for_each(|namespace| changes.extend(objects.take_changes(namespace, || false)));
        changes
    }

    /// The objects, and all that was told of them.
    #[derive(Default)]
    struct Bench {
        objects: NetworkObjects,
        services: BTreeMap<Name, ServiceEntry>,
        blocks: BTreeMap<Cidr, String>,
        nodes: BTreeMap<String, NodeEntry>,
        routes: BTreeMap<RouteSource, RouteSet>,
        pods: BTreeMap<Name, IpAddr>,
        egress: BTreeMap<String, ()>,
    }

    impl Bench {
        /// Takes an object in; true where the fabric is told something.
        fn put(&mut self, resource: &str, namespace: &str, name: &str, object: &Value) -> bool {
            self.take_in(resource, namespace, name, Some(object))
        }

        fn delete(&mut self, resource: &str, namespace: &str, name: &str) -> bool {
            self.take_in(resource, namespace, name, None)
        }

        fn take_in(&mut self, resource: &str, namespace: &str, name: &str, object: Option<&Value>) -> bool {
            self.objects.take_in(&(resource.into(), namespace.into(), name.into()), object);
            let changes = all_changes(&mut self.objects);
            let is_told = !changes.is_empty();
            changes.into_iter().for_each(|change| self.hear(change));
            is_told
        }

        fn hear(&mut self, change: NetworkChange) {
            match change {
                NetworkChange::Service(name, now) => drop(set(&mut self.services, name, now)),
                NetworkChange::Unclaimed(..) => {}
                NetworkChange::PodBlock(cidr, now) => drop(set(&mut self.blocks, cidr, now)),
                NetworkChange::Node(name, now) => drop(set(&mut self.nodes, name, now)),
                NetworkChange::Routes(source, now) => drop(set(&mut self.routes, source, now)),
                NetworkChange::Pod(name, now) => drop(set(&mut self.pods, name, now)),
                NetworkChange::Egress(name, is_allowed) => {
                    set(&mut self.egress, name, is_allowed.then_some(()));
                }
            }
        }

        fn service(&self, namespace: &str, name: &str) -> &ServiceEntry {
            &self.services[&Name::new(namespace, name)]
        }
    }

    #[test]
    fn the_control_planes_service_has_the_control_planes_endpoints_alone() {
        let mut bench = Bench::default();
        for namespace in ["default", "other"] {
            let spec = json!({ "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 443 }] } });
            assert!(bench.put("services", namespace, "kubernetes", &spec));
            for (name, address) in
                [("kubernetes", "192.0.2.1"), ("kubernetes-6443", "192.0.2.2"), ("x", "169.254.169.254")]
            {
                let slice = json!({
                    "metadata": { "labels": { "kubernetes.io/service-name": "kubernetes" } },
                    "ports": [{ "port": 80 }],
                    "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
                });
                assert!(bench.put("endpointslices.discovery.k8s.io", namespace, name, &slice));
            }
        }
        let counts: Vec<_> = bench.services.values().map(|service| service.endpoints.len()).collect();
        assert_eq!(counts, [2, 3]);
    }

    #[test]
    fn services_meet_their_endpoints() {
        let mut bench = Bench::default();
        let service = json!({ "spec": {
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "sessionAffinity": "ClientIP",
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }, { "port": 9, "protocol": "SCTP" }],
        }});
        let slice = json!({
            "metadata": { "labels": { "kubernetes.io/service-name": "web" } },
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.128.0.2"], "conditions": { "ready": true } },
                { "addresses": ["10.128.0.3"], "conditions": { "ready": false }, "hostname": "web-1" },
            ],
        });
        assert!(bench.put("services", "d", "web", &service));
        assert!(bench.put("endpointslices.discovery.k8s.io", "d", "web-abc", &slice));
        assert!(!bench.put("endpointslices.discovery.k8s.io", "d", "web-abc", &slice), "nothing changed");
        let web = bench.service("d", "web");
        assert_eq!(web.addresses, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!((web.ports.len(), web.ports[0].node_port), (1, Some(30080)));
        assert_eq!(web.client_affinity, Some(Duration::from_secs(10_800)));
        assert_eq!(web.endpoints.iter().filter(|endpoint| endpoint.ready).count(), 1);
        assert_eq!(web.endpoints[1].ports["http"], 8080);
        assert!(bench.delete("endpointslices.discovery.k8s.io", "d", "web-abc"));
        assert!(bench.service("d", "web").endpoints.is_empty());
    }

    #[test]
    fn an_address_and_a_node_port_go_to_the_service_that_has_them() {
        let mut bench = Bench::default();
        let address = |service: &str| json!({ "spec": { "parentRef": { "resource": "services", "namespace": "d", "name": service } } });
        bench.put("ipaddresses.networking.k8s.io", "", "10.96.0.7", &address("victim"));
        bench.put("portallocations.coracle.dev", "", "30080", &json!({ "spec": { "service": "d/victim" } }));
        let ports = json!([{ "port": 80, "nodePort": 30080 }]);
        let victim =
            json!({ "spec": { "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": ports } });
        // Whatever such an object may come from: a mapped form of the address is another text of it.
        let thief = json!({ "spec": { "type": "ExternalName", "externalName": "a.b", "ports": ports,
            "clusterIPs": ["10.96.0.7", "::ffff:10.96.0.7", "10.128.0.9"] } });
        assert!(bench.put("services", "d", "victim", &victim));
        assert!(bench.put("services", "evil", "thief", &thief));
        assert!(bench.put("services", "d", "thief", &thief));
        let of = |namespace: &str, name: &str| bench.service(namespace, name);
        for namespace in ["d", "evil"] {
            assert!(of(namespace, "thief").addresses.is_empty());
            assert_eq!(of(namespace, "thief").ports[0].node_port, None);
        }
        assert_eq!(of("d", "victim").addresses, [IpAddr::from([10, 96, 0, 7])]);
        assert_eq!(of("d", "victim").ports[0].node_port, Some(30080));
        assert!(bench.put("ipaddresses.networking.k8s.io", "", "10.96.0.7", &address("thief")));
        assert!(bench.delete("portallocations.coracle.dev", "", "30080"));
        let victim = bench.service("d", "victim");
        assert_eq!((victim.addresses.len(), victim.ports[0].node_port), (0, None));
    }

    #[test]
    fn who_loses_a_claim_loses_it_before_its_namespace_has_its_turn() {
        let mut objects = NetworkObjects::default();
        let mut put = |resource: &str, namespace: &str, name: &str, object: Value| {
            objects.take_in(&(resource.into(), namespace.into(), name.into()), Some(&object));
        };
        let spec = json!({ "spec": { "clusterIPs": ["10.96.0.7"] } });
        let claim = |of: &str| json!({ "spec": { "parentRef": { "resource": "services", "namespace": of, "name": "web" } } });
        let addresses = "ipaddresses.networking.k8s.io";
        put("services", "a", "web", spec.clone());
        put("services", "b", "web", spec);
        put(addresses, "", "10.96.0.7", claim("a"));
        all_changes(&mut objects);
        objects.take_in(&(addresses.into(), String::new(), "10.96.0.7".into()), Some(&claim("b")));
        let said = |changes: Vec<NetworkChange>| {
            let one = |change| match change {
                NetworkChange::Unclaimed(name, Claim::Address(_)) => (name.namespace.to_string(), None),
                NetworkChange::Service(name, now) => {
                    (name.namespace.to_string(), now.map(|service| service.addresses.len()))
                }
                other => panic!("{other:?}"),
            };
            changes.into_iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(said(objects.take_changes("", || false)), [("a".to_owned(), None)]);
        assert_eq!(objects.touched().map(|of| &**of).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(said(objects.take_changes("b", || false)), [("b".to_owned(), Some(1))]);
        assert_eq!(said(objects.take_changes("a", || true)), [("a".to_owned(), Some(0))]);
        assert_eq!(objects.touched().count(), 0);
    }

    #[test]
    fn of_one_service_a_node_goes_by_so_many_endpoints_and_no_more() {
        let mut bench = Bench::default();
        let endpoints: Vec<Value> = (0..1000)
            .map(|at| json!({ "addresses": [format!("10.128.{}.{}", at / 250, at % 250)] }))
            .collect();
        let slice = json!({ "metadata": { "labels": { "kubernetes.io/service-name": "wide" } }, "endpoints": endpoints });
        bench.put("services", "d", "wide", &json!({ "spec": {} }));
        for at in 0..70 {
            let key = ("endpointslices.discovery.k8s.io".into(), "d".into(), format!("wide-{at:02}"));
            bench.objects.take_in(&key, Some(&slice));
        }
        let changes = all_changes(&mut bench.objects);
        changes.into_iter().for_each(|change| bench.hear(change));
        assert_eq!(bench.service("d", "wide").endpoints.len(), ENDPOINTS_MAX);
    }

    #[test]
    fn the_ports_of_a_slice_are_kept_once() {
        let mut bench = Bench::default();
        let ports: Vec<Value> =
            (1..=15_000).map(|port| json!({ "name": format!("p{port}"), "port": port })).collect();
        let slice = json!({
            "metadata": { "labels": { "kubernetes.io/service-name": "fat" } },
            "ports": ports, "endpoints": vec![json!({ "addresses": ["10.128.9.9"] }); 1000],
        });
        bench.put("services", "d", "fat", &json!({ "spec": { "ports": [{ "name": "p7", "port": 80 }] } }));
        bench.put("endpointslices.discovery.k8s.io", "d", "fat", &slice);
        let endpoints = &bench.service("d", "fat").endpoints;
        assert_eq!((endpoints.len(), endpoints[0].ports["p7"]), (1000, 7));
        assert!(endpoints.iter().all(|one| Arc::ptr_eq(&one.ports, &endpoints[0].ports)));
    }

    #[test]
    fn a_pod_that_has_ended_has_no_address() {
        let mut bench = Bench::default();
        let pod = |phase: &str| json!({ "status": { "phase": phase, "podIP": "10.128.3.7" } });
        assert!(bench.put("pods", "d", "job", &pod("Running")));
        assert_eq!(bench.pods[&Name::new("d", "job")].to_string(), "10.128.3.7");
        assert!(bench.put("pods", "d", "job", &pod("Succeeded")));
        assert!(!bench.put("pods", "d", "other", &pod("Failed")));
        assert!(bench.pods.is_empty());
    }

    #[test]
    fn pods_leave_the_cluster_where_their_namespace_says_so() {
        let mut bench = Bench::default();
        let namespace = |value: &str| json!({ "metadata": { "labels": { "coracle.dev/egress": value } } });
        assert!(bench.put("namespaces", "", "open", &namespace("allow")));
        assert!(!bench.put("namespaces", "", "shut", &namespace("deny")));
        assert!(!bench.put("namespaces", "", "plain", &json!({ "metadata": {} })));
        assert_eq!(bench.egress, [("open".to_owned(), ())].into());
        assert!(bench.put("namespaces", "", "open", &json!({ "metadata": {} })));
        assert!(bench.put("namespaces", "", "shut", &namespace("allow")));
        assert!(bench.delete("namespaces", "", "shut"));
        assert!(bench.egress.is_empty());
    }

    #[test]
    fn nodes_blocks_and_ingresses_are_read() {
        let mut bench = Bench::default();
        let annotations = json!({ FABRIC_ANNOTATION: "10.0.0.1:7443", JOINED_ANNOTATION: "linked" });
        let node = json!({ "metadata": { "uid": "u", "annotations": annotations } });
        assert!(bench.put("nodes", "", "n1", &node));
        let block = json!({ "spec": { "cidr": "10.128.3.0/24", "nodeName": "n1" } });
        assert!(bench.put("podblocks.coracle.dev", "", "10.128.3.0-24", &block));
        let ingress = json!({ "spec": { "rules": [{ "host": "a.example", "http": { "paths": [{
            "path": "/x", "pathType": "Prefix",
            "backend": { "service": { "name": "web", "port": { "number": 80 } } },
        }] } }] } });
        assert!(bench.put("ingresses.networking.k8s.io", "d", "in", &ingress));
        assert_eq!(bench.nodes["n1"].fabric, "10.0.0.1:7443");
        assert_eq!(bench.nodes["n1"].identity, Some(NodeIdentity { uid: "u".into(), bound: true }));
        assert_eq!(bench.blocks, [("10.128.3.0/24".parse().unwrap(), "n1".to_owned())].into());
        let path = &bench.routes[&RouteSource::Ingress(Name::new("d", "in"))].hosts[0].paths[0];
        assert_eq!((path.path.as_str(), path.kind), ("/x", PathKind::Prefix));
        assert_eq!(path.backend, ServiceBackend { service: "web".into(), port: BackendPort::Number(80) });
    }

    #[test]
    fn a_change_is_told_alone_and_what_it_touches_is_told_whole() {
        let mut bench = Bench::default();
        let slice = |service: &str, address: &str| {
            json!({
                "metadata": { "labels": { "kubernetes.io/service-name": service } },
                "endpoints": [{ "addresses": [address] }],
            })
        };
        let slices = "endpointslices.discovery.k8s.io";
        for service in ["one", "two", "three"] {
            bench.put("services", "d", service, &json!({ "spec": {} }));
            bench.put(slices, "d", &format!("{service}-a"), &slice(service, "10.128.0.1"));
        }
        let key = |resource: &str, name: &str| (resource.to_owned(), "d".to_owned(), name.to_owned());
        let mut told = |resource: &str, name: &str, object: Option<Value>| {
            bench.objects.take_in(&key(resource, name), object.as_ref());
            let service = |change| match change {
                NetworkChange::Service(name, now) => {
                    (name.name.to_string(), now.map(|service: ServiceEntry| service.endpoints.len()))
                }
                other => panic!("{other:?}"),
            };
            all_changes(&mut bench.objects).into_iter().map(service).collect::<Vec<_>>()
        };
        let of = |name: &str, endpoints| (name.to_owned(), endpoints);
        let second = slice("one", "10.128.0.2");
        assert_eq!(told(slices, "one-b", Some(second.clone())), [of("one", Some(2))]);
        assert_eq!(told(slices, "one-b", Some(second)), []);
        let moved = slice("two", "10.128.0.2");
        assert_eq!(told(slices, "one-b", Some(moved)), [of("one", Some(1)), of("two", Some(2))]);
        assert_eq!(told("services", "two", None), [of("two", None)]);
        assert_eq!(told("services", "two", Some(json!({ "spec": {} }))), [of("two", Some(2))]);
        assert_eq!(told(slices, "one-b", None), [of("two", Some(1))]);
        assert_eq!(bench.objects.held(), 6);
        for service in ["one", "two", "three"] {
            bench.delete("services", "d", service);
            bench.delete(slices, "d", &format!("{service}-a"));
        }
        assert_eq!((bench.objects.held(), bench.objects.slices.by_service.len()), (0, 0));
    }
}
