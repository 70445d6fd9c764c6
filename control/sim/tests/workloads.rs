//! Clusters under random workloads keep the promises that `coracle_sim::workloads` names, and a seed is a run.

use std::{
    ops::Range,
    sync::{Arc, mpsc},
    time::Duration,
};

use coracle_sim::workloads::{Mutant, Options, Progress, Report, Violation, frozen, run};

/// A part whose turn takes so long does not return.
const TURN_MAX: Duration = Duration::from_secs(30);

/// Runs seeds until one breaks a promise, in a thread that is watched: what never returns is a violation too.
fn runs(seeds: Range<u64>, options: Options) -> Result<Vec<Report>, Box<Violation>> {
    let progress = Arc::new(Progress::default());
    let (done, ended) = mpsc::channel();
    let working = progress.clone();
    std::thread::spawn(move || {
        let reports = seeds.map(|seed| run(seed, &options, &working).map_err(Box::new)).collect();
        // The test has given up where nobody listens.
        let _ = done.send(reports);
    });
    loop {
        match ended.recv_timeout(Duration::from_millis(200)) {
            Ok(reports) => return reports,
            Err(_) if progress.turn() > TURN_MAX => panic!("{}", progress.words()),
            Err(_) => {}
        }
    }
}

/// And much is admitted and much refused: else the promises would be cheap.
#[test]
fn clusters_come_to_rest_and_everything_is_readable() {
    let reports = runs(0..120, Options::default()).unwrap_or_else(|violation| panic!("{violation}"));
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let (admitted, refused, entries) =
        (sum(|report| report.admitted), sum(|report| report.refused), sum(|report| report.entries));
    assert!(admitted > 500, "{admitted}");
    assert!(refused > 300, "{refused}");
    assert!(entries > 5_000, "{entries}");
}

#[test]
fn one_seed_is_one_run() {
    let options = Options { calm: true, ..Options::default() };
    let once = |seed: u64| runs(seed..seed + 1, options).unwrap_or_else(|violation| panic!("{violation}"));
    for seed in [2, 3, 4] {
        assert_eq!(once(seed), once(seed));
    }
    assert_ne!(once(2)[0].trace_hash, once(3)[0].trace_hash);
}

#[test]
fn every_mutant_is_found() {
    for mutant in Mutant::ALL {
        let away = matches!(mutant, Mutant::SilenceCounts | Mutant::ToldApart);
        let options = Options { mutant: Some(mutant), calm: !away };
        let (seeds, words) = match mutant {
            Mutant::NullAdmitted => (20, "unreadable"),
            Mutant::ForgottenBackoff => (200, "restless"),
            Mutant::ReportedAgain => (20, "restless"),
            Mutant::SilenceCounts => (100, "well node"),
            Mutant::ToldApart => (200, "moved pod"),
        };
        let found = runs(0..seeds, options).err();
        let violation = found.unwrap_or_else(|| panic!("{mutant} was not found within {seeds} seeds"));
        println!("{mutant}: seed {}: {}", violation.seed, violation.broken.what);
        assert!(violation.broken.class.contains(words), "{mutant}: {violation}");
    }
}

/// As `cli/tests/e2e/frozen.rs` has it with real processes.
#[test]
fn a_leader_that_freezes_and_machines_that_are_silent_together_move_no_pod() {
    for members in [3, 1] {
        let healed = (0..40).map(|seed| match frozen(seed, members, None) {
            Ok(ms) => ms,
            Err(broken) => panic!("seed {seed}, {members} members: [{}] {}", broken.class, broken.what),
        });
        println!("{members} members: healed within {:?} ms", healed.max());
    }
    let class = |members, mutant| {
        let found = (0..40).find_map(|seed| frozen(seed, members, Some(mutant)).err());
        found.unwrap_or_else(|| panic!("{mutant} was not found")).class
    };
    assert_eq!(class(1, Mutant::SilenceCounts), "well node");
    assert_eq!(class(3, Mutant::ToldApart), "moved pod");
}
