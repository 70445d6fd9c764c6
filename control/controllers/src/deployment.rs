//! Deployments: from one template to the next without losing the service.
//!
//! The algorithm is upstream's, decision for decision, with two differences. All writes of one round are one
//! transaction, so that a rollout is never half decided. And where upstream trusts the replica sets' status, which may
//! lag behind, the limits maxSurge and maxUnavailable are kept by counting the pods themselves.

mod cleanup;
mod conditions;
mod recreate;
mod rollout;
mod scale;
mod sets;
mod spec;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Event, EventKind, Object, ObjectKey, ObjectName, Transaction, Write};
use serde_json::Value;

use self::{
    conditions::{Conditions, PROGRESSING},
    sets::Sets,
    spec::{Spec, Strategy},
};
use crate::{
    controller::{Controller, states},
    deletion,
    draft::{self, Unreadable},
    event_record::EventRecord,
    index::Index,
    model::{Models, REVISION, ReplicaSet},
    planner::Planner,
    queue::Queue,
    selectors::{Selectors, may_match, unlink},
    state::State,
    task::Task,
};

/// See the module.
pub struct Deployments;

const NAME: &str = "deployment-controller";
const DEPLOYMENTS: &str = "deployments.apps";

/// By what deployments select replica sets.
#[derive(Debug, Default)]
pub struct DeploymentSelectors(Selectors);

impl Index for DeploymentSelectors {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(found) = models.deployment(object) {
            self.0.insert(&object.key.name, found);
        }
    }

    fn remove(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(found) = models.deployment(object) {
            self.0.remove(&object.key.name, found);
        }
    }
}

/// Replica sets without a controller, by namespace.
#[derive(Debug, Default)]
pub struct OrphanSets(BTreeMap<Arc<str>, BTreeSet<ObjectName>>);

impl OrphanSets {
    pub fn of<'a>(
        &'a self,
        namespace: &str,
        models: &'a Models,
    ) -> impl Iterator<Item = &'a ReplicaSet> + use<'a> {
        self.0.get(namespace).into_iter().flatten().filter_map(|name| models.replica_sets.get(name))
    }
}

