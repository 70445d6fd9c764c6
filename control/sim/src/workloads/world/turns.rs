//! The turns of a round: what each part does when it is its turn.

use coracle_api::{Admission, ProposeError, Storage as _, UserInfo};
use coracle_controllers::Outcome;
use coracle_leader::{
    monitor::together,
    plans::{FAILURE_PAUSE, of_decisions, outcome},
};
use coracle_objects::Transaction;
use coracle_store::Outcome as StoreOutcome;
use futures::FutureExt;
use jiff::Timestamp;

use super::{Broken, Controllers, World, guarded, settings};
use crate::workloads::{
    Mutant, clock,
    link::{self, node_key},
    storage::{MemoryStorage, Writer, uid},
};

/// A node whose object is gone links anew after so long, and so registers again.
const RELINK_MS: u64 = 300;

/// How often controllers begin anew where that is the fault that is built in.
const FORGET_MS: u64 = 5_000;

impl World {
    /// Writes in somebody's name, as `coracle_server` does.
    fn write_as(
        &self,
        writer: Writer,
        user: &UserInfo,
        transaction: Transaction,
    ) -> Result<StoreOutcome, ProposeError> {
        write_as(&self.storage, &self.admission, writer, user, transaction)
    }

    /// Gives each part its turn. True where any did something.
    pub(super) fn round(&mut self) -> Result<bool, Broken> {
        let mut acted = self.turn_of_plane();
        if self.plane.leads() {
            acted |= self.turn_of_controllers()?;
            acted |= self.turn_of_scheduler()?;
        }
        acted |= self.turn_of_nodes()?;
        if self.plane.leads() {
            acted |= self.turn_of_monitor();
            let (storage, admission, now) = (self.storage.clone(), self.admission.clone(), self.now);
            acted |= self.records.write(&storage, &mut self.chance, now, |transaction| {
                // It only tells people what happened: what is refused is dropped.
                let _ = write_as(&storage, &admission, Writer::Events, &UserInfo::api_server(), transaction);
            });
        }
        self.check_objects()?;
        Ok(acted)
    }

    fn turn_of_controllers(&mut self) -> Result<bool, Broken> {
        if self.mutant == Some(Mutant::ForgottenBackoff) && self.now >= self.forgets_at {
            self.forgets_at = clock::after(self.now, FORGET_MS);
            let view = self.view();
            self.controllers = Controllers::new(settings());
            self.controllers.resync(&view);
            self.seen.controllers = self.storage.count_events();
            self.again.controllers = true;
        }
        if self.paused_until.is_some_and(|until| self.now < until) {
            return Ok(false);
        }
        self.paused_until = None;
        let events = self.storage.events_after(self.seen.controllers);
        let due = self.controllers.next_deadline().is_some_and(|at| at <= self.now);
        if events.is_empty() && !due && !self.again.controllers {
            return Ok(false);
        }
        self.seen.controllers += events.len();
        self.progress.enter("the controllers");
        let (controllers, chance, now) = (&mut self.controllers, &mut self.chance, self.now);
        let plan = guarded("the controllers", || {
            events.iter().for_each(|event| controllers.observe(event));
            controllers.plan(now, &mut || uid(chance))
        })?;
        let acted = !plan.transactions.is_empty() || !plan.events.is_empty();
        let waiting = self.controllers.situation().waiting > 0;
        self.again.controllers = !plan.transactions.is_empty() || waiting;
        if let Some(panic) = plan.panics.first() {
            return Err(Broken::new("panic", format!("a task of the controllers: {panic}")));
        }
        let mut all_failed = !plan.transactions.is_empty();
        let mut outcomes = vec![];
        for (transaction, origin) in plan.transactions.iter().zip(&plan.origins) {
            let user = UserInfo::component(origin.account());
            let outcome = outcome(self.write_as(Writer::Controllers, &user, transaction.clone()));
            all_failed &= outcome == Outcome::Unknown;
            self.controllers.settle(origin, transaction, &outcome, self.now);
            outcomes.push(outcome);
        }
        let is_true = |of: Option<usize>| of.is_none_or(|at| outcomes.get(at) == Some(&Outcome::Applied));
        plan.events.iter().filter(|told| is_true(told.of)).for_each(|told| self.records.take(&told.record));
        if all_failed {
            self.paused_until = Some(clock::after(self.now, FAILURE_PAUSE.as_millis() as u64));
        }
        Ok(acted)
    }

