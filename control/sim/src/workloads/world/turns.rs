//! The turns of a round: what each part does when it is its turn.

use coracle_api::{ProposeError, Storage as _};
use coracle_controllers::Outcome;
use coracle_objects::{Applied, Expect, Precondition, Refusal, Transaction, View, Write};
use jiff::Timestamp;

use super::{Broken, Controllers, World, config, guarded};
use crate::workloads::{
    Mutant, clock,
    link::{self, node_key},
    storage::{Writer, uid},
};

/// After a plan of which nothing could be proposed, as in `coracle_server::plans`.
const FAILURE_PAUSE_MS: u64 = 500;

/// A node whose link broke is not heard of any more after so long.
const LOST_LINK_MS: u64 = 1_500;

/// A node whose object is gone links anew after so long, and so registers again.
const RELINK_MS: u64 = 300;

/// How often controllers begin anew where that is the fault that is built in.
const FORGET_MS: u64 = 5_000;

impl World {
    /// Gives each part its turn. True where any did something.
    pub(super) fn round(&mut self) -> Result<bool, Broken> {
        let mut acted = self.turn_of_controllers()?;
        acted |= self.turn_of_scheduler()?;
        acted |= self.turn_of_nodes()?;
        acted |= self.turn_of_monitor();
        let (storage, now) = (self.storage.clone(), self.now);
        acted |= self.records.write(&storage, &mut self.chance, now);
        self.check_objects()?;
        Ok(acted)
    }

