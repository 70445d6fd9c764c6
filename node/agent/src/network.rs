//! The cluster's network as this node hears of it: Kubernetes objects in, `coracle_fabric::NetworkState` out.

mod builder;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use coracle_fabric::{
    Backend, BackendPort, Endpoint, Fabric, IngressEntry, IngressPath, IngressRule, NetworkState,
    NodeIdentity, PathKind, PodBlock, PodEntry, Protocol, ServiceEntry, ServicePort,
};
use coracle_objects::{is_api_slice, kinds::hosts_since};
use coracle_wasi_host::net::{Namespace, Uplink};
use serde_json::Value;

use self::builder::Builder;
use crate::decode::Key;

/// Where a node object says how its fabric is reached.
pub const FABRIC_ANNOTATION: &str = "coracle.dev/fabric-address";
/// On node objects to which the certificates of their nodes are bound.
const JOINED_ANNOTATION: &str = "coracle.dev/joined";
/// The label of a namespace that says whether its pods may open connections to beyond the cluster, and what it says then.
const EGRESS_LABEL: &str = "coracle.dev/egress";
const EGRESS_ALLOWED: &str = "allow";
/// The label by which an endpoint slice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Source: v1.ClientIPConfig.
const AFFINITY_SECONDS_DEFAULT: u64 = 10_800;

/// The node's share of the network, or none where pods have only each other's loopback (tests of the executor).
#[derive(Clone, Default)]
pub struct PodNetwork {
    fabric: Option<Fabric>,
    builder: Option<Arc<Builder>>,
}

impl PodNetwork {
    /// Starts the thread that tells the fabric what the cluster looks like.
    pub fn start(fabric: Fabric) -> io::Result<Self> {
        let told = fabric.clone();
        let builder = Builder::start(move |state| told.update(state))?;
        Ok(Self { fabric: Some(fabric), builder: Some(Arc::new(builder)) })
    }

    /// What a pod of this Kubernetes namespace reaches beyond itself.
    pub fn uplink(&self, namespace: &str) -> Arc<dyn Uplink> {
        match &self.fabric {
            Some(fabric) => fabric.uplink(namespace),
            None => Arc::new(coracle_wasi_host::net::Isolated),
        }
    }

    pub fn attach(&self, address: IpAddr, namespace: Namespace) {
        if let Some(fabric) = &self.fabric {
            fabric.attach(address, namespace);
        }
    }

    pub fn detach(&self, address: IpAddr) {
        if let Some(fabric) = &self.fabric {
            fabric.detach(address);
        }
    }

    /// An object of the network is so now, or is gone. The fabric hears of it soon.
    pub fn change(&self, key: Key, object: Option<Value>) {
        if let Some(builder) = &self.builder {
            builder.change(key, object);
        }
    }

    /// Containers that are started from now on rely on all that changed.
    pub fn hurry(&self) {
        if let Some(builder) = &self.builder {
            builder.hurry();
        }
    }

    /// Returns when the fabric knows what a container relies on that is started at the time of the call.
    pub fn told(&self) -> impl Future<Output = ()> + Send + use<> {
        let told = self.builder.as_ref().map(|builder| builder.told());
        async move {
            if let Some(told) = told {
                told.await;
            }
        }
    }

    /// How many objects of the network there are.
    pub fn held(&self) -> usize {
        self.builder.as_ref().map_or(0, |builder| builder.held())
    }
}

/// (namespace, name)
type Name = (String, String);

/// The objects that the network is made of, parsed once each.
#[derive(Default)]
struct NetworkObjects {
    services: BTreeMap<Name, ServiceEntry>,
    /// Which service has an address, by the store's claims (`ipaddresses`).
    addresses: BTreeMap<IpAddr, Name>,
    /// Which service has a node port, by the store's claims (`portallocations`).
    node_ports: BTreeMap<u16, Name>,
    /// With the name of the service.
    slices: BTreeMap<Name, (Name, Vec<Endpoint>)>,
    blocks: BTreeMap<String, PodBlock>,
    nodes: BTreeMap<String, (String, NodeIdentity)>,
    ingresses: BTreeMap<Name, IngressEntry>,
    pods: BTreeMap<Name, PodEntry>,
    /// Those whose pods may leave the cluster.
    egress_namespaces: BTreeSet<String>,
}

