//! What can go wrong: with the directory and its log (these end the member), and with a single call.

use std::io;

/// An error that keeps a member from starting, or ends it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {file} in the raft directory")]
    Disk {
        action: &'static str,
        file: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the raft log is corrupt: {file}, byte {offset}: {what}. Nothing of it is skipped: remove this member from \
         the cluster and join it again as a new member with an empty data directory"
    )]
    Corrupt { file: String, offset: u64, what: String },
    #[error("{file} is of a newer build: {what}. Nothing was changed: upgrade this member")]
    Newer { file: String, what: String },
    #[error(
        "the raft directory {dir} is in use by another process; stop that process or choose another directory"
    )]
    Locked { dir: String },
    #[error(
        "the raft directory belongs to cluster {found}, but this member is of cluster {expected}; choose an empty \
         directory, or the right one"
    )]
    ForeignCluster { found: String, expected: String },
    #[error(
        "the raft directory belongs to member {found}, but this is member {expected}; give each member its own"
    )]
    ForeignMember { found: u64, expected: u64 },
    #[error("a cluster needs at least one voter, this member among them, and no id may be 0 or given twice")]
    InvalidVoters,
    #[error(
        "member {id} has lost entries that it had confirmed (the leader knows of {confirmed}, the log ends at \
         {last}): remove it and join it again as a new member with an empty data directory"
    )]
    LostLog { id: u64, confirmed: u64, last: u64 },
    #[error("a committed change of members cannot be read; this build does not understand the log")]
    UnknownChange,
    #[error("a snapshot's marker cannot be read; this build does not understand the leader")]
    UnknownSnapshot,
    #[error("raft refuses the configuration")]
    Raft(#[from] raft::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Why a proposal has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not applied: this member does not lead.
    #[error("this member does not lead the cluster")]
    NotLeader { leader: Option<u64> },
    /// Certainly not applied: overload, a leadership transfer under way, an empty entry or one over
    /// [`crate::ENTRY_BYTES_MAX`], or overwritten by a new leader. May be tried again.
    #[error("the proposal was dropped")]
    Dropped,
    /// It may be applied now, later or never.
    #[error("the outcome of the proposal is unknown")]
    Unknown,
    /// Certainly not applied: this member has stopped.
    #[error("this member has stopped")]
    Stopped,
}

/// Why a read index was not had. A read may always be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this member does not lead the cluster")]
    NotLeader { leader: Option<u64> },
    #[error("no quorum confirmed the read in time")]
    TimedOut,
    #[error("too many reads are waiting")]
    Overloaded,
    #[error("this member has stopped")]
    Stopped,
}

/// Why the members were not changed, or leadership not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("this member does not lead the cluster")]
    NotLeader { leader: Option<u64> },
    #[error("another change of members is under way")]
    InProgress,
    #[error("id {id} was a member before; ids are never used again")]
    IdUsed { id: u64 },
    #[error("member {id} is unknown")]
    UnknownMember { id: u64 },
    #[error("member {id} is {behind} entries behind; at most {PROMOTE} are allowed", PROMOTE = crate::config::PROMOTE_LAG_ENTRIES_MAX)]
    NotCaughtUp { id: u64, behind: u64 },
    #[error("member {id} was not heard of lately")]
    NotActive { id: u64 },
    #[error("the last voter cannot be removed")]
    LastVoter,
    /// A leader is not removed by itself: hand leadership over first.
    #[error("member {id} leads the cluster; transfer leadership first")]
    RemovesLeader { id: u64 },
    #[error("the cluster rejected the change")]
    Rejected,
    /// It may come into force later.
    #[error("the change was not confirmed in time")]
    TimedOut,
    #[error("this member has stopped")]
    Stopped,
}

/// An error with its causes, for a log or within another message.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
