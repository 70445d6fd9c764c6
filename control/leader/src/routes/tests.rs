//! Who is sent what, event by event.

mod withheld;

use coracle_objects::Transaction;
use coracle_store::{Command, Request, RequestId, Store, StoreConfig};
use serde_json::json;

use super::*;

struct Bench {
    store: Store,
    sequence: u64,
    routes: Routes,
}

impl Bench {
    fn new() -> Self {
        Self::within(room::OF_NAMED)
    }

    /// With so much room for what pods name.
    fn within(named: Bounds) -> Self {
        Self::with(Rooms { pods: room::OF_PODS, named })
    }

    fn with(bounds: Rooms<Bounds>) -> Self {
        let routes = Routes::within(bounds, &View::default());
        Self { store: Store::new(StoreConfig::default()), sequence: 0, routes }
    }

    fn write(&mut self, transaction: Transaction) {
        self.sequence += 1;
        let request = Request { id: RequestId { client: 1, sequence: self.sequence }, transaction };
        let batch = self.store.apply(&Command { proposer: 1, requests: vec![request] }.encode()).unwrap();
        assert!(batch.results[0].1.is_ok());
    }

    /// Applies a transaction and answers who is sent what, as `n1 +resource name` and `* -resource name`.
    fn apply(&mut self, transaction: Transaction) -> Vec<String> {
        let before = self.store.view().clone();
        self.write(transaction);
        self.routes.catch_up(&before, self.store.view()).iter().map(text).collect()
    }

    fn put(&mut self, resource: &str, name: &str, body: serde_json::Value) -> Vec<String> {
        self.apply(put_of(resource, name, body))
    }

    fn delete(&mut self, resource: &str, name: &str) -> Vec<String> {
        self.apply(deletion_of("default", resource, name))
    }

    fn needed_by(&self, node: &str) -> Vec<String> {
        let needed = self.routes.needed_by(node, self.store.view());
        let sign = |change| if change == Change::Withheld { "~" } else { "" };
        let one =
            |(key, change): &(ObjectKey, _)| format!("{}{} {}", sign(*change), key.resource, key.name.name);
        needed.iter().map(one).collect()
    }
}

fn put_of(resource: &str, name: &str, body: serde_json::Value) -> Transaction {
    let namespace = if resource == NAMESPACES { "" } else { "default" };
    put_in(namespace, resource, name, body)
}

fn put_in(namespace: &str, resource: &str, name: &str, body: serde_json::Value) -> Transaction {
    let key = ObjectKey::new(resource, namespace, name);
    let mut draft = json!({ "metadata": { "name": name } });
    draft.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    let write = coracle_objects::Write::Put { key, draft: draft.to_string().into() };
    Transaction { preconditions: vec![], writes: vec![write] }
}

fn deletion_of(namespace: &str, resource: &str, name: &str) -> Transaction {
    let key = ObjectKey::new(resource, namespace, name);
    Transaction { preconditions: vec![], writes: vec![coracle_objects::Write::Delete { key }] }
}

fn text(routed: &Routed) -> String {
    let sign = match routed.change {
        Change::Put | Change::PutBehind => '+',
        Change::Withheld => '~',
        Change::Deleted(_) => '-',
    };
    let to = match &routed.to {
        To::All => "*".to_owned(),
        To::Nodes(nodes) => nodes.join(","),
    };
    format!("{to} {sign}{} {}", routed.key.resource, routed.key.name.name)
}

fn pod(node: &str, config: &str) -> serde_json::Value {
    let from = json!([{ "configMapRef": { "name": config } }]);
    json!({ "spec": { "nodeName": node, "containers": [{ "name": "c", "envFrom": from }] } })
}

