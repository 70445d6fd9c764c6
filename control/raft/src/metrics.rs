//! What a member counts of itself. Plain atomics: counting neither waits nor allocates, reading takes no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use coracle_proto::metrics::{Counter, Histogram};

/// Upper bounds of the buckets for what one fsync takes, in microseconds: 100 us to 8 s.
const FSYNC_BOUNDS_US: &[u64] = &[
    100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 204_800, 409_600, 819_200,
    1_638_400, 3_276_800, 8_192_000,
];
/// The same for one run of the state machine: 10 us to 1 s.
const APPLY_BOUNDS_US: &[u64] =
    &[10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 1_000_000];

/// The same for writing a snapshot: 1 ms to 2 min.
const SNAPSHOT_BOUNDS_US: &[u64] = &[
    1_000,
    5_000,
    10_000,
    50_000,
    100_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    120_000_000,
];

/// Everything that a member counts, from the start of its process.
#[derive(Debug)]
pub struct Metrics {
    /// Proposals that were taken by the raft thread.
    pub proposals: Counter,
    /// Of those: applied here, and answered.
    pub proposals_applied: Counter,
    /// Proposals that were refused, dropped or whose outcome became unknown.
    pub proposals_failed: Counter,
    /// Asked read indices, and those that had none.
    pub reads: Counter,
    pub reads_failed: Counter,
    /// How often this member saw another leader.
    pub leader_changes: Counter,
    /// Messages of other members that were taken, and that were refused or of no use.
    pub messages_received: Counter,
    pub messages_refused: Counter,
    /// One write and fdatasync of the log.
    pub wal_fsync: Histogram,
    /// Written to the log.
    pub wal_bytes: Counter,
    /// Segment files of the log.
    pub wal_segments: AtomicU64,
    /// One run of the state machine: the entries that share one publication.
    pub apply: Histogram,
    /// Applied entries, raft's own among them.
    pub entries_applied: Counter,
    /// Writing one snapshot file, its fsync included.
    pub snapshot_save: Histogram,
    /// The size of the last one, 0 before the first.
    pub snapshot_bytes: AtomicU64,
    pub snapshots_failed: Counter,
    /// Snapshots of a leader that this member took over.
    pub snapshots_restored: Counter,
    wal_began_us: AtomicU64,
    started: Instant,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            proposals: Counter::default(),
            proposals_applied: Counter::default(),
            proposals_failed: Counter::default(),
            reads: Counter::default(),
            reads_failed: Counter::default(),
            leader_changes: Counter::default(),
            messages_received: Counter::default(),
            messages_refused: Counter::default(),
            wal_fsync: Histogram::new(FSYNC_BOUNDS_US),
            wal_bytes: Counter::default(),
            wal_segments: AtomicU64::new(0),
            apply: Histogram::new(APPLY_BOUNDS_US),
            entries_applied: Counter::default(),
            snapshot_save: Histogram::new(SNAPSHOT_BOUNDS_US),
            snapshot_bytes: AtomicU64::new(0),
            snapshots_failed: Counter::default(),
            snapshots_restored: Counter::default(),
            wal_began_us: AtomicU64::new(0),
            started: Instant::now(),
        }
    }
}

impl Metrics {
    /// Proposals whose outcome is not known yet.
    pub fn proposals_pending(&self) -> u64 {
        // Read in this order, so that none is subtracted that is not in the first.
        let ended = self.proposals_applied.get() + self.proposals_failed.get();
        self.proposals.get().saturating_sub(ended)
    }

    /// For how long the write to the log that is under way has lasted. None while there is none.
    pub fn wal_stalled(&self) -> Option<Duration> {
        let began = self.wal_began_us.load(Relaxed);
        let now = self.started.elapsed();
        (began > 0).then(|| now.saturating_sub(Duration::from_micros(began)))
    }

    /// Times one write to the log.
    pub(crate) fn wal_write<T>(&self, write: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let began_us = (begun - self.started).as_micros() as u64;
        self.wal_began_us.store(began_us.max(1), Relaxed);
        let written = write();
        self.wal_began_us.store(0, Relaxed);
        self.wal_fsync.observe(begun.elapsed());
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_under_way_is_seen() {
        let metrics = Metrics::default();
        assert_eq!(metrics.wal_stalled(), None);
        assert!(metrics.wal_write(|| metrics.wal_stalled()).is_some());
        assert_eq!((metrics.wal_stalled(), metrics.wal_fsync.count()), (None, 1));
    }
}
