//! What a run is made of: the caller's options, and the plan that follows from the seed.

use crate::mutant::Mutant;
use crate::rng::Rng;
use crate::trace::Micros;

pub const MS: Micros = 1_000;
pub const SECOND: Micros = 1_000_000;

/// What the caller decides; everything else follows from the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A fault that is built in, which the checker must find.
    pub mutant: Option<Mutant>,
    /// The initial voters; by the seed where it is None.
    pub voters: Option<u64>,
    /// No faults at all.
    pub calm: bool,
}

/// A way to disturb the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// One machine loses power: what was not synced is lost or torn.
    Power,
    /// All machines lose power at once.
    Blackout,
    /// One process is killed; the machine keeps what was written.
    Kill,
    /// One process is stopped and writes what it holds.
    Stop,
    /// One member is cut off, in both directions.
    Isolate,
    /// One member is cut off, in one direction.
    OneWay,
    /// The members are split in two.
    Split,
    /// One link is cut, in one or both directions.
    Link,
    /// One process stands still while time goes on.
    Pause,
    /// One disk is slow.
    SlowDisk,
    /// One state machine is slow.
    SlowApply,
    /// Messages are lost, doubled and late.
    Storm,
    /// One disk fails, and with it its member.
    BadDisk,
    /// One disk has little room or none for a while, or all have.
    FullDisk,
    /// Members are added, promoted, replaced, removed.
    Members,
    /// Leadership is handed over.
    Transfer,
}

const FAULTS: [(FaultKind, u64); 16] = [
    (FaultKind::Power, 10),
    (FaultKind::Blackout, 3),
    (FaultKind::Kill, 8),
    (FaultKind::Stop, 3),
    (FaultKind::Isolate, 8),
    (FaultKind::OneWay, 8),
    (FaultKind::Split, 6),
    (FaultKind::Link, 8),
    (FaultKind::Pause, 8),
    (FaultKind::SlowDisk, 6),
    (FaultKind::SlowApply, 5),
    (FaultKind::Storm, 6),
    (FaultKind::BadDisk, 4),
    (FaultKind::FullDisk, 12),
    (FaultKind::Members, 14),
    (FaultKind::Transfer, 6),
];

/// What one run does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mutant: Option<Mutant>,
    pub voters: u64,
    pub clients: usize,
    pub watchers: usize,
    pub keys: usize,
    /// Of 1,000 operations of a client.
    pub reads: u64,
    /// Between two operations of a client, at most.
    pub think: Micros,
    /// From here on no new fault begins, and all that last end.
    pub heal_at: Micros,
    /// Between two faults, at most.
    pub fault_every: Micros,
    /// The kinds of fault of this run, with weights.
    pub faults: Vec<(FaultKind, u64)>,
    /// Messages lost, and messages doubled, of 1,000, in calm times.
    pub loss: u64,
    pub doubling: u64,
    /// Messages that are overtaken by many, and answers that clients lose, of 1,000.
    pub late: u64,
    pub lost_answers: u64,
    /// One way, at most, in calm times.
    pub latency: Micros,
    pub fsync: Micros,
    pub segment_bytes: u64,
    /// What raft takes a tick for; larger values shorten its timeouts.
    pub tick_ms_nominal: u64,
    pub watch_events_max: usize,
    /// A snapshot every so many entries, and so many entries are kept behind it.
    pub snapshot_every: u64,
    pub keep_entries: u64,
}

impl Plan {
    pub fn new(options: &Options, rng: &mut Rng) -> Plan {
        let drawn = match rng.below(20) {
            0 => 1,
            1 => 2,
            2..=5 => 5,
            _ => 3,
        };
        let mut faults: Vec<_> = FAULTS.iter().filter(|_| rng.chance(550)).copied().collect();
        if faults.is_empty() {
            faults.extend(rng.pick(&FAULTS));
        }
        if options.calm {
            faults.clear();
        }
        Plan {
            mutant: options.mutant,
            voters: options.voters.unwrap_or(drawn),
            clients: rng.between(4, 9) as usize,
            watchers: rng.between(2, 4) as usize,
            keys: rng.between(3, 12) as usize,
            reads: rng.between(150, 450),
            think: rng.between(3, 40) * MS,
            heal_at: rng.between(2_000, 5_000) * MS,
            fault_every: rng.between(200, 1_200) * MS,
            faults,
            loss: if options.calm || rng.chance(400) { 0 } else { rng.between(1, 30) },
            doubling: if options.calm || rng.chance(400) { 0 } else { rng.between(1, 30) },
            late: if options.calm { 0 } else { 3 },
            lost_answers: if options.calm { 0 } else { 15 },
            latency: rng.between(300, 5_000),
            fsync: rng.between(200, 6_000),
            segment_bytes: *rng.pick(&[8 * 1024, 16 * 1024, 64 * 1024]).unwrap_or(&8192),
            tick_ms_nominal: *rng.pick(&[20, 50, 100, 250]).unwrap_or(&50),
            watch_events_max: rng.between(6, 120) as usize,
            snapshot_every: rng.between(10, 80),
            keep_entries: rng.between(0, 30),
        }
    }
}
