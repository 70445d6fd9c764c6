//! Functions: a revision of each change of what runs, and the requests to those that the traffic names.
//!
//! A revision owns a ReplicaSet, whose pods are its instances, and a Service, by which gateways know them. Requests go to other
//! revisions only once those serve, and a revision that has none any more keeps its instances until every gateway knows.

mod revisions;
mod scaling;
mod status;
mod traffic;

use std::collections::BTreeSet;

use coracle_objects::{
    Event, Expect, Object, ObjectKey, ObjectName, Transaction, Write,
    kinds::{FUNCTION_LABEL, FUNCTION_REVISIONS, FUNCTIONS},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use self::{
    revisions::{Revision, Revisions},
    scaling::Scale,
    traffic::Traffic,
};
use crate::{
    controller::{Controller, states},
    deletion,
    draft::{self, Unreadable, later},
    event_record::EventRecord,
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

pub use scaling::{FunctionDemand, Load};

/// See the module.
pub struct Functions;

const NAME: &str = "function-controller";
/// Revisions that are kept for a way back, beside those that are in use.
const REVISIONS_KEPT: usize = 10;
/// How long a revision that has lost its requests keeps its instances: by then every gateway knows.
const DRAINED_AFTER: SignedDuration = SignedDuration::from_secs(15);

impl Controller for Functions {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cares_for(&self) -> Option<&'static str> {
        Some(FUNCTIONS)
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        match event.object.key.resource.as_str() {
            FUNCTIONS => tasks.insert(on(&event.object.key.name)),
            FUNCTION_REVISIONS | "replicasets.apps" | "services" | "pods" => {
                let is_there = |task: &Task| state.get(task.subject()).is_some();
                tasks.extend(states(event).filter_map(task_of).filter(is_there));
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        let state = planner.state;
        let Some(object) = state.get(subject) else { return Ok(()) };
        if object.meta.deletion_timestamp.is_some() {
            return Ok(());
        }
        let value = draft::of(object)?;
        let revisions = Revisions::of(state, object)?;
        if revisions.are_of(&value) {
            settle(planner, object, value, revisions)
        } else {
            begin_next(planner, object, &value, &revisions);
            Ok(())
        }
    }
}

/// The task on a function.
pub fn on(function: &ObjectName) -> Task {
    Task::on(NAME, FUNCTIONS, function)
}

/// The key of a revision of a function.
pub fn revision_key(name: &ObjectName) -> ObjectKey {
    ObjectKey { resource: FUNCTION_REVISIONS.into(), name: name.clone() }
}

/// The task that chooses how many instances a revision has.
pub fn task_of(revision: &Object) -> Option<Task> {
    let function = revision.meta.labels.get(FUNCTION_LABEL)?;
    Some(on(&ObjectName::new(revision.namespace(), function)))
}

/// The function's own revision guards all that is written for it: one that changed meanwhile is looked at anew.
fn guarded(function: &Object) -> Transaction {
    Transaction::default().expecting(function.key.clone(), Expect::Revision(function.revision))
}

/// Makes a revision of what the function runs now.
fn begin_next(planner: &mut Planner<'_>, function: &Object, value: &Value, revisions: &Revisions<'_>) {
    let mut transaction = guarded(function);
    let name = revisions.make_next(planner, function, value, &mut transaction);
    if planner.propose(transaction) {
        let message = format!("Created revision {name}");
        planner.record_done(EventRecord::normal(function, NAME, "RevisionCreated", message));
    }
}

/// Brings traffic, instances and statuses to what the function asks for, in one transaction.
fn settle(
    planner: &mut Planner<'_>,
    function: &Object,
    mut value: Value,
    mut revisions: Revisions<'_>,
) -> Result<(), Unreadable> {
    let (state, now) = (planner.state, planner.now);
    let before = value.clone();
    let mut transaction = guarded(function);
    let traffic = Traffic::of(&value, &revisions);
    let mut going = BTreeSet::new();
    for revision in superfluous(&revisions, &traffic, now) {
        going.insert(revision.name().to_owned());
        if let Some(deletion) = deletion::delete(&state.view, revision.object, None, now)? {
            transaction.join(deletion);
        }
    }
    let scale = Scale::of(&value);
    let mut again = None;
    let stays = |revision: &&mut Revision<'_>| !revision.is_deleting() && !going.contains(revision.name());
    for revision in revisions.all.iter_mut().filter(stays) {
        let unused_since = status::of_revision(state, revision, &traffic, now)?;
        let load = planner.memory.loads.entry(revision.object.key.name.clone());
        let load = load.or_insert_with(|| Load::begin(revision.replicas(), now));
        let (asked, look_at) = load.decide(scale, revision.replicas(), now);
        let drained_at = unused_since.map(|since| later(since, DRAINED_AFTER)).filter(|at| *at > now);
        let is_first = unused_since.is_none() && !revision.has_served();
        revision.set_replicas(if is_first || traffic.awaits(revision.name()) {
            asked.max(1)
        } else if unused_since.is_none() {
            asked
        } else {
            drained_at.map_or(0, |_| revision.replicas())
        });
        again = again.into_iter().chain(drained_at).chain(look_at).min();
        revision.complete(planner, &mut transaction);
        revision.write(&mut transaction);
    }
    let moved = status::of_function(state, function, &mut value, (&revisions, &traffic), now);
    if value != before {
        transaction.writes.push(Write::Put { key: function.key.clone(), draft: draft::bytes(&value) });
    }
    if let Some(moment) = again {
        planner.wake_at(moment);
    }
    if !transaction.writes.is_empty()
        && planner.propose(transaction)
        && let Some(message) = moved
    {
        planner.record_done(EventRecord::normal(function, NAME, "TrafficChanged", message));
    }
    Ok(())
}

/// The oldest of those that are not in use, and that every gateway knows to be so, beyond what is kept.
fn superfluous<'a, 'b>(
    revisions: &'b Revisions<'a>,
    traffic: &Traffic,
    now: Timestamp,
) -> Vec<&'b Revision<'a>> {
    let is_unused = |revision: &&Revision<'_>| {
        let since = status::unused_since(&revision.value).filter(|_| !traffic.needs(revision.name()));
        since.is_some_and(|since| later(since, DRAINED_AFTER) <= now) && !revision.is_deleting()
    };
    let unused: Vec<_> = revisions.all.iter().filter(is_unused).collect();
    let more = unused.len().saturating_sub(REVISIONS_KEPT);
    unused.into_iter().take(more).collect()
}
