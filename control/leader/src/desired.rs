//! Which objects a node needs, and what to send it when they change. Pure: fed with the view and with events.

use std::collections::{BTreeMap, BTreeSet};

use coracle_objects::{Event, EventKind, Object, ObjectKey, ObjectName, Revision, View};
use coracle_proto::node::{ObjectEvent, object_event::Type};
use memchr::memmem::Finder;

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

const PODS: &str = "pods";

/// What one node has been sent.
pub struct Desired {
    node: String,
    /// Looks for the node's name.
    mentions: Finder<'static>,
    /// Object -> the revision that the node has.
    sent: BTreeMap<ObjectKey, Revision>,
    /// The node's pods and what each names.
    pods: BTreeMap<ObjectName, BTreeSet<ObjectKey>>,
    /// How many of the node's pods name an object.
    named: BTreeMap<ObjectKey, usize>,
    unreadable: BTreeSet<ObjectName>,
}

/// What is still to be looked at so that a node has what a view held. Names alone: the objects are those of the moment at
/// which they are sent.
pub struct Rest {
    wanted: std::vec::IntoIter<ObjectKey>,
    gone: std::vec::IntoIter<ObjectKey>,
    revision: Revision,
}

impl Desired {
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            mentions: Finder::new(node).into_owned(),
            sent: BTreeMap::new(),
            pods: BTreeMap::new(),
            named: BTreeMap::new(),
            unreadable: BTreeSet::new(),
        }
    }

    /// Pods of the node that could not be read since the last time: what they name is not sent.
    pub fn take_unreadable(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.unreadable)
    }

    /// What brings the node from what it was sent to the view, for [`Self::bring`]. What pods name comes before the pods.
    /// Linear in the state of the cluster.
    pub fn resync(&mut self, view: &View) -> Rest {
        self.pods.clear();
        self.named.clear();
        let mut wanted: Vec<ObjectKey> = vec![];
        for resource in SHARED {
            wanted.extend(view.list(resource, None).map(|object| object.key.clone()));
        }
        let mut pods = vec![];
        for pod in view.list(PODS, None) {
            if !self.is_here(pod) {
                continue;
            }
            let names = self.names_of(pod);
            self.name_all(&pod.key.name, names);
            pods.push(pod.key.clone());
        }
        wanted.extend(self.named.keys().filter(|key| view.get(key).is_some()).cloned());
        wanted.extend(pods);
        let keys: BTreeSet<&ObjectKey> = wanted.iter().collect();
        let gone: Vec<ObjectKey> = self.sent.keys().filter(|key| !keys.contains(key)).cloned().collect();
        Rest { wanted: wanted.into_iter(), gone: gone.into_iter(), revision: view.revision }
    }

    /// The next step of a resync; None at its end. `view` is at least as new as that of the resync, whose events are
    /// observed only afterwards.
    pub fn bring(&mut self, rest: &mut Rest, view: &View) -> Option<Vec<ObjectEvent>> {
        let mut messages = vec![];
        if let Some(key) = rest.wanted.next() {
            // What is gone by now, or was made anew elsewhere, its events tell of.
            match (key.resource.as_str(), view.get(&key)) {
                (_, None) => {}
                (PODS, Some(pod)) if !self.is_here(pod) => {}
                (PODS, Some(pod)) => self.put_pod(pod, view, &mut messages),
                (_, Some(object)) => self.put(object, &mut messages),
            }
            return Some(messages);
        }
        let key = rest.gone.next()?;
        if !self.wants(&key, view) {
            self.forget(&key, rest.revision, &mut messages);
        }
        Some(messages)
    }

    fn wants(&self, key: &ObjectKey, view: &View) -> bool {
        match key.resource.as_str() {
            PODS => self.pods.contains_key(&key.name),
            resource if SHARED.contains(&resource) => view.get(key).is_some(),
            _ => self.named.contains_key(key),
        }
    }

    /// What an event means for the node. `view` is at least as new as the event.
    pub fn observe(&mut self, event: &Event, view: &View) -> Vec<ObjectEvent> {
        let mut messages = vec![];
        let key = &event.object.key;
        match key.resource.as_str() {
            PODS => self.observe_pod(event, view, &mut messages),
            CONFIG_MAPS | SECRETS | SERVICE_ACCOUNTS | NAMESPACES if self.named.contains_key(key) => {
                self.forward(event, &mut messages);
            }
            resource if SHARED.contains(&resource) => self.forward(event, &mut messages),
            _ => {}
        }
        messages
    }

    fn observe_pod(&mut self, event: &Event, view: &View, messages: &mut Vec<ObjectEvent>) {
        let pod = &event.object;
        let known = self.pods.contains_key(&pod.key.name);
        if !known && !self.is_here(pod) {
            return;
        }
        if event.kind == EventKind::Deleted {
            self.delete(&pod.key, pod.revision, messages);
            for key in self.name_all(&pod.key.name, BTreeSet::new()) {
                self.forget(&key, pod.revision, messages);
            }
            self.pods.remove(&pod.key.name);
            return;
        }
        self.put_pod(pod, view, messages);
    }

    /// A pod of the node as it is now, behind what it names.
    fn put_pod(&mut self, pod: &Object, view: &View, messages: &mut Vec<ObjectEvent>) {
        let names = self.names_of(pod);
        let unnamed = self.name_all(&pod.key.name, names);
        for key in self.pods[&pod.key.name].clone() {
            if let Some(object) = view.get(&key) {
                self.put(object, messages);
            }
        }
        self.put(pod, messages);
        for key in unnamed {
            self.forget(&key, pod.revision, messages);
        }
    }

    fn forward(&mut self, event: &Event, messages: &mut Vec<ObjectEvent>) {
        match event.kind {
            EventKind::Deleted => self.delete(&event.object.key, event.object.revision, messages),
            _ => self.put(&event.object, messages),
        }
    }

    fn put(&mut self, object: &Object, messages: &mut Vec<ObjectEvent>) {
        // To the node, what this member cannot open is not there.
        if object.sealed().is_none() && self.sent.get(&object.key).is_none_or(|sent| *sent < object.revision)
        {
            self.sent.insert(object.key.clone(), object.revision);
            messages.push(message(Type::Put, &object.key, object.revision, object.json.clone()));
        }
    }

    fn delete(&mut self, key: &ObjectKey, revision: Revision, messages: &mut Vec<ObjectEvent>) {
        if self.sent.get(key).is_some_and(|sent| *sent <= revision) {
            self.sent.remove(key);
            messages.push(message(Type::Delete, key, revision, bytes::Bytes::new()));
        }
    }

    /// The node needs the object no longer, whether it exists still or not. What it was sent may be newer than the
    /// event that says so: the view is ahead of the events.
    fn forget(&mut self, key: &ObjectKey, at: Revision, messages: &mut Vec<ObjectEvent>) {
        if let Some(sent) = self.sent.remove(key) {
            messages.push(message(Type::Delete, key, sent.max(at), bytes::Bytes::new()));
        }
    }

    /// Records what a pod names now; answers what is named by no pod any more.
    fn name_all(&mut self, pod: &ObjectName, names: BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
        let before = self.pods.insert(pod.clone(), names.clone()).unwrap_or_default();
        for key in names.difference(&before) {
            *self.named.entry(key.clone()).or_default() += 1;
        }
        let mut unnamed = vec![];
        for key in before.difference(&names) {
            if let Some(count) = self.named.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(key);
                    unnamed.push(key.clone());
                }
            }
        }
        unnamed
    }

    /// The namespace, config maps, secrets and service accounts that a pod names.
    fn names_of(&mut self, pod: &Object) -> BTreeSet<ObjectKey> {
        let (names, read) = references::of_pod(pod);
        if read.is_err() {
            self.unreadable.insert(pod.key.name.clone());
        }
        names
    }

    fn is_here(&self, pod: &Object) -> bool {
        // Most pods are elsewhere: looking for the name is far cheaper than parsing.
        self.mentions.find(&pod.json).is_some() && node_of(pod).as_deref() == Some(self.node.as_str())
    }
}

