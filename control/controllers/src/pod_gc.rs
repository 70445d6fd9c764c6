//! Pods that nobody else will remove: of nodes that are gone, deleted before they had a node, ended long ago.

use std::{collections::BTreeSet, sync::Arc};

use coracle_objects::{Event, EventKind, Expect, Object, ObjectKey, ObjectName, Transaction};
use jiff::{SignedDuration, Timestamp};

use crate::{
    controller::Controller,
    deletion,
    draft::{Unreadable, later},
    event_record::EventRecord,
    index::Index,
    model::Models,
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

/// See the module.
pub struct PodGc;

const NAME: &str = "pod-garbage-collector-controller";
/// Of a task about all pods that ended: no pod has this name.
const ALL_PODS: &str = "";

/// How many pods that ended by themselves are kept to be looked at. Upstream's terminated-pod-gc-threshold.
const ENDED_PODS_MAX: usize = 12_500;
/// How long its node must be missing before a pod is removed: the node may be about to register again. Counted for each
/// pod, so that one made for a node that was never there lives no shorter, and making it again is no busy loop.
const MISSING_NODE_MS: i64 = 2_000;
/// The most pods removed in one plan for being too many.
const REMOVALS_MAX: usize = 500;

const COMPONENT: &str = "pod-garbage-collector";

/// Pods that ended by themselves, oldest first.
#[derive(Debug, Default)]
pub struct EndedPods(BTreeSet<(Option<Timestamp>, ObjectName)>);

impl Index for EndedPods {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(pod) = models.pod(object).filter(|pod| pod.terminal()) {
            self.0.insert((pod.created, object.key.name.clone()));
        }
    }

    fn remove(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(pod) = models.pod(object) {
            self.0.remove(&(pod.created, object.key.name.clone()));
        }
    }
}

impl Controller for PodGc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let name = &event.object.key.name;
        let stray = |name: &ObjectName| Task::on(NAME, "pods", name);
        match event.object.key.resource.as_str() {
            "nodes" if event.kind == EventKind::Deleted => {
                tasks.extend(state.pods_on(&name.name).map(|pod| stray(&pod.object.key.name)));
            }
            "pods" => {
                let Some(pod) = state.models.pods.get(name) else { return };
                let is_stray = if pod.node.is_empty() {
                    pod.deleting()
                } else {
                    state.get(&ObjectKey::new("nodes", "", &pod.node)).is_none()
                };
                if is_stray {
                    tasks.insert(stray(name));
                }
                if state.ended_pods.0.len() > ENDED_PODS_MAX {
                    tasks.insert(stray(&ObjectName::new("", ALL_PODS)));
                }
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        if &*subject.name.name == ALL_PODS { plan_ended(planner) } else { plan_stray(planner, &subject.name) }
    }
}

/// A pod that is deleted without ever having had a node is removed; so is one whose node has been gone for a while.
fn plan_stray(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let state = planner.state;
    let Some(pod) = state.models.pods.get(name) else { return Ok(()) };
    let object = &pod.object;
    if pod.node.is_empty() {
        if pod.deleting() && object.meta.finalizers.is_empty() {
            planner.propose(Transaction::delete(object.key.clone(), object.revision));
        }
        return Ok(());
    }
    let node = ObjectKey::new("nodes", "", &pod.node);
    let missing_since = &mut planner.memory.node_missing_since;
    if state.get(&node).is_some() {
        missing_since.remove(name);
        return Ok(());
    }
    if missing_since.len() > state.models.pods.len() {
        missing_since.retain(|name, _| state.models.pods.contains_key(name));
    }
    let uid = &object.meta.uid;
    let known = missing_since.get(name).filter(|(known, _)| known == uid).map(|(_, since)| *since);
    let since = known.unwrap_or(planner.now);
    missing_since.insert(name.clone(), (uid.clone(), since));
    let due = later(since, SignedDuration::from_millis(MISSING_NODE_MS));
    if due > planner.now {
        planner.wake_at(due);
        return Ok(());
    }
    if !object.meta.finalizers.is_empty() {
        if let Some(transaction) = deletion::delete(&planner.state.view, object, None, planner.now)? {
            planner.propose(transaction);
        }
        return Ok(());
    }
    let transaction =
        Transaction::delete(object.key.clone(), object.revision).expecting(node, Expect::Absent);
    if planner.propose(transaction) {
        let message = format!("PodGC: node {} no longer exists", pod.node);
        planner.record_done(EventRecord::normal(object, COMPONENT, "NodeGone", message));
    }
    Ok(())
}

/// Removes the oldest pods that ended by themselves where there are too many.
fn plan_ended(planner: &mut Planner<'_>) -> Result<(), Unreadable> {
    let state = planner.state;
    let surplus = state.ended_pods.0.len().saturating_sub(ENDED_PODS_MAX).min(REMOVALS_MAX);
    let pods = state.ended_pods.0.iter().take(surplus).filter_map(|(_, name)| state.models.pods.get(name));
    for pod in pods {
        if let Some(transaction) = deletion::delete(&planner.state.view, &pod.object, None, planner.now)? {
            planner.propose(transaction);
        }
    }
    Ok(())
}
