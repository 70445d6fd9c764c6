//! A deployment's status: the counts, and the conditions Available and Progressing.

use serde_json::{Map, Value};

use crate::replica_set::REPLICA_FAILURE;

use super::{
    Round,
    conditions::{
        AVAILABLE, Condition, NEW_SET_AVAILABLE, PAUSED, PROGRESSING, RESUMED, SET_UPDATED, TIMED_OUT,
    },
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub observed_generation: i64,
    pub replicas: i64,
    pub updated: i64,
    pub ready: i64,
    pub available: i64,
    pub unavailable: i64,
}

impl Counts {
    /// As they are written on the deployment.
    pub fn of(deployment: &Value) -> Self {
        let count = |field: &str| deployment["status"][field].as_i64().unwrap_or(0);
        Self {
            observed_generation: count("observedGeneration"),
            replicas: count("replicas"),
            updated: count("updatedReplicas"),
            ready: count("readyReplicas"),
            available: count("availableReplicas"),
            unavailable: count("unavailableReplicas"),
        }
    }

    /// As the replica sets tell.
    fn now(round: &Round<'_>) -> Self {
        let known = || round.sets.all.iter().filter_map(|set| set.known);
        let available = known().map(|set| set.status.available_replicas).sum();
        let new = round.sets.new.and_then(|index| round.sets.all[index].known);
        Self {
            observed_generation: round.object.meta.generation,
            replicas: known().map(|set| set.status.replicas).sum(),
            updated: new.map_or(0, |set| set.status.replicas),
            ready: known().map(|set| set.status.ready_replicas).sum(),
            available,
            unavailable: (round.sets.sum(|set| set.replicas) - available).max(0),
        }
    }
}

/// Sets the conditions as the counts ask for.
pub fn sync(round: &mut Round<'_>) {
    let counts = Counts::now(round);
    let (status, reason, message) = if counts.available >= round.spec.replicas - round.spec.max_unavailable {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    round.conditions.set(Condition::new(AVAILABLE, status, reason, message.to_owned(), round.now));
    sync_failure(round);
    let deleting = round.object.meta.deletion_timestamp.is_some();
    // A paused deployment says only that it is paused; one that is scaled goes on as it was.
    if !deleting && !round.spec.paused && !round.is_scaling() && !round.failed {
        sync_progress(round, &counts);
    }
}

/// Hands on what a replica set says about pods that cannot be made.
fn sync_failure(round: &mut Round<'_>) {
    let sets = round.sets.new.into_iter().chain(0..round.sets.all.len());
    let failures =
        sets.filter_map(|index| round.sets.all[index].known).flat_map(|set| &set.status.conditions);
    let failure = failures.into_iter().find(|condition| condition["type"] == REPLICA_FAILURE);
    let Some(failure) = failure else {
        round.conditions.remove(REPLICA_FAILURE);
        return;
    };
    let text = |field: &str| failure[field].as_str().unwrap_or("").to_owned();
    let (status, reason, message) = (text("status"), text("reason"), text("message"));
    round.conditions.set(Condition::new(REPLICA_FAILURE, &status, &reason, message, round.now));
}

fn sync_progress(round: &mut Round<'_>, counts: &Counts) {
    if !round.spec.has_progress_deadline() {
        round.conditions.remove(PROGRESSING);
        return;
    }
    let subject = match round.sets.new {
        Some(index) => format!("ReplicaSet {:?}", round.sets.all[index].name()),
        None => format!("Deployment {:?}", round.object.name()),
    };
    let current = round.old_conditions.get(PROGRESSING);
    let was_complete = current.is_some_and(|condition| condition.reason == NEW_SET_AVAILABLE);
    if counts.replicas == counts.updated && was_complete {
        return;
    }
    let condition = |status, reason, outcome: &str| {
        Condition::new(PROGRESSING, status, reason, format!("{subject} {outcome} progressing."), round.now)
    };
    if complete(round, counts) {
        let message = format!("{subject} has successfully progressed.");
        round.conditions.set(Condition::new(PROGRESSING, "True", NEW_SET_AVAILABLE, message, round.now));
    } else if progressed(&round.old_status, counts) {
        let condition = condition("True", SET_UPDATED, "is");
        round.conditions.replace(condition);
    } else if timed_out(round) {
        let condition = condition("False", TIMED_OUT, "has timed out");
        round.conditions.set(condition);
    }
}

fn complete(round: &Round<'_>, counts: &Counts) -> bool {
    let wanted = round.spec.replicas;
    counts.updated == wanted && counts.replicas == wanted && counts.available == wanted
}

fn progressed(old: &Counts, new: &Counts) -> bool {
    let outdated = |counts: &Counts| counts.replicas - counts.updated;
    new.updated > old.updated
        || outdated(new) < outdated(old)
        || new.ready > old.ready
        || new.available > old.available
}

fn timed_out(round: &Round<'_>) -> bool {
    let Some(condition) = round.conditions.get(PROGRESSING) else { return false };
    round.spec.progress_deadline(condition).is_some_and(|deadline| deadline <= round.now)
}

/// Writes counts and conditions; leaves all else of the status as it is.
pub fn write(round: &Round<'_>, value: &mut Value) {
    let counts = Counts::now(round);
    let mut status: Map<String, Value> = value["status"].as_object().cloned().unwrap_or_default();
    let fields = [
        ("observedGeneration", counts.observed_generation),
        ("replicas", counts.replicas),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", counts.unavailable),
        ("collisionCount", round.collisions),
    ];
    for (field, count) in fields {
        // Sums of what others wrote may be beyond what the fields hold.
        let count = if field == "observedGeneration" { count } else { count.clamp(0, i32::MAX.into()) };
        if count == 0 {
            status.shift_remove(field);
        } else {
            status.insert(field.to_owned(), count.into());
        }
    }
    status.insert("conditions".to_owned(), round.conditions.to_value());
    value["status"] = status.into();
}

impl Round<'_> {
    /// Whether the rollout is through: all pods are new and available, none is left over.
    pub(super) fn is_complete(&self) -> bool {
        complete(self, &Counts::now(self))
    }

    /// Notes on the condition Progressing that a rollout was paused or resumed: its deadline then does not run.
    pub(super) fn note_pause(&mut self) {
        if !self.spec.has_progress_deadline() {
            return;
        }
        let reason = self.conditions.get(PROGRESSING).map(|condition| condition.reason.as_str());
        let (reason, message) = match (self.spec.paused, reason) {
            (_, Some(TIMED_OUT)) => return,
            (true, Some(PAUSED)) => return,
            (true, _) => (PAUSED, "Deployment is paused"),
            (false, Some(PAUSED)) => (RESUMED, "Deployment is resumed"),
            (false, _) => return,
        };
        self.conditions.set(Condition::new(PROGRESSING, "Unknown", reason, message.to_owned(), self.now));
    }
}
