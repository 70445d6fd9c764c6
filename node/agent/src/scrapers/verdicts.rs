//! What control nodes have said of tokens, and for how long that is good.

use std::{collections::HashMap, time::Duration};

use coracle_fabric::Verdict;
use tokio::time::Instant;

/// How long it is good that a token may read.
const ALLOWED_FOR: Duration = Duration::from_secs(60);
/// The same while no control node can be asked: monitoring goes on through an outage.
const ALLOWED_ALONE_FOR: Duration = Duration::from_secs(600);
/// How long it is good that a token may not read: it may have been made a moment ago.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Where no control node has answered none is asked for so long.
const OUTAGE_FOR: Duration = Duration::from_secs(5);
/// Tokens of which something is remembered. Those that may not read make room first.
const VERDICTS_MAX: usize = 64;

/// SHA-256 of a token: the tokens themselves are not kept.
pub type Key = [u8; 32];

#[derive(Default)]
pub struct Verdicts {
    kept: HashMap<Key, Kept>,
    /// When last no control node answered, since when none has.
    unanswered: Option<Instant>,
}

struct Kept {
    verdict: Verdict,
    at: Instant,
}

impl Kept {
    fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allowed
    }

    fn is_of_use(&self, now: Instant) -> bool {
        now - self.at < if self.is_allowed() { ALLOWED_ALONE_FOR } else { REFUSED_FOR }
    }
}

impl Verdicts {
    /// What is said of a token without asking anybody; none where it takes a question.
    pub fn known(&self, key: &Key, now: Instant) -> Option<Verdict> {
        let kept = self.kept.get(key).filter(|kept| kept.is_of_use(now));
        match kept {
            Some(kept) if !kept.is_allowed() || now - kept.at < ALLOWED_FOR => Some(kept.verdict),
            _ if !self.is_outage(now) => None,
            Some(kept) => Some(kept.verdict),
            None => Some(Verdict::Unanswered),
        }
    }

    /// Whether a token was good not long ago.
    pub fn was_allowed(&self, key: &Key, now: Instant) -> bool {
        self.kept.get(key).is_some_and(|kept| kept.is_allowed() && kept.is_of_use(now))
    }

    /// Takes note of the answer to a question. What it comes to.
    pub fn note(&mut self, key: Key, verdict: Verdict, now: Instant) -> Verdict {
        if verdict == Verdict::Unanswered {
            self.unanswered = Some(now);
            return self.known(&key, now).unwrap_or(verdict);
        }
        self.unanswered = None;
        self.kept.remove(&key);
        self.make_room(now);
        self.kept.insert(key, Kept { verdict, at: now });
        verdict
    }

    fn is_outage(&self, now: Instant) -> bool {
        self.unanswered.is_some_and(|at| now - at < OUTAGE_FOR)
    }

    fn make_room(&mut self, now: Instant) {
        self.kept.retain(|_, kept| kept.is_of_use(now));
        if self.kept.len() >= VERDICTS_MAX {
            let first = self.kept.iter().min_by_key(|(_, kept)| (kept.is_allowed(), kept.at));
            if let Some(key) = first.map(|(key, _)| *key) {
                self.kept.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        [number; 32]
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_verdict_is_good_for_its_time_and_a_good_one_longer_where_nobody_answers() {
        let (mut verdicts, start) = (Verdicts::default(), Instant::now());
        assert_eq!(verdicts.known(&key(1), start), None);
        for (number, verdict) in [(1, Verdict::Allowed), (2, Verdict::Forbidden), (3, Verdict::Unknown)] {
            assert_eq!(verdicts.note(key(number), verdict, start), verdict);
        }
        let known = |verdicts: &Verdicts, seconds| {
            [1, 2, 3, 4].map(|number| verdicts.known(&key(number), after(start, seconds)))
        };
        let (allowed, lost) = (Some(Verdict::Allowed), Some(Verdict::Unanswered));
        assert_eq!(known(&verdicts, 9), [allowed, Some(Verdict::Forbidden), Some(Verdict::Unknown), None]);
        assert_eq!(known(&verdicts, 10), [allowed, None, None, None]);
        assert_eq!(known(&verdicts, 59), [allowed, None, None, None]);
        assert_eq!(known(&verdicts, 60), [None; 4]);
        for seconds in [60, 599] {
            let said = verdicts.note(key(1), Verdict::Unanswered, after(start, seconds));
            assert_eq!(said, Verdict::Allowed, "after {seconds} s");
            assert_eq!(known(&verdicts, seconds), [allowed, lost, lost, lost]);
        }
        assert_eq!(verdicts.note(key(1), Verdict::Unanswered, after(start, 600)), Verdict::Unanswered);
        assert_eq!(known(&verdicts, 604), [lost; 4]);
        assert_eq!(known(&verdicts, 605), [None; 4], "they are asked again");
    }

    #[test]
    fn what_is_revoked_is_not_good_any_more() {
        let (mut verdicts, start) = (Verdicts::default(), Instant::now());
        verdicts.note(key(1), Verdict::Allowed, start);
        verdicts.note(key(1), Verdict::Unknown, after(start, 60));
        assert!(!verdicts.was_allowed(&key(1), after(start, 60)));
        assert_eq!(verdicts.note(key(1), Verdict::Unanswered, after(start, 70)), Verdict::Unanswered);
    }

    #[test]
    fn tokens_that_may_not_read_take_no_room_from_those_that_may() {
        let (mut verdicts, start) = (Verdicts::default(), Instant::now());
        verdicts.note(key(0), Verdict::Allowed, start);
        for number in 1..=255 {
            verdicts.note(key(number), Verdict::Unknown, after(start, 1));
        }
        assert_eq!(verdicts.kept.len(), VERDICTS_MAX);
        assert!(verdicts.was_allowed(&key(0), after(start, 1)));
        assert_eq!(verdicts.known(&key(255), after(start, 1)), Some(Verdict::Unknown));
        for number in 1..=255 {
            verdicts.note(key(number), Verdict::Allowed, after(start, 2));
        }
        assert_eq!(verdicts.kept.len(), VERDICTS_MAX, "nor more than there is");
        assert!(!verdicts.was_allowed(&key(0), after(start, 2)));
        verdicts.note(key(0), Verdict::Allowed, after(start, 602));
        assert_eq!(verdicts.kept.len(), 1, "what is of no use any more is forgotten");
    }
}
