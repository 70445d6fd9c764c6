//! Which objects each node needs, and what each is sent when they change.
//!
//! One for all nodes: an event is looked at once, however many nodes there are. Pure: fed with views.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Event, EventKind, Object, ObjectKey, ObjectName, Revision, View};

use crate::references::{self, CONFIG_MAPS, NAMESPACES, SECRETS, SERVICE_ACCOUNTS};

/// Every node needs all objects of these. The claims of service addresses and node ports come before the services: a
/// node routes an address only to the service that the claim names.
const SHARED: [&str; 7] = [
    "ipaddresses.networking.k8s.io",
    "portallocations.coracle.dev",
    "services",
    "endpointslices.discovery.k8s.io",
    "nodes",
    "ingresses.networking.k8s.io",
    "podblocks.coracle.dev",
];
/// A node needs those that its pods name.
const NAMED: [&str; 4] = [NAMESPACES, CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS];
const PODS: &str = "pods";

/// Where every pod is, and what it names.
#[derive(Default)]
pub struct Routes {
    placed: BTreeMap<ObjectName, Arc<str>>,
    nodes: BTreeMap<Arc<str>, Needs>,
    /// Which nodes need an object that pods name.
    named: BTreeMap<ObjectKey, BTreeSet<Arc<str>>>,
    /// What pods name: most name the same as many others.
    sets: BTreeSet<Names>,
    unreadable: Vec<ObjectName>,
}

/// What a pod names, in order.
type Names = Arc<[ObjectKey]>;

/// What one node needs beside what all do.
#[derive(Default)]
struct Needs {
    pods: BTreeMap<ObjectName, Names>,
    /// How many of its pods name an object.
    named: BTreeMap<ObjectKey, usize>,
}

/// Whom something is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    All,
    Nodes(Vec<Arc<str>>),
}

/// What has become of an object, to those who need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there.
    Put,
    /// The same, and it comes behind what it names, which nobody there needed before.
    PutBehind,
    /// It is gone, or needed no longer.
    Deleted(Revision),
}

/// Who is to be told of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    pub to: To,
    pub key: ObjectKey,
    pub change: Change,
}

impl Routes {
    /// Of all pods. Linear in their number.
    pub fn of(view: &View) -> Self {
        let mut routes = Self::default();
        for pod in view.list(PODS, None) {
            routes.place(pod);
        }
        routes
    }

    /// Pods that could not be read since the last time: what they name is not sent.
    pub fn take_unreadable(&mut self) -> Vec<ObjectName> {
        std::mem::take(&mut self.unreadable)
    }

    /// All that a node needs as of `view`, which is that of the last event. What pods name comes before the pods.
    pub fn needed_by(&self, node: &str, view: &View) -> Vec<ObjectKey> {
        let shared = SHARED.iter().flat_map(|resource| view.list(resource, None));
        let mut needed: Vec<ObjectKey> = shared.map(|object| object.key.clone()).collect();
        if let Some(own) = self.nodes.get(node) {
            let pods = own.pods.keys().map(|name| ObjectKey { resource: PODS.into(), name: name.clone() });
            needed.extend(own.named.keys().cloned().chain(pods).filter(|key| view.get(key).is_some()));
        }
        needed
    }

    /// What an event means for nodes.
    fn observe(&mut self, event: &Event) -> Vec<Routed> {
        let key = &event.object.key;
        let to = match key.resource.as_str() {
            PODS => return self.observe_pod(event),
            resource if SHARED.contains(&resource) => To::All,
            _ => match self.named.get(key) {
                Some(nodes) => To::Nodes(nodes.iter().cloned().collect()),
                None => return vec![],
            },
        };
        let change = match event.kind {
            EventKind::Deleted => Change::Deleted(event.object.revision),
            _ => Change::Put,
        };
        vec![Routed { to, key: key.clone(), change }]
    }

    /// What leads from one view to a later one.
    pub fn catch_up(&mut self, before: &View, now: &View) -> Vec<Routed> {
        let mut routed = vec![];
        for resource in SHARED.iter().chain(&NAMED).chain(&[PODS]) {
            for event in now.events_since(before, resource) {
                routed.extend(self.observe(&event));
            }
        }
        routed
    }

    fn observe_pod(&mut self, event: &Event) -> Vec<Routed> {
        let pod = &event.object;
        let before = self.placed.get(&pod.key.name).cloned();
        let mut routed = vec![];
        let placed = if event.kind == EventKind::Deleted { None } else { self.place(pod) };
        let mut tell = |node: &Arc<str>, key: &ObjectKey, change| {
            routed.push(Routed { to: To::Nodes(vec![node.clone()]), key: key.clone(), change });
        };
        let deleted = Change::Deleted(pod.revision);
        if let Some(Placed { node, named, unnamed }) = &placed {
            named.iter().for_each(|key| tell(node, key, Change::Put));
            tell(node, &pod.key, if named.is_empty() { Change::Put } else { Change::PutBehind });
            unnamed.iter().for_each(|key| tell(node, key, deleted));
        }
        if let Some(node) = before.filter(|node| placed.as_ref().is_none_or(|placed| placed.node != *node)) {
            tell(&node, &pod.key, deleted);
            self.remove(&pod.key.name, &node).iter().for_each(|key| tell(&node, key, deleted));
            if placed.is_none() {
                self.placed.remove(&pod.key.name);
            }
        }
        routed
    }

