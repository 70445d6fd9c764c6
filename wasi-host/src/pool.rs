//! Threads that may block, on account of pods.
//!
//! What a guest or a pod's spec has the host do may take as long as a disk likes, or for ever. It is done here and not
//! on the runtime's own threads for such work, which everything else of the process needs. How many calls of a pod and
//! of a namespace run at once is bounded by [`Shares`]; the others wait in line, first come first served, and namespaces
//! and pods take turns. A call that is given up while it waits leaves the line; one that runs cannot be ended, and holds
//! its place until it ends by itself, whatever became of its pod.

mod lines;

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::refusals::What;
use crate::shares::{Holder, Permit, Shares};
use lines::Lines;

/// Calls of one pod that may wait.
pub(crate) const WAITING_MAX: usize = 4_096;

/// How long a thread without work is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Something that may block.
type Work = Box<dyn FnOnce() + Send>;

/// Why a call came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// Too many calls of the pod wait already.
    #[error("{WAITING_MAX} calls of this pod wait for the disk already")]
    Full,
    /// It panicked, no thread could be started for it, or the process ends.
    #[error("the call was lost")]
    Lost,
}

/// The threads, and the lines before them. Dropping it lets what runs end, and drops what waits.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    size: usize,
    nice: i32,
    state: Mutex<State>,
    /// Told when there is work for an idle thread.
    work: Condvar,
}

struct State {
    lines: Lines<Work>,
    /// Work that has its place, and no thread yet.
    admitted: VecDeque<(Permit, Work)>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    /// The number of the next call.
    next: u64,
    stopped: bool,
}

impl Pool {
    /// At most `size` threads of this name, started as they are needed, that give way to others by `nice`.
    pub fn new(name: &'static str, size: usize, nice: i32) -> Arc<Pool> {
        Pool::with(name, Shares::new(What::Calls, size), nice)
    }

    /// The same with as many threads as there are shares.
    pub fn with(name: &'static str, shares: Arc<Shares>, nice: i32) -> Arc<Pool> {
        let size = shares.size();
        let state = State {
            lines: Lines::new(shares),
            admitted: VecDeque::new(),
            threads: 0,
            idle: 0,
            next: 0,
            stopped: false,
        };
        let shared = Shared { name, size, nice, state: Mutex::new(state), work: Condvar::new() };
        Arc::new(Pool { shared: Arc::new(shared) })
    }

    /// Does `work` when its turn comes. Dropping the call before that takes it out of the line.
    pub fn call<R: Send + 'static>(
        &self,
        holder: &Holder,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Call<R> {
        let (told, outcome) = oneshot::channel();
        let work = Box::new(move || {
            // Whoever asked may have gone away.
            let _ = told.send(work());
        });
        match self.shared.join(holder, work, WAITING_MAX) {
            Ok(number) => {
                let place = Place { shared: Arc::clone(&self.shared), holder: holder.clone(), number };
                Call { place: Some(place), outcome: Some(outcome) }
            }
            Err(_refused) => Call { place: None, outcome: None },
        }
    }

    /// Does `work` when its turn comes, however many wait, and whether or not somebody still cares.
    ///
    /// For what frees something, whose number is bounded by what there is to free.
    pub fn post(&self, holder: &Holder, work: impl FnOnce() + Send + 'static) {
        if let Err(refused) = self.shared.join(holder, Box::new(work), usize::MAX) {
            refused();
        }
    }

    /// Threads that there are now.
    pub fn threads(&self) -> usize {
        self.shared.state.lock().threads
    }

    /// Calls that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().lines.len()
    }

    /// Calls that run, or are about to.
    pub fn running(&self) -> usize {
        self.shared.state.lock().lines.shares().held()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.stopped = true;
        let waiting = state.lines.clear();
        drop(state);
        self.shared.work.notify_all();
        // What it holds may come back here when it is dropped.
        drop(waiting);
    }
}

