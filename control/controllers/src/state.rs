//! The cluster as the controllers know it: all objects, and the indices that find what belongs together.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic,
    sync::Arc,
};

use coracle_objects::{
    Event, EventKind, LabelSelector, Object, ObjectError, ObjectKey, ObjectName, View, catalog::Names,
    kinds::DEFINITIONS, selector::Operator,
};
use jiff::Timestamp;

use crate::{
    draft::Unreadable,
    event_record::EventRecord,
    ingress::{Gateways, Hosts},
    model::{Node, Pod, ReplicaSet, Service},
    node_lifecycle::zones::Zones,
    ownership::Ownership,
    selectors::{Selectors, unlink},
    task::Task,
};

/// Objects by name, found by something that they have.
type Index<K> = BTreeMap<K, BTreeSet<ObjectName>>;

/// Everything observed so far. Bounded by what is in the store.
#[derive(Debug, Default)]
pub struct State {
    pub view: View,
    /// Whose names are whose, of the kinds that are declared.
    pub names: Names,
    /// The definitions with which it stands otherwise by the last event of one.
    pub resettled: Vec<String>,
    pub pods: BTreeMap<ObjectName, Pod>,
    pub replica_sets: BTreeMap<ObjectName, ReplicaSet>,
    pub services: BTreeMap<ObjectName, Service>,
    /// The selectors of deployments.
    pub deployments: BTreeMap<ObjectName, LabelSelector>,
    /// Nodes that are not ready or have a NoExecute taint.
    pub troubled_nodes: BTreeSet<String>,
    /// Objects that are there and cannot be read, and why. They count as existing.
    pub unreadable: BTreeMap<ObjectKey, String>,
    /// Which nodes are ready.
    pub zones: Zones,
    /// Who asks for which host of the gateways.
    pub hosts: Hosts,
    /// Where gateways listen.
    pub gateways: Gateways,
    /// Pods that ended by themselves, oldest first.
    pub ended_pods: BTreeSet<(Option<Timestamp>, ObjectName)>,
    pub ownership: Ownership,
    /// By what pods and replica sets are selected.
    pub service_selectors: Selectors,
    pub set_selectors: Selectors,
    pub deployment_selectors: Selectors,
    pods_by_node: Index<String>,
    pods_by_label: Index<(Arc<str>, String, String)>,
    /// Pods without a controller, by namespace.
    orphan_pods: Index<Arc<str>>,
    /// Replica sets without a controller, by namespace.
    orphan_sets: Index<Arc<str>>,
}

impl State {
    pub fn of(view: &View) -> Self {
        let mut state = Self::default();
        for object in view.tables.values().flat_map(|table| table.values()) {
            state.insert(object);
        }
        state.view = view.clone();
        state.names = Names::default().next(view);
        state
    }

    pub fn observe(&mut self, event: &Event) {
        let object = &event.object;
        self.view.revision = self.view.revision.max(object.revision);
        if let Some(known) = self.view.get(&object.key).cloned() {
            self.remove(&known);
        }
        let table = self.view.tables.entry(object.key.resource.clone()).or_default();
        if event.kind == EventKind::Deleted {
            table.remove(&object.key.name);
        } else {
            table.insert(object.key.name.clone(), object.clone());
            self.insert(object);
        }
        if object.key.resource.as_str() == DEFINITIONS {
            let next = self.names.next(&self.view);
            self.resettled = next.resettled(&self.names);
            self.names = next;
        }
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.view.get(key)
    }

    /// The object of this uid, if it exists.
    pub fn by_uid(&self, uid: &str) -> Option<&ObjectKey> {
        self.ownership.by_uid(uid).map(|known| &known.key)
    }

