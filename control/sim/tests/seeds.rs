//! Some hundred clusters under faults keep all their promises, and a seed is a run.

use coracle_sim::{Counts, Options, Report, run};

fn runs(seeds: std::ops::Range<u64>, options: &Options) -> Counts {
    let mut counts = Counts::default();
    for seed in seeds {
        match run(seed, options) {
            Ok(report) => counts.add(&report.counts),
            Err(violation) => panic!("{violation}"),
        }
    }
    counts
}

/// And everything that is meant to happen does: else the promises would be cheap.
#[test]
fn clusters_under_faults_keep_their_promises() {
    let counts = runs(0..150, &Options::default());
    for (what, count) in [
        ("writes", counts.writes),
        ("refusals", counts.refusals),
        ("unknown outcomes", counts.unknown),
        ("retries", counts.retried),
        ("reads", counts.reads),
        ("writes that share an entry", counts.shared),
        ("reads that share an index", counts.shared_reads),
        ("elections", counts.elections),
        ("crashes", counts.crashes),
        ("torn writes", counts.torn),
        ("changes of members", counts.changes),
        ("watch events", counts.watch_events),
        ("lists anew", counts.relists),
        ("watches that go on from the window", counts.pages),
        ("watches that end without a leader", counts.ended_watches),
        ("snapshots", counts.snapshots),
        ("snapshots taken over", counts.restores),
        ("full disks", counts.full_disks),
        ("writes refused for want of room", counts.no_room),
        ("writes taken without room", counts.taken_without_room),
    ] {
        assert!(count >= 100, "too few {what}: {count}");
    }
    let ends =
        [("leaders that handed over", counts.handed_over), ("ends for want of room", counts.ended_full)];
    for (what, count) in ends {
        assert!(count >= 25, "too few {what}: {count}");
    }
    assert!(counts.lost_fetches >= 5, "too few fetches of which nothing comes: {}", counts.lost_fetches);
}

#[test]
fn one_and_five_voters_keep_their_promises() {
    for voters in [1, 5] {
        runs(1_000..1_030, &Options { voters: Some(voters), ..Options::default() });
    }
}

/// Seeds that have found something once.
#[test]
fn what_was_found_stays_mended() {
    let options = Options::default();
    // A batch in the page cache of a killed process was taken for durable.
    runs(196..197, &options);
    runs(4_334..4_335, &options);
    // A member was to campaign while its state machine still took a snapshot over.
    runs(1_079..1_080, &options);
    runs(1_346..1_347, &options);
}

#[test]
fn without_faults_every_outcome_is_known_at_the_first_try() {
    let counts = runs(0..20, &Options { calm: true, voters: Some(3), ..Options::default() });
    assert_eq!((counts.unknown, counts.not_done, counts.crashes), (0, 0, 0), "{counts:?}");
    assert!(counts.writes > 1_000, "{counts:?}");
}

#[test]
fn one_seed_is_one_run() {
    let once = |seed| -> Report { run(seed, &Options::default()).expect("it keeps its promises") };
    for seed in [3, 4, 5] {
        assert_eq!(once(seed), once(seed));
    }
    assert_ne!(once(3).trace_hash, once(4).trace_hash);
}
