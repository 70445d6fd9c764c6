//! The apply task: applies what is committed, some time later, and tells proposers, readers and watchers.

use std::collections::VecDeque;

use coracle_member::batch::Forgotten;
use coracle_member::retry::Try;
use coracle_objects::Revision;
use coracle_raft::SnapshotMarker;
use coracle_raft::core::Apply;
use coracle_store::{Batch, Store};

use super::raft::Waiter;
use super::snapshot::Schedule;
use super::{Broken, Event, Step, Who, World, life_of};
use crate::checker::history::{Ending, OpId};
use crate::options::MS;
use crate::trace::{Note, fingerprint};

/// What the state machine is to do next, in order.
pub enum Task {
    Entries(Vec<Apply>),
    /// Take over the snapshot that has arrived.
    Restore(SnapshotMarker),
    /// A snapshot is wanted though none is due.
    Snapshot,
}

pub struct Machine {
    pub store: Store,
    pub queue: VecDeque<Task>,
    /// What the state machine has reached, and the last that was taken from the queue: each index comes once.
    pub applied: u64,
    due: bool,
    /// Operations that wait until an index is applied.
    pub waiting: Vec<(u64, Waits)>,
    pub snapshots: Schedule,
}

/// What goes on once an index is applied.
#[derive(Debug)]
pub enum Waits {
    /// A forwarded write that has its outcome.
    Write(OpId),
    Read(OpId),
}

impl Machine {
    /// A state machine as of entry `applied`.
    pub fn new(store: Store, applied: u64) -> Machine {
        let snapshots = Schedule::default();
        Machine { store, queue: VecDeque::new(), applied, due: false, waiting: Vec::new(), snapshots }
    }
}

impl World {
    /// The apply task takes what waits, soon.
    pub fn start_apply(&mut self, who: Who) {
        let Some(member) = self.members.get_mut(&who.id) else { return };
        let slow = member.apply_slow_until > self.now;
        let Some(life) = member.life.as_mut().filter(|life| life.number == who.life) else { return };
        if life.machine.due || life.machine.queue.is_empty() {
            return;
        }
        life.machine.due = true;
        let delay = match slow {
            true => self.rng.between(5, 150) * MS,
            false if self.rng.chance(30) => self.rng.below(20 * MS),
            false => self.rng.between(5, 300),
        };
        self.after(delay, Event::Apply(who));
    }

    pub fn apply(&mut self, who: Who) -> Step {
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        life.machine.due = false;
        let rounds = self.rng.between(1, 8) as usize;
        let mut replies = Vec::new();
        for _ in 0..rounds {
            let Some(life) = self.life(who) else { return Ok(()) };
            let Some(task) = life.machine.queue.pop_front() else { break };
            match task {
                Task::Snapshot => life.machine.snapshots.asked = true,
                Task::Restore(marker) => self.restore(who, &marker)?,
                Task::Entries(items) => {
                    for item in items {
                        if let Some((waiter, batch)) = self.apply_one(who, &item)? {
                            replies.push((item.index, waiter, batch));
                        }
                    }
                }
            }
        }
        for (index, waiter, batch) in replies {
            self.tell_proposers(who, index, waiter, &batch);
        }
        self.tell_waiting(who);
        self.snapshot_if_due(who);
        self.wake_where_awaited(who);
        self.start_apply(who);
        Ok(())
    }

    /// Answers who proposed the entry, where that was this process.
    fn apply_one(&mut self, who: Who, item: &Apply) -> Step<Option<(Waiter, Batch)>> {
        let Some(life) = life_of(&mut self.members, who) else { return Ok(None) };
        let machine = &mut life.machine;
        if item.index != machine.applied + 1 {
            let applied = machine.applied;
            let what = format!("m{} is handed entry {} behind {applied}", who.id, item.index);
            return Err(Broken::new(what));
        }
        machine.applied = item.index;
        machine.snapshots.entries += 1;
        let data = if item.data.is_empty() { 0 } else { fingerprint(&item.data) };
        let batch = match item.data.is_empty() {
            true => Batch { results: vec![], events: vec![], revision: machine.store.revision() },
            false => machine.store.apply(&item.data).map_err(|error| {
                Broken::new(format!("m{} cannot apply entry {}: {error}", who.id, item.index))
            })?,
        };
        let before = self.ledger.entries();
        self.ledger.applied(who.id, item, data, &batch, machine.store.state_hash(), &self.keys)?;
        self.counts.entries += self.ledger.entries() - before;
        let note = Note::Applied { member: who.id, index: item.index, revision: batch.revision };
        self.trace.note(self.now, note);
        let waiter = item.token.and_then(|token| life.waiters.remove(&token));
        self.publish_events(who, &batch.events);
        Ok(waiter.map(|waiter| (waiter, batch)))
    }

    /// Gives each proposer of an entry its own result.
    fn tell_proposers(&mut self, who: Who, index: u64, waiter: Waiter, batch: &Batch) {
        let Waiter::Entry(proposers) = waiter else { return };
        self.entry_ended(who);
        proposers.deal(&batch.results, index, |reply, result| {
            let tried = match result {
                Ok(done) => Try::Done { outcome: done.outcome, index: done.index },
                Err(Forgotten) => Try::Forgotten,
            };
            self.reply(who, reply, tried);
        });
    }

    /// Goes on with what waited for the index that is applied now.
    pub fn tell_waiting(&mut self, who: Who) {
        let Some(life) = self.life(who) else { return };
        let applied = life.machine.applied;
        let mut ready = Vec::new();
        let mut index = 0;
        while index < life.machine.waiting.len() {
            if life.machine.waiting[index].0 <= applied {
                ready.push(life.machine.waiting.remove(index).1);
            } else {
                index += 1;
            }
        }
        for waits in ready {
            match waits {
                Waits::Write(op) => self.finish_write(who, op),
                Waits::Read(op) => self.finish_read(who, op),
            }
        }
    }

    /// The view of a member, as a read's end.
    pub fn view(&mut self, who: Who) -> Option<Ending> {
        self.life(who).map(|life| Ending::Read(life.machine.store.view().clone()))
    }

    pub fn revision(&mut self, who: Who) -> Revision {
        self.life(who).map_or(0, |life| life.machine.store.revision())
    }
}
