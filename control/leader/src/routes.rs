//! Which objects each node needs, and what each is sent when they change.
//!
//! One for all nodes: an event is looked at once, however many nodes there are. Pure: fed with the view and with events,
//! each with the view as it was behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Event, EventKind, Object, ObjectKey, ObjectName, Revision, View};
use coracle_proto::node::{ObjectEvent, object_event::Type};

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
    unreadable: Vec<ObjectName>,
}

/// What one node needs beside what all do.
#[derive(Default)]
struct Needs {
    pods: BTreeMap<ObjectName, BTreeSet<ObjectKey>>,
    /// How many of its pods name an object.
    named: BTreeMap<ObjectKey, usize>,
}

/// Whom something is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    All,
    Nodes(Vec<Arc<str>>),
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Routed {
    pub to: To,
    pub message: Arc<ObjectEvent>,
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
    pub fn needed_by(&self, node: &str, view: &View) -> Vec<Arc<Object>> {
        let mut needed: Vec<Arc<Object>> =
            SHARED.iter().flat_map(|resource| view.list(resource, None).cloned()).collect();
        if let Some(own) = self.nodes.get(node) {
            let pods = own.pods.keys().map(|name| ObjectKey { resource: PODS.into(), name: name.clone() });
            let keys = own.named.keys().cloned().chain(pods);
            needed.extend(keys.filter_map(|key| view.get(&key).cloned()));
        }
        // To a node, what this member cannot open is not there.
        needed.retain(|object| object.sealed().is_none());
        needed
    }

    /// What an event means for nodes. `view` is as it was behind the event.
    pub fn observe(&mut self, event: &Event, view: &View) -> Vec<Routed> {
        let object = &event.object;
        let to = match object.key.resource.as_str() {
            PODS => return self.observe_pod(event, view),
            resource if SHARED.contains(&resource) => To::All,
            resource if NAMED.contains(&resource) => match self.named.get(&object.key) {
                Some(nodes) => To::Nodes(nodes.iter().cloned().collect()),
                None => return vec![],
            },
            _ => return vec![],
        };
        let message = match event.kind {
            EventKind::Deleted => Some(deletion(&object.key, object.revision)),
            _ => put(object),
        };
        message.map(|message| Routed { to, message }).into_iter().collect()
    }

    /// What leads from one view to a later one, as [`Self::observe`] has it of the events between them.
    pub fn catch_up(&mut self, before: &View, now: &View) -> Vec<Routed> {
        let mut routed = vec![];
        for resource in SHARED.iter().chain(&NAMED).chain(&[PODS]) {
            for event in now.events_since(before, resource) {
                routed.extend(self.observe(&event, now));
            }
        }
        routed
    }

    fn observe_pod(&mut self, event: &Event, view: &View) -> Vec<Routed> {
        let pod = &event.object;
        let before = self.placed.get(&pod.key.name).cloned();
        let mut routed = vec![];
        let placed = if event.kind == EventKind::Deleted { None } else { self.place(pod) };
        if let Some(Placed { node, named, unnamed }) = &placed {
            let new = named.iter().filter_map(|key| view.get(key));
            let to = || To::Nodes(vec![node.clone()]);
            routed.extend(new.chain([pod]).filter_map(put).map(|message| Routed { to: to(), message }));
            let gone = unnamed.iter().map(|key| deletion(key, pod.revision));
            routed.extend(gone.map(|message| Routed { to: to(), message }));
        }
        if let Some(node) = before.filter(|node| placed.as_ref().is_none_or(|placed| placed.node != *node)) {
            let to = || To::Nodes(vec![node.clone()]);
            routed.push(Routed { to: to(), message: deletion(&pod.key, pod.revision) });
            for key in self.remove(&pod.key.name, &node) {
                routed.push(Routed { to: to(), message: deletion(&key, pod.revision) });
            }
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
        let (named, unnamed) = self.name(&node, &pod.key.name, references.keys);
        Some(Placed { node, named, unnamed })
    }

    /// Records what a pod on this node names now: what it had not named before any of its pods, and what none names any
    /// more.
    fn name(
        &mut self,
        node: &Arc<str>,
        pod: &ObjectName,
        keys: BTreeSet<ObjectKey>,
    ) -> (Vec<ObjectKey>, Vec<ObjectKey>) {
        let own = self.nodes.entry(node.clone()).or_default();
        let before = own.pods.insert(pod.clone(), keys.clone()).unwrap_or_default();
        let mut named = vec![];
        for key in keys.difference(&before) {
            let count = own.named.entry(key.clone()).or_default();
            *count += 1;
            if *count == 1 {
                self.named.entry(key.clone()).or_default().insert(node.clone());
                named.push(key.clone());
            }
        }
        let unnamed = self.unname(node, before.difference(&keys));
        (named, unnamed)
    }

    /// A pod is on this node no longer: what none of its pods names any more.
    fn remove(&mut self, pod: &ObjectName, node: &Arc<str>) -> Vec<ObjectKey> {
        let Some(own) = self.nodes.get_mut(node) else { return vec![] };
        let keys = own.pods.remove(pod).unwrap_or_default();
        let unnamed = self.unname(node, keys.iter());
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

/// None of what this member cannot open.
pub fn put(object: &Arc<Object>) -> Option<Arc<ObjectEvent>> {
    let open = object.sealed().is_none();
    open.then(|| message(Type::Put, &object.key, object.revision, object.json.clone()))
}

fn deletion(key: &ObjectKey, revision: Revision) -> Arc<ObjectEvent> {
    message(Type::Delete, key, revision, bytes::Bytes::new())
}

fn message(type_: Type, key: &ObjectKey, revision: Revision, object_json: bytes::Bytes) -> Arc<ObjectEvent> {
    Arc::new(ObjectEvent {
        r#type: type_.into(),
        resource: key.resource.to_string(),
        namespace: key.name.namespace.to_string(),
        name: key.name.name.to_string(),
        revision,
        object_json,
    })
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

        fn write(&mut self, transaction: Transaction) -> Vec<Arc<Event>> {
            self.sequence += 1;
            let request = Request { id: RequestId { client: 1, sequence: self.sequence }, transaction };
            let batch = self.store.apply(&Command { proposer: 1, requests: vec![request] }.encode()).unwrap();
            assert!(batch.results[0].1.is_ok());
            batch.events
        }

        /// Applies a transaction and answers who is sent what, as `n1 +resource name` and `* -resource name`.
        fn apply(&mut self, transaction: Transaction) -> Vec<String> {
            let events = self.write(transaction);
            let view = self.store.view().clone();
            events.iter().flat_map(|event| self.routes.observe(event, &view)).map(|it| text(&it)).collect()
        }

        fn put(&mut self, resource: &str, name: &str, body: serde_json::Value) -> Vec<String> {
            self.apply(put_of(resource, name, body))
        }

        fn delete(&mut self, resource: &str, name: &str) -> Vec<String> {
            self.apply(deletion_of(resource, name))
        }

        fn needed_by(&self, node: &str) -> Vec<String> {
            let needed = self.routes.needed_by(node, self.store.view());
            needed.iter().map(|object| format!("{} {}", object.key.resource, object.name())).collect()
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
        let message = &routed.message;
        let sign = if message.r#type() == Type::Put { '+' } else { '-' };
        let to = match &routed.to {
            To::All => "*".to_owned(),
            To::Nodes(nodes) => nodes.join(","),
        };
        format!("{to} {sign}{} {}", message.resource, message.name)
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
        assert_eq!(bench.put("pods", "elsewhere", pod("n2", "b")), ["n2 +pods elsewhere"]);
        assert_eq!(bench.put("pods", "p", pod("n1", "a")), ["n1 +configmaps a", "n1 +pods p"]);
        assert_eq!(bench.put("pods", "q", pod("n1", "a")), ["n1 +pods q"]);
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
        let Routes { placed, nodes, named, unreadable } = &bench.routes;
        assert!(placed.is_empty() && nodes.is_empty() && named.is_empty() && unreadable.is_empty());
    }

    #[test]
    fn a_node_gets_the_namespaces_of_its_pods() {
        let mut bench = Bench::new();
        let labels =
            |egress: &str| json!({"metadata": {"name": "default", "labels": {"coracle.dev/egress": egress}}});
        assert!(bench.put(NAMESPACES, "default", labels("allow")).is_empty());
        assert_eq!(bench.put("pods", "p", pod("n1", "a")), ["n1 +namespaces default", "n1 +pods p"]);
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
        assert_eq!(bench.put("pods", "p", pod("n1", "late")), ["n1 +pods p"]);
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
            "n2 +pods moves",
            "n1 -pods moves",
            "n1 +configmaps b",
            "n1 +pods renames",
        ];
        assert_eq!(sent, expected);
        assert!(bench.routes.catch_up(&now, &now).is_empty());
        let fresh = Routes::of(&now);
        for node in ["n1", "n2"] {
            let names = |routes: &Routes| -> Vec<_> {
                routes.needed_by(node, &now).iter().map(|object| object.key.clone()).collect()
            };
            assert_eq!(names(&fresh), names(&bench.routes));
        }
    }
}
