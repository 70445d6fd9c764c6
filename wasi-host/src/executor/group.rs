//! One account of CPU time: a container with all its tasks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::quota::Bucket;
use super::task::Task;

/// The weight of a container that asks for nothing, as `cpu.weight` of cgroups.
pub(crate) const DEFAULT_WEIGHT: u64 = 100;

/// What is scheduled and metered as one.
pub(crate) struct Group {
    pub(super) id: u64,
    weight: u64,
    /// The container's quota and its pod's, where they have one.
    buckets: Vec<Arc<Bucket>>,
    cpu_ns: AtomicU64,
    pod_cpu_ns: Arc<AtomicU64>,
    killed: AtomicBool,
    /// Until when it is one that runs long in one piece.
    heavy_until: Mutex<Option<Instant>>,
    /// Tasks that have not ended, by id.
    tasks: Mutex<BTreeMap<u64, Weak<Task>>>,
    /// Touched only under the run queue's lock.
    pub(super) turn: Mutex<Turn>,
}

/// A group's place in the run queue.
#[derive(Default)]
pub(super) struct Turn {
    /// CPU time used, in nanoseconds of a group of [`DEFAULT_WEIGHT`].
    pub(super) virtual_ns: u64,
    pub(super) ready: VecDeque<Arc<Task>>,
    pub(super) place: Place,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// No task is ready.
    #[default]
    Out,
    /// In the queue, by `virtual_ns`.
    Ready,
    /// Out of quota until then.
    Throttled(Instant),
    /// It is heavy, and as many of these run as may.
    Held,
}

impl Group {
    pub(super) fn new(id: u64, weight: u64, buckets: Vec<Arc<Bucket>>, pod_cpu_ns: Arc<AtomicU64>) -> Group {
        Group {
            id,
            weight: if weight == 0 { DEFAULT_WEIGHT } else { weight },
            buckets,
            cpu_ns: AtomicU64::new(0),
            pod_cpu_ns,
            killed: AtomicBool::new(false),
            heavy_until: Mutex::new(None),
            tasks: Mutex::new(BTreeMap::new()),
            turn: Mutex::new(Turn::default()),
        }
    }

    /// CPU time used so far, in nanoseconds; at most one tick old.
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// Ends all tasks, now and later ones: the waiting are dropped, the running are interrupted within a tick.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        let tasks: Vec<_> = self.tasks.lock().values().filter_map(Weak::upgrade).collect();
        for task in tasks {
            task.abort();
        }
    }

    /// Ends the tasks whose deadline has passed.
    pub(crate) fn abort_expired(&self, now: Instant) {
        let expired: Vec<_> = {
            let tasks = self.tasks.lock();
            tasks.values().filter_map(Weak::upgrade).filter(|task| task.expired(now)).collect()
        };
        for task in expired {
            task.abort();
        }
    }

    pub(super) fn is_heavy_until(&self, until: Instant) {
        *self.heavy_until.lock() = Some(until);
    }

    /// It was caught running long in one piece, and not long ago.
    pub(super) fn is_heavy(&self, now: Instant) -> bool {
        self.heavy_until.lock().is_some_and(|until| now < until)
    }

    pub(super) fn adopt(&self, task: &Arc<Task>) {
        self.tasks.lock().insert(task.id, Arc::downgrade(task));
    }

    pub(super) fn release(&self, id: u64) {
        self.tasks.lock().remove(&id);
    }

    pub(super) fn charge(&self, spent_ns: u64) {
        self.cpu_ns.fetch_add(spent_ns, Ordering::Relaxed);
        self.pod_cpu_ns.fetch_add(spent_ns, Ordering::Relaxed);
        for bucket in &self.buckets {
            bucket.charge(spent_ns);
        }
    }

    /// When all quotas admit the group again; `None` is now.
    pub(super) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        self.buckets.iter().filter_map(|bucket| bucket.blocked_until(now)).max()
    }

    pub(super) fn virtual_ns_of(&self, spent_ns: u64) -> u64 {
        spent_ns.saturating_mul(DEFAULT_WEIGHT) / self.weight
    }
}
