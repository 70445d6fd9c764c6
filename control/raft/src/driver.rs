//! The shell around [`Core`]: one raft thread, one log thread, one apply thread, one that writes snapshots, and the
//! handle that calls go through.
//!
//! Raft's turns are taken by the raft thread, or by a caller where nothing waits ([`turns`]).
//!
//! The log and apply threads never wait for the raft thread: they report through counters and a wake-up. So the raft
//! thread may wait for them where their bounded queues are full.

mod applied;
mod apply_thread;
mod fetch;
mod member;
mod raft_thread;
mod shared;
mod snapshot_thread;
mod turns;
mod wal_thread;

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use coracle_proto::raft as wire;
use crossbeam_channel::bounded;
use tokio::sync::{oneshot, watch};

use self::applied::{Applied, Teller};
use self::apply_thread::ApplyThread;
use self::member::{Event, Life, Member, Room};
use self::raft_thread::RaftThread;
use self::shared::{Shared, Waker};
use self::snapshot_thread::{SnapshotSchedule, SnapshotThread, SnapshotWaiters};
use self::turns::{Refusal, Turns};
use self::wal_thread::WalThread;
use crate::config::{
    APPLY_QUEUE_MAX, Config, EVENTS_MAX, SEGMENT_BYTES_MIN, SEGMENT_PART_OF_DISK, SNAPSHOT_WAITERS_MAX,
    WAL_QUEUE_MAX,
};
use crate::core::Core;
use crate::error::{ChangeError, Error, ProposeError, ReadError};
use crate::identity::{self, Lock};
use crate::membership::{self, MemberChange};
use crate::message::from_wire;
use crate::metrics::Metrics;
use crate::snapshot::{Frozen, Look, SnapshotError, Source, files};
use crate::status::{DiskRoom, Leading, Status};
use crate::transport::Transport;
use crate::wal::{Disk, RealDisk, SnapshotMarker, Wal, WalOptions};

pub use self::shared::Closed;

/// What is replicated. It must be deterministic: the same entries give the same state on each member, for ever.
pub trait StateMachine: Send + 'static {
    /// What a proposer is told.
    type Output: Send + 'static;
    /// The state at one moment.
    type Frozen: Frozen;

    /// Applies one entry. Called on the apply thread, in order, beginning with an empty machine or a restored one.
    /// Raft's own entries are left out, so indices have gaps.
    fn apply(&mut self, index: u64, term: u64, entry: &[u8]) -> Self::Output;

    /// Called every few seconds, also while nothing is applied.
    fn tend(&mut self) {}

    /// Everything up to `index` is applied: the place to publish the new state. Proposers are told, and
    /// [`Raft::wait_applied`] returns, only after it.
    fn applied_batch(&mut self, _index: u64) {}

    /// The state as it is now. Must be quick: entries wait for it.
    fn freeze(&self) -> Self::Frozen;

    /// Puts a state that [`Frozen::write_to`] has written, as of entry `index`, in place of this one. Reads to the end:
    /// only that tells that all of it was right. After an error the member ends.
    fn restore(&mut self, index: u64, state: &mut dyn Read) -> io::Result<()>;

    /// Looks at a state that another member gives, before it takes the place of anything. An error of kind `Unsupported`
    /// where this build cannot read it: then the member ends, and all that it has stays as it is. The same kind of error
    /// of [`StateMachine::restore`] says so of a member's own state.
    fn look(&self) -> Look {
        Arc::new(|_| Ok(()))
    }
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
    turns: Arc<Turns<O>>,
    waker: Waker<O>,
    shared: Arc<Shared>,
    status: watch::Receiver<Status>,
    leading: watch::Receiver<Leading>,
    applied: Arc<Applied>,
    snapshot_waiters: SnapshotWaiters,
    snapshots: OpenSnapshot,
}

