//! All controllers behind one door.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{self, AssertUnwindSafe},
};

use coracle_objects::{Event, EventKind, ObjectName, Transaction, View, kinds::FUNCTION_REVISIONS};
use jiff::Timestamp;

use crate::{
    backoff::{self, Backoff, Outcome},
    chains::Chains,
    controller,
    event_record::EventRecord,
    flights::Flights,
    function::{self, FunctionDemand, Load},
    garbage_collector::circles::Circles,
    planner::{Memory, Planner},
    queue::Queue,
    report,
    state::State,
    task::Task,
    timers::Timers,
};

/// Once a plan has so many transactions no further task is begun. The rest is for the next plan, at once.
const PLAN_TRANSACTIONS_MAX: usize = 2_048;
/// The most tasks of one plan, whatever comes of them.
const PLAN_TASKS_MAX: usize = 4_096;
/// Once a controller has added so many transactions to a plan, the next one has its turn.
const TURN_TRANSACTIONS_MAX: usize = 512;

/// What the controllers need to know beyond the objects.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The certificates, in PEM, by which pods can tell that they talk to this cluster's API: given to each namespace.
    pub ca_bundle: String,
}

/// Which task a transaction is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Task);

impl Origin {
    pub(crate) fn of(task: &Task) -> Self {
        Self(task.clone())
    }

    /// The controller's service account, in whose name it writes. Each has one of its own name.
    pub fn account(&self) -> &'static str {
        self.0.controller().name()
    }
}

/// An event that a plan tells of.
#[derive(Clone, Debug)]
pub struct PlannedEvent {
    pub record: EventRecord,
    /// The place of the plan's transaction that it tells of, which is true once that is applied.
    pub of: Option<usize>,
}

impl From<EventRecord> for PlannedEvent {
    fn from(record: EventRecord) -> Self {
        Self { record, of: None }
    }
}

/// What is to be done. To be proposed in this order; each transaction is refused by itself where it is stale.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub transactions: Vec<Transaction>,
    /// Of each transaction: to be given back with its outcome.
    pub origins: Vec<Origin>,
    pub events: Vec<PlannedEvent>,
    /// How many tasks were looked at: a measure of the work, for tests and metrics.
    pub tasks: usize,
    /// How many steps were taken from owners to those that block them: another such measure.
    pub steps: usize,
    /// Which tasks panicked, and with what words: faults of ours. They are tried again ever more rarely.
    pub panics: Vec<String>,
}

/// How the controllers fare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Tasks that wait to be looked at.
    pub waiting: usize,
    /// Tasks that had trouble lately: refused, failed, or undone by others.
    pub in_trouble: usize,
    /// Tasks whose own writes wake them again and again, though nothing else happens. They wait ever longer between them.
    pub restless: usize,
    /// Objects that cannot be read.
    pub unreadable: usize,
    /// What is remembered beyond the objects, of all kinds together.
    pub remembered: usize,
}

/// All controllers. Fed by events, asked for plans; the same events, times and uids give the same plans.
#[derive(Debug, Default)]
pub struct Controllers {
    config: Config,
    state: State,
    memory: Memory,
    flights: Flights,
    timers: Timers,
    backoff: Backoff,
    chains: Chains,
    /// Tasks to run. Bounded by the objects, as are the others.
    dirty: Queue,
    /// Tasks to run once nothing of theirs is under way any more.
    held: BTreeSet<Task>,
    /// Tasks to run with the next plan, whenever there is one: what they write is under way in another's transaction.
    blocked: BTreeSet<Task>,
    /// Events to be told with the next plan.
    untold: Vec<EventRecord>,
    /// The time of a plan that left work for the next one.
    unfinished: Option<Timestamp>,
}

impl Controllers {
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes one change. Events are to come in the order of apply, each once.
    pub fn observe(&mut self, event: &Event) {
        self.state.observe(event);
        self.backoff.observe(&self.state, event);
        if event.kind == EventKind::Deleted && event.object.key.resource.as_str() == FUNCTION_REVISIONS {
            self.memory.loads.remove(&event.object.key.name);
        }
        if let Some(task) = Task::of_owner(&event.object.key).filter(|_| is_another_thing(event)) {
            self.backoff.forget(&task);
        }
        let links = self.chains.link(event);
        let mut woken = Queue::default();
        controller::mark(&self.state, event, &mut woken);
        let settled = self.flights.observe(event);
        for task in woken.drain() {
            self.wake(task, links);
        }
        for task in settled {
            self.held.remove(&task);
            self.wake(task, links);
        }
    }

