//! Recovery of the write-ahead log.

use arbitrary::{Arbitrary, Result, Unstructured};
use coracle_raft::wal::{MemoryDisk, Record, Recovered, SnapshotMarker, Wal, WalOptions};
use raft::eraftpb::{ConfState, Entry, HardState};

const OPTIONS: WalOptions = WalOptions { segment_bytes: 4096, salt: 7 };
/// The name of the first segment.
const FIRST: &str = "0000000000000001.wal";

/// What happens to the log.
#[derive(Arbitrary, Debug)]
enum Step {
    /// So many entries of so many bytes, in a term that is at least the last one's.
    Append { entries: u8, bytes: u8, term: u8 },
    /// The commit index moves by so much, as far as there are entries.
    Commit(u8),
    /// The entries behind the commit index are void from there on, plus so much.
    Overwrite { behind: u8, term: u8 },
    /// A snapshot so much before the commit index, and the release of what it covers.
    Snapshot { before: u8 },
    /// The process ends and recovers.
    Reopen,
}

/// What is done to the disk at the end.
#[derive(Arbitrary, Debug)]
enum Harm {
    None,
    /// The last write is torn: only so many of its bytes arrive.
    Torn(u16),
    /// Some bytes are other ones.
    Flips(Vec<(u16, u8)>),
    /// The first segment is replaced by garbage.
    Garbage(Vec<u8>),
}

/// Writes a log as a member does, harms it, and recovers it. Whatever was harmed, recovery must not panic. What it
/// answers must be the state after one of the batches that were appended: after a torn write that of the last or the
/// last but one, and without harm that of the last.
pub fn wal_recovery(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let steps: Vec<Step> = input.arbitrary()?;
    let harm: Harm = input.arbitrary()?;
    let disk = MemoryDisk::new();
    let (mut wal, empty) = Wal::open(disk.clone(), OPTIONS).expect("an empty directory opens");
    let mut model = empty.clone();
    // The state after each batch; those that a reader may be given begin at the last one that was reopened.
    let mut states = vec![model.clone()];
    crate::show(&harm);
    for step in steps.iter().take(64) {
        crate::show(step);
        if matches!(step, Step::Reopen) {
            drop(wal);
            let recovered;
            (wal, recovered) = Wal::open(disk.clone(), OPTIONS).expect("a sound log opens");
            assert_eq!(recovered, model, "a sound log is recovered whole");
            continue;
        }
        let records = records(step, &model);
        if records.is_empty() {
            continue;
        }
        records.iter().for_each(|record| note(&mut model, record));
        wal.append(&records).expect("the disk is sound");
        states.push(model.clone());
        if let Step::Snapshot { .. } = step {
            wal.release(model.snapshot.index).expect("the disk is sound");
        }
    }
    let torn = harm_it(&harm, &disk, &mut wal, &mut model, &mut states);
    drop(wal);
    let Ok((wal, recovered)) = Wal::open(disk.clone(), OPTIONS) else {
        assert!(matches!(harm, Harm::Flips(_) | Harm::Garbage(_)), "a sound or torn log opens");
        return Ok(());
    };
    if !matches!(harm, Harm::Garbage(_)) {
        let at = states.iter().rposition(|state| *state == recovered);
        let at = at.unwrap_or_else(|| panic!("{recovered:?} was never the state"));
        match harm {
            Harm::None => assert_eq!(at, states.len() - 1),
            Harm::Torn(_) => assert!(at + 1 >= states.len() - usize::from(torn)),
            _ => {}
        }
    }
    drop(wal);
    // What was recovered once is recovered again.
    let (_, again) = Wal::open(disk, OPTIONS).expect("a recovered log opens");
    assert_eq!(again, recovered);
    Ok(())
}

fn last(model: &Recovered) -> (u64, u64) {
    let before = (model.snapshot.index, model.snapshot.term);
    model.entries.last().map_or(before, |entry| (entry.index, entry.term))
}

