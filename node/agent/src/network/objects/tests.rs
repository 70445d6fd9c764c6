//! What the fabric is told when objects change.

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
    pods: BTreeMap<Name, PodEntry>,
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
            NetworkChange::Unclaimed(..) | NetworkChange::Served(..) => {}
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
    let victim = json!({ "spec": { "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": ports } });
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
    let endpoints: Vec<Value> =
        (0..1000).map(|at| json!({ "addresses": [format!("10.128.{}.{}", at / 250, at % 250)] })).collect();
    let slice =
        json!({ "metadata": { "labels": { "kubernetes.io/service-name": "wide" } }, "endpoints": endpoints });
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
    assert_eq!(bench.pods[&Name::new("d", "job")].address.to_string(), "10.128.3.7");
    assert!(bench.put("pods", "d", "job", &pod("Succeeded")));
    assert!(!bench.put("pods", "d", "other", &pod("Failed")));
    assert!(bench.pods.is_empty());
}

#[test]
fn the_fabric_hears_which_pod_has_an_address_and_of_its_labels() {
    let mut bench = Bench::default();
    let pod = |uid: &str, labels: Value| {
        json!({
            "metadata": { "uid": uid, "labels": labels },
            "status": { "phase": "Running", "podIP": "10.128.3.7" },
        })
    };
    let entry = |uid: &str, app: &str| PodEntry {
        address: "10.128.3.7".parse().unwrap(),
        uid: uid.into(),
        labels: Arc::new(BTreeMap::from([("app".to_owned(), app.to_owned())])),
    };
    for (uid, app) in [("1", "web"), ("1", "shop"), ("2", "shop")] {
        let object = pod(uid, json!({ "app": app }));
        assert!(bench.put("pods", "d", "web", &object));
        assert_eq!(bench.pods[&Name::new("d", "web")], entry(uid, app));
        assert!(!bench.put("pods", "d", "web", &object), "nothing changed");
    }
    assert!(bench.put("pods", "d", "web", &pod("2", Value::Null)));
    assert!(bench.pods[&Name::new("d", "web")].labels.is_empty());
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
    assert_eq!(path.backend, ServiceBackend { service: "web".into(), port: BackendPort::Number(80) }.into());
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

#[test]
fn a_function_has_the_routes_that_its_status_says() {
    let mut bench = Bench::default();
    let part = |revision: &str, percent: u32| json!({ "revision": revision, "percent": percent, "tag": "" });
    let mut function = json!({
        "kind": "Function", "metadata": { "name": "hello", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "paths": ["/a", "/b"], "traffic": [{ "revision": "hello-1", "tag": "old" }] },
        "status": { "traffic": [part("hello-2", 90), part("hello-1", 10)] },
    });
    let source = RouteSource::Function(Name::new("d", "hello"));
    assert!(bench.put("functions.coracle.dev", "d", "hello", &function));
    let hosts = &bench.routes[&source].hosts;
    assert_eq!(
        (hosts.len(), hosts[0].host.as_deref(), hosts[0].paths.len()),
        (1, Some("hello.localhost"), 2)
    );
    assert_eq!(hosts[0].since, "2026-01-01T00:00:00Z");
    let parts = (0..100).map(|chance| hosts[0].paths[1].backend.choose(chance).service.clone());
    assert_eq!(parts.filter(|service| service == "hello-2").count(), 90);
    function["status"]["traffic"] =
        json!([part("hello-2", 100), { "revision": "hello-1", "percent": 0, "tag": "old" }]);
    assert!(bench.put("functions.coracle.dev", "d", "hello", &function));
    let hosts = &bench.routes[&source].hosts;
    let to =
        |at: usize| (hosts[at].host.clone().unwrap(), hosts[at].paths[0].backend.choose(0).service.clone());
    assert_eq!(to(0), ("hello.localhost".to_owned(), "hello-2".to_owned()));
    assert_eq!(to(1), ("old-hello.localhost".to_owned(), "hello-1".to_owned()));
    // What only the status has asks for no host.
    function["spec"]["traffic"] = json!([]);
    assert!(bench.put("functions.coracle.dev", "d", "hello", &function));
    assert_eq!(bench.routes[&source].hosts.len(), 1);
    // As long as none of its revisions has served it has its hosts, and nothing answers there.
    function["status"] = json!({});
    assert!(bench.put("functions.coracle.dev", "d", "hello", &function));
    assert_eq!(bench.routes[&source].hosts[0].paths.len(), 0);
}
