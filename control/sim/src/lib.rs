//! The replicated store under faults, in one thread and without a clock: a run follows from its seed alone.
//!
//! Each member of a simulated cluster is what runs in production: [`coracle_raft::core::Core`], the step;
//! [`coracle_raft::wal::Wal`], the log, over a disk in memory that loses and tears what was not synced;
//! [`coracle_store::Store`], the state machine; [`coracle_member`], which says what shares an entry or a read index, what is
//! tried again, where a watch goes on and what is refused on a full disk; and the conversion of messages to and from the
//! wire. What is simulated is what joins them: the threads of `coracle_raft`'s driver ([`world`]: a raft step, a log task
//! and an apply task, each taking its own virtual time, so that rounds share a write), the calls of `coracle_storage`,
//! the handing over of leadership by a member whose disk is full, the network, the clients and the watchers.
//!
//! A run takes a few virtual seconds. Until `heal_at` faults come (see [`options::FaultKind`]; which kinds, how often and
//! how hard follows from the seed); then they stop, and the cluster must heal by itself within [`HEAL_BOUND`]: one
//! leader, all members equal, every client and every watcher served.
//!
//! What is checked:
//! - while it runs ([`checker::ledger`]): one leader a term, one vote a term, what was committed stays, every member
//!   applies the same with the same result and the same state hash, no member ends but by a failed or full disk, every watcher
//!   gets exactly the history of its resource;
//! - at its end ([`checker::history`]): the operations as the clients saw them are linearizable. A model written
//!   independently of the store ([`checker::model`]) replays them in the order of their revisions; real time must allow
//!   that order; refusals must have been right at a moment of their operation. Only for operations of unknown outcome
//!   a place is searched.
//!
//! [`Mutant`]s are faults in the simulated joints that the checker must find.
//!
//! To look into a violation run its seed alone: the same seed prints the same trace.

pub mod checker;
pub mod mutant;
pub mod options;
pub mod trace;
pub mod workloads;
pub mod world;

mod disk;
mod network;
mod rng;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use mutant::Mutant;
pub use options::Options;

use crate::trace::{Micros, Seconds};
use crate::world::World;

/// How long after the last fault everything must work again.
pub const HEAL_BOUND: Micros = 12 * options::SECOND;

/// How many notes a violation carries.
const TAIL_LINES: usize = 150;

/// What a run without a violation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    /// Over everything that happened, in order: equal for equal runs.
    pub trace_hash: u64,
    /// How long it took, in virtual time.
    pub virtual_time: Micros,
    /// How long after the last fault all was well again.
    pub healed_after: Micros,
    pub counts: Counts,
}

/// How much happened in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub writes: u64,
    pub refusals: u64,
    /// Writes of which the client does not know what became.
    pub unknown: u64,
    /// Writes that were certainly not done.
    pub not_done: u64,
    pub reads: u64,
    /// Writes that came into the entry of another, and reads that shared another's index.
    pub shared: u64,
    pub shared_reads: u64,
    /// Writes that were tried more than once.
    pub retried: u64,
    pub entries: u64,
    pub messages: u64,
    pub elections: u64,
    pub crashes: u64,
    pub torn: u64,
    pub changes: u64,
    pub watch_events: u64,
    pub relists: u64,
    /// How often a watch went on from the window, and how often one ended for want of a leader.
    pub pages: u64,
    pub ended_watches: u64,
    pub snapshots: u64,
    pub restores: u64,
    /// Fetches of a snapshot that were given up because nothing came of them.
    pub lost_fetches: u64,
    pub full_disks: u64,
    /// Writes that a leader with little room refused, and those that it took.
    pub no_room: u64,
    pub taken_without_room: u64,
    pub handed_over: u64,
    /// Members that ended for want of room.
    pub ended_full: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.writes += other.writes;
        self.refusals += other.refusals;
        self.unknown += other.unknown;
        self.not_done += other.not_done;
        self.reads += other.reads;
        self.shared += other.shared;
        self.shared_reads += other.shared_reads;
        self.retried += other.retried;
        self.entries += other.entries;
        self.messages += other.messages;
        self.elections += other.elections;
        self.crashes += other.crashes;
        self.torn += other.torn;
        self.changes += other.changes;
        self.watch_events += other.watch_events;
        self.relists += other.relists;
        self.pages += other.pages;
        self.ended_watches += other.ended_watches;
        self.snapshots += other.snapshots;
        self.restores += other.restores;
        self.lost_fetches += other.lost_fetches;
        self.full_disks += other.full_disks;
        self.no_room += other.no_room;
        self.taken_without_room += other.taken_without_room;
        self.handed_over += other.handed_over;
        self.ended_full += other.ended_full;
    }
}

/// A promise that was broken, and what happened before.
#[derive(Clone, Debug)]
pub struct Violation {
    pub seed: u64,
    pub at: Micros,
    pub what: String,
    /// The last notes up to that moment, oldest first.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {} at {}: {}", self.seed, Seconds(self.at), self.what)
    }
}

impl std::error::Error for Violation {}

/// Runs one seed to its end, or to the first broken promise.
pub fn run(seed: u64, options: &Options) -> Result<Report, Violation> {
    let mut world = World::new(seed, options);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let broken = match ended {
        Ok(Ok(())) => {
            return Ok(Report {
                seed,
                trace_hash: world.trace.hash(),
                virtual_time: world.now,
                healed_after: world.now.saturating_sub(world.plan.heal_at),
                counts: world.counts,
            });
        }
        Ok(Err(broken)) => broken,
        Err(panic) => world::Broken::new(format!("a panic: {}", message(&*panic))),
    };
    let at = broken.at.unwrap_or(world.now);
    Err(Violation { seed, at, what: broken.what, trace: world.trace.tail(at, TAIL_LINES) })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