/// `spec.nodeName`.
pub fn node_of(pod: &Object) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Narrow {
        spec: NarrowSpec,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct NarrowSpec {
        node_name: Option<String>,
    }
    pod.parse::<Narrow>().ok()?.spec.node_name
}

fn message(type_: Type, key: &ObjectKey, revision: Revision, object_json: bytes::Bytes) -> ObjectEvent {
    ObjectEvent {
        r#type: type_.into(),
        resource: key.resource.to_string(),
        namespace: key.name.namespace.to_string(),
        name: key.name.name.to_string(),
        revision,
        object_json,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_objects::Transaction;
    use coracle_store::{Command, Request, RequestId, Store, StoreConfig};
    use serde_json::json;

    use super::*;

    struct Bench {
        store: Store,
        sequence: u64,
        desired: Desired,
        events: Vec<Arc<Event>>,
    }

    impl Bench {
        fn new() -> Self {
            let store = Store::new(StoreConfig::default());
            Self { store, sequence: 0, desired: Desired::new("n1"), events: vec![] }
        }

        /// Applies a transaction and answers what the node is sent, as `+resource name` and `-resource name`.
        fn apply(&mut self, transaction: Transaction) -> Vec<String> {
            self.sequence += 1;
            let request = Request { id: RequestId { client: 1, sequence: self.sequence }, transaction };
            let batch = self.store.apply(&Command { proposer: 1, requests: vec![request] }.encode()).unwrap();
            assert!(batch.results[0].1.is_ok());
            let view = self.store.view();
            self.events.extend(batch.events.iter().cloned());
            batch
                .events
                .iter()
                .flat_map(|event| self.desired.observe(event, view))
                .map(|m| text(&m))
                .collect()
        }

        fn put(&mut self, resource: &str, name: &str, body: serde_json::Value) -> Vec<String> {
            let key = ObjectKey::new(resource, "default", name);
            let mut draft = json!({ "metadata": { "name": name } });
            draft.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let write = coracle_objects::Write::Put { key, draft: draft.to_string().into() };
            self.apply(Transaction { preconditions: vec![], writes: vec![write] })
        }

        fn delete(&mut self, resource: &str, name: &str) -> Vec<String> {
            let key = ObjectKey::new(resource, "default", name);
            self.apply(Transaction {
                preconditions: vec![],
                writes: vec![coracle_objects::Write::Delete { key }],
            })
        }
    }

    fn text(message: &ObjectEvent) -> String {
        let sign = if message.r#type() == Type::Put { '+' } else { '-' };
        format!("{sign}{} {}", message.resource, message.name)
    }

    fn resync(desired: &mut Desired, view: &View) -> Vec<String> {
        let mut rest = desired.resync(view);
        bring(desired, &mut rest, view)
    }

    fn bring(desired: &mut Desired, rest: &mut Rest, view: &View) -> Vec<String> {
        std::iter::from_fn(|| desired.bring(rest, view)).flatten().map(|message| text(&message)).collect()
    }

    fn pod(node: &str, config: &str) -> serde_json::Value {
        let from = json!([{ "configMapRef": { "name": config } }]);
        json!({ "spec": { "nodeName": node, "containers": [{ "name": "c", "envFrom": from }] } })
    }

    #[test]
    fn a_node_gets_its_pods_and_what_they_name() {
        let mut bench = Bench::new();
        assert!(bench.put("configmaps", "a", json!({"data": {}})).is_empty());
        assert!(bench.put("pods", "elsewhere", pod("n2", "a")).is_empty());
        assert_eq!(bench.put("pods", "p", pod("n1", "a")), ["+configmaps a", "+pods p"]);
        assert_eq!(bench.put("pods", "q", pod("n1", "a")), ["+pods q"]);
        assert_eq!(bench.put("configmaps", "a", json!({"data": {"k": "v"}})), ["+configmaps a"]);
        assert_eq!(bench.delete("pods", "p"), ["-pods p"]);
        assert_eq!(bench.delete("pods", "q"), ["-pods q", "-configmaps a"]);
        assert!(bench.put("configmaps", "a", json!({"data": {}})).is_empty());
    }

    #[test]
    fn a_node_gets_the_namespaces_of_its_pods() {
        let mut bench = Bench::new();
        let namespace = |name: &str, egress: &str| {
            let key = ObjectKey::new(NAMESPACES, "", name);
            let labels = json!({ "coracle.dev/egress": egress });
            let draft = json!({ "metadata": { "name": name, "labels": labels } }).to_string().into();
            Transaction { preconditions: vec![], writes: vec![coracle_objects::Write::Put { key, draft }] }
        };
        assert!(bench.apply(namespace("default", "allow")).is_empty());
        assert_eq!(bench.put("pods", "p", pod("n1", "a")), ["+namespaces default", "+pods p"]);
        assert_eq!(bench.apply(namespace("default", "deny")), ["+namespaces default"]);
        assert!(bench.apply(namespace("other", "allow")).is_empty());
        let mut fresh = Desired::new("n1");
        let all = resync(&mut fresh, bench.store.view());
        assert_eq!(all, ["+namespaces default", "+pods p"]);
        assert_eq!(bench.delete("pods", "p"), ["-pods p", "-namespaces default"]);
    }

    #[test]
    fn claims_come_before_the_services_that_they_are_of() {
        let mut bench = Bench::new();
        bench.put("services", "s", json!({}));
        bench.put("ipaddresses.networking.k8s.io", "10.96.0.7", json!({}));
        bench.put("portallocations.coracle.dev", "30080", json!({}));
        let all = resync(&mut Desired::new("n1"), bench.store.view());
        let claims = ["+ipaddresses.networking.k8s.io 10.96.0.7", "+portallocations.coracle.dev 30080"];
        assert_eq!(all, [&claims[..], &["+services s"]].concat());
        assert_eq!(
            bench.delete("portallocations.coracle.dev", "30080"),
            ["-portallocations.coracle.dev 30080"]
        );
    }

    #[test]
    fn what_is_named_before_it_exists_comes_when_it_does() {
        let mut bench = Bench::new();
        assert_eq!(bench.put("pods", "p", pod("n1", "late")), ["+pods p"]);
        assert_eq!(bench.put("configmaps", "late", json!({})), ["+configmaps late"]);
        assert_eq!(bench.delete("configmaps", "late"), ["-configmaps late"]);
    }

    #[test]
    fn what_no_pod_names_any_more_goes_though_it_is_newer() {
        let mut bench = Bench::new();
        bench.put("secrets", "s", json!({}));
        let from = json!([{ "secretRef": { "name": "s" } }]);
        let spec = json!({ "nodeName": "n1", "containers": [{ "name": "c", "envFrom": from }] });
        assert_eq!(bench.put("pods", "p", json!({ "spec": spec })), ["+secrets s", "+pods p"]);
        let pod = bench.store.view().get(&ObjectKey::new(PODS, "default", "p")).unwrap().clone();
        assert_eq!(bench.put("secrets", "s", json!({"data": {}})), ["+secrets s"]);
        let gone = Event { kind: EventKind::Deleted, object: pod, previous: None };
        let messages = bench.desired.observe(&gone, bench.store.view());
        assert_eq!(messages.iter().map(text).collect::<Vec<_>>(), ["-pods p", "-secrets s"]);
        assert_eq!(messages[1].revision, bench.store.view().revision);
    }

    #[test]
    fn a_resync_sends_only_differences() {
        let mut bench = Bench::new();
        bench.put("services", "s", json!({}));
        bench.put("configmaps", "a", json!({}));
        bench.put("pods", "p", pod("n1", "a"));
        let mut fresh = Desired::new("n1");
        let all = resync(&mut fresh, bench.store.view());
        assert_eq!(all, ["+services s", "+configmaps a", "+pods p"]);
        assert!(resync(&mut fresh, bench.store.view()).is_empty());
        bench.put("services", "t", json!({}));
        bench.delete("pods", "p");
        let difference = resync(&mut fresh, bench.store.view());
        assert_eq!(difference, ["+services t", "-configmaps a", "-pods p"]);
    }

    #[test]
    fn what_changes_during_a_resync_is_sent_as_it_is_by_then() {
        let mut bench = Bench::new();
        bench.put("services", "gone", json!({}));
        bench.put("services", "stays", json!({}));
        for config in ["a", "b"] {
            bench.put("configmaps", config, json!({}));
        }
        for name in ["moves", "renames", "stays"] {
            bench.put("pods", name, pod("n1", "a"));
        }
        bench.put("pods", "ends", pod("n1", "b"));
        // The node has all of this, and then its link is too slow for a while.
        let mut slow = Desired::new("n1");
        resync(&mut slow, bench.store.view());
        bench.delete("pods", "ends");
        let mut rest = slow.resync(bench.store.view());
        // Nobody waits for it: what it is sent is of the moment at which it takes it.
        bench.delete("services", "gone");
        bench.put("services", "stays", json!({ "new": true }));
        bench.put("pods", "renames", pod("n1", "b"));
        bench.delete("pods", "moves");
        bench.put("pods", "moves", pod("n2", "a"));
        let sent = bring(&mut slow, &mut rest, bench.store.view());
        assert_eq!(sent, ["+services stays", "+pods renames", "-pods ends"], "the map b is named again");
        let mut events = bench.events.split_off(bench.events.len() - 5);
        let view = bench.store.view();
        let then: Vec<String> =
            events.drain(..).flat_map(|event| slow.observe(&event, view)).map(|m| text(&m)).collect();
        assert_eq!(then, ["-services gone", "-pods moves"]);
        assert!(resync(&mut slow, view).is_empty(), "nothing is missing");
    }
}
