//! The log thread: drains its queue, makes one write and one fdatasync of it, then lets the messages go that waited.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use raft::eraftpb::{HardState, Message};

use super::member::send;
use super::shared::Waker;
use crate::config::WAL_BATCH_BYTES_MAX;
use crate::core::Persist;
use crate::error::Error;
use crate::snapshot::files;
use crate::transport::Transport;
use crate::wal::{Disk, Record, SnapshotMarker, SpareJob, Wal};

/// What the log is to do next, in order.
pub enum WalJob {
    Persist(Persist),
    /// Everything up to the marker is in a durable snapshot.
    Compact(SnapshotMarker),
}

pub struct WalThread<D: Disk, O> {
    wal: Wal<D>,
    queue: Receiver<WalJob>,
    transport: Arc<dyn Transport>,
    waker: Waker<O>,
    /// Records that wait for the next write.
    records: Vec<Record>,
    /// Of the hard states in one write only the last matters, and it may stand behind all entries.
    hard_state: Option<HardState>,
    /// At most one spare segment is being made, so this holds at most one.
    spares_in: Receiver<(SpareJob, bool)>,
    spares: Sender<(SpareJob, bool)>,
}

impl<D: Disk, O: Send + 'static> WalThread<D, O> {
    pub fn new(wal: Wal<D>, queue: Receiver<WalJob>, transport: Arc<dyn Transport>, waker: Waker<O>) -> Self {
        let (spares, spares_in) = unbounded();
        WalThread { wal, queue, transport, waker, records: Vec::new(), hard_state: None, spares_in, spares }
    }

    pub fn run(mut self) -> Result<(), Error> {
        self.waker.shared.metrics.wal_segments.store(self.wal.segments(), Ordering::Relaxed);
        while let Ok(first) = self.queue.recv() {
            let mut round = Round::default();
            self.gather(first, &mut round);
            while round.bytes < WAL_BATCH_BYTES_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                self.gather(next, &mut round);
            }
            if round.sync {
                self.write()?;
            }
            if let Some(number) = round.number {
                // In this order: once a message is out, its answer may come, and the raft thread must know by then that
                // this round is durable.
                self.waker.shared.persisted.store(number, Ordering::SeqCst);
                self.waker.wake();
            }
            send(&*self.transport, round.messages);
            if let Some(index) = round.snapshot {
                self.release(index)?;
            }
            self.look_after_spares();
        }
        // What did not have to be durable until now: the last commit index.
        if self.hard_state.is_some() || !self.records.is_empty() {
            self.write()?;
        }
        Ok(())
    }

    fn gather(&mut self, job: WalJob, round: &mut Round) {
        let persist = match job {
            WalJob::Persist(persist) => persist,
            WalJob::Compact(marker) => {
                round.sync = true;
                round.snapshot = Some(marker.index);
                return self.records.push(Record::Snapshot(marker));
            }
        };
        round.number = Some(persist.number);
        round.sync |= persist.sync;
        round.messages.extend(persist.messages);
        for record in persist.records {
            match record {
                Record::HardState(state) => self.hard_state = Some(state),
                Record::Entry(entry) => {
                    round.bytes += entry.data.len() + entry.context.len();
                    self.records.push(Record::Entry(entry));
                }
                Record::Snapshot(ref marker) => {
                    round.snapshot = Some(marker.index);
                    self.records.push(record);
                }
                Record::Truncate(_) => self.records.push(record),
            }
        }
    }

    fn write(&mut self) -> Result<(), Error> {
        self.records.extend(self.hard_state.take().map(Record::HardState));
        let metrics = &self.waker.shared.metrics;
        metrics.wal_write(|| self.wal.append(&self.records))?;
        metrics.wal_bytes.add(self.wal.batch_bytes());
        metrics.wal_segments.store(self.wal.segments(), Ordering::Relaxed);
        self.records.clear();
        Ok(())
    }

    /// Gives back what a snapshot that the log names has made superfluous.
    fn release(&mut self, index: u64) -> Result<(), Error> {
        self.wal.release(index)?;
        self.waker.shared.metrics.wal_segments.store(self.wal.segments(), Ordering::Relaxed);
        if let Err(error) = files::remove_before(self.wal.disk(), index) {
            tracing::warn!(%error, "an old snapshot stays");
        }
        Ok(())
    }

    /// Zeroing a segment takes long, so it is done beside.
    fn look_after_spares(&mut self) {
        if let Ok((job, made)) = self.spares_in.try_recv() {
            self.wal.spare_made(job, made);
        }
        let Some(job) = self.wal.spare_wanted() else { return };
        let (disk, spares) = (self.wal.disk().clone(), self.spares.clone());
        let make = move || {
            let made = job.run(&disk);
            if let Err(error) = &made {
                tracing::warn!(%error, "cannot prepare the next log segment");
            }
            // The log thread may have ended.
            let _ = spares.send((job, made.is_ok()));
        };
        if let Err(error) = thread::Builder::new().name("raft-spare".to_owned()).spawn(make) {
            tracing::warn!(%error, "cannot prepare the next log segment");
            self.wal.spare_not_begun();
        }
    }
}

#[derive(Default)]
struct Round {
    /// None where nothing but a snapshot's marker is to be written.
    number: Option<u64>,
    /// The entry up to which a snapshot holds everything.
    snapshot: Option<u64>,
    sync: bool,
    bytes: usize,
    messages: Vec<Message>,
}
