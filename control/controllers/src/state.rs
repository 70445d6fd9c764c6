//! The cluster as the controllers know it: all objects, and the indices that find what belongs together.

use std::sync::Arc;

use coracle_objects::{
    Event, EventKind, LabelSelector, Object, ObjectKey, View, catalog::Names, kinds::DEFINITIONS,
};

use crate::{
    deployment::{DeploymentSelectors, OrphanSets},
    draft::Unreadable,
    endpoint_slice::ServiceSelectors,
    event_record::EventRecord,
    index::Index,
    ingress::{Gateways, Hosts},
    model::{Models, Pod, ReplicaSet},
    node_lifecycle::{TroubledNodes, zones::Zones},
    ownership::Ownership,
    pod_gc::EndedPods,
    pods::PodIndex,
    replica_set::SetSelectors,
    task::Task,
};

/// Everything observed so far. Bounded by what is in the store.
#[derive(Debug, Default)]
pub struct State {
    pub view: View,
    /// Whose names are whose, of the kinds that are declared.
    pub names: Names,
    /// The definitions with which it stands otherwise by the last event of one.
    pub resettled: Vec<String>,
    /// Whether by that event kinds are served that were not before.
    pub serves_more: bool,
    pub models: Models,
    pub ownership: Ownership,
    pods: PodIndex,
    pub zones: Zones,
    pub troubled_nodes: TroubledNodes,
    pub ended_pods: EndedPods,
    pub hosts: Hosts,
    pub gateways: Gateways,
    pub service_selectors: ServiceSelectors,
    pub set_selectors: SetSelectors,
    pub deployment_selectors: DeploymentSelectors,
    orphan_sets: OrphanSets,
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
            self.serves_more = next.serves_more_than(&self.names);
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
            .filter_map(|key| self.models.pods.get(&key.name))
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
                self.models.replica_sets.get(&object.key.name).ok_or_else(unreadable)
            })
            .collect()
    }

    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Pod> + use<'_> {
        self.pods.on(node, &self.models)
    }

    /// The pods of a namespace that have no controller.
    pub fn orphan_pods(&self, namespace: &str) -> impl Iterator<Item = &Pod> + use<'_> {
        self.pods.orphans(namespace, &self.models)
    }

    /// The replica sets of a namespace that have no controller.
    pub fn orphan_sets(&self, namespace: &str) -> impl Iterator<Item = &ReplicaSet> + use<'_> {
        self.orphan_sets.of(namespace, &self.models)
    }

    /// The pods of a namespace that match, in order.
    pub fn select_pods<'a>(&'a self, namespace: &str, selector: &'a LabelSelector) -> Vec<&'a Pod> {
        self.pods.select(namespace, selector, &self.models)
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
        self.models.insert(object);
        self.each_index(|index, models| index.insert(object, models));
    }

    fn remove(&mut self, object: &Arc<Object>) {
        self.each_index(|index, models| index.remove(object, models));
        self.models.remove(object);
    }

    fn each_index(&mut self, tell: impl Fn(&mut dyn Index, &Models)) {
        let all: [&mut dyn Index; 11] = [
            &mut self.ownership,
            &mut self.pods,
            &mut self.zones,
            &mut self.troubled_nodes,
            &mut self.ended_pods,
            &mut self.hosts,
            &mut self.gateways,
            &mut self.service_selectors,
            &mut self.set_selectors,
            &mut self.deployment_selectors,
            &mut self.orphan_sets,
        ];
        all.into_iter().for_each(|index| tell(index, &self.models));
    }
}
