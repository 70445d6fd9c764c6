//! Who runs next: groups by virtual runtime, tasks of a group in turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::crew::{Crew, Worker};
use super::group::{Group, Place};
use super::task::Task;

/// How far behind the others a group may start that comes from waiting, in virtual nanoseconds: it is served soon,
/// but cannot save up time by sleeping.
const WAKE_BONUS_NS: u64 = 1_000_000;

/// All that is ready or throttled, and who runs it. One lock guards it.
pub(super) struct RunQueue {
    pub(super) crew: Crew,
    /// By virtual runtime and id.
    ready: BTreeMap<(u64, u64), Arc<Group>>,
    /// By the time at which the quota admits them again, and id.
    throttled: BTreeMap<(Instant, u64), Arc<Group>>,
    /// Heavy groups that wait until another one is done.
    held: Vec<Arc<Group>>,
    /// Never falls. New and woken groups start here.
    floor_ns: u64,
    /// Aborted tasks whose futures wait to be dropped.
    pub(super) reap: VecDeque<Arc<Task>>,
}

/// What a thread does next.
pub(super) enum Work {
    Run(Arc<Task>),
    /// Drop the future of an aborted task.
    Reap(Arc<Task>),
}

/// What [`RunQueue::release_due`] found.
pub(super) struct Due {
    pub(super) released: bool,
    /// Some groups are still throttled.
    pub(super) waiting: bool,
}

impl RunQueue {
    pub(super) fn new(crew: Crew) -> RunQueue {
        RunQueue {
            crew,
            ready: BTreeMap::new(),
            throttled: BTreeMap::new(),
            held: Vec::new(),
            floor_ns: 0,
            reap: VecDeque::new(),
        }
    }

    /// What `worker` does next, where one more thread may do something.
    pub(super) fn take(&mut self, worker: &Worker, now: Instant, tick: u64) -> Option<Work> {
        if !self.crew.has_room() {
            return None;
        }
        let work = match self.reap.pop_front() {
            Some(task) => Work::Reap(task),
            None => Work::Run(self.pop(now)?),
        };
        let heavy = matches!(&work, Work::Run(task) if task.group.is_heavy(now));
        self.crew.begin(worker, heavy, tick);
        Some(work)
    }

    /// The worker is done with what it took.
    pub(super) fn finish(&mut self, worker: &Worker) {
        if self.crew.finish(worker) {
            for group in std::mem::take(&mut self.held) {
                self.put_back(group);
            }
        }
    }

    /// Something is ready that a thread which waits could do.
    pub(super) fn wants_a_thread(&self) -> bool {
        self.crew.idle > 0 && self.has_work()
    }

    /// Something is ready that another thread could do, if there was one.
    pub(super) fn lacks_a_thread(&self) -> bool {
        self.crew.idle == 0 && self.has_work()
    }

    fn has_work(&self) -> bool {
        self.crew.has_room() && !(self.ready.is_empty() && self.reap.is_empty())
    }

    fn put_back(&mut self, group: Arc<Group>) {
        let mut turn = group.turn.lock();
        turn.virtual_ns = turn.virtual_ns.max(self.floor_ns.saturating_sub(WAKE_BONUS_NS));
        turn.place = Place::Ready;
        self.ready.insert((turn.virtual_ns, group.id), Arc::clone(&group));
    }

    pub(super) fn push(&mut self, task: Arc<Task>) {
        let group = Arc::clone(&task.group);
        let mut turn = group.turn.lock();
        turn.ready.push_back(task);
        let is_out = turn.place == Place::Out;
        drop(turn);
        if is_out {
            self.put_back(group);
        }
    }

    /// The task whose turn it is. Groups without quota left are put aside on the way.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Arc<Task>> {
        self.release_due(now);
        loop {
            let (key, group) = self.ready.pop_first()?;
            let mut turn = group.turn.lock();
            if let Some(until) = group.blocked_until(now) {
                turn.place = Place::Throttled(until);
                self.throttled.insert((until, group.id), Arc::clone(&group));
                continue;
            }
            if group.is_heavy(now) && !self.crew.takes_heavy() {
                turn.place = Place::Held;
                self.held.push(Arc::clone(&group));
                continue;
            }
            self.floor_ns = self.floor_ns.max(key.0);
            let task = turn.ready.pop_front();
            if turn.ready.is_empty() {
                turn.place = Place::Out;
            } else {
                self.ready.insert(key, Arc::clone(&group));
            }
            if task.is_some() {
                return task;
            }
        }
    }

    /// Adds used time to the group's virtual runtime, and moves it back in the queue by as much.
    pub(super) fn charge(&mut self, group: &Group, spent_ns: u64) {
        let mut turn = group.turn.lock();
        let before = turn.virtual_ns;
        turn.virtual_ns = before.saturating_add(group.virtual_ns_of(spent_ns));
        if turn.place == Place::Ready
            && let Some(queued) = self.ready.remove(&(before, group.id))
        {
            self.ready.insert((turn.virtual_ns, group.id), queued);
        }
    }

    /// True where another group has used less than this one, or where a task of this group waits.
    pub(super) fn is_behind(&self, group: &Group) -> bool {
        let Some((virtual_ns, id)) = self.ready.first_key_value().map(|(key, _)| *key) else {
            return false;
        };
        id == group.id || virtual_ns < group.turn.lock().virtual_ns
    }

    /// Puts groups back whose quota admits them again.
    pub(super) fn release_due(&mut self, now: Instant) -> Due {
        let mut released = false;
        while let Some(entry) = self.throttled.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let group = entry.remove();
            self.put_back(group);
            released = true;
        }
        Due { released, waiting: !self.throttled.is_empty() }
    }

    pub(super) fn has_throttled(&self) -> bool {
        !self.throttled.is_empty()
    }
}