    fn turn_of_scheduler(&mut self) -> Result<bool, Broken> {
        let events = self.storage.events_after(self.seen.scheduler);
        let due = self.scheduler.next_deadline().is_some_and(|at| at <= self.now);
        if events.is_empty() && !due && !self.again.scheduler {
            return Ok(false);
        }
        self.seen.scheduler += events.len();
        self.progress.enter("the scheduler");
        let (scheduler, now) = (&mut self.scheduler, self.now);
        let decisions = guarded("the scheduler", || {
            events.iter().for_each(|event| scheduler.observe(event));
            scheduler.schedule(now)
        })?;
        if let Some(panic) = decisions.panics.first() {
            return Err(Broken::new("panic", format!("the scheduler: {panic}")));
        }
        let acted = !decisions.placements.is_empty() || !decisions.failures.is_empty();
        self.again.scheduler = acted;
        let (transactions, records) = of_decisions(decisions);
        for (transaction, record) in transactions.into_iter().zip(records) {
            let outcome = outcome(self.write_as(Writer::Scheduler, &UserInfo::scheduler(), transaction));
            let pod = &record.regarding.name;
            match &outcome {
                Outcome::Applied => self.records.take(&record),
                Outcome::Stale => self.scheduler.refused(pod, None, self.now),
                Outcome::Impossible(why) => self.scheduler.refused(pod, Some(why), self.now),
                Outcome::Unknown => {}
            }
        }
        Ok(acted)
    }

    fn turn_of_nodes(&mut self) -> Result<bool, Broken> {
        let mut acted = false;
        if self.plane.leads() {
            self.router.catch_up(self.view());
        }
        for index in 0..self.nodes.len() {
            if !self.nodes[index].alive || self.nodes[index].hushed_until.is_some() {
                continue;
            }
            let linked = self.nodes[index].link.is_up() && self.plane.leads();
            let messages = if linked { self.take(index) } else { vec![] };
            let (node, records, now, calm) = (&mut self.nodes[index], &mut self.records, self.now, self.calm);
            self.progress.enter("a node");
            let stepped = guarded("the node core", || {
                messages.iter().for_each(|message| node.take(message));
                node.step(now, calm, records)
            })?;
            acted |= stepped.map_err(|what| Broken::new("restless node", what))?;
            if !linked {
                continue;
            }
            let (name, reports) = (node.name, std::mem::take(&mut node.reports));
            for report in reports {
                acted = true;
                let view = self.storage.view();
                if let Some(transaction) = link::written_report(&view, name, &report) {
                    // The node tells it again where it is asked to.
                    let _: Result<_, ProposeError> =
                        self.write_as(Writer::Node, &UserInfo::node(name), transaction);
                    if self.mutant == Some(Mutant::ReportedAgain) {
                        self.nodes[index].reports.push(link::told_anew(report, self.now));
                    }
                }
            }
        }
        Ok(acted)
    }

