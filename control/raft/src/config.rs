//! The settings of one member, and the bounds of everything that can grow.

use std::path::PathBuf;
use std::time::Duration;

/// The largest entry that is proposed, in bytes. With [`MESSAGE_ENTRIES_BYTES_MAX`] it keeps a message batch
/// below `coracle_proto::MESSAGE_BYTES_MAX`.
pub const ENTRY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many bytes of entries raft puts into one append message (one larger entry travels alone).
pub const MESSAGE_ENTRIES_BYTES_MAX: u64 = 1024 * 1024;
/// How many append messages may be under way to one follower: all together they fit into the queue of a transport.
pub const INFLIGHT_MESSAGES_MAX: usize = 48;
/// How many bytes of proposals may wait for their commit on a leader; more are dropped.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How many bytes of committed entries one round hands to the state machine.
pub const COMMITTED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How many proposals may wait for their outcome; more are dropped.
pub const PENDING_PROPOSALS_MAX: usize = 16 * 1024;
/// How many readers may wait for a read index; more are told so.
pub const PENDING_READS_MAX: usize = 64 * 1024;
/// How many committed entries the state machine may be behind before a leader drops proposals.
pub const APPLY_BACKLOG_ENTRIES_MAX: u64 = 64 * 1024;

/// How many events (calls and message batches) may wait for the raft thread.
pub const EVENTS_MAX: usize = 8 * 1024;
/// How many events the raft thread takes in one round.
pub const EVENTS_BATCH_MAX: usize = 512;
/// How many rounds' writes may wait for the log thread; the raft thread waits when it is full.
pub const WAL_QUEUE_MAX: usize = 1024;
/// How many bytes of entries the log thread gathers for one fsync.
pub const WAL_BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many rounds' entries may wait for the apply thread; the raft thread waits when it is full.
pub const APPLY_QUEUE_MAX: usize = 1024;

/// How long a proposal, a read or a change of members waits for its outcome, in milliseconds.
pub const OUTCOME_TIMEOUT_MS: u64 = 5_000;
/// How long one try of a read index may take before another context is tried, in milliseconds.
pub const READ_RETRY_MS: u64 = 500;
/// A learner may be this many entries behind the leader when it is promoted.
pub const PROMOTE_LAG_ENTRIES_MAX: u64 = 250;

/// How long a leader that has committed waits for a proposal whose append messages tell it too, before it sends messages
/// for that alone, in microseconds.
pub const COMMIT_PAUSE_US: u64 = 1_000;

/// How long a leader waits for those that it has asked whether it still leads, just enough for a quorum, before it asks
/// all, in microseconds. Their answers may wait for an fsync.
pub const READ_PAUSE_US: u64 = 20_000;

/// After a snapshot, the log reaches back before it by at most so many entries…
pub const KEEP_ENTRIES: u64 = 5_000;
/// …and so many bytes.
pub const KEEP_BYTES: u64 = 16 * 1024 * 1024;
/// For a member that is taking a snapshot, or the log behind it, that log is kept, up to so many bytes.
pub const KEEP_FOR_SNAPSHOT_BYTES: u64 = 256 * 1024 * 1024;
/// A snapshot is made when so many entries were applied since the last…
pub const SNAPSHOT_ENTRIES: u64 = 10_000;
/// …or so many bytes of them.
pub const SNAPSHOT_BYTES: u64 = 32 * 1024 * 1024;
/// So many seconds after the last one fewer bytes do, or a part of what that had, whichever is more: what a burst leaves in the
/// log is given back.
pub const SNAPSHOT_REST_S: u64 = 300;
pub const SNAPSHOT_REST_BYTES: u64 = 4 * 1024 * 1024;
pub const SNAPSHOT_REST_PART: u64 = 8;
/// So many snapshots may be written or wait for that; who asks for one meanwhile gets the next.
pub const SNAPSHOTS_UNDER_WAY_MAX: usize = 2;
/// So many callers may wait for the next snapshot; more are told so.
pub const SNAPSHOT_WAITERS_MAX: usize = 64;
/// How long a member may take no bytes of a snapshot that it was sent before it is sent another, in milliseconds.
pub const SNAPSHOT_IDLE_MS: u64 = 3_000;

/// How long nothing may come of a snapshot before a member that fetches it gives it up, in milliseconds.
pub const FETCH_IDLE_MS: u64 = 30_000;
/// How long a receiver may take nothing of a snapshot, or a sender give nothing, before a stream of it ends.
pub const SNAPSHOT_STREAM_IDLE: Duration = Duration::from_secs(10);

/// The default size of a log segment, in bytes.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// On a small disk a segment takes at most this part of it…
pub const SEGMENT_PART_OF_DISK: u64 = 16;
/// …but is not smaller than this, in bytes.
pub const SEGMENT_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// How often the room on the disk is looked at, in milliseconds.
pub const SPACE_PERIOD_MS: u64 = 1_000;

/// The first segment is smaller, so that a new member starts without zeroing a large file.
pub const FIRST_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// What one member needs to know about itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// The raft id: never 0, and never used by another member of this cluster before.
    pub id: u64,
    /// The directory of the log. It is created where it does not exist, and locked against a second process.
    pub dir: PathBuf,
    /// The cluster's id. A directory of another cluster is refused.
    pub cluster_id: String,
    /// The length of one tick of raft's clock.
    pub tick: Duration,
    /// A leader sends heartbeats every so many ticks.
    pub heartbeat_ticks: usize,
    /// A follower that hears nothing starts an election after at least so many ticks.
    pub election_ticks: usize,
    /// The random election timeout is below this many ticks.
    pub election_ticks_max: usize,
    /// The size of a log segment, in bytes. Tests take small ones.
    pub segment_bytes: u64,
    /// A snapshot is made when so many entries were applied since the last, at least 1.
    pub snapshot_entries: u64,
    /// So many entries before a snapshot are kept for members that are a little behind.
    pub keep_entries: u64,
    /// Decides the election timeouts and the contexts of reads. Must differ between any two starts of members,
    /// as two reads must never share a context; a simulator sets it.
    pub seed: u64,
}

impl Config {
    /// The settings for production: leader loss to next write in under a second.
    pub fn new(id: u64, dir: impl Into<PathBuf>, cluster_id: impl Into<String>) -> Config {
        Config {
            id,
            dir: dir.into(),
            cluster_id: cluster_id.into(),
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 10,
            election_ticks_max: 15,
            segment_bytes: SEGMENT_BYTES,
            snapshot_entries: SNAPSHOT_ENTRIES,
            keep_entries: KEEP_ENTRIES,
            seed: rand::random(),
        }
    }

    /// So many ticks as fit into `ms` milliseconds, at least one.
    pub(crate) fn ticks(&self, ms: u64) -> u64 {
        let tick_ms = (self.tick.as_millis() as u64).max(1);
        (ms / tick_ms).max(1)
    }

    pub(crate) fn raft(&self, applied: u64) -> raft::Config {
        raft::Config {
            id: self.id,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            min_election_tick: self.election_ticks,
            max_election_tick: self.election_ticks_max,
            applied,
            max_size_per_msg: MESSAGE_ENTRIES_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: true,
            // `Core::tell_commit` does it, when nothing else has told it meanwhile.
            skip_bcast_commit: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..raft::Config::default()
        }
    }
}
