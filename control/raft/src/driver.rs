//! The shell around [`Core`]: one raft thread, one log thread, one apply thread, and the handle that calls go through.
//!
//! The log and apply threads never wait for the raft thread: they report through counters and a wake-up. So the raft
//! thread may wait for them where their bounded queues are full.

mod apply_thread;
mod raft_thread;
mod shared;
mod wal_thread;

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use coracle_proto::raft as wire;
use crossbeam_channel::{Sender, bounded};
use tokio::sync::{oneshot, watch};

use self::apply_thread::ApplyThread;
use self::raft_thread::{Event, RaftThread};
use self::shared::{Shared, Waker};
use self::wal_thread::WalThread;
use crate::config::{APPLY_QUEUE_MAX, Config, EVENTS_MAX, WAL_QUEUE_MAX};
use crate::core::Core;
use crate::error::{ChangeError, Error, ProposeError, ReadError};
use crate::identity::{self, Lock};
use crate::membership::{self, MemberChange};
use crate::message::from_wire;
use crate::status::Status;
use crate::transport::Transport;
use crate::wal::{Disk, RealDisk, Wal, WalOptions};

pub use self::shared::Closed;

/// What is replicated. It must be deterministic: the same entries give the same state on each member, for ever.
pub trait StateMachine: Send + 'static {
    /// What a proposer is told.
    type Output: Send + 'static;

    /// Applies one entry. Called on the apply thread, in order, exactly once an index in a process's life, beginning
    /// with an empty machine. Raft's own entries are left out, so indices have gaps.
    fn apply(&mut self, index: u64, term: u64, entry: &[u8]) -> Self::Output;

    /// Everything up to `index` is applied: the place to publish the new state. Proposers are told, and
    /// [`Raft::wait_applied`] returns, only after it.
    fn applied_batch(&mut self, _index: u64) {}
}

/// A handle to this process's member of the cluster. Clones share it; when the last is dropped, the member stops.
pub struct Raft<O> {
    inner: Arc<Inner<O>>,
}

impl<O> Clone for Raft<O> {
    fn clone(&self) -> Raft<O> {
        Raft { inner: self.inner.clone() }
    }
}

struct Inner<O> {
    id: u64,
    events: Sender<Event<O>>,
    waker: Waker<O>,
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
    applied: watch::Receiver<u64>,
}

impl<O> Drop for Inner<O> {
    fn drop(&mut self) {
        self.shared.stop();
        self.waker.wake();
    }
}

