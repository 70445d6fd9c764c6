//! Faults that are built in on purpose. Each must be found: they prove that the checker can fail.

use std::fmt;
use std::str::FromStr;

/// A fault in how the simulated process puts the parts together. The parts themselves are the real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// A round is told to be durable, and its messages leave, before it is written.
    SkipFsync,
    /// A leader answers a read with its commit index, without asking a quorum.
    UnconfirmedRead,
    /// A reader joins a read index that is under way already.
    ReusedReadIndex,
    /// A read does not wait until its member has applied the index.
    UnwaitedRead,
    /// Preconditions are checked when a write is proposed, and not when it is applied.
    CheckAtPropose,
    /// Each try of a write has a request id of its own.
    ForgottenRequest,
    /// A watch that is resumed misses the first event.
    LostWatchEvent,
    /// A watch that is resumed gets its last event again.
    DoubledWatchEvent,
    /// A watch that was behind goes on behind the whole revision of which it gave a part.
    TornTransaction,
    /// A watch says that it has given what still waits in its queue.
    EarlyProgress,
    /// The vote is not written.
    ForgottenVote,
    /// A restarted member applies its log to the state that it had.
    AppliedTwice,
    /// A restarted member has lost the last entry of its log.
    LostEntry,
    /// A snapshot is marked with the entry before the last that it holds.
    MislabelledSnapshot,
    /// A member that fetches a snapshot hears of no other, and does not notice that nothing comes of it.
    StuckFetch,
    /// The log is compacted before the snapshot's file is written.
    CompactedEarly,
    /// Watches go on when a snapshot takes the place of the state.
    WatchedOverRestore,
    /// A round for which the disk has no room counts as durable.
    IgnoredFullDisk,
    /// What a log holds when it is opened is synced, but not written again.
    TrustedPageCache,
}

impl Mutant {
    pub const ALL: [Mutant; 19] = [
        Mutant::SkipFsync,
        Mutant::UnconfirmedRead,
        Mutant::ReusedReadIndex,
        Mutant::UnwaitedRead,
        Mutant::CheckAtPropose,
        Mutant::ForgottenRequest,
        Mutant::LostWatchEvent,
        Mutant::DoubledWatchEvent,
        Mutant::TornTransaction,
        Mutant::EarlyProgress,
        Mutant::ForgottenVote,
        Mutant::AppliedTwice,
        Mutant::LostEntry,
        Mutant::MislabelledSnapshot,
        Mutant::StuckFetch,
        Mutant::CompactedEarly,
        Mutant::WatchedOverRestore,
        Mutant::IgnoredFullDisk,
        Mutant::TrustedPageCache,
    ];

    /// As it is given on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mutant::SkipFsync => "skip-fsync",
            Mutant::UnconfirmedRead => "unconfirmed-read",
            Mutant::ReusedReadIndex => "reused-read-index",
            Mutant::UnwaitedRead => "unwaited-read",
            Mutant::CheckAtPropose => "check-at-propose",
            Mutant::ForgottenRequest => "forgotten-request",
            Mutant::LostWatchEvent => "lost-watch-event",
            Mutant::DoubledWatchEvent => "doubled-watch-event",
            Mutant::TornTransaction => "torn-transaction",
            Mutant::EarlyProgress => "early-progress",
            Mutant::ForgottenVote => "forgotten-vote",
            Mutant::AppliedTwice => "applied-twice",
            Mutant::LostEntry => "lost-entry",
            Mutant::MislabelledSnapshot => "mislabelled-snapshot",
            Mutant::StuckFetch => "stuck-fetch",
            Mutant::CompactedEarly => "compacted-early",
            Mutant::WatchedOverRestore => "watched-over-restore",
            Mutant::IgnoredFullDisk => "ignored-full-disk",
            Mutant::TrustedPageCache => "trusted-page-cache",
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Mutant, String> {
        Mutant::ALL.into_iter().find(|mutant| mutant.name() == name).ok_or_else(|| {
            let names: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            format!("no mutant is called {name}; there are: {}", names.join(", "))
        })
    }
}
