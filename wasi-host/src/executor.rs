//! The executor that runs guests, and nothing else.
//!
//! Guests never run on the I/O runtime: a busy one would hold up timers and sockets of all others. Here each
//! container is a [`Group`] with a weight, and the group that has used the least CPU time by its weight (its
//! virtual runtime) runs next, as in the kernel's fair scheduler. A tick of one millisecond lets running guests
//! reach [`tick`], which keeps the accounts, ends what is killed, and makes room only where another one waits.
//!
//! An instruction or a call of the host that takes long holds only its own thread: see [`crew`].
//!
//! Threads are plain OS threads that have entered the tokio runtime's context, so that futures polled here may use
//! its timers and spawn onto it.

mod crew;
mod group;
mod queue;
mod quota;
mod task;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

pub(crate) use group::{DEFAULT_WEIGHT, Group};
pub(crate) use quota::Bucket;
pub(crate) use task::{JoinError, JoinHandle};

use crew::{Crew, SPARE_STAYS, Worker};
use queue::{Due, RunQueue, Work};
use task::Task;

/// How often running guests are asked for their accounts. The granularity of sharing, and the delay of a kill.
const TICK: Duration = Duration::from_millis(1);

/// After so many ticks without a guest running the ticker sleeps until one does.
const IDLE_TICKS_MAX: u32 = 20;

/// Guests give way to the host's own threads: raft and the network are worth more than any one guest's millisecond.
const GUEST_THREAD_NICE: i32 = 5;

/// Runs the futures of guests on threads of its own. Dropping it stops the threads; what has not ended is dropped
/// with the last handle on it.
pub(crate) struct Executor {
    shared: Arc<Shared>,
}

/// What threads, tasks and handles share.
pub(crate) struct Shared {
    queue: Mutex<RunQueue>,
    /// Woken when something became ready and a thread was idle.
    ready: Condvar,
    /// Threads that are polling a task now.
    running: AtomicUsize,
    /// Counts up from 1 while the ticker is awake.
    ticks: AtomicU64,
    /// What guest threads enter.
    runtime: tokio::runtime::Handle,
    ticker_parked: AtomicBool,
    ticker: Mutex<Option<Thread>>,
    stopped: AtomicBool,
    next_id: AtomicU64,
    /// CPU time of all groups.
    cpu_ns: AtomicU64,
    on_tick: Box<dyn Fn() + Send + Sync>,
}

/// What a running guest has to do after a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Continue,
    /// Another one is due, or the quota is used up: return to the executor.
    Yield,
    /// The guest was killed or its time is over: it must not run one instruction more.
    Interrupt,
}

thread_local! {
    /// The task that this thread polls.
    static CURRENT: RefCell<Option<Arc<Task>>> = const { RefCell::new(None) };
    /// This thread's CPU time at the last charge, in nanoseconds.
    static CHARGED_NS: Cell<u64> = const { Cell::new(0) };
    /// This guest thread.
    static WORKER: RefCell<Option<Arc<Worker>>> = const { RefCell::new(None) };
    /// [`tick`] told the guest to yield since the last [`take_preempted`].
    static PREEMPTED: Cell<bool> = const { Cell::new(false) };
}

impl Executor {
    /// Starts `threads` guest threads and the ticker. `on_tick` runs every millisecond while guests run.
    ///
    /// Must be called within a tokio runtime; guests' futures use that runtime's timers.
    pub(crate) fn start(
        threads: usize,
        runtime: &tokio::runtime::Handle,
        on_tick: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Executor> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(RunQueue::new(Crew::new(threads))),
            ready: Condvar::new(),
            running: AtomicUsize::new(0),
            ticks: AtomicU64::new(1),
            runtime: runtime.clone(),
            ticker_parked: AtomicBool::new(false),
            ticker: Mutex::new(None),
            stopped: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            cpu_ns: AtomicU64::new(0),
            on_tick: Box::new(on_tick),
        });
        // Made before the threads: if one of them cannot be started, dropping this ends the others.
        let executor = Executor { shared: Arc::clone(&shared) };
        let ticker = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("guest-tick".into()).spawn(move || run_ticker(&shared))?
        };
        *shared.ticker.lock() = Some(ticker.thread().clone());
        for _ in 0..threads.max(1) {
            start_thread(&shared)?;
        }
        Ok(executor)
    }

    /// CPU time that guests have used so far; at most a tick old.
    pub(crate) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.shared.cpu_ns.load(Ordering::Relaxed))
    }

    /// A new account to run tasks on.
    pub(crate) fn group(
        &self,
        weight: u64,
        buckets: Vec<Arc<Bucket>>,
        pod_cpu_ns: Arc<AtomicU64>,
    ) -> Arc<Group> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Group::new(id, weight, buckets, pod_cpu_ns))
    }

    /// Runs `future` on the account of `group`; past `deadline` it is interrupted where it runs, and dropped by
    /// [`Group::abort_expired`] where it waits.
    pub(crate) fn spawn<F>(
        &self,
        group: &Arc<Group>,
        deadline: Option<Instant>,
        future: F,
    ) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let body = async move {
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            // The receiver is gone where nobody waits for the outcome.
            let _ = sender.send(outcome);
        };
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let task =
            Arc::new(Task::new(id, Arc::clone(group), Arc::clone(&self.shared), deadline, Box::pin(body)));
        group.adopt(&task);
        if group.is_killed() {
            task.abort();
        } else {
            self.shared.push(Arc::clone(&task));
        }
        JoinHandle::new(task, receiver)
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Taking the lock orders this against a thread that is about to wait.
        drop(self.shared.queue.lock());
        self.shared.ready.notify_all();
        self.shared.wake_ticker();
    }
}