impl Index for OrphanSets {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        let name = &object.key.name;
        if models.replica_set(object).is_some() && object.controller().is_none() {
            self.0.entry(name.namespace.clone()).or_default().insert(name.clone());
        }
    }

    fn remove(&mut self, object: &Arc<Object>, _: &Models) {
        if object.key.resource.as_str() == "replicasets.apps" {
            unlink(&mut self.0, &object.key.name.namespace, &object.key.name);
        }
    }
}

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cares_for(&self) -> Option<&'static str> {
        Some(DEPLOYMENTS)
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        match event.object.key.resource.as_str() {
            DEPLOYMENTS => tasks.insert(on(&event.object.key.name)),
            "replicasets.apps" => mark_of_set(state, event, tasks),
            // A rollout that recreates waits for the end of old pods, which no status tells of.
            "pods" if event.kind == EventKind::Deleted => {
                for owner in states(event).filter_map(Object::controller) {
                    if owner.kind == "ReplicaSet" {
                        let set = ObjectName::new(event.object.namespace(), &owner.name);
                        let set = state.models.replica_sets.get(&set);
                        tasks.extend(set.and_then(|set| owner_of(&set.object)).map(|owner| on(&owner)));
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

fn on(deployment: &ObjectName) -> Task {
    Task::on(NAME, DEPLOYMENTS, deployment)
}

/// The deployment that a set belongs to.
fn owner_of(set: &Object) -> Option<ObjectName> {
    let owner = set.controller().filter(|owner| owner.kind == "Deployment")?;
    Some(ObjectName::new(set.namespace(), &owner.name))
}

/// Marks whose set it is, or whose it may become.
fn mark_of_set(state: &State, event: &Event, tasks: &mut Queue) {
    for object in states(event) {
        if object.controller().is_some() {
            tasks.extend(owner_of(object).map(|owner| on(&owner)));
            continue;
        }
        let labels = &object.meta.labels;
        let matches = |deployment: &&ObjectName| {
            state.models.deployments.get(deployment).is_some_and(|selector| may_match(selector, labels))
        };
        let candidates = state.deployment_selectors.0.candidates(&object.key.name.namespace, labels);
        tasks.extend(candidates.filter(matches).map(on));
    }
}

/// One round: what is known of the deployment, and what is decided so far.
struct Round<'a> {
    object: &'a Object,
    spec: Spec,
    /// The conditions as they were.
    old_conditions: Conditions,
    /// The conditions as they shall be.
    conditions: Conditions,
    /// The status as it was.
    old_status: status::Counts,
    collisions: i64,
    /// The rollout's number, where it is to be written on the deployment.
    revision: Option<i64>,
    sets: Sets<'a>,
    /// There is no set of the current template, and the condition Progressing says why.
    failed: bool,
    /// Names of sets to delete.
    deletions: Vec<ObjectName>,
    events: Vec<EventRecord>,
    now: jiff::Timestamp,
}

fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let state = planner.state;
    let key = ObjectKey { resource: DEPLOYMENTS.into(), name: name.clone() };
    let Some(object) = state.get(&key) else { return Ok(()) };
    let value = draft::of(object)?;
    let Some(spec) = Spec::of(&value) else { return Ok(()) };
    // An empty selector would take every replica set of the namespace. Validation refuses it.
    if spec.selector.is_everything() {
        return Ok(());
    }
    let deleting = object.meta.deletion_timestamp.is_some();
    if !deleting && sets::claim(planner, object, &spec)? {
        return Ok(());
    }
    let conditions = Conditions::of(&value);
    let mut round = Round {
        object,
        old_conditions: conditions.clone(),
        conditions,
        old_status: status::Counts::of(&value),
        collisions: value["status"]["collisionCount"].as_i64().unwrap_or(0),
        revision: None,
        sets: Sets::of(state, object, &spec, planner.now)?,
        failed: false,
        deletions: Vec::new(),
        events: Vec::new(),
        now: planner.now,
        spec,
    };
    if !deleting {
        decide(&mut round, planner);
    }
    status::sync(&mut round);
    finish(round, planner, value)
}

fn decide(round: &mut Round<'_>, planner: &mut Planner<'_>) {
    round.note_pause();
    if round.spec.paused || round.is_scaling() {
        round.adopt_new_set();
        round.scale_proportionally();
        if round.spec.paused {
            round.clean_up();
        }
        return;
    }
    match round.spec.strategy {
        Strategy::RollingUpdate => round.roll(planner),
        Strategy::Recreate => round.recreate(planner),
    }
}

/// Turns what was decided into one transaction.
fn finish(round: Round<'_>, planner: &mut Planner<'_>, mut value: Value) -> Result<(), Unreadable> {
    let before = value.clone();
    let mut transaction = Transaction::default();
    if let Some(revision) = round.revision {
        draft::annotate(&mut value, REVISION, &revision.to_string());
    }
    status::write(&round, &mut value);
    // The deployment's revision guards all: a deployment that changed meanwhile is looked at anew.
    transaction = transaction
        .expecting(round.object.key.clone(), coracle_objects::Expect::Revision(round.object.revision));
    round.sets.write(&mut transaction);
    for name in &round.deletions {
        let Some(set) = planner.state.models.replica_sets.get(name) else { continue };
        if let Some(deletion) = deletion::delete(&planner.state.view, &set.object, None, planner.now)? {
            transaction.join(deletion);
        }
    }
    if value != before {
        transaction.writes.push(Write::Put { key: round.object.key.clone(), draft: draft::bytes(&value) });
    }
    if let Some(moment) = round.next_deadline() {
        planner.wake_at(moment);
    }
    if transaction.writes.is_empty() || !planner.propose(transaction) {
        return Ok(());
    }
    for event in round.events {
        planner.record_done(event);
    }
    Ok(())
}

impl Round<'_> {
    /// When something is to be decided although nothing changes: the progress deadline.
    fn next_deadline(&self) -> Option<jiff::Timestamp> {
        let progressing = self.conditions.get(PROGRESSING)?;
        let deadline = self.spec.progress_deadline(progressing)?;
        (deadline > self.now).then_some(deadline)
    }

    fn record(&mut self, reason: &str, message: String) {
        self.events.push(EventRecord::normal(self.object, NAME, reason, message));
    }
}