#[test]
fn a_node_gets_its_pods_and_what_they_name() {
    let mut bench = Bench::new();
    assert!(bench.put("configmaps", "a", json!({"data": {}})).is_empty());
    assert!(bench.put("pods", "nowhere", json!({"spec": {"containers": []}})).is_empty());
    assert_eq!(
        bench.put("pods", "elsewhere", pod("n2", "b")),
        ["n2 +configmaps b", "n2 +namespaces default", "n2 +serviceaccounts default", "n2 +pods elsewhere"]
    );
    let named = ["configmaps a", "namespaces default", "serviceaccounts default", "pods p"];
    assert_eq!(bench.put("pods", "p", pod("n1", "a")), named.map(|it| format!("n1 +{it}")));
    assert_eq!(bench.put("pods", "q", pod("n1", "a")), ["n1 +pods q"]);
    assert_eq!(bench.routes.sets.len(), 2, "these two name the same");
    assert_eq!(bench.put("configmaps", "a", json!({"data": {"k": "v"}})), ["n1 +configmaps a"]);
    assert_eq!(bench.put("pods", "r", pod("n2", "a")), ["n2 +configmaps a", "n2 +pods r"]);
    assert_eq!(bench.put("configmaps", "a", json!({"data": {"k": "w"}})), ["n1,n2 +configmaps a"]);
    assert_eq!(bench.needed_by("n1"), ["configmaps a", "pods p", "pods q"]);
    assert_eq!(bench.delete("pods", "p"), ["n1 -pods p"]);
    // What of it does not exist is said to be gone as well.
    let gone = ["pods q", "configmaps a", "namespaces default", "serviceaccounts default"];
    assert_eq!(bench.delete("pods", "q"), gone.map(|it| format!("n1 -{it}")));
    assert_eq!(bench.put("configmaps", "a", json!({"data": {}})), ["n2 +configmaps a"]);
    assert!(bench.needed_by("n1").is_empty() && !bench.routes.nodes.contains_key("n1"));
    for pod in ["r", "elsewhere"] {
        bench.delete("pods", pod);
    }
    let Routes { placed, nodes, named, sets, unreadable, stirred, functions: _, ingresses: _, bounds: _ } =
        &bench.routes;
    assert!(placed.is_empty() && nodes.is_empty() && named.is_empty() && unreadable.is_empty());
    assert!(sets.is_empty() && stirred.is_empty());
}

#[test]
fn a_node_gets_the_namespaces_of_its_pods() {
    let mut bench = Bench::new();
    let labels =
        |egress: &str| json!({"metadata": {"name": "default", "labels": {"coracle.dev/egress": egress}}});
    assert!(bench.put(NAMESPACES, "default", labels("allow")).is_empty());
    assert!(bench.put("pods", "p", pod("n1", "a")).contains(&"n1 +namespaces default".to_owned()));
    assert_eq!(bench.put(NAMESPACES, "default", labels("deny")), ["n1 +namespaces default"]);
    assert_eq!(bench.needed_by("n1"), ["namespaces default", "pods p"]);
}

#[test]
fn claims_come_before_the_services_that_they_are_of() {
    let mut bench = Bench::new();
    assert_eq!(bench.put("services", "s", json!({})), ["* +services s"]);
    bench.put("ipaddresses.networking.k8s.io", "10.96.0.7", json!({}));
    bench.put("portallocations.coracle.dev", "30080", json!({}));
    let claims = ["ipaddresses.networking.k8s.io 10.96.0.7", "portallocations.coracle.dev 30080"];
    assert_eq!(bench.needed_by("n1"), [&claims[..], &["services s"]].concat());
    assert_eq!(
        bench.delete("portallocations.coracle.dev", "30080"),
        ["* -portallocations.coracle.dev 30080"]
    );
}

#[test]
fn nodes_have_the_ingresses_of_gateways_alone() {
    let mut bench = Bench::new();
    let of_class = |class: &str| json!({"spec": {"ingressClassName": class}});
    let put_class = |bench: &mut Bench, controller: &str| {
        let body = json!({"spec": {"controller": controller}});
        bench.apply(put_in("", INGRESS_CLASSES, "c", body))
    };
    let take_class = |bench: &mut Bench| bench.apply(deletion_of("", INGRESS_CLASSES, "c"));
    let sign = |sign: &str, name: &str| format!("* {sign}{INGRESSES} {name}");
    assert_eq!(bench.put(INGRESSES, "plain", json!({"spec": {}})), [sign("+", "plain")]);
    bench.put(INGRESSES, "i", of_class("c"));
    assert!(put_class(&mut bench, "example.com/other").is_empty());
    assert!(bench.put(INGRESSES, "i", of_class("c")).is_empty(), "they know that they do not have it");
    assert!(bench.delete(INGRESSES, "i").is_empty());
    bench.put(INGRESSES, "i", of_class("c"));
    take_class(&mut bench);
    assert_eq!(bench.needed_by("n1"), [format!("{INGRESSES} plain")]);
    assert_eq!(put_class(&mut bench, "coracle.dev/gateway"), [sign("+", "i")]);
    assert_eq!(bench.needed_by("n1"), [format!("{INGRESSES} i"), format!("{INGRESSES} plain")]);
    assert_eq!(bench.put(INGRESSES, "i", of_class("nginx")), [sign("-", "i")]);
    let annotated = json!({"metadata": {"name": "i", "annotations": {"kubernetes.io/ingress.class": "c"}}});
    assert_eq!(bench.put(INGRESSES, "i", annotated), [sign("+", "i")]);
    assert_eq!(take_class(&mut bench), [sign("-", "i")]);
    let fresh = Routes::of(bench.store.view());
    assert_eq!(fresh.needed_by("n1", bench.store.view()).len(), 1);
    // Both at once.
    let before = bench.store.view().clone();
    bench.write(put_in("", INGRESS_CLASSES, "c", json!({"spec": {"controller": "coracle.dev/gateway"}})));
    bench.write(deletion_of("default", INGRESSES, "plain"));
    bench.write(put_of(INGRESSES, "late", of_class("c")));
    let now = bench.store.view().clone();
    let sent: BTreeSet<String> = bench.routes.catch_up(&before, &now).iter().map(text).collect();
    let expected = [("+", "i"), ("+", "late"), ("-", "plain")].map(|(mark, name)| sign(mark, name));
    assert_eq!(sent, BTreeSet::from(expected));
    assert_eq!(bench.needed_by("n1"), [format!("{INGRESSES} i"), format!("{INGRESSES} late")]);
}

