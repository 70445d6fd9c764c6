//! Which objects each node needs, and what each is sent when they change.
//!
//! One for all nodes: an event is looked at once, however many nodes there are. Pure: fed with views.

mod ingresses;
pub mod room;
mod weight;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{
    Event, EventKind, Object, ObjectKey, ObjectName, Revision, View,
    kinds::{FUNCTION_REVISIONS, FUNCTIONS, INGRESS_CLASSES, INGRESSES},
};

use self::{
    ingresses::Ingresses,
    room::{Bounds, Order, Outcome, Room},
};
use crate::references::{self, CONFIG_MAPS, NAMESPACES, SECRETS, SERVICE_ACCOUNTS};

/// Every node needs all objects of these, but for Ingresses of other controllers. The claims of service addresses and node ports come before the services: a
/// node routes an address only to the service that the claim names.
const SHARED: [&str; 9] = [
    "ipaddresses.networking.k8s.io",
    "portallocations.coracle.dev",
    "services",
    "endpointslices.discovery.k8s.io",
    "nodes",
    INGRESSES,
    FUNCTION_REVISIONS,
    FUNCTIONS,
    "podblocks.coracle.dev",
];
/// A node needs those that its pods name.
const NAMED: [&str; 4] = [NAMESPACES, CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS];
pub const PODS: &str = "pods";

/// Where every pod is, and what it names.
pub struct Routes {
    placed: BTreeMap<ObjectName, Arc<str>>,
    nodes: BTreeMap<Arc<str>, Needs>,
    /// What pods name.
    named: BTreeMap<ObjectKey, Named>,
    /// What pods name: most name the same as many others.
    sets: BTreeSet<Names>,
    unreadable: Vec<ObjectName>,
    ingresses: Ingresses,
    /// How many functions each namespace has: a node that starts an instance by itself has to know what its namespace may.
    functions: BTreeMap<Arc<str>, usize>,
    bounds: Rooms<Bounds>,
    /// Nodes in whose room something has changed since it was settled.
    stirred: BTreeSet<Arc<str>>,
}

/// An object that pods name.
struct Named {
    /// The nodes that need it.
    nodes: BTreeSet<Arc<str>>,
    /// Its size where it is there and counts.
    bytes: Option<usize>,
}

/// What a pod names, in order.
type Names = Arc<[ObjectKey]>;

/// For pods, and for what they name.
#[derive(Clone, Copy, Debug)]
struct Rooms<T> {
    pods: T,
    named: T,
}

/// What one node needs beside what all do.
struct Needs {
    pods: BTreeMap<ObjectName, Needed>,
    /// How many of its pods name an object.
    named: BTreeMap<ObjectKey, usize>,
    /// How much of both it is sent.
    rooms: Rooms<Room>,
}

/// A pod on its node.
struct Needed {
    /// metadata.uid: another of the same name is another pod.
    uid: Box<str>,
    names: Names,
    /// See [`weight`].
    weight: usize,
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
    /// It is there, and the node has no room for it. Of a pod it is said again whenever that changes.
    Withheld,
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
    /// Of all pods and Ingresses. Linear in their number, but for the pods' order.
    pub fn of(view: &View) -> Self {
        Self::within(Rooms { pods: room::OF_PODS, named: room::OF_NAMED }, view)
    }

    fn within(bounds: Rooms<Bounds>, view: &View) -> Self {
        let mut routes = Self {
            placed: BTreeMap::new(),
            nodes: BTreeMap::new(),
            named: BTreeMap::new(),
            sets: BTreeSet::new(),
            unreadable: Vec::new(),
            ingresses: Ingresses::of(view),
            functions: BTreeMap::new(),
            bounds,
            stirred: BTreeSet::new(),
        };
        for function in view.list(FUNCTIONS, None) {
            *routes.functions.entry(function.key.name.namespace.clone()).or_default() += 1;
        }
        let mut pods: Vec<&Arc<Object>> = view.list(PODS, None).collect();
        // What is sent and what is withheld hangs on who came first; those that have run for long are likely to have it.
        pods.sort_by_key(|pod| pod.meta.creation_timestamp.as_deref());
        for pod in pods {
            routes.place(pod, view);
        }
        // Nothing is sent of it: no room has come.
        routes.settle();
        routes
    }

