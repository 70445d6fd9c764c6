//! What the threads of a member share: how far log and state machine are, and whether it goes on.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::Sender;
use tokio::sync::watch;

use super::member::Event;
use crate::error::{Error, chain};
use crate::metrics::Metrics;

/// Why a member has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It was asked to.
    Shutdown,
    /// It cannot go on: what its disk holds is unknown, or an invariant is broken. Nothing that it has not confirmed
    /// was acknowledged to anybody.
    Failed(String),
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Shutdown => f.write_str("the raft member was shut down"),
            Closed::Failed(reason) => write!(f, "the raft member has failed: {reason}"),
        }
    }
}

pub struct Shared {
    /// The number of the last durable round.
    pub persisted: AtomicU64,
    /// The last applied index.
    pub applied: AtomicU64,
    /// Whether the raft thread wants to be woken when `applied` has risen.
    pub applied_awaited: AtomicBool,
    pub metrics: Metrics,
    woken: AtomicBool,
    stopped: AtomicBool,
    closed: watch::Sender<Option<Closed>>,
    ended: watch::Sender<bool>,
}

impl Shared {
    pub fn new() -> Shared {
        Shared {
            persisted: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            applied_awaited: AtomicBool::new(true),
            metrics: Metrics::default(),
            woken: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            closed: watch::Sender::new(None),
            ended: watch::Sender::new(false),
        }
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// The raft thread looks at the counters after this.
    pub fn accept_wake(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    /// The first reason stays.
    fn fail(&self, reason: String) {
        self.stop();
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                tracing::error!(%reason, "raft member failed");
                *closed = Some(Closed::Failed(reason));
            }
            first
        });
    }

    /// All threads have ended.
    pub fn end(&self) {
        self.stop();
        self.closed.send_if_modified(|closed| closed.is_none() && closed.replace(Closed::Shutdown).is_none());
        self.ended.send_replace(true);
    }

    pub async fn closed(&self) -> Closed {
        let mut closed = self.closed.subscribe();
        let found = closed.wait_for(Option::is_some).await;
        // The sender lives as long as self.
        found.ok().and_then(|closed| closed.clone()).unwrap_or(Closed::Shutdown)
    }

    pub async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

/// Wakes the raft thread, whatever its queue holds.
pub struct Waker<O> {
    pub shared: Arc<Shared>,
    events: Sender<Event<O>>,
}

impl<O> Clone for Waker<O> {
    fn clone(&self) -> Waker<O> {
        Waker { shared: self.shared.clone(), events: self.events.clone() }
    }
}

impl<O> Waker<O> {
    pub fn new(shared: Arc<Shared>, events: Sender<Event<O>>) -> Waker<O> {
        Waker { shared, events }
    }

    /// Never waits. Where the queue is full the raft thread is awake anyway.
    pub fn wake(&self) {
        if !self.shared.woken.swap(true, Ordering::SeqCst) {
            let _ = self.events.try_send(Event::Wake);
        }
    }

    /// Runs a thread's body; an error or a panic in it ends the member.
    pub fn guard(&self, thread: &'static str, body: impl FnOnce() -> Result<(), Error>) {
        let reason = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(panic) => format!("the {thread} thread panicked: {}", panic_text(&*panic)),
        };
        self.shared.fail(reason);
        self.wake();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no reason given")
}