/// Opens the file of this member's snapshot as of an entry, from an offset on.
pub(crate) type OpenSnapshot = Arc<dyn Fn(u64, u64) -> io::Result<Source> + Send + Sync>;

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
            Refusal::Full => {
                self.metrics().proposals.add(1);
                self.metrics().proposals_failed.add(1);
                ProposeError::Dropped
            }
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
        self.inner.applied.wait(index).await.map_err(|applied::Stopped| ReadError::Stopped)
    }

    /// The highest index that this member's state machine has applied.
    pub fn applied(&self) -> u64 {
        self.inner.applied.index()
    }

    /// What this member has counted since it started.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.shared.metrics
    }

    /// Nobody may hold a borrow of it and propose, read or receive meanwhile: that may write it.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// As [`Raft::status`], for whoever waits for another leader, term or role alone.
    pub fn leading(&self) -> watch::Receiver<Leading> {
        self.inner.leading.clone()
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

    /// Makes a snapshot that holds at least everything that was applied here before the call: what it holds, and its
    /// file, to be read with [`crate::snapshot::Reader`] or copied.
    pub async fn snapshot(&self) -> Result<(SnapshotMarker, Source), SnapshotError> {
        let (reply, made) = oneshot::channel();
        {
            let mut waiters = self.inner.snapshot_waiters.lock();
            if waiters.len() >= SNAPSHOT_WAITERS_MAX {
                return Err(SnapshotError::Failed("too many wait for one: try again later".to_owned()));
            }
            waiters.push(reply);
        }
        self.inner.send(Event::Snapshot).map_err(|full| match full {
            Refusal::Full => SnapshotError::Failed("this member is overloaded".to_owned()),
            Refusal::Stopped => SnapshotError::Stopped,
        })?;
        made.await.unwrap_or(Err(SnapshotError::Stopped))
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

    /// Reads the file of this member's snapshot as of entry `index` from `offset` on, for the member `to` that was told
    /// of it. It may be gone already: then `to` will be told of a newer one.
    pub(crate) fn serve_snapshot(&self) -> ServeSnapshot {
        let (inner, snapshots) = (Arc::downgrade(&self.inner), self.inner.snapshots.clone());
        let served = Arc::new(move |to| {
            if let Some(inner) = inner.upgrade() {
                // A full queue means that raft is busy; the next part will tell it.
                let _ = inner.send(Event::Served(to));
            }
        });
        ServeSnapshot { open: snapshots, served }
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

/// How a transport hands this member's snapshots out.
#[derive(Clone)]
pub(crate) struct ServeSnapshot {
    pub open: OpenSnapshot,
    /// To be called with the receiver's id now and then while it takes parts.
    pub served: Arc<dyn Fn(u64) + Send + Sync>,
}

impl<O: Send + 'static> Inner<O> {
    fn send(&self, event: Event<O>) -> Result<(), Refusal> {
        if self.shared.is_stopped() {
            return Err(Refusal::Stopped);
        }
        self.turns.bring(event)
    }

    fn receive(&self, messages: Vec<wire::Message>) {
        let mut accepted = Vec::with_capacity(messages.len());
        for message in messages {
            let from = message.from;
            match from_wire(message, self.id) {
                Ok(message) => accepted.push(message),
                Err(reason) => {
                    self.shared.metrics.messages_refused.add(1);
                    tracing::warn!(from, %reason, "refused a raft message");
                }
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
    mut machine: M,
    transport: Arc<dyn Transport>,
    voters: Option<&[u64]>,
) -> Result<Raft<O>, Error> {
    identity::claim(&disk, &config.cluster_id, config.id)?;
    let options = WalOptions { segment_bytes: segment_bytes(&config, &disk), salt: rand::random() };
    let (mut wal, mut recovered) = Wal::open(disk.clone(), options)?;
    let is_empty = recovered.entries.is_empty() && recovered.snapshot.index == 0;
    if let Some(voters) = voters.filter(|_| is_empty && recovered.hard_state.term == 0) {
        wal.append(&membership::initial_records(voters, config.id)?)?;
        drop(wal);
        (wal, recovered) = Wal::open(disk.clone(), options)?;
    }
    let (id, tick, cluster_id) = (config.id, config.tick, config.cluster_id.clone());
    let begins = recovered.snapshot.clone();
    if begins.index > 0 {
        let mut state = files::open_for(&disk, &cluster_id, &begins)?;
        machine.restore(begins.index, &mut state).map_err(|error| files::broken(begins.index, error))?;
        machine.applied_batch(begins.index);
    }
    let snapshot_waiters = SnapshotWaiters::default();
    let (schedule, jobs) = SnapshotSchedule::new(config.snapshot_entries, snapshot_waiters.clone());
    let core = Core::new(config, recovered, &crate::logging::logger())?;

    let (events, events_in) = bounded(EVENTS_MAX);
    let (to_wal, wal_in) = bounded(WAL_QUEUE_MAX);
    let (to_apply, apply_in) = bounded(APPLY_QUEUE_MAX);
    let (status, status_out) = watch::channel(core.status());
    let (leading, leading_out) = watch::channel(core.status().leading());
    let (applied, applied_out) = Teller::new(begins.index);
    let shared = Arc::new(Shared::new());
    let waker = Waker::new(shared.clone(), events.clone());
    {
        let events = events.clone();
        transport.attach(Arc::new(move |id| {
            // A full queue means that raft is busy; it finds out by itself.
            let _ = events.try_send(Event::Unreachable(id));
        }));
    }
    let served = disk.clone();
    let snapshots: OpenSnapshot = Arc::new(move |index, offset| files::source(&served, index, offset));

    let room: Room = {
        let (disk, segment_bytes) = (disk.clone(), options.segment_bytes);
        Box::new(move |snapshot| DiskRoom::look(&disk, segment_bytes, snapshot))
    };
    let place = fetch::Place { disk: disk.clone(), cluster_id: cluster_id.clone(), look: machine.look() };
    let fetch = fetch::fetcher(place, transport.clone(), events.clone());
    let snapshot_thread = SnapshotThread {
        waiters: snapshot_waiters.clone(),
        disk: disk.clone(),
        cluster_id: cluster_id.clone(),
        jobs,
        events: events.clone(),
        shared: shared.clone(),
    };
    let wal_thread = WalThread::new(wal, wal_in, transport.clone(), waker.clone());
    let apply_thread =
        ApplyThread::new(machine, disk, cluster_id, apply_in, applied, schedule, waker.clone());
    let member = Member {
        core,
        to_wal,
        to_apply,
        transport,
        room,
        fetch,
        waker: waker.clone(),
        status,
        leading,
        life: Life::default(),
    };
    let turns = Arc::new(Turns::new(events, waker.clone()));
    let raft_thread = RaftThread { member, turns: turns.clone(), events: events_in, tick };
    let wal_join = spawn("wal", id, &waker, move || wal_thread.run())?;
    let apply_join = spawn("apply", id, &waker, move || apply_thread.run())?;
    let snapshot_join = spawn("snapshot", id, &waker, move || snapshot_thread.run())?;
    let ended = shared.clone();
    let (raft_waker, last) = (waker.clone(), turns.clone());
    thread::Builder::new()
        .name(format!("raft-{id}"))
        .spawn(move || {
            raft_waker.guard("raft", move || raft_thread.run());
            last.end();
            // The queues are closed now; the threads finish what they hold.
            let _ = (wal_join.join(), apply_join.join(), snapshot_join.join());
            drop(lock);
            ended.end();
        })
        .map_err(Error::Thread)?;
    tracing::info!(member = id, "raft member started");
    Ok(Raft {
        inner: Arc::new(Inner {
            id,
            turns,
            waker,
            shared,
            status: status_out,
            leading: leading_out,
            applied: applied_out,
            snapshot_waiters,
            snapshots,
        }),
    })
}

/// The configured size, or less on a small disk.
fn segment_bytes(config: &Config, disk: &impl Disk) -> u64 {
    let part = disk.space().map_or(u64::MAX, |space| space.total / SEGMENT_PART_OF_DISK);
    config.segment_bytes.min(part.max(SEGMENT_BYTES_MIN))
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