    /// Pods that could not be read since the last time: what they name is not sent.
    pub fn take_unreadable(&mut self) -> Vec<ObjectName> {
        std::mem::take(&mut self.unreadable)
    }

    /// All that a node needs as of `view`, which is that of the last event, and whether it is sent. What pods name comes
    /// before the pods.
    pub fn needed_by(&self, node: &str, view: &View) -> Vec<(ObjectKey, Change)> {
        let shared = SHARED.iter().flat_map(|resource| view.list(resource, None));
        let shared = shared.filter(|object| self.ingresses.takes(&object.key));
        let mut needed: Vec<_> = shared.map(|object| (object.key.clone(), Change::Put)).collect();
        let namespaces = self.functions.keys().map(|namespace| ObjectKey::new(NAMESPACES, "", namespace));
        let namespaces: BTreeSet<ObjectKey> = namespaces.filter(|key| view.get(key).is_some()).collect();
        if let Some(own) = self.nodes.get(node) {
            let withheld: BTreeSet<&ObjectKey> = own.rooms.withheld().collect();
            let pods = own.pods.keys().map(pod_key);
            let there = own.named.keys().cloned().chain(pods).filter(|key| view.get(key).is_some());
            let there = there.filter(|key| !namespaces.contains(key));
            needed.extend(namespaces.iter().map(|key| (key.clone(), Change::Put)));
            needed.extend(there.map(|key| match withheld.contains(&key) {
                true => (key, Change::Withheld),
                false => (key, Change::Put),
            }));
        } else {
            needed.extend(namespaces.into_iter().map(|key| (key, Change::Put)));
        }
        needed
    }

    /// What an event that led to `view` means for nodes.
    fn observe(&mut self, event: &Event, view: &View) -> Vec<Routed> {
        let key = &event.object.key;
        let to = match key.resource.as_str() {
            PODS => return self.observe_pod(event, view),
            INGRESSES => return self.ingresses.observe(event, view).into_iter().collect(),
            INGRESS_CLASSES => return self.ingresses.observe_class(event, view),
            FUNCTIONS => return self.observe_function(event, view),
            resource if SHARED.contains(&resource) => To::All,
            NAMESPACES if self.functions.contains_key(&key.name.name) => To::All,
            _ if counts(key) => return self.observe_counted(event),
            _ => match self.named.get(key) {
                Some(named) => To::Nodes(named.nodes.iter().cloned().collect()),
                None => return vec![],
            },
        };
        let change = match event.kind {
            EventKind::Deleted => Change::Deleted(event.object.revision),
            _ => Change::Put,
        };
        vec![Routed { to, key: key.clone(), change }]
    }

    /// A function is for all nodes, and with the first of a namespace that is.
    fn observe_function(&mut self, event: &Event, view: &View) -> Vec<Routed> {
        let function = &event.object;
        let namespace = &function.key.name.namespace;
        let all = |key: ObjectKey, change| Routed { to: To::All, key, change };
        let mut routed = vec![];
        let change = match event.kind {
            EventKind::Deleted => {
                let left = self.functions.get_mut(namespace).map(|count| {
                    *count -= 1;
                    *count
                });
                if left == Some(0) {
                    // What nodes know of the namespace does no harm, and those with pods of it need it.
                    self.functions.remove(namespace);
                }
                Change::Deleted(function.revision)
            }
            EventKind::Added => {
                let count = self.functions.entry(namespace.clone()).or_default();
                *count += 1;
                let key = ObjectKey::new(NAMESPACES, "", namespace);
                if *count == 1 && view.get(&key).is_some() {
                    routed.push(all(key, Change::Put));
                }
                Change::Put
            }
            EventKind::Modified => Change::Put,
        };
        routed.push(all(function.key.clone(), change));
        routed
    }

    /// What leads from one view to a later one.
    pub fn catch_up(&mut self, before: &View, now: &View) -> Vec<Routed> {
        let mut routed = vec![];
        for resource in SHARED.iter().chain(&[INGRESS_CLASSES]).chain(&NAMED).chain(&[PODS]) {
            for event in now.events_since(before, resource) {
                routed.extend(self.observe(&event, now));
            }
        }
        routed.extend(self.settle());
        routed
    }

