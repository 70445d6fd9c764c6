//! The scheduler: its caches, and how events change them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Event, EventKind, Object, ObjectName, View};
use jiff::Timestamp;

use crate::{
    model::{NodeFacts, Pod, Shape},
    nodes::{NodeIndex, Nodes},
    queue::{Pending, Queue},
};

/// Decides where pods go. Fed by events, asked by [`Scheduler::schedule`]; the same events and times give the same
/// decisions.
#[derive(Debug, Default)]
pub struct Scheduler {
    pub(crate) nodes: Nodes,
    pub(crate) queue: Queue,
    pub(crate) assigned: BTreeMap<ObjectName, Assigned>,
    /// Placements whose outcome is not known yet, by when to give them up.
    pub(crate) assumed: BTreeSet<(Timestamp, ObjectName)>,
    /// Where the next search for nodes begins, so that samples take turns.
    pub(crate) next_start: NodeIndex,
    /// The time of the last decisions.
    pub(crate) now: Option<Timestamp>,
}

/// A pod that holds resources of a node.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub node: NodeIndex,
    pub shape: Arc<Shape>,
    /// Set until the placement is observed: when to give it up, and the pod as it was.
    pub assumed: Option<(Timestamp, Pending)>,
}

impl Scheduler {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one change. Events of other resources than pods and nodes are passed over.
    pub fn observe(&mut self, event: &Event) {
        match (event.object.key.resource.as_str(), event.kind) {
            ("pods", EventKind::Deleted) => self.pod_gone(&event.object.key.name),
            ("pods", _) => self.pod_changed(&event.object),
            ("nodes", EventKind::Deleted) => self.nodes.forget(event.object.name()),
            ("nodes", _) => self.node_changed(&event.object),
            _ => {}
        }
    }

    /// Starts anew from a snapshot: after start, and where events were lost.
    pub fn resync(&mut self, view: &View) {
        *self = Self::default();
        for node in view.list("nodes", None) {
            self.node_changed(node);
        }
        for pod in view.list("pods", None) {
            self.pod_changed(pod);
        }
    }

    /// When `schedule` has something to do although nothing is observed. In the past where it left work undone.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.queue.has_ready() {
            return Some(self.now.unwrap_or(Timestamp::MIN));
        }
        let given_up = self.assumed.first().map(|(deadline, _)| *deadline);
        [given_up, self.queue.next_deadline()].into_iter().flatten().min()
    }

    fn node_changed(&mut self, object: &Arc<Object>) {
        let changed = match NodeFacts::of(object) {
            Some(facts) => self.nodes.set_facts(object.name(), facts),
            None => false,
        };
        if changed {
            self.queue.world_changed();
        }
    }

    fn pod_changed(&mut self, object: &Arc<Object>) {
        let name = &object.key.name;
        let Some(pod) = Pod::of(object) else { return self.pod_gone(name) };
        if pod.node.is_empty() {
            // An assumed pod that changed otherwise: its binding was refused or will be.
            self.release(name);
            if pod.wants_placement {
                self.queue.upsert(object, pod);
            } else {
                self.queue.remove(name);
            }
            return;
        }
        self.queue.remove(name);
        if !pod.active {
            self.release(name);
            return;
        }
        match self.assigned.get_mut(name) {
            Some(known) if *self.nodes.get(known.node).name == *pod.node && *known.shape == pod.shape => {
                if let Some((deadline, _)) = known.assumed.take() {
                    self.assumed.remove(&(deadline, name.clone()));
                }
            }
            _ => {
                self.release(name);
                let node = self.nodes.add_pod(&pod.node, &pod.shape);
                let assigned = Assigned { node, shape: Arc::new(pod.shape), assumed: None };
                self.assigned.insert(name.clone(), assigned);
            }
        }
    }

    fn pod_gone(&mut self, name: &ObjectName) {
        self.queue.remove(name);
        self.release(name);
    }

    /// Gives back what a pod held of its node, and the pending pod where its placement was only assumed.
    pub(crate) fn release(&mut self, name: &ObjectName) -> Option<Pending> {
        let assigned = self.assigned.remove(name)?;
        self.nodes.remove_pod(assigned.node, &assigned.shape);
        self.queue.world_changed();
        let (deadline, pending) = assigned.assumed?;
        self.assumed.remove(&(deadline, name.clone()));
        Some(pending)
    }
}
