//! The apply thread: owns the state machine, applies what is committed, tells the proposers, and freezes the state when
//! a snapshot is due.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::StateMachine;
use super::applied::Teller;
use super::member::Reply;
use super::shared::Waker;
use super::snapshot_thread::SnapshotSchedule;
use crate::error::{Error, ProposeError};
use crate::snapshot::files;
use crate::wal::{Disk, SnapshotMarker};

/// One committed entry, and who proposed it.
pub struct ApplyItem<O> {
    pub index: u64,
    pub term: u64,
    /// Empty where the entry is raft's own.
    pub data: Bytes,
    pub reply: Option<Reply<O, ProposeError>>,
}

/// A proposer, and what it is to be told.
type Answer<O> = (Reply<O, ProposeError>, O);

/// What the state machine is to do next, in order.
pub enum ApplyJob<O> {
    Entries(Vec<ApplyItem<O>>),
    /// Take over the snapshot that has arrived.
    Restore(SnapshotMarker),
    /// A snapshot is wanted though none is due.
    Snapshot,
}

/// How many rounds' entries share one publication of the state.
const ROUNDS_TOGETHER_MAX: usize = 64;

/// Between two looks at what the machine, and the log, can do without.
const TEND_EVERY: Duration = Duration::from_secs(15);

pub struct ApplyThread<M: StateMachine, D: Disk> {
    machine: M,
    disk: D,
    cluster_id: String,
    queue: Receiver<ApplyJob<M::Output>>,
    applied: Teller,
    snapshots: SnapshotSchedule<M::Frozen>,
    waker: Waker<M::Output>,
    replies: Vec<Answer<M::Output>>,
    /// What the machine was given last.
    last: u64,
    unpublished: bool,
}

impl<M: StateMachine, D: Disk> ApplyThread<M, D> {
    /// The machine is as of the entry that `applied` holds.
    pub fn new(
        machine: M,
        disk: D,
        cluster_id: String,
        queue: Receiver<ApplyJob<M::Output>>,
        applied: Teller,
        snapshots: SnapshotSchedule<M::Frozen>,
        waker: Waker<M::Output>,
    ) -> Self {
        let last = applied.index();
        let replies = Vec::new();
        ApplyThread {
            machine,
            disk,
            cluster_id,
            queue,
            applied,
            snapshots,
            waker,
            replies,
            last,
            unpublished: false,
        }
    }

    pub fn run(mut self) -> Result<(), Error> {
        let mut tend_at = Instant::now();
        loop {
            match self.queue.recv_deadline(tend_at) {
                Ok(first) => self.rounds(first)?,
                Err(RecvTimeoutError::Timeout) => {
                    tend_at = Instant::now() + TEND_EVERY;
                    self.machine.tend();
                    self.snapshot_if_due();
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn rounds(&mut self, first: ApplyJob<M::Output>) -> Result<(), Error> {
        let begun = Instant::now();
        self.carry_out(first)?;
        for _ in 1..ROUNDS_TOGETHER_MAX {
            match self.queue.try_recv() {
                Ok(next) => self.carry_out(next)?,
                Err(_) => break,
            }
        }
        self.publish();
        self.waker.shared.metrics.apply.observe(begun.elapsed());
        Ok(())
    }

    fn carry_out(&mut self, job: ApplyJob<M::Output>) -> Result<(), Error> {
        match job {
            ApplyJob::Entries(items) => items.into_iter().for_each(|item| self.apply(item)),
            ApplyJob::Restore(marker) => {
                self.publish();
                self.restore(&marker)?;
            }
            ApplyJob::Snapshot => self.snapshots.ask(),
        }
        Ok(())
    }

    fn apply(&mut self, item: ApplyItem<M::Output>) {
        self.last = item.index;
        self.unpublished = true;
        self.waker.shared.metrics.entries_applied.add(1);
        self.snapshots.grown(item.data.len() as u64);
        if item.data.is_empty() {
            return;
        }
        let output = self.machine.apply(item.index, item.term, &item.data);
        if let Some(reply) = item.reply {
            self.replies.push((reply, output));
        }
    }

    fn restore(&mut self, marker: &SnapshotMarker) -> Result<(), Error> {
        let mut reader = files::open_for(&self.disk, &self.cluster_id, marker)?;
        self.machine
            .restore(marker.index, &mut reader)
            .map_err(|error| files::broken(marker.index, error))?;
        self.waker.shared.metrics.snapshots_restored.add(1);
        tracing::info!(index = marker.index, "took a snapshot of the leader over");
        self.last = marker.index;
        self.unpublished = true;
        self.snapshots.taken();
        Ok(())
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.unpublished) {
            self.machine.applied_batch(self.last);
            // The new state is public before anybody is told of it: a proposer reads its own write.
            self.applied.tell(self.last);
            self.waker.shared.metrics.proposals_applied.add(self.replies.len() as u64);
            for (reply, output) in self.replies.drain(..) {
                // A proposer that has gone away does not want to know.
                let _ = reply.send(Ok(output));
            }
            self.waker.shared.applied.store(self.last, Ordering::SeqCst);
            if self.waker.shared.applied_awaited.load(Ordering::SeqCst) {
                self.waker.wake();
            }
        }
        self.snapshot_if_due();
    }

    fn snapshot_if_due(&mut self) {
        if self.snapshots.is_due() {
            self.snapshots.take(self.last, || self.machine.freeze());
        }
    }
}
