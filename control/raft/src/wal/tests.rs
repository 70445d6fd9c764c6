//! The log over an in-memory disk: round trips, crashes, corruption, and any bytes at all.

use proptest::prelude::*;
use raft::eraftpb::{ConfState, Entry, HardState};

use super::*;

const OPTIONS: WalOptions = WalOptions { segment_bytes: 8192, salt: 11 };

fn entry(index: u64, term: u64, bytes: usize) -> Record {
    let data = vec![index as u8; bytes];
    Record::Entry(Entry { index, term, data: data.into(), ..Entry::default() })
}

fn state(term: u64, commit: u64) -> Record {
    Record::HardState(HardState { term, vote: 1, commit, ..HardState::default() })
}

fn open(disk: &MemoryDisk) -> Result<(Wal<MemoryDisk>, Recovered), Error> {
    Wal::open(disk.clone(), OPTIONS)
}

fn reopen(disk: &MemoryDisk) -> Recovered {
    open(disk).map(|(_, recovered)| recovered).expect("a sound log opens")
}

fn append(wal: &mut Wal<MemoryDisk>, records: &[Record]) {
    wal.append(records).expect("the disk is sound");
}

fn indices(recovered: &Recovered) -> Vec<(u64, u64)> {
    recovered.entries.iter().map(|entry| (entry.index, entry.term)).collect()
}

fn segments(disk: &MemoryDisk) -> Vec<String> {
    let names = disk.list().expect("a directory can be listed");
    names.into_iter().filter(|name| segment::sequence(name).is_some()).collect()
}

#[test]
fn what_was_appended_is_recovered() {
    let disk = MemoryDisk::new();
    let (mut wal, recovered) = open(&disk).expect("an empty directory opens");
    assert_eq!(recovered, Recovered::default());
    append(&mut wal, &[entry(1, 1, 100), entry(2, 1, 0), state(1, 0)]);
    append(&mut wal, &[entry(3, 2, 7), state(2, 2)]);
    append(&mut wal, &[entry(3, 3, 9), entry(4, 3, 9), state(3, 2)]);

    disk.crash(|_| 0);
    let recovered = reopen(&disk);
    assert_eq!(indices(&recovered), [(1, 1), (2, 1), (3, 3), (4, 3)], "entry 3 of term 2 was overwritten");
    assert_eq!(recovered.entries[0].data, vec![1; 100]);
    assert_eq!((recovered.hard_state.term, recovered.hard_state.commit), (3, 2));
}

#[test]
fn one_batch_costs_one_sync() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    let before = disk.syncs();
    append(&mut wal, &(1..=50).map(|index| entry(index, 1, 10)).collect::<Vec<_>>());
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn segments_follow_each_other_and_large_batches_fit() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    for index in 1..=30 {
        append(&mut wal, &[entry(index, 1, 1000), state(1, index - 1)]);
    }
    append(&mut wal, &[entry(31, 1, 50_000)]);
    append(&mut wal, &[entry(32, 1, 1)]);
    assert!(segments(&disk).len() >= 5);
    disk.crash(|_| 0);
    let (mut wal, recovered) = open(&disk).expect("opens");
    assert_eq!(recovered.entries.len(), 32);
    assert_eq!(recovered.entries[30].data.len(), 50_000);
    append(&mut wal, &[entry(33, 1, 1)]);
    assert_eq!(reopen(&disk).entries.len(), 33);
}

#[test]
fn an_unsynced_or_torn_last_batch_is_cut() {
    for torn in [0, 1, 8, 63, 64, 200, 500] {
        let disk = MemoryDisk::new();
        let (mut wal, _) = open(&disk).expect("opens");
        append(&mut wal, &[entry(1, 1, 100)]);
        disk.set_fault(Fault::Syncs);
        assert!(matches!(wal.append(&[entry(2, 1, 600)]), Err(Error::Disk { action: "sync", .. })));
        disk.set_fault(Fault::None);
        disk.crash(|_| torn);
        let (mut wal, recovered) = open(&disk).expect("a torn write is no corruption");
        assert_eq!(indices(&recovered), [(1, 1)], "{torn} bytes got there");
        // The place of the torn batch is used again.
        append(&mut wal, &[entry(2, 2, 30)]);
        append(&mut wal, &[entry(3, 2, 30)]);
        disk.crash(|_| 0);
        assert_eq!(indices(&reopen(&disk)), [(1, 1), (2, 2), (3, 2)], "{torn} bytes got there");
    }
}