impl Shared {
    /// Makes `task` run when its turn comes. It must be in the state SCHEDULED.
    fn push(&self, task: Arc<Task>) {
        let mut queue = self.queue.lock();
        queue.push(task);
        if queue.wants_a_thread() {
            drop(queue);
            self.ready.notify_one();
        }
    }

    /// Has an aborted task's future dropped by a guest thread: a store is no light thing to drop on the I/O runtime.
    fn reap(&self, task: Arc<Task>) {
        let mut queue = self.queue.lock();
        queue.reap.push_back(task);
        if queue.wants_a_thread() {
            drop(queue);
            self.ready.notify_one();
        }
    }

    fn wake_ticker(&self) {
        if self.ticker_parked.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.ticker.lock().as_ref()
        {
            thread.unpark();
        }
    }

    /// Charges the CPU time since the last charge on this thread to `group`; true where it should make room.
    fn charge(&self, group: &Group, now: Instant) -> bool {
        let spent_ns = take_thread_cpu_ns();
        group.charge(spent_ns);
        self.cpu_ns.fetch_add(spent_ns, Ordering::Relaxed);
        if spent_ns > crew::HEAVY_NS {
            group.is_heavy_until(now + crew::HEAVY_FOR);
        }
        let mut queue = self.queue.lock();
        queue.charge(group, spent_ns);
        let over = WORKER.with_borrow(|worker| {
            worker.as_ref().is_some_and(|worker| {
                queue.crew.check_in(worker, self.ticks.load(Ordering::Relaxed));
                queue.crew.is_over(worker)
            })
        });
        over || queue.is_behind(group) || group.blocked_until(now).is_some()
    }
}

/// Called by a running guest after each tick, on the thread that runs it.
///
/// Outside the executor (a guest that a test polls by itself) there is nothing to account for.
pub(crate) fn tick() -> Verdict {
    let Some(task) = CURRENT.with(|current| current.borrow().clone()) else {
        return Verdict::Continue;
    };
    let now = Instant::now();
    let make_room = task.executor.charge(&task.group, now);
    if task.must_end(now) {
        Verdict::Interrupt
    } else if make_room {
        PREEMPTED.set(true);
        Verdict::Yield
    } else {
        Verdict::Continue
    }
}

/// True where the poll that just returned pending did so because its guest had to make room, and not because it
/// waits for something.
pub(crate) fn take_preempted() -> bool {
    PREEMPTED.replace(false)
}

/// Starts a guest thread more, where there may be one.
fn start_thread(shared: &Arc<Shared>) -> std::io::Result<()> {
    let Some(worker) = shared.queue.lock().crew.join() else {
        return Ok(());
    };
    let (of, thread) = (Arc::clone(shared), Arc::clone(&worker));
    let started = std::thread::Builder::new().name("guest".into()).spawn(move || {
        let _context = of.runtime.enter();
        // Without the right to change it the default priority is kept, which only costs latency.
        let _ = rustix::process::nice(GUEST_THREAD_NICE);
        run_thread(&of, &thread);
        of.queue.lock().crew.leave(&thread);
    });
    if started.is_err() {
        shared.queue.lock().crew.leave(&worker);
    }
    started.map(drop)
}

