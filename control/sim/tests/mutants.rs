//! The checker finds what is built in on purpose, soon, and calls it by its name.

use coracle_sim::{Mutant, Options, run};

/// How many seeds it may take at most, and what the violation says (any of the words).
fn expected(mutant: Mutant) -> (u64, &'static [&'static str]) {
    match mutant {
        Mutant::SkipFsync => {
            (60, &["has lost entries", "was committed", "has changed", "is lost", "corrupt"])
        }
        Mutant::UnconfirmedRead | Mutant::UnwaitedRead => (100, &["stale read"]),
        Mutant::ReusedReadIndex => (400, &["stale read"]),
        Mutant::CheckAtPropose => (60, &["had to be refused", "did not do what was asked"]),
        Mutant::ForgottenRequest => {
            (60, &["done twice", "its client was told", "was acknowledged", "nobody may have"])
        }
        Mutant::LostWatchEvent
        | Mutant::DoubledWatchEvent
        | Mutant::EarlyProgress
        | Mutant::WatchedOverRestore => (60, &["watcher"]),
        // It does harm only where a watch falls behind within the events of one transaction.
        Mutant::TornTransaction => (400, &["watcher"]),
        // It does harm only where its member crashes and is asked again in the same term.
        Mutant::ForgottenVote => (400, &["votes for", "both lead"]),
        Mutant::AppliedTwice => (60, &["did something else"]),
        Mutant::LostEntry => (60, &["has changed", "has lost entries", "is lost", "corrupt"]),
        Mutant::MislabelledSnapshot => (60, &["another state", "did something else"]),
        // It does harm only where whoever fetches is lost without a word.
        Mutant::StuckFetch => (400, &["heal"]),
        Mutant::CompactedEarly => (60, &["corrupt"]),
        Mutant::IgnoredFullDisk => {
            (200, &["has lost entries", "was committed", "has changed", "is lost", "corrupt"])
        }
        // It does harm only where a sync fails, the machine goes on, and loses power later.
        Mutant::TrustedPageCache => (400, &["has lost entries", "has changed", "is lost", "corrupt"]),
    }
}

#[test]
fn every_mutant_is_found() {
    for mutant in Mutant::ALL {
        let (seeds, words) = expected(mutant);
        let options = Options { mutant: Some(mutant), ..Options::default() };
        let found = (0..seeds).find_map(|seed| run(seed, &options).err());
        let violation = found.unwrap_or_else(|| panic!("{mutant} was not found within {seeds} seeds"));
        println!("{mutant}: seed {}: {}", violation.seed, violation.what);
        assert!(words.iter().any(|word| violation.what.contains(word)), "{mutant}: {violation}");
        assert!(!violation.trace.is_empty());
    }
}
