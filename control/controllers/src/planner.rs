//! What a controller works with while it plans one task: the state to read, and the plan to add to.

use std::collections::BTreeMap;

use coracle_objects::{Expect, ObjectKey, ObjectName, Transaction, View};
use jiff::Timestamp;

use crate::{
    backoff::{self, Backoff},
    chains::Chains,
    controllers::{Config, Origin, Plan, PlannedEvent},
    event_record::EventRecord,
    flights::Flights,
    function::{Load, revision_key},
    garbage_collector::circles::Circles,
    node_lifecycle::brake::Brake,
    queue::Queue,
    state::State,
    task::Task,
    timers::Timers,
};

/// What controllers remember beyond the objects. All of it can be lost: a new leader starts with none.
#[derive(Debug, Default)]
pub struct Memory {
    /// Since when a node is known to be down. Bounded by the nodes.
    pub node_down_since: BTreeMap<String, Timestamp>,
    /// How many of them are given up, and how soon. Bounded by the nodes.
    pub brake: Brake,
    /// Since when the node that a pod names is known to be missing, with the pod's uid. Bounded by the pods.
    pub node_missing_since: BTreeMap<ObjectName, (String, Timestamp)>,
    /// When a service's endpoints were last written. Bounded by the services.
    pub endpoints_written: BTreeMap<ObjectName, Timestamp>,
    /// What was asked of revisions of functions lately. Bounded by the revisions.
    pub loads: BTreeMap<ObjectName, Load>,
}

impl Memory {
    pub fn len(&self) -> usize {
        self.node_down_since.len()
            + self.node_missing_since.len()
            + self.endpoints_written.len()
            + self.loads.len()
    }

    /// What counts on, where events were lost: how it stands with nodes, which is no reason to give up more of them.
    pub fn resync(self, view: &View) -> Self {
        let Self { mut node_down_since, mut brake, mut loads, .. } = self;
        node_down_since.retain(|node, _| view.get(&ObjectKey::new("nodes", "", node)).is_some());
        brake.resync();
        loads.retain(|name, _| view.get(&revision_key(name)).is_some());
        Self { node_down_since, brake, loads, ..Self::default() }
    }
}

/// See the module.
pub struct Planner<'a> {
    pub state: &'a State,
    pub config: &'a Config,
    pub memory: &'a mut Memory,
    pub circles: &'a mut Circles,
    pub now: Timestamp,
    pub(crate) task: Task,
    pub(crate) uid: &'a mut dyn FnMut() -> String,
    pub(crate) flights: &'a mut Flights,
    pub(crate) timers: &'a mut Timers,
    pub(crate) backoff: &'a mut Backoff,
    pub(crate) chains: &'a mut Chains,
    /// How far on in a chain of our own writes this run is, and its writes are.
    pub(crate) links: u32,
    pub(crate) links_written: u32,
    pub(crate) marked: &'a mut Queue,
    pub(crate) plan: &'a mut Plan,
    /// Set where a transaction had to be left out.
    pub(crate) blocked: bool,
}

impl Planner<'_> {
    /// Adds a transaction to the plan. False where one of its objects has a write under way: what it is based on is
    /// about to be old, so it is left out, and the task runs again when more is known. False as well where it makes
    /// something and the task may not do so for now.
    pub fn propose(&mut self, transaction: Transaction) -> bool {
        let creating = backoff::creates(&transaction);
        if creating && !self.may_create() {
            return false;
        }
        let written = transaction.writes.iter().map(|write| write.key());
        let expected = transaction
            .preconditions
            .iter()
            .filter(|precondition| matches!(precondition.expect, Expect::Revision(_)))
            .map(|precondition| &precondition.key);
        if written.chain(expected).any(|key| self.flights.writes(key)) {
            self.blocked = true;
            return false;
        }
        self.flights.launch(&self.task, &transaction, self.now);
        let links = self.chains.write(&transaction, self.links, self.now);
        self.links_written = self.links_written.max(links);
        self.plan.origins.push(Origin::of(&self.task));
        self.plan.transactions.push(transaction);
        true
    }

    /// Whether the task may make objects now. Where what it made lately failed or was undone, it waits, and runs again
    /// when the wait is over.
    pub fn may_create(&mut self) -> bool {
        match self.backoff.creates_from(&self.task, self.now) {
            Some(until) => {
                self.wake_at(until);
                false
            }
            None => true,
        }
    }

    /// Why the task's last try failed for good, until one succeeds.
    pub fn failure(&self) -> Option<&str> {
        self.backoff.reason(&self.task)
    }

    /// Takes back what the task has planned.
    pub(crate) fn take_back(&mut self, transactions: usize, events: usize) {
        self.plan.transactions.truncate(transactions);
        self.plan.origins.truncate(transactions);
        self.plan.events.truncate(events);
        self.flights.abandon(&self.task);
    }

    /// Counts as if what the task makes were refused for good: no object of this content is admitted.
    pub fn refuse(&mut self, reason: &str) {
        self.fail(true, reason);
    }

    fn fail(&mut self, creating: bool, reason: &str) {
        let task = self.task.clone();
        let event = self.state.failure(&task, creating, reason);
        self.plan.events.extend(event.map(PlannedEvent::from));
        let until = self.backoff.failed(&task, creating, reason, self.now);
        self.wake_at(until);
        // The status is to say so.
        if creating {
            self.mark(task);
        }
    }

    /// Adds a record of an event.
    pub fn record(&mut self, event: EventRecord) {
        self.plan.events.push(event.into());
    }

    /// Adds a record of what the last transaction does, which is told once that is applied.
    pub fn record_done(&mut self, event: EventRecord) {
        let of = self.plan.transactions.len().checked_sub(1);
        self.plan.events.push(PlannedEvent { record: event, of });
    }

    /// Has this task run again at `at`, whatever is observed until then.
    pub fn wake_at(&mut self, at: Timestamp) {
        let task = self.task.clone();
        self.timers.set(&task, at);
    }

    /// As [`Self::wake_at`], for a run that leaves to a later one what it was woken for.
    pub fn postpone(&mut self, at: Timestamp) {
        self.wake_at(at);
        self.chains.wake(&self.task, self.links);
    }

    /// Has another task run, with the next plan.
    pub fn mark(&mut self, task: Task) {
        self.chains.wake(&task, self.links);
        self.marked.insert(task);
    }

    /// A fresh uid for an object that is created.
    pub fn new_uid(&mut self) -> String {
        (self.uid)()
    }
}