fn run_thread(shared: &Arc<Shared>, worker: &Arc<Worker>) {
    WORKER.set(Some(Arc::clone(worker)));
    take_thread_cpu_ns();
    while let Some(work) = next_work(shared, worker) {
        shared.running.fetch_add(1, Ordering::SeqCst);
        if shared.ticker_parked.load(Ordering::SeqCst) {
            shared.wake_ticker();
        }
        match work {
            Work::Run(task) => run_task(shared, &task),
            Work::Reap(task) => {
                task.drop_future();
                // Cleaning up is the host's work, so nobody is charged for it.
                take_thread_cpu_ns();
            }
        }
        shared.queue.lock().finish(worker);
        shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for something to do. `None` where the thread is to end.
fn next_work(shared: &Shared, worker: &Worker) -> Option<Work> {
    let mut queue = shared.queue.lock();
    loop {
        if shared.stopped.load(Ordering::SeqCst) {
            return None;
        }
        if let Some(work) = queue.take(worker, Instant::now(), shared.ticks.load(Ordering::Relaxed)) {
            // A heavy task takes nobody's place, so that there may be room for one more.
            if queue.wants_a_thread() {
                shared.ready.notify_one();
            }
            return Some(work);
        }
        if queue.has_throttled() {
            shared.wake_ticker();
        }
        queue.crew.idle += 1;
        let waited = shared.ready.wait_for(&mut queue, SPARE_STAYS);
        queue.crew.idle -= 1;
        if waited.timed_out() && queue.crew.has_spares() {
            return None;
        }
    }
}

/// Polls the task once. Nothing that the task does, a panic included, leaves this function.
fn run_task(shared: &Shared, task: &Arc<Task>) {
    CURRENT.with(|current| *current.borrow_mut() = Some(Arc::clone(task)));
    poll_task(task);
    CURRENT.with(|current| *current.borrow_mut() = None);
    // Charged before the task is queued again, so that it is queued by its new virtual runtime.
    shared.charge(&task.group, Instant::now());
    if task.aborted() {
        task.drop_future();
    } else if task.settle() {
        shared.push(Arc::clone(task));
    }
}

fn poll_task(task: &Arc<Task>) {
    task.begin();
    let mut slot = task.future.lock();
    if task.aborted() {
        return;
    }
    let Some(future) = slot.as_mut() else {
        return;
    };
    let waker = Waker::from(Arc::clone(task));
    let mut context = Context::from_waker(&waker);
    let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
    match polled {
        Ok(Poll::Pending) => {}
        Ok(Poll::Ready(())) | Err(_) => {
            let ended = slot.take();
            drop(slot);
            task.end(ended);
        }
    }
}

fn run_ticker(shared: &Arc<Shared>) {
    let mut idle_ticks = 0;
    while !shared.stopped.load(Ordering::SeqCst) {
        let due = look_around(shared);
        if shared.running.load(Ordering::SeqCst) > 0 {
            idle_ticks = 0;
            (shared.on_tick)();
        } else if !due.waiting {
            idle_ticks += 1;
        }
        if idle_ticks > IDLE_TICKS_MAX {
            shared.ticker_parked.store(true, Ordering::SeqCst);
            // Whoever starts a task raises `running` first and reads `ticker_parked` second: one of both sees it.
            if shared.running.load(Ordering::SeqCst) == 0
                && !shared.queue.lock().has_throttled()
                && !shared.stopped.load(Ordering::SeqCst)
            {
                std::thread::park();
            }
            shared.ticker_parked.store(false, Ordering::SeqCst);
            idle_ticks = 0;
        }
        std::thread::sleep(TICK);
    }
}

/// Puts groups back whose quota admits them, and sees to it that what is ready has a thread.
fn look_around(shared: &Arc<Shared>) -> Due {
    let tick = 1 + shared.ticks.fetch_add(1, Ordering::Relaxed);
    let mut queue = shared.queue.lock();
    let due = queue.release_due(Instant::now());
    queue.crew.look_for_stuck(tick);
    let (wake, start) = (queue.wants_a_thread(), queue.lacks_a_thread());
    drop(queue);
    if due.released {
        shared.ready.notify_all();
    } else if wake {
        shared.ready.notify_one();
    }
    if start && let Err(error) = start_thread(shared) {
        // Tried again at the next tick; until then what is ready waits for who is stuck.
        tracing::debug!(%error, "no thread can be started in place of one that is stuck");
    }
    due
}

/// CPU time of this thread since the last call on it, in nanoseconds.
fn take_thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let now_ns = (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64);
    now_ns.saturating_sub(CHARGED_NS.replace(now_ns))
}

#[cfg(test)]
mod tests;