#[test]
fn corruption_before_the_last_batch_is_refused() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    let mut ends = vec![HEADER_BYTES as u64];
    for index in 1..=3 {
        append(&mut wal, &[entry(index, 1, 300)]);
        ends.push(wal.current.end);
    }
    let name = segment::name(1);
    let sound = disk.read(&name).expect("the segment exists");
    for at in (0..ends[2] as usize).step_by(7) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x40;
        disk.plant(&name, &bytes);
        match open(&disk) {
            Err(Error::Corrupt { file, .. }) => assert_eq!(file, name),
            Err(error) => panic!("byte {at}: {error}"),
            // Bytes 60..64 of the header mean nothing.
            Ok(_) => assert!((60..64).contains(&at), "byte {at} was overlooked"),
        }
    }
    for at in (ends[2] as usize..ends[3] as usize).step_by(7) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x40;
        disk.plant(&name, &bytes);
        assert_eq!(reopen(&disk).entries.len(), 2, "the last batch may be torn");
    }
}

#[test]
fn a_missing_or_damaged_segment_is_refused() {
    let fill = || {
        let disk = MemoryDisk::new();
        let (mut wal, _) = open(&disk).expect("opens");
        for index in 1..=40 {
            append(&mut wal, &[entry(index, 1, 500)]);
        }
        disk
    };
    let disk = fill();
    let names = segments(&disk);
    assert!(names.len() >= 3);
    for name in &names[..names.len() - 1] {
        let disk = fill();
        disk.remove(name).expect("the segment exists");
        assert!(matches!(open(&disk), Err(Error::Corrupt { .. })), "{name} is missing");

        // A batch at a segment's very end that would pass for torn in the last segment.
        let disk = fill();
        let mut bytes = disk.read(name).expect("the segment exists");
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty");
        bytes[end] ^= 1;
        disk.plant(name, &bytes);
        assert!(matches!(open(&disk), Err(Error::Corrupt { .. })), "{name} is damaged");
    }
}

#[test]
fn old_segments_are_released_and_recycled() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    let marker = |index| SnapshotMarker {
        index,
        term: 1,
        conf_state: ConfState { voters: vec![1], ..ConfState::default() },
        removed: vec![7],
    };
    for index in 1..=60 {
        append(&mut wal, &[entry(index, 1, 500), state(1, index - 1)]);
    }
    let before = segments(&disk);
    wal.release(50).expect("nothing to do");
    assert_eq!(segments(&disk), before, "no snapshot covers the entries");

    append(&mut wal, &[Record::Snapshot(marker(50))]);
    wal.release(50).expect("the disk is sound");
    assert!(segments(&disk).len() < before.len());
    assert_eq!(wal.spares.len(), SPARES_MAX);
    for index in 61..=120 {
        append(&mut wal, &[entry(index, 1, 500), state(1, index - 1)]);
    }
    disk.crash(|_| 0);
    let (mut wal, recovered) = open(&disk).expect("recycled segments hold no old frames");
    assert_eq!(recovered.snapshot, marker(50));
    assert_eq!(indices(&recovered), (51..=120).map(|index| (index, 1)).collect::<Vec<_>>());

    // A snapshot from the leader, far ahead of the log.
    append(&mut wal, &[Record::Snapshot(marker(500)), state(3, 500)]);
    wal.release(500).expect("the disk is sound");
    append(&mut wal, &[entry(501, 3, 5)]);
    let recovered = reopen(&disk);
    assert_eq!((recovered.snapshot.index, indices(&recovered)), (500, vec![(501, 3)]));
}

