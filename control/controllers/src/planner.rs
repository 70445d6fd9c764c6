//! What a controller works with while it plans one task: the state to read, and the plan to add to.

use std::collections::{BTreeMap, BTreeSet};

use coracle_objects::{
    Expect, Object, ObjectKey, ObjectName, Transaction, View, Write, admission, by_resource,
};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    backoff::{self, Backoff},
    chains::Chains,
    controllers::{Config, Origin, Plan},
    event_record::EventRecord,
    flights::Flights,
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
}

impl Memory {
    pub fn len(&self) -> usize {
        self.node_down_since.len() + self.node_missing_since.len() + self.endpoints_written.len()
    }

    /// What counts on, where events were lost: how it stands with nodes, which is no reason to give up more of them.
    pub fn resync(self, view: &View) -> Self {
        let Self { mut node_down_since, mut brake, .. } = self;
        node_down_since.retain(|node, _| view.get(&ObjectKey::new("nodes", "", node)).is_some());
        brake.resync();
        Self { node_down_since, brake, ..Self::default() }
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
    /// something and the task may not do so for now, or where no store would take it.
    pub fn propose(&mut self, mut transaction: Transaction) -> bool {
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
        match self.admit(&mut transaction) {
            Ok(()) => {}
            // What it was for goes with it.
            Err(Refused::NamespaceEnds) => return false,
            Err(Refused::Fault(reason)) => {
                self.fail(creating, &reason);
                return false;
            }
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

    /// Has a transaction pass what a client's writes do: what is made is in a namespace that stays, and each object is one
    /// that its kind and the store take.
    fn admit(&self, transaction: &mut Transaction) -> Result<(), Refused> {
        let created: BTreeSet<ObjectKey> = transaction.expected_absent().into_iter().cloned().collect();
        let mut namespaces = BTreeSet::new();
        for write in &transaction.writes {
            let Write::Put { key, draft } = write else { continue };
            let limit = self.config.object_bytes_max;
            if draft.len() > limit {
                let reason = format!("{key} would take {} bytes; the limit is {limit}", draft.len());
                return Err(Refused::Fault(reason));
            }
            let object = Object::from_draft(key.clone(), draft, 0);
            let object = object.map_err(|error| Refused::Fault(format!("{key}: {error}")))?;
            let is_new = created.contains(key);
            check_own_kind(&object, is_new).map_err(Refused::Fault)?;
            if is_new && !key.name.namespace.is_empty() {
                namespaces.insert(key.name.namespace.clone());
            }
        }
        for namespace in namespaces {
            let stays = admission::in_namespace(&namespace, &self.state.view);
            transaction.preconditions.push(stays.map_err(|_| Refused::NamespaceEnds)?);
        }
        Ok(())
    }

    /// Counts as if what the task makes were refused for good: no object of this content is admitted.
    pub fn refuse(&mut self, reason: &str) {
        self.fail(true, reason);
    }

    fn fail(&mut self, creating: bool, reason: &str) {
        let task = self.task.clone();
        let event = self.state.failure(&task, creating, reason);
        self.plan.events.extend(event);
        let until = self.backoff.failed(&task, creating, reason, self.now);
        self.wake_at(until);
        // The status is to say so.
        if creating {
            self.mark(task);
        }
    }

    /// Adds a record of an event.
    pub fn record(&mut self, event: EventRecord) {
        self.plan.events.push(event);
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

/// Why a transaction is not planned.
enum Refused {
    /// What it makes is in a namespace that is ending, or gone.
    NamespaceEnds,
    Fault(String),
}

/// Kinds whose objects are written whole by controllers, and not from somebody's template: what is in them passes the
/// kind's own rules, or it could not be edited afterwards.
const WRITTEN_WHOLE: [&str; 2] = ["endpoints", "endpointslices.discovery.k8s.io"];

/// Kinds that are made in numbers of one template, which has been checked once for all.
const CAST: &str = "pods";

fn check_own_kind(object: &Object, created: bool) -> Result<(), String> {
    let resource = object.key.resource.as_str();
    let whole = WRITTEN_WHOLE.contains(&resource);
    let checked = if created { resource != CAST } else { whole };
    let Some(kind) = by_resource(resource).filter(|_| checked) else {
        return Ok(());
    };
    let mut value: Value = object.parse().map_err(|error| format!("{}: {error}", object.key))?;
    kind.defaults(&mut value);
    // What is on its way out, or was adopted with faults, only loses metadata.
    let fault = if object.meta.deletion_timestamp.is_some() {
        None
    } else if created {
        admission::faults_of_new(kind, &value).into_iter().next()
    } else {
        kind.validate(&value, None).into_iter().next()
    };
    match fault {
        Some(fault) => Err(format!("{}: {fault}", object.key)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_controller_writes_passes_its_kind() {
        let slice = |address: &str| {
            let key = ObjectKey::new("endpointslices.discovery.k8s.io", "default", "web-x");
            let body = json!({ "metadata": { "name": "web-x", "namespace": "default" }, "addressType": "IPv4",
                "endpoints": [{ "addresses": [address] }], "ports": [] });
            check_own_kind(&Object::from_draft(key, body.to_string().as_bytes(), 1).unwrap(), false)
        };
        slice("10.128.0.1").unwrap();
        assert!(slice("1.2.3").unwrap_err().contains("endpoints[0].addresses[0]"));
    }
}
