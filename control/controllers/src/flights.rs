//! Transactions that were planned and whose outcome is not observed yet.
//!
//! A task with transactions under way is not run again before all of them landed: so nothing is created twice because
//! the first was not seen yet, and no write is based on what is known to be old. This replaces upstream's expectations.
//!
//! Outcomes are read off the events alone, which come in the order of apply. Any event of an object that a transaction
//! writes, or expects at a certain revision, settles it: either the event is its own, or its precondition holds no more.

use std::collections::{BTreeMap, BTreeSet};

use coracle_objects::{Event, EventKind, Expect, ObjectKey, Transaction};
use jiff::{SignedDuration, Timestamp};

use crate::{draft::later, selectors::unlink, task::Task};

/// After this long a transaction that nothing is heard of is taken for lost (the leader changed, a proposal was
/// dropped). Its preconditions make a second one harmless.
const FLIGHT_S_MAX: i64 = 10;

type FlightId = u64;

#[derive(Debug)]
struct Flight {
    task: Task,
    deadline: Timestamp,
    /// The objects any event of which settles it; true for those that it writes.
    settled_by: Vec<(ObjectKey, bool)>,
    /// The objects whose end settles it.
    guarded_by: Vec<ObjectKey>,
}

/// All transactions under way.
#[derive(Debug, Default)]
pub struct Flights {
    next: FlightId,
    flights: BTreeMap<FlightId, Flight>,
    settled_by: BTreeMap<ObjectKey, BTreeSet<FlightId>>,
    guarded_by: BTreeMap<ObjectKey, BTreeSet<FlightId>>,
    /// How many transactions under way write an object.
    written: BTreeMap<ObjectKey, usize>,
    by_task: BTreeMap<Task, BTreeSet<FlightId>>,
    deadlines: BTreeSet<(Timestamp, FlightId)>,
}

impl Flights {
    pub fn len(&self) -> usize {
        self.flights.len() + self.written.len() + self.by_task.len()
    }

    pub fn launch(&mut self, task: &Task, transaction: &Transaction, now: Timestamp) {
        let id = self.next;
        self.next += 1;
        let written: BTreeSet<&ObjectKey> = transaction.writes.iter().map(|write| write.key()).collect();
        let mut settled_by: Vec<(ObjectKey, bool)> =
            written.iter().map(|key| ((*key).clone(), true)).collect();
        let mut guarded_by = Vec::new();
        for precondition in &transaction.preconditions {
            match precondition.expect {
                _ if written.contains(&precondition.key) => {}
                Expect::Revision(_) | Expect::Absent => settled_by.push((precondition.key.clone(), false)),
                Expect::Exists | Expect::Uid(_) | Expect::NotDeleting => {
                    guarded_by.push(precondition.key.clone());
                }
            }
        }
        for (key, writes) in &settled_by {
            self.settled_by.entry(key.clone()).or_default().insert(id);
            if *writes {
                *self.written.entry(key.clone()).or_default() += 1;
            }
        }
        for key in &guarded_by {
            self.guarded_by.entry(key.clone()).or_default().insert(id);
        }
        self.by_task.entry(task.clone()).or_default().insert(id);
        let deadline = later(now, SignedDuration::from_secs(FLIGHT_S_MAX));
        self.deadlines.insert((deadline, id));
        self.flights.insert(id, Flight { task: task.clone(), deadline, settled_by, guarded_by });
    }

    /// Whether a transaction of this task is under way.
    pub fn busy(&self, task: &Task) -> bool {
        self.by_task.contains_key(task)
    }

    /// Whether a transaction under way writes this object.
    pub fn writes(&self, key: &ObjectKey) -> bool {
        self.written.contains_key(key)
    }

    /// Takes an event; answers the tasks whose last transaction it settled.
    pub fn observe(&mut self, event: &Event) -> Vec<Task> {
        let key = &event.object.key;
        let mut settled: BTreeSet<FlightId> = self.settled_by.get(key).cloned().unwrap_or_default();
        let ends = event.kind == EventKind::Deleted || event.object.meta.deletion_timestamp.is_some();
        if ends && let Some(guarded) = self.guarded_by.get(key) {
            settled.extend(guarded);
        }
        settled.into_iter().filter_map(|id| self.land(id)).collect()
    }

    /// Takes the server's word that this transaction was refused or dropped: nothing needs to be waited for.
    pub fn refused(&mut self, transaction: &Transaction) -> Vec<Task> {
        let Some(write) = transaction.writes.first() else { return Vec::new() };
        let ids = self.settled_by.get(write.key()).cloned().unwrap_or_default();
        ids.into_iter().filter_map(|id| self.land(id)).collect()
    }

    /// Forgets the transactions of a task: they are not proposed.
    pub fn abandon(&mut self, task: &Task) {
        for id in self.by_task.get(task).cloned().unwrap_or_default() {
            self.land(id);
        }
    }

    /// Gives up what was not heard of for too long; answers the tasks that have nothing under way any more.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Task> {
        let mut settled = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            settled.extend(self.land(id));
        }
        settled
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The task, where this was its last flight.
    fn land(&mut self, id: FlightId) -> Option<Task> {
        let flight = self.flights.remove(&id)?;
        self.deadlines.remove(&(flight.deadline, id));
        for (key, writes) in &flight.settled_by {
            unlink(&mut self.settled_by, key, &id);
            if *writes {
                decrease(&mut self.written, key);
            }
        }
        for key in &flight.guarded_by {
            unlink(&mut self.guarded_by, key, &id);
        }
        unlink(&mut self.by_task, &flight.task, &id);
        (!self.by_task.contains_key(&flight.task)).then_some(flight.task)
    }
}

fn decrease<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