    /// Records where a pod is and what it names; None where it is nowhere yet.
    fn place(&mut self, pod: &Object) -> Option<Placed> {
        let references = references::of_pod(pod);
        let name = references.node.filter(|node| !node.is_empty())?;
        if !references.readable {
            self.unreadable.push(pod.key.name.clone());
        }
        let known = self.nodes.get_key_value(name.as_str()).map(|(node, _)| node.clone());
        let node = known.unwrap_or_else(|| name.into());
        self.placed.insert(pod.key.name.clone(), node.clone());
        let names = self.shared(references.keys);
        let (named, unnamed) = self.name(&node, &pod.key.name, names);
        Some(Placed { node, named, unnamed })
    }

    /// The same names as other pods have.
    fn shared(&mut self, keys: BTreeSet<ObjectKey>) -> Names {
        let names: Names = keys.into_iter().collect();
        match self.sets.get(&*names) {
            Some(known) => known.clone(),
            None => {
                self.sets.insert(names.clone());
                names
            }
        }
    }

    /// A pod has these names no more.
    fn drop_names(&mut self, names: Names) {
        // One is kept with all others, and one is here.
        if Arc::strong_count(&names) == 2 {
            self.sets.remove(&*names);
        }
    }

    /// Records what a pod on this node names now: what it had not named before any of its pods, and what none names any
    /// more.
    fn name(&mut self, node: &Arc<str>, pod: &ObjectName, names: Names) -> (Vec<ObjectKey>, Vec<ObjectKey>) {
        let own = self.nodes.entry(node.clone()).or_default();
        let before = own.pods.insert(pod.clone(), names.clone()).unwrap_or_default();
        let mut named = vec![];
        for key in names.iter().filter(|key| before.binary_search(key).is_err()) {
            let count = own.named.entry(key.clone()).or_default();
            *count += 1;
            if *count == 1 {
                self.named.entry(key.clone()).or_default().insert(node.clone());
                named.push(key.clone());
            }
        }
        let unnamed = self.unname(node, before.iter().filter(|key| names.binary_search(key).is_err()));
        drop(names);
        self.drop_names(before);
        (named, unnamed)
    }

    /// A pod is on this node no longer: what none of its pods names any more.
    fn remove(&mut self, pod: &ObjectName, node: &Arc<str>) -> Vec<ObjectKey> {
        let Some(own) = self.nodes.get_mut(node) else { return vec![] };
        let names = own.pods.remove(pod).unwrap_or_default();
        let unnamed = self.unname(node, names.iter());
        self.drop_names(names);
        if self.nodes.get(node).is_some_and(|own| own.pods.is_empty()) {
            self.nodes.remove(node);
        }
        unnamed
    }

    fn unname<'a>(&mut self, node: &Arc<str>, keys: impl Iterator<Item = &'a ObjectKey>) -> Vec<ObjectKey> {
        let mut unnamed = vec![];
        let Some(own) = self.nodes.get_mut(node) else { return unnamed };
        for key in keys {
            let Some(count) = own.named.get_mut(key) else { continue };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            own.named.remove(key);
            unnamed.push(key.clone());
            if let Some(nodes) = self.named.get_mut(key) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.named.remove(key);
                }
            }
        }
        unnamed
    }
}

/// Where a pod is now.
struct Placed {
    node: Arc<str>,
    /// What the node needs from now on, and what no longer.
    named: Vec<ObjectKey>,
    unnamed: Vec<ObjectKey>,
}

#[cfg(test)]
mod tests {
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
            Self { store: Store::new(StoreConfig::default()), sequence: 0, routes: Routes::default() }
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
            self.apply(deletion_of(resource, name))
        }

        fn needed_by(&self, node: &str) -> Vec<String> {
            let needed = self.routes.needed_by(node, self.store.view());
            needed.iter().map(|key| format!("{} {}", key.resource, key.name.name)).collect()
        }
    }

    fn put_of(resource: &str, name: &str, body: serde_json::Value) -> Transaction {
        let namespace = if resource == NAMESPACES { "" } else { "default" };
        let key = ObjectKey::new(resource, namespace, name);
        let mut draft = json!({ "metadata": { "name": name } });
        draft.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let write = coracle_objects::Write::Put { key, draft: draft.to_string().into() };
        Transaction { preconditions: vec![], writes: vec![write] }
    }

    fn deletion_of(resource: &str, name: &str) -> Transaction {
        let key = ObjectKey::new(resource, "default", name);
        Transaction { preconditions: vec![], writes: vec![coracle_objects::Write::Delete { key }] }
    }

    fn text(routed: &Routed) -> String {
        let sign = match routed.change {
            Change::Put | Change::PutBehind => '+',
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
            [
                "n2 +configmaps b",
                "n2 +namespaces default",
                "n2 +serviceaccounts default",
                "n2 +pods elsewhere"
            ]
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
        let Routes { placed, nodes, named, sets, unreadable } = &bench.routes;
        assert!(placed.is_empty() && nodes.is_empty() && named.is_empty() && unreadable.is_empty());
        assert!(sets.is_empty());
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
        bench.write(deletion_of("services", "gone"));
        bench.write(put_of("services", "new", json!({})));
        bench.write(deletion_of("pods", "ends"));
        bench.write(deletion_of("pods", "moves"));
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
}
