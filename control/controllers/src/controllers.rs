//! All controllers behind one door.

use coracle_objects::{Event, Transaction, View};
use jiff::Timestamp;

use crate::{
    deployment,
    dirty::{self, Dirty, Task},
    endpoint_slice,
    event_record::EventRecord,
    flights::Flights,
    garbage_collector, namespace, node_lifecycle,
    planner::{Memory, Planner},
    pod_gc, replica_set, service_account,
    state::State,
    timers::Timers,
};

/// Once a plan has so many transactions no further task is begun. The rest is for the next plan, at once.
const PLAN_TRANSACTIONS_MAX: usize = 2_048;

/// What the controllers need to know beyond the objects.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The certificates, in PEM, by which pods can tell that they talk to this cluster's API: given to each namespace.
    pub ca_bundle: String,
}

/// What is to be done. To be proposed in this order; each transaction is refused by itself where it is stale.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub transactions: Vec<Transaction>,
    pub events: Vec<EventRecord>,
    /// How many tasks were looked at: a measure of the work, for tests and metrics.
    pub tasks: usize,
}

/// All controllers. Fed by events, asked for plans; the same events, times and uids give the same plans.
#[derive(Debug, Default)]
pub struct Controllers {
    config: Config,
    state: State,
    memory: Memory,
    flights: Flights,
    timers: Timers,
    /// Tasks to run. Bounded by the objects, as are the others.
    dirty: Dirty,
    /// Tasks to run once nothing of theirs is under way any more.
    held: Dirty,
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
        dirty::mark(&self.state, event, &mut self.dirty);
        let settled = self.flights.observe(event);
        self.release(settled);
    }

    /// Starts anew from a snapshot: after start, at a change of leader, and where events were lost.
    pub fn resync(&mut self, view: &View) {
        let config = std::mem::take(&mut self.config);
        let memory = std::mem::take(&mut self.memory).resync(view);
        *self = Self { config, memory, state: State::of(view), ..Self::default() };
        for object in view.tables.values().flat_map(|table| table.values()) {
            dirty::mark_known(&self.state, object, &mut self.dirty);
        }
    }

    /// Tells that a transaction of a plan was refused or never proposed. Need not be called: what is not observed is
    /// given up after some seconds. It only makes the next try come sooner.
    pub fn refused(&mut self, transaction: &Transaction) {
        let settled = self.flights.refused(transaction);
        self.release(settled);
    }

    /// Plans what is to be done now. `now` must not go backwards; `uid` gives a fresh random UUID at each call.
    pub fn plan(&mut self, now: Timestamp, uid: &mut dyn FnMut() -> String) -> Plan {
        let settled = self.flights.expire(now);
        self.release(settled);
        self.memory.brake.begin(self.timers.next(), now);
        self.dirty.extend(self.timers.take_due(now));
        let mut plan = Plan::default();
        let mut blocked = Dirty::new();
        self.unfinished = None;
        while let Some(task) = self.dirty.pop_first() {
            if self.flights.busy(&task) {
                self.held.insert(task);
                continue;
            }
            if plan.transactions.len() >= PLAN_TRANSACTIONS_MAX {
                self.dirty.insert(task);
                self.unfinished = Some(now);
                break;
            }
            plan.tasks += 1;
            if self.run(task.clone(), now, uid, &mut plan) {
                blocked.insert(task);
            }
        }
        self.dirty.extend(blocked);
        plan
    }

    /// When `plan` has something to do although nothing is observed. In the past where it left work undone.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [self.unfinished, self.timers.next(), self.flights.next_deadline()].into_iter().flatten().min()
    }

    fn release(&mut self, settled: Vec<Task>) {
        for task in settled {
            self.held.remove(&task);
            self.dirty.insert(task);
        }
    }

    /// Runs one task; answers whether it has to run again because it was blocked.
    fn run(&mut self, task: Task, now: Timestamp, uid: &mut dyn FnMut() -> String, plan: &mut Plan) -> bool {
        self.timers.clear(&task);
        let mut planner = Planner {
            state: &self.state,
            config: &self.config,
            memory: &mut self.memory,
            now,
            task: task.clone(),
            uid,
            flights: &mut self.flights,
            timers: &mut self.timers,
            marked: &mut self.dirty,
            plan,
            blocked: false,
        };
        match task {
            Task::ServiceAccount(namespace) => service_account::plan(&mut planner, &namespace),
            Task::Namespace(name) => namespace::plan(&mut planner, &name),
            Task::Node(name) => node_lifecycle::plan(&mut planner, &name),
            Task::StrayPod(name) => pod_gc::plan_stray(&mut planner, &name),
            Task::EndedPods => pod_gc::plan_ended(&mut planner),
            Task::Deployment(name) => deployment::plan(&mut planner, &name),
            Task::ReplicaSet(name) => replica_set::plan(&mut planner, &name),
            Task::Service(name) => endpoint_slice::plan(&mut planner, &name),
            Task::Collect(key) => garbage_collector::plan(&mut planner, &key),
        }
        planner.blocked
    }
}