    /// What an event means for the nodes that need an object which takes room there.
    fn observe_counted(&mut self, event: &Event) -> Vec<Routed> {
        let key = &event.object.key;
        let Some(named) = self.named.get_mut(key) else { return vec![] };
        let is_gone = event.kind == EventKind::Deleted;
        let now = (!is_gone).then(|| event.object.json.len());
        let before = std::mem::replace(&mut named.bytes, now);
        let (mut sent, mut withheld) = (vec![], vec![]);
        for node in &named.nodes {
            let Some(own) = self.nodes.get_mut(node) else { continue };
            self.stirred.insert(node.clone());
            match (before, now) {
                (_, Some(bytes)) => match own.rooms.named.put(key, before, bytes) {
                    Outcome::Sent => sent.push(node.clone()),
                    Outcome::Withheld => withheld.push(node.clone()),
                    Outcome::StillWithheld => {}
                },
                (Some(bytes), None) => {
                    own.rooms.named.remove(key, bytes);
                }
                (None, None) => {}
            }
        }
        let told = if is_gone {
            let nodes = named.nodes.iter().cloned().collect();
            vec![(nodes, Change::Deleted(event.object.revision))]
        } else {
            vec![(sent, Change::Put), (withheld, Change::Withheld)]
        };
        let told = told.into_iter().filter(|(nodes, _)| !nodes.is_empty());
        told.map(|(nodes, change)| Routed { to: To::Nodes(nodes), key: key.clone(), change }).collect()
    }

    /// What was withheld and has room by now.
    fn settle(&mut self) -> Vec<Routed> {
        let mut routed = vec![];
        for node in std::mem::take(&mut self.stirred) {
            let sent = self.nodes.get_mut(&node).map(|own| own.rooms.settle()).unwrap_or_default();
            let one = |key| Routed { to: To::Nodes(vec![node.clone()]), key, change: Change::Put };
            routed.extend(sent.into_iter().map(one));
        }
        routed
    }