fn entries(from: u64, count: u8, bytes: u8, term: u64) -> Vec<Record> {
    let entry = |index| Entry { index, term, data: vec![7; bytes.into()].into(), ..Entry::default() };
    (0..u64::from(count % 8)).map(|number| Record::Entry(entry(from + number))).collect()
}

fn records(step: &Step, model: &Recovered) -> Vec<Record> {
    let (last_index, last_term) = last(model);
    let state = &model.hard_state;
    let hard_state = |term: u64, commit: u64| {
        Record::HardState(HardState { term, vote: 1, commit, ..HardState::default() })
    };
    match *step {
        Step::Append { entries: count, bytes, term } => {
            let term = last_term.max(state.term) + u64::from(term % 2);
            let mut records = entries(last_index + 1, count, bytes, term);
            records.push(hard_state(term, state.commit));
            records
        }
        Step::Commit(by) => {
            let commit = (state.commit + u64::from(by)).min(last_index);
            vec![hard_state(state.term, commit)]
        }
        Step::Overwrite { behind, term } => {
            let from = state.commit.max(model.snapshot.index) + 1 + u64::from(behind);
            if from > last_index {
                return Vec::new();
            }
            let term = last_term.max(state.term) + 1 + u64::from(term % 2);
            let mut records = entries(from, 1, behind, term);
            records.push(hard_state(term, state.commit));
            records
        }
        Step::Snapshot { before } => {
            let index = state.commit.saturating_sub(before.into());
            let Some(entry) = model.entries.iter().find(|entry| entry.index == index) else {
                return Vec::new();
            };
            vec![Record::Snapshot(SnapshotMarker {
                index,
                term: entry.term,
                conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
                removed: Vec::new(),
            })]
        }
        Step::Reopen => Vec::new(),
    }
}

/// What a log says, as simply as it can be said.
fn note(model: &mut Recovered, record: &Record) {
    match record {
        Record::Entry(entry) => {
            model.entries.retain(|old| old.index < entry.index);
            model.entries.push(entry.clone());
        }
        Record::HardState(state) => model.hard_state = state.clone(),
        Record::Snapshot(marker) => {
            model.entries.retain(|entry| entry.index > marker.index);
            model.snapshot = marker.clone();
        }
        Record::Truncate(from) => model.entries.retain(|entry| entry.index < *from),
    }
}

/// Answers whether a batch was appended whose fsync never returned.
fn harm_it(
    harm: &Harm,
    disk: &MemoryDisk,
    wal: &mut Wal<MemoryDisk>,
    model: &mut Recovered,
    states: &mut Vec<Recovered>,
) -> bool {
    match harm {
        Harm::None => false,
        Harm::Torn(kept) => {
            let (last_index, last_term) = last(model);
            let term = last_term.max(model.hard_state.term).max(1);
            let records = entries(last_index + 1, 3, 200, term);
            disk.set_fault(coracle_raft::wal::Fault::Syncs);
            let appended = wal.append(&records);
            assert!(appended.is_err(), "an append whose fsync fails has failed");
            disk.set_fault(coracle_raft::wal::Fault::None);
            disk.crash(|_| (*kept).into());
            records.iter().for_each(|record| note(model, record));
            states.push(model.clone());
            true
        }
        Harm::Flips(flips) => {
            let segments = (1..=64).map(|number| format!("{number:016x}.wal"));
            let mut files: Vec<_> =
                segments.filter_map(|name| disk.read(&name).map(|bytes| (name, bytes))).collect();
            let count = files.len().max(1);
            for (at, bits) in flips {
                if let Some((_, bytes)) = files.get_mut(usize::from(*at) % count) {
                    let length = bytes.len();
                    bytes[usize::from(*at) / count % length] ^= bits;
                }
            }
            files.iter().for_each(|(name, bytes)| disk.plant(name, bytes));
            false
        }
        Harm::Garbage(bytes) => {
            disk.plant(FIRST, bytes);
            false
        }
    }
}