    /// Has a task run that a change concerns which is so far on in a chain of our own writes.
    fn wake(&mut self, task: Task, links: u32) {
        self.chains.wake(&task, links);
        if links == 0 {
            self.backoff.stir(&task);
        }
        self.dirty.insert(task);
    }

    /// Starts anew from a snapshot: after start, and at a change of leader.
    ///
    /// What was tried in vain stays known: who can make events get lost must not get anything tried again at once by it.
    pub fn resync(&mut self, view: &View) {
        let config = std::mem::take(&mut self.config);
        let memory = std::mem::take(&mut self.memory).resync(view);
        let backoff = std::mem::take(&mut self.backoff);
        *self = Self { config, memory, backoff, state: State::of(view), ..Self::default() };
        for object in view.tables.values().flat_map(|table| table.values()) {
            controller::mark_known(&self.state, object, &mut self.dirty);
        }
    }

    /// Takes what gateways say is asked of functions' revisions. What is no revision counts for nothing.
    pub fn hear_demand(&mut self, told: BTreeMap<ObjectName, FunctionDemand>, now: Timestamp) {
        for (name, demand) in told {
            let Some(revision) = self.state.get(&function::revision_key(&name)) else { continue };
            let Some(task) = function::task_of(revision) else { continue };
            self.memory.loads.entry(name).or_insert_with(|| Load::begin(0, now)).note(demand, now);
            self.wake(task, 0);
        }
    }

    /// Takes all that has changed until this view, where events were lost. Costs what is different.
    pub fn catch_up(&mut self, view: &View) {
        let known = self.state.view.clone();
        let resources: BTreeSet<&str> =
            known.tables.keys().chain(view.tables.keys()).map(|resource| resource.as_str()).collect();
        for resource in resources {
            view.events_since(&known, resource).iter().for_each(|event| self.observe(event));
        }
    }

    /// Tells what became of a transaction of a plan. Need not be called: what is not observed is given up after some
    /// seconds. But what is refused or fails is tried again with growing pauses only where it is told here.
    pub fn settle(&mut self, origin: &Origin, transaction: &Transaction, outcome: &Outcome, now: Timestamp) {
        let task = &origin.0;
        if *outcome != Outcome::Applied {
            self.chains.refused(transaction);
            let settled = self.flights.refused(transaction);
            self.release(settled);
        }
        let creating = backoff::creates(transaction);
        let failed = matches!(outcome, Outcome::Impossible(_));
        if failed && self.backoff.waits_after(task, creating, now) {
            // Another write of the same plan has failed: that is counted and told.
            return;
        }
        let Some(again) = self.backoff.note(task, transaction, outcome, now) else { return };
        self.timers.set(task, again);
        if let Outcome::Impossible(reason) = outcome {
            self.untold.extend(self.state.failure(task, creating, reason));
            // What is made is missing; the rest goes on, and the status says why.
            if creating {
                self.dirty.insert(task.clone());
            }
        }
    }

    /// Plans what is to be done now. `now` must not go backwards; `uid` gives a fresh random UUID at each call.
    pub fn plan(&mut self, now: Timestamp, uid: &mut dyn FnMut() -> String) -> Plan {
        self.plan_while(now, uid, &mut || true)
    }