    /// The objects that name this one as an owner and can: those of its namespace, or of any where it has none.
    pub fn dependents<'a>(&'a self, owner: &Object) -> impl Iterator<Item = &'a ObjectKey> + use<'a> {
        self.ownership.dependents(owner).flat_map(|dependents| &dependents.all)
    }

    /// The pods that this object controls.
    pub fn pods_of<'a>(&'a self, owner: &'a Object) -> impl Iterator<Item = &'a Pod> + use<'a> {
        self.dependents(owner)
            .filter(|key| key.resource.as_str() == "pods")
            .filter_map(|key| self.pods.get(&key.name))
            .filter(move |pod| pod.object.controller().is_some_and(|own| own.uid == owner.meta.uid))
    }

    /// The replica sets that this object controls; an error where one of them cannot be read.
    pub fn sets_of<'a>(&'a self, owner: &'a Object) -> Result<Vec<&'a ReplicaSet>, Unreadable> {
        let controlled =
            |object: &&Arc<Object>| object.controller().is_some_and(|own| own.uid == owner.meta.uid);
        self.dependents(owner)
            .filter(|key| key.resource.as_str() == "replicasets.apps")
            .filter_map(|key| self.get(key))
            .filter(controlled)
            .map(|object| {
                let unreadable = || Unreadable::new(object, "its replica set cannot be read");
                self.replica_sets.get(&object.key.name).ok_or_else(unreadable)
            })
            .collect()
    }

    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Pod> + use<'_> {
        self.pods_by_node.get(node).into_iter().flatten().filter_map(|name| self.pods.get(name))
    }

    pub fn orphan_pods(&self, namespace: &str) -> impl Iterator<Item = &Pod> + use<'_> {
        self.orphan_pods.get(namespace).into_iter().flatten().filter_map(|name| self.pods.get(name))
    }

    pub fn orphan_sets(&self, namespace: &str) -> impl Iterator<Item = &ReplicaSet> + use<'_> {
        self.orphan_sets.get(namespace).into_iter().flatten().filter_map(|name| self.replica_sets.get(name))
    }

    /// The pods of a namespace that match, in order. Looks only at those that have the rarest of the labels asked for.
    pub fn select_pods<'a>(&'a self, namespace: &str, selector: &'a LabelSelector) -> Vec<&'a Pod> {
        static NONE: BTreeSet<ObjectName> = BTreeSet::new();
        let namespace: Arc<str> = namespace.into();
        let labelled = selector
            .requirements
            .iter()
            .filter(|requirement| requirement.operator == Operator::Equals)
            .filter_map(|requirement| Some((requirement.key.clone(), requirement.values.first()?.clone())))
            .map(|(key, value)| self.pods_by_label.get(&(namespace.clone(), key, value)).unwrap_or(&NONE))
            .min_by_key(|names| names.len());
        let matches = |pod: &&Pod| selector.matches(&pod.object.meta.labels);
        match labelled {
            Some(names) => names.iter().filter_map(|name| self.pods.get(name)).filter(matches).collect(),
            None => in_namespace(&self.pods, &namespace).map(|(_, pod)| pod).filter(matches).collect(),
        }
    }

    /// What is told where a task failed for good. None where its subject is gone.
    pub fn failure(&self, task: &Task, creating: bool, reason: &str) -> Option<EventRecord> {
        let subject = self.get(task.subject())?;
        let word = if creating { "FailedCreate" } else { "FailedUpdate" };
        Some(EventRecord::warning(subject, "controller-manager", word, reason.to_owned()))
    }

    /// What is told where a task's own writes wake it again and again.
    pub fn restless(&self, task: &Task) -> Option<EventRecord> {
        let subject = self.get(task.subject())?;
        let message = "What controllers write about this object has them write again, though nothing else happens: they now \
                       wait ever longer between writes. This is a fault of Coracle";
        Some(EventRecord::warning(subject, "controller-manager", "Restless", message.to_owned()))
    }

    /// Whether new objects may be made in this namespace.
    pub fn takes_objects(&self, namespace: &str) -> bool {
        self.get(&crate::draft::namespace_key(namespace))
            .is_some_and(|object| object.meta.deletion_timestamp.is_none())
    }

    fn insert(&mut self, object: &Arc<Object>) {
        let name = &object.key.name;
        self.ownership.insert(object);
        match object.key.resource.as_str() {
            "pods" => {
                let pod = self.read(object, Pod::of).unwrap_or_else(|| Pod::unreadable(object));
                self.insert_pod(pod);
            }
            "replicasets.apps" => {
                if let Some(set) = self.read(object, ReplicaSet::of) {
                    if object.controller().is_none() {
                        self.orphan_sets.entry(name.namespace.clone()).or_default().insert(name.clone());
                    }
                    self.set_selectors.insert(name, &set.selector);
                    self.replica_sets.insert(name.clone(), set);
                }
            }
            "services" => {
                if let Some(Some(service)) = self.read(object, Service::of) {
                    self.service_selectors.insert(name, &service.selector);
                    self.services.insert(name.clone(), service);
                }
            }
            "deployments.apps" => {
                let value: serde_json::Value = object.parse().unwrap_or_default();
                let selector = LabelSelector::from_json(value.pointer("/spec/selector"));
                let selector = selector.unwrap_or_else(|_| LabelSelector::nothing());
                self.deployment_selectors.insert(name, &selector);
                self.deployments.insert(name.clone(), selector);
            }
            "ingresses.networking.k8s.io" => self.hosts.insert(object),
            "nodes" => {
                let node = self.read(object, |object| Node::of(object));
                let ready = node.as_ref().is_some_and(|node| node.ready == "True");
                self.zones.insert(object, ready);
                let troubled =
                    |node: &Node| !ready || node.taints.iter().any(|taint| taint.effect == "NoExecute");
                if node.as_ref().is_some_and(troubled) {
                    self.troubled_nodes.insert(name.name.to_string());
                }
                if let Some(gateway) = node.and_then(|node| node.gateway) {
                    self.gateways.insert(&name.name, gateway);
                }
            }
            _ => {}
        }
    }

    /// Reads an object; notes where it cannot be, by an error or a fault of ours.
    fn read<T>(
        &mut self,
        object: &Arc<Object>,
        parse: fn(&Arc<Object>) -> Result<T, ObjectError>,
    ) -> Option<T> {
        let reason = match panic::catch_unwind(|| parse(object)) {
            Ok(Ok(read)) => return Some(read),
            Ok(Err(error)) => {
                std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
            }
            Err(_) => "reading it panics".to_owned(),
        };
        self.unreadable.insert(object.key.clone(), reason);
        None
    }

    fn insert_pod(&mut self, pod: Pod) {
        let name = pod.object.key.name.clone();
        if !pod.node.is_empty() {
            self.pods_by_node.entry(pod.node.clone()).or_default().insert(name.clone());
        }
        for label in labels(&pod.object) {
            self.pods_by_label.entry(label).or_default().insert(name.clone());
        }
        if pod.object.controller().is_none() {
            self.orphan_pods.entry(name.namespace.clone()).or_default().insert(name.clone());
        }
        if pod.terminal() {
            self.ended_pods.insert((pod.created, name.clone()));
        }
        self.pods.insert(name, pod);
    }

    fn remove(&mut self, object: &Arc<Object>) {
        let name = &object.key.name;
        self.ownership.remove(object);
        self.unreadable.remove(&object.key);
        match object.key.resource.as_str() {
            "pods" => {
                let Some(pod) = self.pods.remove(name) else { return };
                unlink(&mut self.pods_by_node, &pod.node, name);
                for label in labels(object) {
                    unlink(&mut self.pods_by_label, &label, name);
                }
                unlink(&mut self.orphan_pods, &name.namespace, name);
                self.ended_pods.remove(&(pod.created, name.clone()));
            }
            "replicasets.apps" => {
                if let Some(set) = self.replica_sets.remove(name) {
                    self.set_selectors.remove(name, &set.selector);
                }
                unlink(&mut self.orphan_sets, &name.namespace, name);
            }
            "services" => {
                if let Some(service) = self.services.remove(name) {
                    self.service_selectors.remove(name, &service.selector);
                }
            }
            "deployments.apps" => {
                if let Some(selector) = self.deployments.remove(name) {
                    self.deployment_selectors.remove(name, &selector);
                }
            }
            "ingresses.networking.k8s.io" => self.hosts.remove(object),
            "nodes" => {
                self.troubled_nodes.remove(&*name.name);
                self.zones.remove(&name.name);
                self.gateways.remove(&name.name);
            }
            _ => {}
        }
    }
}

/// The entries of one namespace, in order.
pub fn in_namespace<'a, T>(
    all: &'a BTreeMap<ObjectName, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectName, &'a T)> + use<'a, T> {
    let namespace: Arc<str> = namespace.into();
    let start = ObjectName { namespace: namespace.clone(), name: "".into() };
    all.range(start..).take_while(move |(name, _)| name.namespace == namespace)
}

fn labels(object: &Object) -> impl Iterator<Item = (Arc<str>, String, String)> + use<'_> {
    let namespace = &object.key.name.namespace;
    object.meta.labels.iter().map(move |(key, value)| (namespace.clone(), key.clone(), value.clone()))
}