    /// What the leader writes of nodes: whether they are heard of.
    fn turn_of_monitor(&mut self) -> bool {
        let mut acted = false;
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let gone = self.view().get(&node_key(node.name)).is_none();
            if gone && node.alive && node.link.is_up() {
                let since = *self.relinks.entry(node.name).or_insert(self.now);
                if clock::ms_between(since, self.now) >= RELINK_MS {
                    acted |= self.register(index);
                }
            } else {
                self.relinks.remove(node.name);
            }
        }
        let now = clock::elapsed(self.now);
        self.plane.be_present(now, self.mutant == Some(Mutant::SilenceCounts));
        self.hear_beats(now);
        let view = self.view();
        let nodes = &self.nodes;
        let linked = |name: &str| nodes.iter().any(|node| node.name == name && node.link.is_up());
        let exists = |name: &str| view.get(&node_key(name)).is_some();
        self.plane.hearing.retain(|name| exists(name) || linked(name));
        let hearings = match self.mutant {
            Some(Mutant::ToldApart) => self.hearings_apart(),
            _ => vec![self.plane.hearing.clone()],
        };
        let monitor = UserInfo::component(coracle_leader::monitor::ACCOUNT);
        let mut downs = vec![];
        self.judges_at = None;
        for hearing in hearings {
            let mut judged = self.plane.monitor.judge(&view, &hearing, linked, now, self.now);
            for write in judged.writes {
                acted |= matches!(self.write_as(Writer::Monitor, &monitor, write), Ok(Ok(_)));
            }
            downs.append(&mut judged.downs);
            // Those that are linked are heard of again before.
            let quiet = nodes.iter().any(|node| !node.link.is_up() || node.hushed_until.is_some());
            let next = judged.next.filter(|_| quiet).map(clock::at);
            self.judges_at = self.judges_at.into_iter().chain(next).min();
        }
        let mut told: Vec<Transaction> = vec![];
        for (one, each) in together(&downs) {
            match self.write_as(Writer::Monitor, &monitor, one) {
                Ok(Ok(_)) => acted = true,
                _ => told.extend(each.iter().cloned()),
            }
        }
        for one in told {
            acted |= matches!(self.write_as(Writer::Monitor, &monitor, one), Ok(Ok(_)));
        }
        acted
    }

    /// Writes the object of a node that links.
    pub(super) fn register(&mut self, index: usize) -> bool {
        let (name, boot) = (self.nodes[index].name, self.nodes[index].boot);
        let mut acted = false;
        // A node whose object is gone joins first.
        for _ in 0..2 {
            let uid = uid(&mut self.chance);
            let transaction = link::registration(&self.view(), name, boot, &uid, self.now);
            acted |= transaction.is_some_and(|transaction| {
                matches!(self.write_as(Writer::Monitor, &UserInfo::node(name), transaction), Ok(Ok(_)))
            });
        }
        acted
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let controllers = match self.paused_until {
            Some(until) => Some(until),
            None => self.controllers.next_deadline(),
        };
        let forgets = (self.mutant == Some(Mutant::ForgottenBackoff)).then_some(self.forgets_at);
        let relinks = self.relinks.values().map(|since| clock::after(*since, RELINK_MS)).min();
        let duties = [controllers, self.scheduler.next_deadline(), forgets, self.judges_at, relinks];
        let duties = duties.into_iter().flatten().filter(|_| self.plane.leads());
        let awake = self.nodes.iter().filter(|node| node.alive && node.hushed_until.is_none());
        let nodes = awake.clone().filter_map(|node| node.next_deadline());
        let links = awake.filter_map(|node| node.link.next_due()).map(clock::at);
        let hushed = self.nodes.iter().filter_map(|node| node.hushed_until);
        let plane = self.plane.next_due().map(clock::at);
        duties.chain(nodes).chain(links).chain(hushed).chain(plane).min()
    }

    /// Who wants a turn now.
    pub(super) fn who_spins(&self) -> String {
        let due = |at: Option<Timestamp>| at.is_some_and(|at| at <= self.now);
        let mut who = vec![];
        if due(self.controllers.next_deadline()) {
            who.push("the controllers");
        }
        if due(self.scheduler.next_deadline()) {
            who.push("the scheduler");
        }
        if self.nodes.iter().any(|node| node.alive && due(node.next_deadline())) {
            who.push("a node");
        }
        who.join(" and ")
    }
}

/// Writes in somebody's name.
fn write_as(
    storage: &MemoryStorage,
    admission: &Admission,
    writer: Writer,
    user: &UserInfo,
    transaction: Transaction,
) -> Result<StoreOutcome, ProposeError> {
    let view = storage.view();
    let admitted = admission.admit(user, &view, transaction).now_or_never().expect("no plugin waits");
    storage.apply(writer, admitted.map_err(|error| ProposeError::Denied(Box::new(error)))?)
}