impl<O: Send + 'static> Raft<O> {
    /// Starts a member of a new cluster. Each initial voter is started so, with the same voters.
    ///
    /// Where the log holds something already, this is [`Raft::start`]: a command that is given twice is harmless.
    pub fn bootstrap<M: StateMachine<Output = O>>(
        config: Config,
        machine: M,
        transport: Arc<dyn Transport>,
        voters: &[u64],
    ) -> Result<Raft<O>, Error> {
        let lock = identity::lock(&config.dir)?;
        let disk = RealDisk::new(&config.dir);
        launch(config, disk, Some(lock), machine, transport, Some(voters))
    }

    /// Starts a member from its log. With an empty log it is a joiner: it waits for messages of a leader that has added
    /// it, and never campaigns before.
    pub fn start<M: StateMachine<Output = O>>(
        config: Config,
        machine: M,
        transport: Arc<dyn Transport>,
    ) -> Result<Raft<O>, Error> {
        let lock = identity::lock(&config.dir)?;
        let disk = RealDisk::new(&config.dir);
        launch(config, disk, Some(lock), machine, transport, None)
    }

    /// As [`Raft::bootstrap`] with voters, or [`Raft::start`] without, on a disk of the caller's. `config.dir` is not
    /// used, and nothing is locked.
    pub fn start_on<M: StateMachine<Output = O>, D: Disk>(
        config: Config,
        disk: D,
        machine: M,
        transport: Arc<dyn Transport>,
        voters: Option<&[u64]>,
    ) -> Result<Raft<O>, Error> {
        launch(config, disk, None, machine, transport, voters)
    }

    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// Proposes an entry, and waits until it is applied here. Ends after 5 s at the latest.
    ///
    /// Not cancellation safe: a dropped call may still be applied.
    pub async fn propose(&self, entry: Bytes) -> Result<O, ProposeError> {
        let (reply, outcome) = oneshot::channel();
        self.inner.send(Event::Propose(entry, reply)).map_err(|full| match full {
            Refusal::Full => ProposeError::Dropped,
            Refusal::Stopped => ProposeError::Stopped,
        })?;
        // When the member stops with the entry in its hands, nobody knows.
        outcome.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// An index that covers all that was acknowledged, anywhere in the cluster, before the call. A reader then waits
    /// with [`Raft::wait_applied`]. Leader only. Ends after 5 s at the latest.
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        let (reply, outcome) = oneshot::channel();
        self.inner.send(Event::Read(reply)).map_err(|full| match full {
            Refusal::Full => ReadError::Overloaded,
            Refusal::Stopped => ReadError::Stopped,
        })?;
        outcome.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Waits until this member's state machine has applied everything up to `index`. Has no time limit.
    pub async fn wait_applied(&self, index: u64) -> Result<(), ReadError> {
        let mut applied = self.inner.applied.clone();
        applied.wait_for(|applied| *applied >= index).await.map(|_| ()).map_err(|_| ReadError::Stopped)
    }

    /// The highest index that this member's state machine has applied.
    pub fn applied(&self) -> u64 {
        *self.inner.applied.borrow()
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// Makes one change of members, and waits until it is in force here. Leader only. Repeating a change that is in
    /// force already does nothing. Ends after 5 s at the latest.
    pub async fn change_membership(&self, change: MemberChange) -> Result<(), ChangeError> {
        self.change_members(vec![change]).await
    }

    /// Makes several changes as one, through a joint configuration.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<(), ChangeError> {
        self.change(|reply| Event::Change(changes, reply)).await
    }

    /// Hands leadership to another voter, and waits until it leads. Proposals are dropped meanwhile. Leader only.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), ChangeError> {
        self.change(|reply| Event::Transfer(to, reply)).await
    }

    async fn change(
        &self,
        event: impl FnOnce(oneshot::Sender<Result<(), ChangeError>>) -> Event<O>,
    ) -> Result<(), ChangeError> {
        let (reply, outcome) = oneshot::channel();
        self.inner.send(event(reply)).map_err(|full| match full {
            Refusal::Full => ChangeError::InProgress,
            Refusal::Stopped => ChangeError::Stopped,
        })?;
        outcome.await.unwrap_or(Err(ChangeError::Stopped))
    }

    /// Takes messages that another member has sent. Never waits: what is refused, or too much, is dropped, and raft
    /// sends it again.
    pub fn receive(&self, messages: Vec<wire::Message>) {
        self.inner.receive(messages);
    }

    /// Waits until this member has ended, and says why. After [`Closed::Failed`] the process should end.
    pub async fn closed(&self) -> Closed {
        self.inner.shared.closed().await
    }

    /// Stops this member, and waits until its threads have ended and its directory is free.
    pub async fn shutdown(&self) {
        self.inner.shared.stop();
        self.inner.waker.wake();
        self.inner.shared.ended().await;
    }

    /// What a transport's receiving side calls, without the type of the machine's output. It does not keep the member
    /// alive.
    pub(crate) fn receiver(&self) -> Arc<dyn Fn(Vec<wire::Message>) + Send + Sync> {
        let inner = Arc::downgrade(&self.inner);
        Arc::new(move |messages| {
            if let Some(inner) = inner.upgrade() {
                inner.receive(messages);
            }
        })
    }
}

/// Why an event was not taken.
enum Refusal {
    Full,
    Stopped,
}

