//! Replica sets: as many pods as the spec says.

mod pods;
mod rank;

use std::sync::Arc;

use coracle_objects::{Event, Expect, Object, ObjectKey, ObjectName, Transaction};
use serde_json::{Map, Value, json};

use crate::{
    controller::{Controller, states},
    deletion,
    draft::{self, Unreadable, timestamp},
    event_record::EventRecord,
    index::Index,
    model::{Models, Pod, ReplicaSet},
    planner::Planner,
    queue::Queue,
    selectors::{Selectors, may_match},
    state::State,
    task::Task,
};

pub use pods::pod_of_set;

/// See the module.
pub struct ReplicaSets;

pub const NAME: &str = "replicaset-controller";
const REPLICA_SETS: &str = "replicasets.apps";

/// The most pods created or deleted before the outcome is awaited. Upstream's burstReplicas.
const BURST_REPLICAS_MAX: usize = 500;
/// The most events a plan records about one set's pods, so that a large set does not fill the log with them.
/// Upstream's burst of its event filter.
const POD_EVENTS_MAX: usize = 25;

/// The condition of a set whose pods cannot be made.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

/// By what replica sets select pods.
#[derive(Debug, Default)]
pub struct SetSelectors(Selectors);

impl Index for SetSelectors {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(found) = models.replica_set(object) {
            self.0.insert(&object.key.name, &found.selector);
        }
    }

    fn remove(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(found) = models.replica_set(object) {
            self.0.remove(&object.key.name, &found.selector);
        }
    }
}

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cares_for(&self) -> Option<&'static str> {
        Some(REPLICA_SETS)
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let name = &event.object.key.name;
        let on = |set: &ObjectName| Task::on(NAME, REPLICA_SETS, set);
        match event.object.key.resource.as_str() {
            REPLICA_SETS => tasks.insert(on(name)),
            "pods" => {
                for object in states(event) {
                    match object.controller() {
                        Some(owner) if owner.kind == "ReplicaSet" => {
                            tasks.insert(on(&ObjectName::new(&name.namespace, &owner.name)));
                        }
                        Some(_) => {}
                        None => {
                            let labels = &object.meta.labels;
                            let matches = |set: &&ObjectName| {
                                let set = state.models.replica_sets.get(set);
                                set.is_some_and(|set| may_match(&set.selector, labels))
                            };
                            let selectors = &state.set_selectors.0;
                            tasks.extend(
                                selectors.candidates(&name.namespace, labels).filter(matches).map(on),
                            );
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, &subject.name)
    }
}

/// Adopts and releases pods; else creates or deletes them; else brings the status up to date. One of these at a time:
/// each looks at what came of the one before.
fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let state = planner.state;
    let Some(set) = state.models.replica_sets.get(name) else { return Ok(()) };
    if !set.deleting() && claim(planner, set)? {
        return Ok(());
    }
    let active: Vec<&Pod> = state.pods_of(&set.object).filter(|pod| pod.active()).collect();
    if !set.deleting() && scale(planner, set, &active)? {
        return Ok(());
    }
    update_status(planner, set, &active)?;
    // A pod that is ready becomes available when it has been so for long enough.
    let coming = active.iter().filter_map(|pod| pod.available_at(set.min_ready_s));
    if let Some(moment) = coming.filter(|moment| *moment > planner.now).min() {
        planner.wake_at(moment);
    }
    Ok(())
}

/// Adopts matching pods without a controller, releases own ones that match no more. Answers whether there were any.
fn claim(planner: &mut Planner<'_>, set: &ReplicaSet) -> Result<bool, Unreadable> {
    let state = planner.state;
    let owner = &set.object;
    let mut changed = false;
    for pod in state.orphan_pods(owner.namespace()) {
        if !pod.active() || !set.selector.matches(&pod.object.meta.labels) {
            continue;
        }
        let mut value = draft::of(&pod.object)?;
        let reference = draft::controlled_by(owner, "apps/v1", "ReplicaSet");
        match draft::child(&mut value, "metadata").entry("ownerReferences").or_insert_with(|| json!([])) {
            Value::Array(references) => references.push(reference),
            other => *other = json!([reference]),
        }
        let adopt =
            draft::put(&pod.object, &value).expecting(owner.key.clone(), Expect::Uid(owner.meta.uid.clone()));
        planner.propose(adopt);
        changed = true;
    }
    for pod in state.pods_of(owner) {
        if !pod.active() || set.selector.matches(&pod.object.meta.labels) {
            continue;
        }
        let mut left = pod.object.meta.owner_references.clone();
        left.retain(|reference| reference.uid != owner.meta.uid);
        let mut value = draft::of(&pod.object)?;
        draft::set_owners(&mut value, &left);
        planner.propose(draft::put(&pod.object, &value));
        changed = true;
    }
    Ok(changed)
}

/// Creates what is missing or deletes what is too many. Answers whether there was any of it.
fn scale(planner: &mut Planner<'_>, set: &ReplicaSet, active: &[&Pod]) -> Result<bool, Unreadable> {
    let wanted = set.replicas.max(0) as usize;
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST_REPLICAS_MAX);
        return create(planner, set, missing);
    }
    if active.len() > wanted {
        let surplus = (active.len() - wanted).min(BURST_REPLICAS_MAX);
        return delete(planner, set, active, surplus);
    }
    Ok(false)
}