    fn observe_pod(&mut self, event: &Event, view: &View) -> Vec<Routed> {
        let pod = &event.object;
        let before = self.placed.get(&pod.key.name).cloned();
        let mut routed = vec![];
        let placed = if event.kind == EventKind::Deleted { None } else { self.place(pod, view) };
        let mut tell = |node: &Arc<str>, key: &ObjectKey, change| {
            routed.push(Routed { to: To::Nodes(vec![node.clone()]), key: key.clone(), change });
        };
        let deleted = Change::Deleted(pod.revision);
        if let Some(Placed { node, is_sent, named, unnamed }) = &placed {
            named.iter().for_each(|(key, change)| tell(node, key, *change));
            // The node hears of what happens to one that is withheld: it may be deleted.
            let change = if *is_sent { Change::Put } else { Change::Withheld };
            tell(node, &pod.key, if *is_sent && !named.is_empty() { Change::PutBehind } else { change });
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

    /// Records where a pod is and what it names, as that is in `view`; None where it is nowhere yet.
    fn place(&mut self, pod: &Object, view: &View) -> Option<Placed> {
        let references = references::of_pod(pod);
        let name = references.node.filter(|node| !node.is_empty())?;
        if !references.readable {
            self.unreadable.push(pod.key.name.clone());
        }
        let known = self.nodes.get_key_value(name.as_str()).map(|(node, _)| node.clone());
        let node = known.unwrap_or_else(|| name.into());
        self.placed.insert(pod.key.name.clone(), node.clone());
        let names = self.shared(references.keys);
        let needed = Needed { uid: pod.meta.uid.as_str().into(), names, weight: weight::of_pod(pod) };
        Some(self.need(node, &pod.key, needed, view))
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

    /// Records a pod on this node as it is now: whether it is sent, what it had not named before any of its pods, and what
    /// none names any more.
    fn need(&mut self, node: Arc<str>, pod: &ObjectKey, needed: Needed, view: &View) -> Placed {
        let bounds = self.bounds;
        let own = self.nodes.entry(node.clone()).or_insert_with(|| Needs::new(bounds));
        let (names, weight) = (needed.names.clone(), needed.weight);
        let (mut before, mut former) = (Names::default(), None);
        if let Some(known) = own.pods.remove(&pod.name) {
            former = Some(known.weight).filter(|_| known.uid == needed.uid);
            if former.is_none() {
                own.rooms.pods.remove(pod, known.weight);
                self.stirred.insert(node.clone());
            }
            before = known.names;
        }
        own.pods.insert(pod.name.clone(), needed);
        let is_sent = own.rooms.pods.put_kept(pod, former, weight) == Outcome::Sent;
        if !is_sent || former > Some(weight) {
            self.stirred.insert(node.clone());
        }
        let mut named = vec![];
        for key in names.iter().filter(|key| before.binary_search(key).is_err()) {
            let count = own.named.entry(key.clone()).or_default();
            *count += 1;
            if *count == 1 {
                let known = self.named.entry(key.clone()).or_insert_with(|| Named::of(key, view));
                known.nodes.insert(node.clone());
                let outcome = known.bytes.map(|bytes| own.rooms.named.put(key, None, bytes));
                let is_sent = outcome.is_none_or(|outcome| outcome == Outcome::Sent);
                if !is_sent {
                    self.stirred.insert(node.clone());
                }
                named.push((key.clone(), if is_sent { Change::Put } else { Change::Withheld }));
            }
        }
        let unnamed = self.unname(&node, before.iter().filter(|key| names.binary_search(key).is_err()));
        drop(names);
        self.drop_names(before);
        Placed { node, is_sent, named, unnamed }
    }

    /// A pod is on this node no longer: what none of its pods names any more.
    fn remove(&mut self, pod: &ObjectName, node: &Arc<str>) -> Vec<ObjectKey> {
        let Some(own) = self.nodes.get_mut(node) else { return vec![] };
        let Some(Needed { names, weight, .. }) = own.pods.remove(pod) else { return vec![] };
        own.rooms.pods.remove(&pod_key(pod), weight);
        self.stirred.insert(node.clone());
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
            if key.resource.as_str() != NAMESPACES || !self.functions.contains_key(&key.name.name) {
                unnamed.push(key.clone());
            }
            if let Some(named) = self.named.get_mut(key) {
                named.nodes.remove(node);
                if let Some(bytes) = named.bytes {
                    own.rooms.named.remove(key, bytes);
                    self.stirred.insert(node.clone());
                }
                if named.nodes.is_empty() {
                    self.named.remove(key);
                }
            }
        }
        unnamed
    }
}

fn pod_key(name: &ObjectName) -> ObjectKey {
    ObjectKey { resource: PODS.into(), name: name.clone() }
}

/// Those of which a node keeps all that is in them.
fn counts(key: &ObjectKey) -> bool {
    [CONFIG_MAPS, SECRETS].contains(&key.resource.as_str())
}

impl Needs {
    fn new(bounds: Rooms<Bounds>) -> Self {
        let rooms = Rooms {
            pods: Room::new(bounds.pods, Order::Fitting),
            named: Room::new(bounds.named, Order::First),
        };
        Self { pods: BTreeMap::new(), named: BTreeMap::new(), rooms }
    }
}

impl Rooms<Room> {
    fn withheld(&self) -> impl Iterator<Item = &ObjectKey> {
        self.named.withheld().chain(self.pods.withheld())
    }

    /// What was withheld and has room by now, what pods name before the pods.
    fn settle(&mut self) -> Vec<ObjectKey> {
        let mut sent = self.named.settle();
        sent.extend(self.pods.settle());
        sent
    }
}

impl Named {
    /// As the object is in this view, before any node needs it.
    fn of(key: &ObjectKey, view: &View) -> Self {
        let object = if counts(key) { view.get(key) } else { None };
        Self { nodes: BTreeSet::new(), bytes: object.map(|object| object.json.len()) }
    }
}

/// Where a pod is now.
struct Placed {
    node: Arc<str>,
    /// Or withheld.
    is_sent: bool,
    /// What the node needs from now on, and what no longer.
    named: Vec<(ObjectKey, Change)>,
    unnamed: Vec<ObjectKey>,
}

#[cfg(test)]
mod tests;
