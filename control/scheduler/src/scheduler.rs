//! The scheduler: its caches, and how events change them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Event, EventKind, Object, ObjectError, ObjectKey, ObjectName, View};
use jiff::Timestamp;

use crate::{
    fault::{self, Cause, Fault},
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
    /// Pods and nodes that are there and cannot be read.
    unreadable: BTreeSet<ObjectKey>,
    /// What is to be told of them with the next decisions, and of panics. Bounded by the objects.
    pub(crate) untold: BTreeMap<ObjectKey, (Fault, Option<String>)>,
}

/// How the scheduler fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Pods that wait to be looked at.
    pub waiting: usize,
    /// Pods whose placement failed, by a fault of ours or theirs: they wait longer each time.
    pub in_trouble: usize,
    /// Pods and nodes that cannot be read.
    pub unreadable: usize,
    /// Pods that want a node, pods that have one, and placements under way.
    pub remembered: usize,
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
        if event.kind == EventKind::Deleted {
            self.unreadable.remove(&event.object.key);
        }
        match (event.object.key.resource.as_str(), event.kind) {
            ("pods", EventKind::Deleted) => self.pod_gone(&event.object.key.name),
            ("pods", _) => self.pod_changed(&event.object),
            ("nodes", EventKind::Deleted) => self.nodes.forget(event.object.name()),
            ("nodes", _) => self.node_changed(&event.object),
            _ => {}
        }
    }

    /// Starts anew from a snapshot.
    pub fn resync(&mut self, view: &View) {
        *self = Self::default();
        self.catch_up(view);
    }

    /// Makes up for events that were lost: goes from what is known to this state by their difference. What was tried in vain
    /// stays known, as does a placement whose outcome is awaited: who can make events get lost must not get anything tried
    /// again at once by it.
    pub fn catch_up(&mut self, view: &View) {
        let is_there = |resource: &str, name: &ObjectName| {
            view.tables.get(resource).is_some_and(|table| table.contains_key(name))
        };
        let known = self.queue.names().chain(self.assigned.keys());
        let gone: Vec<ObjectName> = known.filter(|name| !is_there("pods", name)).cloned().collect();
        gone.iter().for_each(|name| self.pod_gone(name));
        self.nodes.retain(|name| is_there("nodes", &ObjectName::new("", name)));
        self.unreadable.retain(|key| is_there(key.resource.as_str(), &key.name));
        for node in view.list("nodes", None) {
            self.node_changed(node);
        }
        for pod in view.list("pods", None) {
            if !self.has_seen(pod) {
                self.pod_changed(pod);
            }
        }
    }

    /// Whether a pod that wants a node, or is being given one, is known in this very state.
    fn has_seen(&self, pod: &Object) -> bool {
        let assumed = self.assigned.get(&pod.key.name).and_then(|assigned| assigned.assumed.as_ref());
        let pending = assumed.map(|(_, pending)| pending).or_else(|| self.queue.get(&pod.key.name));
        pending.is_some_and(|pending| pending.object.revision == pod.revision)
    }

    /// When `schedule` has something to do although nothing is observed. In the past where it left work undone.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.queue.has_ready() || !self.untold.is_empty() {
            return Some(self.now.unwrap_or(Timestamp::MIN));
        }
        let given_up = self.assumed.first().map(|(deadline, _)| *deadline);
        [given_up, self.queue.next_deadline()].into_iter().flatten().min()
    }

    pub fn situation(&self) -> Situation {
        Situation {
            waiting: self.queue.ready_len(),
            in_trouble: self.queue.in_trouble(),
            unreadable: self.unreadable.len(),
            remembered: self.queue.len() + self.assigned.len() + self.assumed.len() + self.untold.len(),
        }
    }

    /// Tells that the placement of this pod was not applied. `forever` says why, where it never will be as it is. Need not
    /// be called: what is not observed is given up after some seconds.
    pub fn refused(&mut self, pod: &ObjectName, forever: Option<&str>, now: Timestamp) {
        if self.assigned.get(pod).is_none_or(|assigned| assigned.assumed.is_none()) {
            // An event has told more already.
            return;
        }
        let Some(pending) = self.release(pod) else { return };
        let object = pending.object.clone();
        match forever {
            None => self.queue.retry(pending, now),
            Some(why) => {
                self.queue.restore(pending);
                self.queue.fail(pod, now);
                let fault = Fault::unplaced(&object, &Cause::Object(why.to_owned()));
                self.untold.insert(object.key.clone(), (fault, None));
            }
        }
    }

    /// Reads an object; notes where it cannot be.
    fn read<T>(&mut self, object: &Object, parse: fn(&Object) -> Result<T, ObjectError>) -> Option<T> {
        let cause = match fault::read(object, parse) {
            Ok(read) => {
                self.unreadable.remove(&object.key);
                return Some(read);
            }
            Err(cause) => cause,
        };
        self.unreadable.insert(object.key.clone());
        let panic = match &cause {
            Cause::Object(_) => None,
            Cause::Panic(words) => Some(format!("reading {}: {words}", object.key)),
        };
        self.untold.insert(object.key.clone(), (Fault::unreadable(object, cause.words()), panic));
        None
    }

    fn node_changed(&mut self, object: &Arc<Object>) {
        let Some(facts) = self.read(object, NodeFacts::of) else {
            // What was known of it may hold no more: its pods count, and it gets no others.
            return self.nodes.forget(object.name());
        };
        if self.nodes.set_facts(object.name(), facts) {
            self.queue.world_changed();
        }
    }

    fn pod_changed(&mut self, object: &Arc<Object>) {
        let name = &object.key.name;
        let pod = match self.read(object, Pod::of) {
            Some(pod) => pod,
            None => self.unreadable_pod(object),
        };
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

    /// What it held of its node it goes on to hold.
    fn unreadable_pod(&self, object: &Object) -> Pod {
        let pod = Pod::unreadable(object);
        let known = self.assigned.get(&object.key.name);
        match known.filter(|known| *self.nodes.get(known.node).name == *pod.node) {
            Some(known) => Pod { shape: (*known.shape).clone(), ..pod },
            None => pod,
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