impl NetworkObjects {
    /// Takes an object in; true where the network may look different now.
    fn put(&mut self, resource: &str, namespace: &str, name: &str, object: &Value) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        match resource {
            "services" => changed(&mut self.services, key, Some(service(namespace, name, object))),
            "ipaddresses.networking.k8s.io" => {
                let Ok(address) = name.parse() else { return false };
                let parent = &object["spec"]["parentRef"];
                let of_a_service = parent["resource"] == "services";
                let owner = of_a_service.then(|| (text(&parent["namespace"]), text(&parent["name"])));
                changed(&mut self.addresses, address, owner)
            }
            "portallocations.coracle.dev" => {
                let Ok(port) = name.parse() else { return false };
                let owner = object["spec"]["service"].as_str().and_then(|owner| owner.split_once('/'));
                let owner = owner.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
                changed(&mut self.node_ports, port, owner)
            }
            "endpointslices.discovery.k8s.io" => {
                let of = object["metadata"]["labels"][SERVICE_LABEL].as_str();
                let slice = of.map(|of| ((namespace.to_owned(), of.to_owned()), endpoints(object)));
                changed(&mut self.slices, key, slice)
            }
            "podblocks.coracle.dev" => {
                let spec = &object["spec"];
                let cidr = spec["cidr"].as_str().and_then(|cidr| cidr.parse().ok());
                let block = cidr.map(|cidr| PodBlock { cidr, node: text(&spec["nodeName"]) });
                changed(&mut self.blocks, name.to_owned(), block)
            }
            "nodes" => {
                let metadata = &object["metadata"];
                let address = metadata["annotations"][FABRIC_ANNOTATION].as_str();
                let bound = metadata["annotations"][JOINED_ANNOTATION].is_string();
                let identity = NodeIdentity { uid: text(&metadata["uid"]), bound };
                changed(&mut self.nodes, name.to_owned(), address.map(|at| (at.to_owned(), identity)))
            }
            "ingresses.networking.k8s.io" => {
                changed(&mut self.ingresses, key, Some(ingress(namespace, name, object)))
            }
            "namespaces" => {
                let is_allowed = object["metadata"]["labels"][EGRESS_LABEL] == EGRESS_ALLOWED;
                if is_allowed {
                    self.egress_namespaces.insert(name.to_owned())
                } else {
                    self.egress_namespaces.remove(name)
                }
            }
            "pods" => {
                // One that has ended has given its address back; another pod may have it.
                let has_ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
                let address = object["status"]["podIP"].as_str().filter(|_| !has_ended);
                let address = address.and_then(|ip| ip.parse().ok());
                let pod = address.map(|address| PodEntry {
                    namespace: key.0.clone(),
                    name: key.1.clone(),
                    address,
                });
                changed(&mut self.pods, key, pod)
            }
            _ => false,
        }
    }

    /// Forgets an object; true where the network may look different now.
    fn delete(&mut self, resource: &str, namespace: &str, name: &str) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        match resource {
            "services" => self.services.remove(&key).is_some(),
            "ipaddresses.networking.k8s.io" => {
                name.parse().is_ok_and(|address| self.addresses.remove(&address).is_some())
            }
            "portallocations.coracle.dev" => {
                name.parse().is_ok_and(|port| self.node_ports.remove(&port).is_some())
            }
            "endpointslices.discovery.k8s.io" => self.slices.remove(&key).is_some(),
            "podblocks.coracle.dev" => self.blocks.remove(name).is_some(),
            "nodes" => self.nodes.remove(name).is_some(),
            "ingresses.networking.k8s.io" => self.ingresses.remove(&key).is_some(),
            "namespaces" => self.egress_namespaces.remove(name),
            "pods" => self.pods.remove(&key).is_some(),
            _ => false,
        }
    }

    /// How many objects there are.
    fn held(&self) -> usize {
        let claims = self.addresses.len() + self.node_ports.len();
        let others = self.blocks.len() + self.nodes.len() + self.egress_namespaces.len();
        self.services.len() + self.slices.len() + self.ingresses.len() + self.pods.len() + claims + others
    }

    /// Everything, for the fabric.
    fn state(&self) -> NetworkState {
        let mut services = self.services.clone();
        for (name, service) in &mut services {
            self.keep_what_is_claimed(name, service);
        }
        for ((_, name), (of, endpoints)) in &self.slices {
            // What is of the control plane's service may be reached wherever it is: that is not for others to say.
            let is_api = of.0 == "default" && of.1 == "kubernetes";
            if let Some(service) = services.get_mut(of).filter(|_| !is_api || is_api_slice(name)) {
                service.endpoints.extend(endpoints.iter().cloned());
            }
        }
        NetworkState {
            services: services.into_values().collect(),
            pod_blocks: self.blocks.values().cloned().collect(),
            nodes: self.nodes.iter().map(|(name, (address, _))| (name.clone(), address.clone())).collect(),
            node_identities: self.nodes.iter().map(|(name, (_, id))| (name.clone(), id.clone())).collect(),
            ingresses: self.ingresses.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            egress_namespaces: self.egress_namespaces.clone(),
        }
    }
}