impl Shared {
    /// Puts `work` in line, and gives back what may not wait there.
    fn join(self: &Arc<Self>, holder: &Holder, work: Work, waiting_max: usize) -> Result<u64, Work> {
        let mut state = self.state.lock();
        if state.stopped || state.lines.waiting(holder) >= waiting_max {
            return Err(work);
        }
        let number = state.next;
        state.next += 1;
        state.lines.join(holder, number, work);
        let lost = self.admit(&mut state, 0);
        drop(state);
        drop(lost);
        Ok(number)
    }

    /// Gives a place to all that may have one, and sees to it that there are threads for them; `here` of them are the
    /// caller. Returns what nobody can do, to be dropped without the lock.
    fn admit(self: &Arc<Self>, state: &mut MutexGuard<'_, State>, here: usize) -> Vec<(Permit, Work)> {
        let before = state.admitted.len();
        while let Some(next) = state.lines.next() {
            state.admitted.push_back(next);
        }
        // The caller takes one itself.
        for _ in before + here..state.admitted.len() {
            self.work.notify_one();
        }
        while state.admitted.len() > state.idle + here && state.threads < self.size {
            let shared = Arc::clone(self);
            let thread = std::thread::Builder::new().name(self.name.to_owned());
            if let Err(error) = thread.spawn(move || shared.run()) {
                tracing::warn!(name = self.name, threads = state.threads, %error, "thread cannot be started");
                // Threads that there are come to it; without any nobody would.
                let lost = if state.threads == 0 { state.admitted.drain(..).collect() } else { Vec::new() };
                return lost;
            }
            state.threads += 1;
            // It begins as one that waits for work.
            state.idle += 1;
        }
        Vec::new()
    }

    fn run(self: Arc<Self>) {
        // Without the right to change it the default priority is kept, which only costs latency.
        let _ = rustix::process::nice(self.nice);
        let mut state = self.state.lock();
        loop {
            if let Some((permit, work)) = state.admitted.pop_front() {
                state.idle -= 1;
                drop(state);
                // What it does for whoever asked; nobody waits for the words of a panic.
                let _ = catch_unwind(AssertUnwindSafe(work));
                drop(permit);
                state = self.state.lock();
                let lost = self.admit(&mut state, 1);
                state.idle += 1;
                debug_assert!(lost.is_empty(), "this thread is there");
                continue;
            }
            let over = state.stopped || self.work.wait_for(&mut state, KEEP_ALIVE).timed_out();
            if over && state.admitted.is_empty() {
                break;
            }
        }
        state.idle -= 1;
        state.threads -= 1;
    }
}

/// Something that is done by a [`Pool`], and its outcome.
#[must_use = "a call that is dropped may not be done"]
pub struct Call<R> {
    place: Option<Place>,
    /// `None` where there was no place for it.
    outcome: Option<oneshot::Receiver<R>>,
}

/// Where a call waits.
struct Place {
    shared: Arc<Shared>,
    holder: Holder,
    number: u64,
}

impl Place {
    /// Takes the call out of the line; false where it is there no more.
    fn leave(self) -> bool {
        let left = self.shared.state.lock().lines.leave(&self.holder, self.number);
        left.is_some()
    }
}

impl<R> Call<R> {
    /// Whether there was no place for it in the line.
    pub(crate) fn is_refused(&self) -> bool {
        self.outcome.is_none()
    }

    /// Gives the call up, unless it has begun: false, and then its outcome is to be waited for.
    pub fn withdraw(&mut self) -> bool {
        self.place.take().is_some_and(Place::leave)
    }
}

impl<R> Future for Call<R> {
    type Output = Result<R, NotDone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(outcome) = &mut self.outcome else {
            return Poll::Ready(Err(NotDone::Full));
        };
        let outcome = ready!(Pin::new(outcome).poll(cx));
        self.place = None;
        Poll::Ready(outcome.map_err(|_| NotDone::Lost))
    }
}

impl<R> Drop for Call<R> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests;
