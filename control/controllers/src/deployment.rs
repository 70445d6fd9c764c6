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

use coracle_objects::{Object, ObjectName, Transaction, Write};
use serde_json::Value;

use self::{
    conditions::{Conditions, PROGRESSING},
    sets::Sets,
    spec::{Spec, Strategy},
};
use crate::{
    deletion,
    draft::{self, Unreadable},
    event_record::EventRecord,
    model::REVISION,
    planner::Planner,
};

const COMPONENT: &str = "deployment-controller";

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

pub fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let state = planner.state;
    let key = coracle_objects::ObjectKey { resource: "deployments.apps".into(), name: name.clone() };
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
        let Some(set) = planner.state.replica_sets.get(name) else { continue };
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
        planner.record(event);
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
        self.events.push(EventRecord::normal(self.object, COMPONENT, reason, message));
    }
}
