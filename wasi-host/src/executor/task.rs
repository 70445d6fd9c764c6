//! A guest's future with its state, its waker and the handle on its outcome.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, Wake};
use std::time::Instant;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Shared;
use super::group::Group;

/// Waits for a wake.
const IDLE: u8 = 0;
/// In the run queue.
const SCHEDULED: u8 = 1;
/// Being polled.
const RUNNING: u8 = 2;
/// Being polled, and woken meanwhile: goes to the queue again.
const NOTIFIED: u8 = 3;
/// Its future is gone.
const ENDED: u8 = 4;

pub(crate) struct Task {
    pub(super) id: u64,
    pub(super) group: Arc<Group>,
    pub(super) executor: Arc<Shared>,
    state: AtomicU8,
    aborted: AtomicBool,
    deadline: Option<Instant>,
    /// Locked while it is polled. `None` once it has ended.
    pub(super) future: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl Task {
    pub(super) fn new(
        id: u64,
        group: Arc<Group>,
        executor: Arc<Shared>,
        deadline: Option<Instant>,
        future: BoxFuture<'static, ()>,
    ) -> Task {
        Task {
            id,
            group,
            executor,
            state: AtomicU8::new(SCHEDULED),
            aborted: AtomicBool::new(false),
            deadline,
            future: Mutex::new(Some(future)),
        }
    }

    pub(super) fn aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    pub(super) fn expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    pub(super) fn must_end(&self, now: Instant) -> bool {
        self.aborted() || self.group.is_killed() || self.expired(now)
    }

    pub(super) fn begin(&self) {
        self.state.store(RUNNING, Ordering::SeqCst);
    }

    /// After a poll: true where the task was woken meanwhile and has to be queued again.
    pub(super) fn settle(&self) -> bool {
        match self.state.compare_exchange(RUNNING, IDLE, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => false,
            Err(NOTIFIED) => {
                self.state.store(SCHEDULED, Ordering::SeqCst);
                true
            }
            Err(_) => false,
        }
    }

    pub(super) fn end(&self, future: Option<BoxFuture<'static, ()>>) {
        self.state.store(ENDED, Ordering::SeqCst);
        self.group.release(self.id);
        // Dropping runs the destructors of the guest's resources; a panic in them is that guest's alone.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
    }

    /// Drops the future of an aborted task, unless it is being polled: then its thread does so after the poll.
    pub(super) fn drop_future(&self) {
        let Some(mut slot) = self.future.try_lock() else {
            return;
        };
        let future = slot.take();
        drop(slot);
        if future.is_some() {
            self.end(future);
        }
    }

    pub(super) fn abort(self: &Arc<Task>) {
        if !self.aborted.swap(true, Ordering::SeqCst) && self.state.load(Ordering::SeqCst) != ENDED {
            self.executor.reap(Arc::clone(self));
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.state.load(Ordering::SeqCst);
        loop {
            let next = match state {
                IDLE => SCHEDULED,
                RUNNING => NOTIFIED,
                _ => return,
            };
            match self.state.compare_exchange(state, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) if next == SCHEDULED => return self.executor.push(Arc::clone(self)),
                Ok(_) => return,
                Err(seen) => state = seen,
            }
        }
    }
}

/// Why a task has no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("the task was ended from outside")]
    Aborted,
    /// The host's own code panicked while it served the guest.
    #[error("the host failed: {0}")]
    Panicked(String),
}

/// Waits for a task's outcome. Dropping it lets the task go on.
pub(crate) struct JoinHandle<T> {
    task: Arc<Task>,
    outcome: oneshot::Receiver<Result<T, Box<dyn Any + Send>>>,
}

impl<T> JoinHandle<T> {
    pub(super) fn new(
        task: Arc<Task>,
        outcome: oneshot::Receiver<Result<T, Box<dyn Any + Send>>>,
    ) -> JoinHandle<T> {
        JoinHandle { task, outcome }
    }

    /// Ends the task: dropped where it waits, interrupted within a tick where it runs.
    pub(crate) fn abort(&self) {
        self.task.abort();
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(context).map(|received| match received {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(panic)) => Err(JoinError::Panicked(panic_message(panic.as_ref()))),
            Err(_) => Err(JoinError::Aborted),
        })
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(message) = panic.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message.clone()
    } else {
        "panic without a message".to_owned()
    }
}