#[test]
fn what_is_named_before_it_exists_comes_when_it_does() {
    let mut bench = Bench::new();
    bench.put("pods", "p", pod("n1", "late"));
    assert!(!bench.needed_by("n1").contains(&"configmaps late".to_owned()));
    assert_eq!(bench.put("configmaps", "late", json!({})), ["n1 +configmaps late"]);
    assert_eq!(bench.delete("configmaps", "late"), ["n1 -configmaps late"]);
}

#[test]
fn a_pod_of_the_same_name_elsewhere_leaves_nothing_behind() {
    let mut bench = Bench::new();
    bench.put("configmaps", "a", json!({}));
    bench.put("pods", "p", pod("n1", "a"));
    let moved = bench.put("pods", "p", pod("n2", "a"));
    let expected = [
        "n2 +configmaps a",
        "n2 +namespaces default",
        "n2 +serviceaccounts default",
        "n2 +pods p",
        "n1 -pods p",
        "n1 -configmaps a",
        "n1 -namespaces default",
        "n1 -serviceaccounts default",
    ];
    assert_eq!(moved, expected);
    assert_eq!(bench.needed_by("n1"), Vec::<String>::new());
    assert_eq!(bench.needed_by("n2"), ["configmaps a", "pods p"]);
}

#[test]
fn what_was_missed_is_made_up_for_by_the_difference() {
    let mut bench = Bench::new();
    for name in ["gone", "stays"] {
        bench.put("services", name, json!({}));
    }
    bench.put("configmaps", "a", json!({}));
    bench.put("configmaps", "b", json!({}));
    for name in ["ends", "moves", "renames", "stays"] {
        bench.put("pods", name, pod("n1", "a"));
    }
    let before = bench.store.view().clone();
    // Nobody tells it of these.
    bench.write(deletion_of("default", "services", "gone"));
    bench.write(put_of("services", "new", json!({})));
    bench.write(deletion_of("default", "pods", "ends"));
    bench.write(deletion_of("default", "pods", "moves"));
    bench.write(put_of("pods", "moves", pod("n2", "a")));
    bench.write(put_of("pods", "renames", pod("n1", "b")));
    bench.write(put_of("configmaps", "a", json!({"data": {"k": "v"}})));
    let now = bench.store.view().clone();
    let sent: Vec<String> = bench.routes.catch_up(&before, &now).iter().map(text).collect();
    let expected = [
        "* -services gone",
        "* +services new",
        "n1 +configmaps a",
        "n1 -pods ends",
        "n2 +configmaps a",
        "n2 +namespaces default",
        "n2 +serviceaccounts default",
        "n2 +pods moves",
        "n1 -pods moves",
        "n1 +configmaps b",
        "n1 +pods renames",
    ];
    assert_eq!(sent, expected);
    assert!(bench.routes.catch_up(&now, &now).is_empty());
    let fresh = Routes::of(&now);
    for node in ["n1", "n2"] {
        assert_eq!(fresh.needed_by(node, &now), bench.routes.needed_by(node, &now));
    }
}