#[test]
fn spares_are_made_beside_and_used() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    assert!(wal.spare_wanted().is_none(), "the segment is empty");
    append(&mut wal, &[entry(1, 1, 5000)]);
    let job = wal.spare_wanted().expect("the segment is more than half full");
    assert!(wal.spare_wanted().is_none(), "one is under way");
    job.run(&disk).expect("the disk is sound");
    wal.spare_made(job, true);
    disk.plant("segment.tmp", b"left by a crash");
    let (mut wal, _) = open(&disk).expect("opens");
    assert_eq!(wal.spares.len(), 1);
    assert!(disk.read("segment.tmp").is_none());
    append(&mut wal, &[entry(2, 1, 5000)]);
    assert_eq!((segments(&disk).len(), wal.spares.len()), (2, 0));
    assert_eq!(reopen(&disk).entries.len(), 2);
}

#[test]
fn one_spare_is_made_at_a_time_however_fast_the_log_grows() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    append(&mut wal, &[entry(1, 1, 5000)]);
    let slow = wal.spare_wanted().expect("the segment is more than half full");
    for index in 2..6 {
        append(&mut wal, &[entry(index, 1, 5000)]);
        assert!(wal.spare_wanted().is_none(), "one is under way");
    }
    wal.spare_made(slow, false);
    assert!(wal.spare_wanted().is_none(), "not before the next rotation");
    append(&mut wal, &[entry(6, 1, 5000)]);
    assert!(wal.spare_wanted().is_some());
}

#[test]
fn a_failed_write_is_an_error() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    disk.set_fault(Fault::Writes);
    assert!(matches!(wal.append(&[entry(1, 1, 1)]), Err(Error::Disk { action: "write", .. })));
}

#[test]
fn a_full_disk_ends_the_log_and_room_brings_it_back() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).expect("opens");
    disk.set_capacity(Some(disk.used() + 4096));
    let mut last = 0;
    let error = (1..10).find_map(|index| {
        last = index;
        wal.append(&[entry(index, 1, 3000)]).err()
    });
    assert!(matches!(error, Some(Error::Disk { action: "create", .. })), "the next segment does not fit");
    drop(wal);
    let acknowledged: Vec<_> = (1..last).map(|index| (index, 1)).collect();
    let (mut wal, recovered) = open(&disk).expect("a log opens on a full disk");
    assert_eq!(indices(&recovered), acknowledged);
    assert!(wal.append(&[entry(last, 1, 3000)]).is_err(), "there is no more room than before");
    drop(wal);
    disk.set_capacity(None);
    let (mut wal, recovered) = open(&disk).expect("opens");
    assert_eq!(indices(&recovered), acknowledged);
    append(&mut wal, &[entry(last, 1, 3000)]);
    disk.crash(|_| 0);
    assert_eq!(reopen(&disk).entries.len(), last as usize);
}

/// A process that ends leaves in the page cache what it wrote: whoever reads it there goes by it, so it must last. Also
/// where a failed sync has marked it clean, and though the next life comes no further than that either.
#[test]
fn what_recovery_answers_with_survives_a_power_loss() {
    for (fault, bytes, lives) in [
        (Fault::Syncs, 10, 1),
        (Fault::SyncsForget, 10, 1),
        (Fault::SyncsForget, 10, 2),
        (Fault::SyncsForget, 5_000, 1),
    ] {
        let disk = MemoryDisk::new();
        disk.plant(&spare_name(1), &[0; 8192]);
        let (mut wal, _) = open(&disk).expect("opens");
        append(&mut wal, &[entry(1, 1, 5_000)]);
        disk.set_fault(fault);
        assert!(wal.append(&[entry(2, 1, bytes)]).is_err(), "it ends between write and sync");
        drop(wal);
        for _ in 1..lives {
            assert!(open(&disk).is_err(), "its sync fails too");
        }
        disk.set_fault(Fault::None);
        let (mut wal, recovered) = open(&disk).expect("opens");
        // Where the batch was to begin a segment, its header was not synced either, and it has no name.
        let expected = if bytes == 10 { vec![(1, 1), (2, 1)] } else { vec![(1, 1)] };
        assert_eq!(indices(&recovered), expected, "{fault:?}");
        disk.crash(|_| 0);
        assert_eq!(reopen(&disk), recovered, "{fault:?}");
        append(&mut wal, &[entry(expected.len() as u64 + 1, 2, bytes)]);
        disk.crash(|_| 0);
        assert_eq!(reopen(&disk).entries.len(), expected.len() + 1, "{fault:?}");
    }
}