impl<O> Inner<O> {
    fn send(&self, event: Event<O>) -> Result<(), Refusal> {
        if self.shared.is_stopped() {
            return Err(Refusal::Stopped);
        }
        self.events
            .try_send(event)
            .map_err(|error| if error.is_full() { Refusal::Full } else { Refusal::Stopped })
    }

    fn receive(&self, messages: Vec<wire::Message>) {
        let mut accepted = Vec::with_capacity(messages.len());
        for message in messages {
            let from = message.from;
            match from_wire(message, self.id) {
                Ok(message) => accepted.push(message),
                Err(reason) => tracing::warn!(from, %reason, "refused a raft message"),
            }
        }
        if !accepted.is_empty() && self.send(Event::Messages(accepted)).is_err() {
            tracing::debug!("dropped raft messages");
        }
    }
}

fn launch<O: Send + 'static, M: StateMachine<Output = O>, D: Disk>(
    config: Config,
    disk: D,
    lock: Option<Lock>,
    machine: M,
    transport: Arc<dyn Transport>,
    voters: Option<&[u64]>,
) -> Result<Raft<O>, Error> {
    identity::claim(&disk, &config.cluster_id, config.id)?;
    let options = WalOptions { segment_bytes: config.segment_bytes, salt: rand::random() };
    let (mut wal, mut recovered) = Wal::open(disk.clone(), options)?;
    let is_empty = recovered.entries.is_empty() && recovered.snapshot.index == 0;
    if let Some(voters) = voters.filter(|_| is_empty && recovered.hard_state.term == 0) {
        wal.append(&membership::initial_records(voters, config.id)?)?;
        drop(wal);
        (wal, recovered) = Wal::open(disk, options)?;
    }
    let (id, tick) = (config.id, config.tick);
    let applied_from = recovered.snapshot.index;
    let core = Core::new(config, recovered, &crate::logging::logger())?;

    let (events, events_in) = bounded(EVENTS_MAX);
    let (to_wal, wal_in) = bounded(WAL_QUEUE_MAX);
    let (to_apply, apply_in) = bounded(APPLY_QUEUE_MAX);
    let (status, status_out) = watch::channel(core.status());
    let (applied, applied_out) = watch::channel(applied_from);
    let shared = Arc::new(Shared::new());
    let waker = Waker::new(shared.clone(), events.clone());
    {
        let events = events.clone();
        transport.attach(Arc::new(move |id| {
            // A full queue means that raft is busy; it finds out by itself.
            let _ = events.try_send(Event::Unreachable(id));
        }));
    }

    let wal_thread = WalThread::new(wal, wal_in, transport.clone(), waker.clone());
    let apply_thread = ApplyThread::new(machine, apply_in, applied, waker.clone());
    let raft_thread =
        RaftThread::new(core, events_in, to_wal, to_apply, transport, waker.clone(), status, tick);
    let wal_join = spawn("wal", id, &waker, move || wal_thread.run())?;
    let apply_join = spawn("apply", id, &waker, move || apply_thread.run())?;
    let ended = shared.clone();
    let raft_waker = waker.clone();
    thread::Builder::new()
        .name(format!("raft-{id}"))
        .spawn(move || {
            raft_waker.guard("raft", move || raft_thread.run());
            // The queues are closed now; both threads finish what they hold.
            let _ = (wal_join.join(), apply_join.join());
            drop(lock);
            ended.end();
        })
        .map_err(Error::Thread)?;
    tracing::info!(member = id, "raft member started");
    Ok(Raft {
        inner: Arc::new(Inner { id, events, waker, shared, status: status_out, applied: applied_out }),
    })
}

fn spawn<O: Send + 'static>(
    name: &'static str,
    id: u64,
    waker: &Waker<O>,
    body: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<thread::JoinHandle<()>, Error> {
    let waker = waker.clone();
    thread::Builder::new()
        .name(format!("raft-{id}-{name}"))
        .spawn(move || waker.guard(name, body))
        .map_err(Error::Thread)
}
