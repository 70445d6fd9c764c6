//! What a member knows of itself and the cluster, for those who watch.

use crate::snapshot::files;
use crate::wal::{Disk, DiskFile, Space};

/// The part that a member plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// A member's view of the cluster. Leader, role, term and members are published when they change; indices and
/// progress with every tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub id: u64,
    pub leader: Option<u64>,
    /// Whether this member leads, or has heard its leader within an election timeout. One that may not campaign goes on
    /// naming a leader that it does not hear any more.
    pub led: bool,
    pub role: Role,
    pub term: u64,
    /// The highest index known to be committed.
    pub commit: u64,
    /// The highest index that the state machine has applied.
    pub applied: u64,
    /// The last index of this member's log.
    pub last: u64,
    /// The entry as of which this member's last snapshot is; 0 where there is none.
    pub snapshot: u64,
    /// In ascending order. In a joint configuration the voters of both halves.
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    /// On the leader, for each member: id, the last index it confirmed, and whether it was heard of within the last
    /// election timeout. Empty elsewhere.
    pub progress: Vec<(u64, u64, bool)>,
    /// The room on the disk that this member's log is on; None before the first look at it.
    pub disk: Option<DiskRoom>,
}

/// Who leads, as a member knows it: the part of its [`Status`] that is published only when it changes. Whoever waits for
/// another leader is not woken with every tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leading {
    pub leader: Option<u64>,
    /// See [`Status::led`].
    pub led: bool,
    pub role: Role,
    pub term: u64,
}

impl Status {
    pub fn leading(&self) -> Leading {
        Leading { leader: self.leader, led: self.led, role: self.role, term: self.term }
    }
}

/// How much room a member has for its log and snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRoom {
    pub space: Space,
    /// There is hardly more than the next segments and the next snapshot need: the cluster's state must not grow.
    pub low: bool,
}

impl DiskRoom {
    /// The room beside the log and the snapshot as of entry `snapshot`. Low where it is less than two segments and another
    /// snapshot as large. None where the disk does not tell.
    pub fn look<D: Disk>(disk: &D, segment_bytes: u64, snapshot: u64) -> Option<DiskRoom> {
        let space = disk.space().ok()?;
        let snapshot_bytes = disk.open(&files::name(snapshot)).and_then(|file| file.size()).unwrap_or(0);
        Some(DiskRoom { space, low: space.free < 2 * segment_bytes + snapshot_bytes })
    }
}