#[test]
fn the_real_disk_keeps_what_was_appended() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = RealDisk::new(dir.path());
    let (mut wal, _) = Wal::open(disk.clone(), OPTIONS).expect("opens");
    for index in 1..=20 {
        wal.append(&[entry(index, 1, 1000)]).expect("the disk is sound");
        if let Some(job) = wal.spare_wanted() {
            let made = job.run(&disk).is_ok();
            wal.spare_made(job, made);
        }
    }
    drop(wal);
    let (_, recovered) = Wal::open(disk, OPTIONS).expect("opens");
    assert_eq!(recovered.entries.len(), 20);
}

/// What a model of the log makes of a run of appends.
fn model(batches: &[Vec<(u64, u64, usize)>]) -> Vec<Vec<(u64, u64)>> {
    let mut log: Vec<(u64, u64)> = Vec::new();
    let mut states = vec![log.clone()];
    for batch in batches {
        for (index, term, _) in batch {
            log.truncate((*index - 1) as usize);
            log.push((*index, *term));
        }
        states.push(log.clone());
    }
    states
}

/// Batches of entries that join on to the log, some of them overwriting its end.
fn runs() -> impl Strategy<Value = Vec<Vec<(u64, u64, usize)>>> {
    let step = (0_u64..4, 1_usize..5, 0_usize..900);
    proptest::collection::vec(step, 1..12).prop_map(|steps| {
        let mut last = 0_u64;
        let mut batches = Vec::new();
        for (term, (back, count, bytes)) in (1..).zip(steps) {
            let first = last.saturating_sub(back) + 1;
            batches.push((0..count as u64).map(|n| (first + n, term, bytes)).collect::<Vec<_>>());
            last = first + count as u64 - 1;
        }
        batches
    })
}

fn write(disk: &MemoryDisk, batches: &[Vec<(u64, u64, usize)>]) {
    let (mut wal, _) = open(disk).expect("opens");
    for batch in batches {
        let records: Vec<Record> =
            batch.iter().map(|(index, term, bytes)| entry(*index, *term, *bytes)).collect();
        append(&mut wal, &records);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_recovered_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), header in any::<bool>()) {
        let disk = MemoryDisk::new();
        let mut file = Vec::new();
        if header {
            file.extend(Header { sequence: 1, salt: 5, first_batch: 1, ..Header::default() }.encode());
        }
        file.extend(bytes);
        disk.plant(&segment::name(1), &file);
        match open(&disk) {
            Ok((_, recovered)) => prop_assert_eq!(recovered, Recovered::default()),
            Err(error) => prop_assert!(matches!(error, Error::Corrupt { .. }), "{error}"),
        }
    }

    #[test]
    fn a_damaged_log_never_returns_what_was_not_committed(
        batches in runs(), segment in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        damage in proptest::collection::vec(any::<u8>(), 1..40),
    ) {
        let disk = MemoryDisk::new();
        write(&disk, &batches);
        let names = segments(&disk);
        let name = &names[segment.index(names.len())];
        let mut bytes = disk.read(name).expect("the segment exists");
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let at = at.index(used);
        for (place, byte) in bytes[at..].iter_mut().zip(damage) {
            *place = byte;
        }
        disk.plant(name, &bytes);
        match open(&disk) {
            Ok((_, recovered)) => prop_assert!(model(&batches).contains(&indices(&recovered))),
            Err(error) => prop_assert!(matches!(error, Error::Corrupt { .. }), "{error}"),
        }
    }

    #[test]
    fn a_crash_loses_nothing_that_was_synced(batches in runs(), torn in 0_usize..3000) {
        let disk = MemoryDisk::new();
        let (last, synced) = batches.split_last().expect("there is a batch");
        write(&disk, synced);
        let (mut wal, _) = open(&disk).expect("opens");
        disk.set_fault(Fault::Syncs);
        let records: Vec<Record> = last.iter().map(|(index, term, bytes)| entry(*index, *term, *bytes)).collect();
        prop_assert!(wal.append(&records).is_err());
        disk.set_fault(Fault::None);
        disk.crash(|_| torn);
        let states = model(&batches);
        let found = indices(&reopen(&disk));
        prop_assert!(found == states[states.len() - 2] || found == states[states.len() - 1]);
    }
}