fn create(planner: &mut Planner<'_>, set: &ReplicaSet, count: usize) -> Result<bool, Unreadable> {
    let owner = &set.object;
    // A set whose selector does not match its own template would make pods without end.
    if !planner.state.takes_objects(owner.namespace()) || !set.selector.matches(&set.template_labels) {
        return Ok(false);
    }
    if !planner.may_create() {
        return Ok(false);
    }
    let mold = pods::Mold::of(owner, &planner.state.view, planner.now)?;
    if let Some(fault) = mold.fault() {
        planner.refuse(fault);
        return Ok(true);
    }
    for index in 0..count {
        let uid = planner.new_uid();
        let (key, draft) = mold.cast(&uid);
        let message = format!("Created pod: {}", key.name.name);
        // The set's revision: a set that was scaled meanwhile is looked at anew.
        let transaction =
            Transaction::create(key, draft).expecting(owner.key.clone(), Expect::Revision(owner.revision));
        if !planner.propose(transaction) {
            return Ok(true);
        }
        if index < POD_EVENTS_MAX {
            planner.record_done(EventRecord::normal(owner, NAME, "SuccessfulCreate", message));
        }
    }
    Ok(count > 0)
}

fn delete(
    planner: &mut Planner<'_>,
    set: &ReplicaSet,
    active: &[&Pod],
    count: usize,
) -> Result<bool, Unreadable> {
    let owner = &set.object;
    let victims = rank::first_to_go(planner.state, set, active, count, planner.now)?;
    for (index, pod) in victims.into_iter().enumerate() {
        let Some(transaction) = deletion::delete(&planner.state.view, &pod.object, None, planner.now)? else {
            continue;
        };
        let transaction = transaction.expecting(owner.key.clone(), Expect::Revision(owner.revision));
        if planner.propose(transaction) && index < POD_EVENTS_MAX {
            let message = format!("Deleted pod: {}", pod.object.name());
            planner.record_done(EventRecord::normal(owner, NAME, "SuccessfulDelete", message));
        }
    }
    Ok(true)
}

fn update_status(planner: &mut Planner<'_>, set: &ReplicaSet, active: &[&Pod]) -> Result<(), Unreadable> {
    let labelled = |pod: &&&Pod| {
        let labels = &pod.object.meta.labels;
        set.template_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let available = |pod: &&&Pod| pod.available(set.min_ready_s, planner.now);
    let mut status = Map::new();
    status.insert("replicas".to_owned(), active.len().into());
    let counts = [
        ("fullyLabeledReplicas", active.iter().filter(labelled).count()),
        ("readyReplicas", active.iter().filter(|pod| pod.ready).count()),
        ("availableReplicas", active.iter().filter(available).count()),
    ];
    for (field, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        status.insert(field.to_owned(), count.into());
    }
    status.insert("observedGeneration".to_owned(), set.object.meta.generation.into());
    let conditions = conditions(planner, set);
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), conditions.into());
    }
    let mut value = draft::of(&set.object)?;
    if value["status"].as_object() != Some(&status) {
        value["status"] = status.into();
        planner.propose(draft::put(&set.object, &value));
    }
    Ok(())
}

/// The conditions, with ReplicaFailure where pods cannot be made. Its time is that of the first failure.
fn conditions(planner: &Planner<'_>, set: &ReplicaSet) -> Vec<Value> {
    let (failures, mut conditions): (Vec<Value>, Vec<Value>) =
        set.status.conditions.iter().cloned().partition(|condition| condition["type"] == REPLICA_FAILURE);
    if let Some(reason) = planner.failure() {
        // Whoever wrote more than one of them: of the first one, so that the next plan finds the same.
        let since = failures.first().map(|condition| condition["lastTransitionTime"].clone());
        let since = since.filter(Value::is_string).unwrap_or_else(|| timestamp(planner.now).into());
        conditions.push(json!({
            "type": REPLICA_FAILURE, "status": "True", "reason": "FailedCreate", "message": reason,
            "lastTransitionTime": since,
        }));
    }
    conditions
}

/// The key of a pod in a namespace.
fn pod_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new("pods", namespace, name)
}