impl NetworkObjects {
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
}

fn changed<K: Ord, V: PartialEq>(table: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    let Some(value) = value else { return table.remove(&key).is_some() };
    if table.get(&key) == Some(&value) {
        return false;
    }
    table.insert(key, value);
    true
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

fn service(namespace: &str, name: &str, object: &Value) -> ServiceEntry {
    let spec = &object["spec"];
    let addresses = match list(&spec["clusterIPs"]) {
        [] => std::slice::from_ref(&spec["clusterIP"]),
        several => several,
    };
    let affinity = (spec["sessionAffinity"] == "ClientIP").then(|| {
        let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
        Duration::from_secs(seconds.unwrap_or(AFFINITY_SECONDS_DEFAULT))
    });
    let is_external = spec["type"] == "ExternalName";
    ServiceEntry {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        addresses: addresses.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect(),
        external_name: spec["externalName"].as_str().filter(|_| is_external).map(str::to_owned),
        ports: list(&spec["ports"]).iter().filter_map(service_port).collect(),
        client_affinity: affinity,
        publish_not_ready: spec["publishNotReadyAddresses"] == true,
        endpoints: Vec::new(),
    }
}

fn service_port(object: &Value) -> Option<ServicePort> {
    Some(ServicePort {
        name: text(&object["name"]),
        protocol: match object["protocol"].as_str().unwrap_or("TCP") {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            // There is no SCTP in the virtual network.
            _ => return None,
        },
        port: port(&object["port"])?,
        node_port: port(&object["nodePort"]),
    })
}

fn endpoints(slice: &Value) -> Vec<Endpoint> {
    let ports: Arc<BTreeMap<String, u16>> = Arc::new(
        list(&slice["ports"])
            .iter()
            .filter_map(|one| Some((text(&one["name"]), port(&one["port"])?)))
            .collect(),
    );
    let mut all = Vec::new();
    for endpoint in list(&slice["endpoints"]) {
        let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
        let hostname = endpoint["hostname"].as_str().map(str::to_owned);
        // Consumers use the first address only. Source: discovery.k8s.io/v1.
        let address = list(&endpoint["addresses"]).first().and_then(|ip| ip.as_str()?.parse().ok());
        all.extend(address.map(|address| Endpoint {
            address,
            ready,
            hostname: hostname.clone(),
            ports: ports.clone(),
        }));
    }
    all
}

fn ingress(namespace: &str, name: &str, object: &Value) -> IngressEntry {
    let spec = &object["spec"];
    let since = hosts_since(object);
    let rules = list(&spec["rules"]).iter().map(|rule| {
        let host = rule["host"].as_str().filter(|host| !host.is_empty());
        let asked = host.and_then(|host| since.get(&host.to_ascii_lowercase()));
        let paths = list(&rule["http"]["paths"]).iter().filter_map(ingress_path).collect();
        IngressRule { host: host.map(str::to_owned), since: asked.cloned().unwrap_or_default(), paths }
    });
    IngressEntry {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        created: text(&object["metadata"]["creationTimestamp"]),
        default_backend: backend(&spec["defaultBackend"]),
        rules: rules.collect(),
    }
}

fn ingress_path(path: &Value) -> Option<IngressPath> {
    Some(IngressPath {
        path: text(&path["path"]),
        kind: match path["pathType"].as_str() {
            Some("Exact") => PathKind::Exact,
            Some("Prefix") => PathKind::Prefix,
            _ => PathKind::ImplementationSpecific,
        },
        backend: backend(&path["backend"])?,
    })
}

fn backend(object: &Value) -> Option<Backend> {
    let service = &object["service"];
    let number = port(&service["port"]["number"]).map(BackendPort::Number);
    let name = || service["port"]["name"].as_str().map(|name| BackendPort::Name(name.to_owned()));
    Some(Backend { service: service["name"].as_str()?.to_owned(), port: number.or_else(name)? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_control_planes_service_has_the_control_planes_endpoints_alone() {
        let mut objects = NetworkObjects::default();
        for namespace in ["default", "other"] {
            let spec = json!({ "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 443 }] } });
            assert!(objects.put("services", namespace, "kubernetes", &spec));
            for (name, address) in
                [("kubernetes", "192.0.2.1"), ("kubernetes-6443", "192.0.2.2"), ("x", "169.254.169.254")]
            {
                let slice = json!({
                    "metadata": { "labels": { "kubernetes.io/service-name": "kubernetes" } },
                    "ports": [{ "port": 80 }],
                    "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
                });
                assert!(objects.put("endpointslices.discovery.k8s.io", namespace, name, &slice));
            }
        }
        let counts: Vec<_> = objects.state().services.iter().map(|service| service.endpoints.len()).collect();
        assert_eq!(counts, [2, 3]);
    }

    #[test]
    fn services_meet_their_endpoints() {
        let mut objects = NetworkObjects::default();
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
        assert!(objects.put("services", "d", "web", &service));
        assert!(objects.put("endpointslices.discovery.k8s.io", "d", "web-abc", &slice));
        assert!(!objects.put("endpointslices.discovery.k8s.io", "d", "web-abc", &slice), "nothing changed");
        let state = objects.state();
        let web = &state.services[0];
        assert_eq!(web.addresses, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!((web.ports.len(), web.ports[0].node_port), (1, Some(30080)));
        assert_eq!(web.client_affinity, Some(Duration::from_secs(10_800)));
        assert_eq!(web.endpoints.iter().filter(|endpoint| endpoint.ready).count(), 1);
        assert_eq!(web.endpoints[1].ports["http"], 8080);
        assert!(objects.delete("endpointslices.discovery.k8s.io", "d", "web-abc"));
        assert!(objects.state().services[0].endpoints.is_empty());
    }

    #[test]
    fn an_address_and_a_node_port_go_to_the_service_that_has_them() {
        let mut objects = NetworkObjects::default();
        let address = |service: &str| json!({ "spec": { "parentRef": { "resource": "services", "namespace": "d", "name": service } } });
        objects.put("ipaddresses.networking.k8s.io", "", "10.96.0.7", &address("victim"));
        objects.put(
            "portallocations.coracle.dev",
            "",
            "30080",
            &json!({ "spec": { "service": "d/victim" } }),
        );
        let ports = json!([{ "port": 80, "nodePort": 30080 }]);
        let victim =
            json!({ "spec": { "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": ports } });
        // Whatever such an object may come from: a mapped form of the address is another text of it.
        let thief = json!({ "spec": { "type": "ExternalName", "externalName": "a.b", "ports": ports,
            "clusterIPs": ["10.96.0.7", "::ffff:10.96.0.7", "10.128.0.9"] } });
        assert!(objects.put("services", "d", "victim", &victim));
        assert!(objects.put("services", "evil", "thief", &thief));
        assert!(objects.put("services", "d", "thief", &thief));
        let state = objects.state();
        let of = |namespace: &str, name: &str| {
            state.services.iter().find(|one| one.namespace == namespace && one.name == name).unwrap()
        };
        for namespace in ["d", "evil"] {
            assert!(of(namespace, "thief").addresses.is_empty());
            assert_eq!(of(namespace, "thief").ports[0].node_port, None);
        }
        assert_eq!(of("d", "victim").addresses, [IpAddr::from([10, 96, 0, 7])]);
        assert_eq!(of("d", "victim").ports[0].node_port, Some(30080));
        assert!(objects.put("ipaddresses.networking.k8s.io", "", "10.96.0.7", &address("thief")));
        assert!(objects.delete("portallocations.coracle.dev", "", "30080"));
        let state = objects.state();
        let victim = state.services.iter().find(|one| one.name == "victim").unwrap();
        assert_eq!((victim.addresses.len(), victim.ports[0].node_port), (0, None));
    }

    #[test]
    fn the_ports_of_a_slice_are_kept_once() {
        let mut objects = NetworkObjects::default();
        let ports: Vec<Value> =
            (1..=15_000).map(|port| json!({ "name": format!("p{port}"), "port": port })).collect();
        let slice = json!({
            "metadata": { "labels": { "kubernetes.io/service-name": "fat" } },
            "ports": ports, "endpoints": vec![json!({ "addresses": ["10.128.9.9"] }); 1000],
        });
        objects.put("services", "d", "fat", &json!({ "spec": { "ports": [{ "name": "p7", "port": 80 }] } }));
        objects.put("endpointslices.discovery.k8s.io", "d", "fat", &slice);
        let state = objects.state();
        let endpoints = &state.services[0].endpoints;
        assert_eq!((endpoints.len(), endpoints[0].ports["p7"]), (1000, 7));
        assert!(endpoints.iter().all(|one| Arc::ptr_eq(&one.ports, &endpoints[0].ports)));
    }

    #[test]
    fn a_pod_that_has_ended_has_no_address() {
        let mut objects = NetworkObjects::default();
        let pod = |phase: &str| json!({ "status": { "phase": phase, "podIP": "10.128.3.7" } });
        assert!(objects.put("pods", "d", "job", &pod("Running")));
        assert_eq!(objects.state().pods[0].address.to_string(), "10.128.3.7");
        assert!(objects.put("pods", "d", "job", &pod("Succeeded")));
        assert!(!objects.put("pods", "d", "other", &pod("Failed")));
        assert!(objects.state().pods.is_empty());
    }

    #[test]
    fn pods_leave_the_cluster_where_their_namespace_says_so() {
        let mut objects = NetworkObjects::default();
        let namespace = |value: &str| json!({ "metadata": { "labels": { "coracle.dev/egress": value } } });
        assert!(objects.put("namespaces", "", "open", &namespace("allow")));
        assert!(!objects.put("namespaces", "", "shut", &namespace("deny")));
        assert!(!objects.put("namespaces", "", "plain", &json!({ "metadata": {} })));
        assert_eq!(objects.state().egress_namespaces, ["open".to_owned()].into());
        assert!(objects.put("namespaces", "", "open", &json!({ "metadata": {} })));
        assert!(objects.put("namespaces", "", "shut", &namespace("allow")));
        assert!(objects.delete("namespaces", "", "shut"));
        assert!(objects.state().egress_namespaces.is_empty());
    }

    #[test]
    fn nodes_blocks_and_ingresses_are_read() {
        let mut objects = NetworkObjects::default();
        let annotations = json!({ FABRIC_ANNOTATION: "10.0.0.1:7443", JOINED_ANNOTATION: "linked" });
        let node = json!({ "metadata": { "uid": "u", "annotations": annotations } });
        assert!(objects.put("nodes", "", "n1", &node));
        let block = json!({ "spec": { "cidr": "10.128.3.0/24", "nodeName": "n1" } });
        assert!(objects.put("podblocks.coracle.dev", "", "10.128.3.0-24", &block));
        let ingress = json!({ "spec": { "rules": [{ "host": "a.example", "http": { "paths": [{
            "path": "/x", "pathType": "Prefix",
            "backend": { "service": { "name": "web", "port": { "number": 80 } } },
        }] } }] } });
        assert!(objects.put("ingresses.networking.k8s.io", "d", "in", &ingress));
        let state = objects.state();
        assert_eq!(state.nodes["n1"], "10.0.0.1:7443");
        assert_eq!(state.node_identities["n1"], NodeIdentity { uid: "u".into(), bound: true });
        assert_eq!(
            (state.pod_blocks[0].cidr.to_string(), state.pod_blocks[0].node.as_str()),
            ("10.128.3.0/24".into(), "n1")
        );
        let path = &state.ingresses[0].rules[0].paths[0];
        assert_eq!((path.path.as_str(), path.kind), ("/x", PathKind::Prefix));
        assert_eq!(path.backend, Backend { service: "web".into(), port: BackendPort::Number(80) });
    }
}
