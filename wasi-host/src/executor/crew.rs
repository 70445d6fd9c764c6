//! The guest threads: how many of them run guests at once, and who takes the place of one that is stuck.
//!
//! A guest gives way at its loops and calls. One instruction that fills gigabytes, or one call that has the host copy
//! much, reaches neither for a second: the thread that runs it is then away, and another takes its place, so that the
//! kernel shares the cores between the two. A group that was caught at it runs away from the start for a while, on few
//! threads, so that however many do so, the others keep theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Ticks without a sign after which a thread is taken for stuck. Being wrong costs a thread that is not needed.
const STUCK_TICKS: u64 = 10;

/// Threads that may be made in place of others. More than so many guests at their first offence wait for each other.
const SPARES_MAX: usize = 64;

/// A spare thread that had nothing to do for so long ends.
pub(super) const SPARE_STAYS: Duration = Duration::from_secs(10);

/// CPU time in one piece that makes a group a heavy one.
pub(super) const HEAVY_NS: u64 = 20_000_000;

/// How long a group is heavy after its last such piece.
pub(super) const HEAVY_FOR: Duration = Duration::from_secs(10);

/// One guest thread.
#[derive(Default)]
pub(super) struct Worker {
    /// The tick of its last sign of life; 0 while it runs no guest.
    seen: AtomicU64,
    /// It does not count: another has its place. Changed under the run queue's lock only, as is the next.
    away: AtomicBool,
    /// It runs a task of a heavy group, and is away until that returns.
    heavy: AtomicBool,
}

impl Worker {
    /// The guest that it runs reached a check.
    pub(super) fn sign(&self, tick: u64) {
        self.seen.store(tick, Ordering::Relaxed);
    }

    fn is_stuck(&self, tick: u64) -> bool {
        let seen = self.seen.load(Ordering::Relaxed);
        seen != 0 && tick.saturating_sub(seen) > STUCK_TICKS
    }
}

/// All guest threads. Part of the run queue, and guarded by its lock.
pub(super) struct Crew {
    /// Threads that run guests at once, without those that are away.
    size: usize,
    workers: Vec<Arc<Worker>>,
    running: usize,
    away: usize,
    heavy: usize,
    /// Threads that wait for work.
    pub(super) idle: usize,
}

impl Crew {
    pub(super) fn new(size: usize) -> Crew {
        Crew { size: size.max(1), workers: Vec::new(), running: 0, away: 0, heavy: 0, idle: 0 }
    }

    /// A thread more, unless there are as many as there may be.
    pub(super) fn join(&mut self) -> Option<Arc<Worker>> {
        if self.workers.len() >= self.size + SPARES_MAX {
            return None;
        }
        let worker = Arc::new(Worker::default());
        self.workers.push(Arc::clone(&worker));
        Some(worker)
    }

    pub(super) fn leave(&mut self, worker: &Arc<Worker>) {
        self.workers.retain(|other| !Arc::ptr_eq(other, worker));
    }

    /// There are more threads than run guests at once.
    pub(super) fn has_spares(&self) -> bool {
        self.workers.len() > self.size
    }

    /// One more thread may run a guest.
    pub(super) fn has_room(&self) -> bool {
        self.running - self.away < self.size
    }

    /// More threads run guests than should, since one that was away has come back: `worker` should make room.
    pub(super) fn is_over(&self, worker: &Worker) -> bool {
        self.running - self.away > self.size && !worker.heavy.load(Ordering::Relaxed)
    }

    /// A task of a heavy group may run.
    pub(super) fn takes_heavy(&self) -> bool {
        self.heavy < self.size
    }

    pub(super) fn begin(&mut self, worker: &Worker, heavy: bool, tick: u64) {
        self.running += 1;
        worker.sign(tick);
        if heavy {
            worker.heavy.store(true, Ordering::Relaxed);
            self.heavy += 1;
            self.send_away(worker);
        }
    }

    /// The worker gave a sign: where it was stuck, it counts again.
    pub(super) fn check_in(&mut self, worker: &Worker, tick: u64) {
        worker.sign(tick);
        if !worker.heavy.load(Ordering::Relaxed) {
            self.come_back(worker);
        }
    }

    /// The worker's task returned. True where it was a heavy one.
    pub(super) fn finish(&mut self, worker: &Worker) -> bool {
        worker.sign(0);
        self.come_back(worker);
        self.running -= 1;
        let heavy = worker.heavy.swap(false, Ordering::Relaxed);
        self.heavy -= usize::from(heavy);
        heavy
    }

    /// Counts those that are stuck as away.
    pub(super) fn look_for_stuck(&mut self, tick: u64) {
        for at in 0..self.workers.len() {
            if self.workers[at].is_stuck(tick) {
                let worker = Arc::clone(&self.workers[at]);
                self.send_away(&worker);
            }
        }
    }

    fn send_away(&mut self, worker: &Worker) {
        self.away += usize::from(!worker.away.swap(true, Ordering::Relaxed));
    }

    fn come_back(&mut self, worker: &Worker) {
        self.away -= usize::from(worker.away.swap(false, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_thread_makes_room_until_it_gives_a_sign() {
        let mut crew = Crew::new(1);
        let (first, second) = (crew.join().expect("room"), crew.join().expect("room"));
        assert!(crew.has_spares() && crew.has_room());
        crew.begin(&first, false, 1);
        crew.look_for_stuck(1 + STUCK_TICKS);
        assert!(!crew.has_room());
        crew.look_for_stuck(2 + STUCK_TICKS);
        assert!(crew.has_room());
        crew.begin(&second, false, 2 + STUCK_TICKS);
        assert!(!crew.has_room() && !crew.is_over(&first));
        crew.check_in(&first, 3 + STUCK_TICKS);
        assert!(crew.is_over(&first));
        assert!(!crew.finish(&first));
        assert!(!crew.is_over(&second) && !crew.has_room());
        crew.finish(&second);
        // One that runs nothing is never stuck.
        crew.look_for_stuck(1_000);
        assert_eq!((crew.running, crew.away), (0, 0));
    }

    #[test]
    fn heavy_ones_take_nobodys_place_and_are_few() {
        let mut crew = Crew::new(2);
        let workers: Vec<_> = (0..4).map(|_| crew.join().expect("room")).collect();
        crew.begin(&workers[0], true, 1);
        assert!(crew.takes_heavy());
        crew.begin(&workers[1], true, 1);
        assert!(!crew.takes_heavy() && crew.has_room());
        crew.check_in(&workers[0], 2);
        crew.begin(&workers[2], false, 2);
        crew.begin(&workers[3], false, 2);
        assert!(!crew.has_room() && !crew.is_over(&workers[0]) && !crew.is_over(&workers[2]));
        assert!(crew.finish(&workers[0]));
        assert!(crew.takes_heavy());
    }

    #[test]
    fn threads_are_bounded() {
        let mut crew = Crew::new(2);
        let all: Vec<_> = std::iter::from_fn(|| crew.join()).collect();
        assert_eq!(all.len(), 2 + SPARES_MAX);
        crew.leave(&all[0]);
        assert!(crew.join().is_some());
    }
}
