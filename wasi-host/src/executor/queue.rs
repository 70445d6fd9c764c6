//! Who runs next: groups by virtual runtime, tasks of a group in turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::group::{Group, Place};
use super::task::Task;

/// How far behind the others a group may start that comes from waiting, in virtual nanoseconds: it is served soon,
/// but cannot save up time by sleeping.
const WAKE_BONUS_NS: u64 = 1_000_000;

/// All that is ready or throttled. One lock guards it.
#[derive(Default)]
pub(super) struct RunQueue {
    /// By virtual runtime and id.
    ready: BTreeMap<(u64, u64), Arc<Group>>,
    /// By the time at which the quota admits them again, and id.
    throttled: BTreeMap<(Instant, u64), Arc<Group>>,
    /// Never falls. New and woken groups start here.
    floor_ns: u64,
    /// Aborted tasks whose futures wait to be dropped.
    pub(super) reap: VecDeque<Arc<Task>>,
    pub(super) idle_threads: usize,
}

/// What [`RunQueue::release_due`] found.
pub(super) struct Due {
    pub(super) released: bool,
    /// Some groups are still throttled.
    pub(super) waiting: bool,
}

impl RunQueue {
    pub(super) fn push(&mut self, task: Arc<Task>) {
        let group = Arc::clone(&task.group);
        let mut turn = group.turn.lock();
        turn.ready.push_back(task);
        if turn.place == Place::Out {
            turn.virtual_ns = turn.virtual_ns.max(self.floor_ns.saturating_sub(WAKE_BONUS_NS));
            turn.place = Place::Ready;
            self.ready.insert((turn.virtual_ns, group.id), Arc::clone(&group));
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
            let mut turn = group.turn.lock();
            turn.virtual_ns = turn.virtual_ns.max(self.floor_ns.saturating_sub(WAKE_BONUS_NS));
            turn.place = Place::Ready;
            self.ready.insert((turn.virtual_ns, group.id), Arc::clone(&group));
            released = true;
        }
        Due { released, waiting: !self.throttled.is_empty() }
    }

    pub(super) fn has_throttled(&self) -> bool {
        !self.throttled.is_empty()
    }
}
