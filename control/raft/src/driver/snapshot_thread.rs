//! The snapshot thread: writes the frozen state while all others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::member::Event;
use super::shared::Shared;
use crate::config::{
    SNAPSHOT_BYTES, SNAPSHOT_REST_BYTES, SNAPSHOT_REST_PART, SNAPSHOT_REST_S, SNAPSHOTS_UNDER_WAY_MAX,
};
use crate::error::Error;
use crate::snapshot::{Frozen, Header, SnapshotError, Source, files};
use crate::wal::{Disk, SnapshotMarker};

/// Who waits for the next snapshot: it is told what the snapshot holds, and may read its file.
pub type SnapshotReply = oneshot::Sender<Result<(SnapshotMarker, Source), SnapshotError>>;

/// Those who wait for the next snapshot that is begun.
pub type SnapshotWaiters = Arc<Mutex<Vec<SnapshotReply>>>;

/// A state to be written, and who waits for it.
pub struct SnapshotJob<F> {
    index: u64,
    state: F,
    waiters: Vec<SnapshotReply>,
}

/// When the apply thread takes the next snapshot.
pub struct SnapshotSchedule<F> {
    jobs: Sender<SnapshotJob<F>>,
    /// Snapshots that are being written or wait for that.
    under_way: Arc<AtomicUsize>,
    waiters: SnapshotWaiters,
    entries_max: u64,
    entries: u64,
    bytes: u64,
    asked: bool,
    /// When the last one was taken, and how large it was once it was written.
    taken_at: Instant,
    last_bytes: Arc<AtomicU64>,
}

impl<F: Frozen> SnapshotSchedule<F> {
    /// A schedule that takes one after so many entries, and what the snapshot thread takes its jobs from.
    pub fn new(entries_max: u64, waiters: SnapshotWaiters) -> (Self, SnapshotJobs<F>) {
        let (jobs, queue) = unbounded();
        let (under_way, last_bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let schedule = SnapshotSchedule {
            jobs,
            under_way: under_way.clone(),
            waiters,
            entries_max: entries_max.max(1),
            entries: 0,
            bytes: 0,
            asked: false,
            taken_at: Instant::now(),
            last_bytes: last_bytes.clone(),
        };
        (schedule, SnapshotJobs { queue, under_way, last_bytes })
    }

    /// One more entry is applied.
    pub fn grown(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }

    pub fn ask(&mut self) {
        self.asked = true;
    }

    pub fn is_due(&self) -> bool {
        self.asked
            || self.entries >= self.entries_max
            || self.bytes >= SNAPSHOT_BYTES
            || self.bytes >= SNAPSHOT_REST_BYTES && self.is_due_at_rest()
    }

    fn is_due_at_rest(&self) -> bool {
        let part = self.last_bytes.load(Ordering::Relaxed) / SNAPSHOT_REST_PART;
        self.bytes >= part && self.taken_at.elapsed() >= Duration::from_secs(SNAPSHOT_REST_S)
    }

    /// The state is that of a snapshot.
    pub fn taken(&mut self) {
        (self.entries, self.bytes, self.asked) = (0, 0, false);
        self.taken_at = Instant::now();
    }

    /// Hands the state as of entry `index` to the snapshot thread. While that still writes another, only for those who
    /// wait for one that begins now.
    pub fn take(&mut self, index: u64, freeze: impl FnOnce() -> F) {
        let mut waiting = self.waiters.lock();
        let under_way = self.under_way.load(Ordering::SeqCst);
        if index > 0 && (under_way >= SNAPSHOTS_UNDER_WAY_MAX || waiting.is_empty() && under_way > 0) {
            // Whoever waits stays in the list, and the snapshot thread asks again when it sees that.
            return;
        }
        let waiters = std::mem::take(&mut *waiting);
        drop(waiting);
        if index == 0 {
            waiters.into_iter().for_each(|waiter| drop(waiter.send(Err(SnapshotError::Empty))));
            return self.taken();
        }
        self.under_way.fetch_add(1, Ordering::SeqCst);
        // The thread ends after this one.
        let _ = self.jobs.send(SnapshotJob { index, state: freeze(), waiters });
        self.taken();
    }
}

/// The snapshot thread's end of the schedule.
pub struct SnapshotJobs<F> {
    queue: Receiver<SnapshotJob<F>>,
    under_way: Arc<AtomicUsize>,
    last_bytes: Arc<AtomicU64>,
}

pub struct SnapshotThread<F, D: Disk, O> {
    pub disk: D,
    pub cluster_id: String,
    pub jobs: SnapshotJobs<F>,
    pub waiters: SnapshotWaiters,
    pub events: Sender<Event<O>>,
    pub shared: Arc<Shared>,
}

impl<F: Frozen, D: Disk, O: Send + 'static> SnapshotThread<F, D, O> {
    pub fn run(self) -> Result<(), Error> {
        while let Ok(job) = self.jobs.queue.recv() {
            let made = self.make(job.index, &job.state);
            self.jobs.under_way.fetch_sub(1, Ordering::SeqCst);
            if let Err(error) = &made {
                self.shared.metrics.snapshots_failed.add(1);
                tracing::warn!(index = job.index, %error, "cannot make a snapshot");
            }
            for waiter in job.waiters {
                let made = made.clone().and_then(|marker| Ok((marker, self.open(job.index)?)));
                // Whoever has gone away does not want to know.
                let _ = waiter.send(made);
            }
            if let Ok(marker) = made
                && self.events.send(Event::Compact(marker)).is_err()
            {
                break;
            }
            let waited_for = !self.waiters.lock().is_empty();
            if waited_for && self.events.send(Event::Snapshot).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, index: u64) -> Result<Source, SnapshotError> {
        files::source(&self.disk, index, 0).map_err(|error| SnapshotError::Failed(error.to_string()))
    }

    /// Nothing here may wait for a thread that waits for this one: the raft thread never does.
    fn make(&self, index: u64, state: &F) -> Result<SnapshotMarker, SnapshotError> {
        let (reply, marker) = bounded(1);
        self.events.send(Event::Mark(index, reply)).map_err(|_| SnapshotError::Stopped)?;
        // Without a marker the log has left this state behind: a later snapshot was taken over.
        let marker = marker.recv().ok().flatten().ok_or(SnapshotError::Stopped)?;
        let header = Header { cluster_id: self.cluster_id.clone(), marker: marker.clone() };
        let begun = Instant::now();
        let bytes = files::write(&self.disk, &header, state)
            .map_err(|error| SnapshotError::Failed(error.to_string()))?;
        self.shared.metrics.snapshot_save.observe(begun.elapsed());
        self.jobs.last_bytes.store(bytes, Ordering::Relaxed);
        self.shared.metrics.snapshot_bytes.store(bytes, Ordering::Relaxed);
        tracing::info!(index, bytes, "made a snapshot");
        Ok(marker)
    }
}