    /// As [`Self::plan`], and begins no further task once `go_on` says no.
    ///
    /// What a task marks waits for the next plan, so that every plan ends: tasks that mark each other take turns with all
    /// others.
    pub fn plan_while(
        &mut self,
        now: Timestamp,
        uid: &mut dyn FnMut() -> String,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Plan {
        let settled = self.flights.expire(now);
        self.release(settled);
        self.backoff.expire(now);
        self.chains.expire(now);
        self.memory.brake.begin(self.timers.next(), now);
        self.dirty.extend(self.timers.take_due(now));
        self.dirty.extend(std::mem::take(&mut self.blocked));
        let events = std::mem::take(&mut self.untold).into_iter().map(PlannedEvent::from).collect();
        let mut plan = Plan { events, ..Plan::default() };
        let mut marked = Queue::default();
        let mut circles = Circles::default();
        let mut turn_began = 0;
        while plan.tasks < PLAN_TASKS_MAX
            && plan.transactions.len() < PLAN_TRANSACTIONS_MAX
            && go_on()
            && let Some(task) = self.dirty.pop()
        {
            if self.flights.busy(&task) {
                self.held.insert(task);
            } else if let Some(until) = self.backoff.waits_until(&task, now) {
                self.timers.set(&task, until);
            } else {
                plan.tasks += 1;
                self.run(task, now, uid, &mut circles, &mut marked, &mut plan);
            }
            if plan.transactions.len() - turn_began >= TURN_TRANSACTIONS_MAX {
                turn_began = plan.transactions.len();
                self.dirty.end_turn();
            }
        }
        self.dirty.extend(marked.drain());
        plan.steps = circles.steps;
        self.unfinished = (!self.dirty.is_empty()).then_some(now);
        plan
    }

    /// When `plan` has something to do although nothing is observed. In the past where it left work undone.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [self.unfinished, self.timers.next(), self.flights.next_deadline()].into_iter().flatten().min()
    }

    pub fn situation(&self) -> Situation {
        Situation {
            waiting: self.dirty.len(),
            in_trouble: self.backoff.len(),
            restless: self.backoff.restless(),
            unreadable: self.state.models.unreadable.len(),
            remembered: self.held.len()
                + self.blocked.len()
                + self.memory.len()
                + self.flights.len()
                + self.timers.len()
                + self.backoff.remembered()
                + self.chains.len(),
        }
    }

    fn release(&mut self, settled: Vec<Task>) {
        for task in settled {
            self.held.remove(&task);
            self.dirty.insert(task);
        }
    }

    /// Runs one task. One that panics or finds what it cannot read has planned nothing, and waits.
    fn run(
        &mut self,
        task: Task,
        now: Timestamp,
        uid: &mut dyn FnMut() -> String,
        circles: &mut Circles,
        marked: &mut Queue,
        plan: &mut Plan,
    ) {
        self.timers.clear(&task);
        self.backoff.begin(&task, now);
        let links = self.chains.begin(&task);
        let (transactions, events) = (plan.transactions.len(), plan.events.len());
        let mut planner = Planner {
            state: &self.state,
            config: &self.config,
            memory: &mut self.memory,
            circles,
            now,
            task: task.clone(),
            uid,
            flights: &mut self.flights,
            timers: &mut self.timers,
            backoff: &mut self.backoff,
            chains: &mut self.chains,
            links,
            links_written: 0,
            marked,
            plan,
            blocked: false,
        };
        let outcome =
            panic::catch_unwind(AssertUnwindSafe(|| task.controller().plan(&mut planner, task.subject())));
        let links_written = planner.links_written;
        if planner.blocked {
            planner.chains.wake(&task, links);
            self.blocked.insert(task.clone());
        }
        let reason = match outcome {
            Ok(Ok(())) => {
                self.rest(&task, links_written, now);
                return;
            }
            Ok(Err(unreadable)) => {
                planner.take_back(transactions, events);
                report::tell(&mut planner, &unreadable);
                unreadable.reason
            }
            Err(panic) => {
                planner.take_back(transactions, events);
                let words = words(&*panic);
                plan.panics.push(format!("{task}: {words}"));
                words
            }
        };
        self.blocked.remove(&task);
        let again = self.backoff.failed(&task, false, &reason, now);
        self.timers.set(&task, again);
    }

    /// Has a task wait whose writes lead to nothing but more of them, and tells of it the first time.
    fn rest(&mut self, task: &Task, links_written: u32, now: Timestamp) {
        let Some((until, first)) = self.backoff.wrote(task, links_written, now) else { return };
        self.timers.set(task, until);
        if first {
            self.untold.extend(self.state.restless(task));
        }
    }
}

/// Whether what a task works on is gone or was changed by a user, so that its troubles are those of the past.
fn is_another_thing(event: &Event) -> bool {
    let Some(before) = event.previous.as_ref().filter(|_| event.kind == EventKind::Modified) else {
        return event.kind == EventKind::Deleted;
    };
    let (before, now) = (before.meta.generation, event.object.meta.generation);
    // Where changes are not counted, only users make them.
    before != now || now == 0
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