    fn turn_of_controllers(&mut self) -> Result<bool, Broken> {
        if self.mutant == Some(Mutant::ForgottenBackoff) && self.now >= self.forgets_at {
            self.forgets_at = clock::after(self.now, FORGET_MS);
            let view = self.view();
            self.controllers = Controllers::new(config());
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
        plan.events.iter().for_each(|record| self.records.take(record));
        let acted = !plan.transactions.is_empty() || !plan.events.is_empty();
        let waiting = self.controllers.situation().waiting > 0;
        self.again.controllers = !plan.transactions.is_empty() || waiting;
        if let Some(panic) = plan.panics.first() {
            return Err(Broken::new("panic", format!("a task of the controllers: {panic}")));
        }
        let mut all_failed = !plan.transactions.is_empty();
        for (transaction, origin) in plan.transactions.iter().zip(&plan.origins) {
            let releasing = releasing(&self.storage.view(), transaction.clone());
            let outcome = outcome(self.storage.apply(Writer::Controllers, releasing));
            all_failed &= outcome == Outcome::Unknown;
            self.controllers.settle(origin, transaction, &outcome, self.now);
        }
        if all_failed {
            self.paused_until = Some(clock::after(self.now, FAILURE_PAUSE_MS));
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
        for (transaction, record) in told(decisions) {
            let outcome = outcome(self.storage.apply(Writer::Scheduler, transaction));
            let forever = match &outcome {
                Outcome::Impossible(why) => Some(why.as_str()),
                _ => None,
            };
            match &outcome {
                Outcome::Applied => self.records.take(&record),
                Outcome::Unknown => {}
                _ => self.scheduler.refused(&record.regarding.name, forever, self.now),
            }
        }
        Ok(acted)
    }

    fn turn_of_nodes(&mut self) -> Result<bool, Broken> {
        let mut acted = false;
        for index in 0..self.nodes.len() {
            if !self.nodes[index].alive {
                continue;
            }
            let (node, records, now, calm) = (&mut self.nodes[index], &mut self.records, self.now, self.calm);
            let events = self.storage.events_after(node.seen);
            node.seen += events.len();
            self.progress.enter("a node");
            let stepped = guarded("the node core", || {
                events.iter().for_each(|event| node.observe(event));
                node.step(now, calm, records)
            })?;
            acted |= stepped.map_err(|what| Broken::new("restless node", what))?;
            for report in std::mem::take(&mut node.reports) {
                acted = true;
                let view = self.storage.view();
                if let Some(transaction) = link::written_report(&view, node.name, &report) {
                    // The node tells it again where it is asked to.
                    let _: Result<_, ProposeError> = self.storage.apply(Writer::Node, transaction);
                    if self.mutant == Some(Mutant::ReportedAgain) {
                        node.reports.push(report.told_anew(self.now));
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
            if gone && node.alive {
                let since = *self.relinks.entry(node.name).or_insert(self.now);
                if clock::ms_between(since, self.now) >= RELINK_MS {
                    acted |= self.register(index);
                }
            } else {
                self.relinks.remove(node.name);
            }
        }
        let view = self.view();
        for object in view.list("nodes", None) {
            let node = self.nodes.iter().find(|node| node.name == object.name());
            let heard =
                node.is_some_and(|node| node.alive || clock::ms_between(node.since, self.now) < LOST_LINK_MS);
            let present = (object.revision, heard);
            if self.agreed.get(object.name()) == Some(&present) {
                continue;
            }
            match link::transition(object, heard, self.now) {
                Some(transaction) => {
                    acted |= matches!(self.storage.apply(Writer::Monitor, transaction), Ok(Ok(_)));
                }
                None => {
                    self.agreed.insert(object.name().to_owned(), present);
                }
            }
        }
        acted
    }

    /// Writes the object of a node that links.
    pub(super) fn register(&mut self, index: usize) -> bool {
        let (name, boot) = (self.nodes[index].name, self.nodes[index].boot);
        let uid = uid(&mut self.chance);
        let transaction = link::registration(&self.view(), name, boot, &uid, self.now);
        transaction
            .is_some_and(|transaction| matches!(self.storage.apply(Writer::Monitor, transaction), Ok(Ok(_))))
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let controllers = match self.paused_until {
            Some(until) => Some(until),
            None => self.controllers.next_deadline(),
        };
        let nodes = self.nodes.iter().filter(|node| node.alive).filter_map(|node| node.next_deadline());
        let lost = self.nodes.iter().filter(|node| !node.alive).filter_map(|node| {
            let at = clock::after(node.since, LOST_LINK_MS);
            (at > self.now).then_some(at)
        });
        let relinks = self.relinks.values().map(|since| clock::after(*since, RELINK_MS));
        let forgets = (self.mutant == Some(Mutant::ForgottenBackoff)).then_some(self.forgets_at);
        let own = [controllers, self.scheduler.next_deadline(), forgets];
        own.into_iter().flatten().chain(nodes).chain(lost).chain(relinks).min()
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

/// What an answer means for the task that planned the transaction, as in `coracle_server::plans`.
fn outcome(answer: Result<Result<Applied, Refusal>, ProposeError>) -> Outcome {
    match answer {
        Ok(Ok(_)) => Outcome::Applied,
        Ok(Err(refusal)) => refusal.into(),
        Err(error @ (ProposeError::TooLarge { .. } | ProposeError::NoSpace)) => {
            Outcome::Impossible(error.to_string())
        }
        Err(ProposeError::Unavailable(_) | ProposeError::Unknown(_)) => Outcome::Unknown,
    }
}

fn told(decisions: coracle_scheduler::Decisions) -> Vec<(Transaction, coracle_controllers::EventRecord)> {
    use coracle_controllers::{EventRecord, EventType};
    let record = |regarding, uid, type_, reason: &str, message| EventRecord {
        regarding,
        uid,
        type_,
        reason: reason.to_owned(),
        message,
        reporting_component: coracle_scheduler::BINDING_COMPONENT,
    };
    let placed = decisions.placements.into_iter().map(|placement| {
        let message = placement.message();
        let event = record(placement.pod, placement.uid, EventType::Normal, "Scheduled", message);
        (placement.transaction, event)
    });
    let unplaced = decisions.failures.into_iter().map(|failure| {
        let event = record(failure.pod, failure.uid, EventType::Warning, "FailedScheduling", failure.message);
        (failure.transaction, event)
    });
    placed.chain(unplaced).collect()
}

/// As `coracle_server::plans`: what goes with services that are deleted.
fn releasing(view: &View, mut transaction: Transaction) -> Transaction {
    let deleted = transaction.writes.iter().filter_map(|write| match write {
        Write::Delete { key } if key.resource.as_str() == "services" => view.get(key).cloned(),
        _ => None,
    });
    for service in deleted.collect::<Vec<_>>() {
        let extra = coracle_api::release(view, &service);
        let expect = Expect::Revision(service.revision);
        transaction.preconditions.push(Precondition { key: service.key.clone(), expect });
        transaction.preconditions.extend(extra.preconditions);
        transaction.writes.extend(extra.writes);
    }
    transaction
}
