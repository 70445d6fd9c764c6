//! Remembers the outcomes of recent requests, so that a retry is answered and not done again.
//!
//! Part of the replicated state: every member must remember and forget the same things.
//!
//! The sequences of all clients together are one logical clock (Lamport, 1978): a client gives a new request a sequence
//! above all that it has used and has heard of. The table forgets from its low end and keeps the highest sequence that
//! it forgot as its floor. A request at or below the floor is never applied, so what was forgotten is never taken for
//! new, however many clients there are and whatever their sequences.

use std::sync::Arc;

use coracle_objects::Refusal;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::{
    command::{CorruptEntry, Outcome, RequestId, decode_outcome},
    level::{Level, Levels},
};

/// What an outcome takes beside its own bytes, about.
const OUTCOME_OVERHEAD_BYTES: u64 = 64;

/// Sequence, then client: the lowest are forgotten first.
type Key = (u64, u64);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dedup {
    /// The highest sequence that was ever recorded.
    clock: u64,
    /// The highest sequence that was ever forgotten. At or below it nothing is remembered.
    floor: u64,
    /// Encoded, each at the level at which it was given.
    outcomes: OrdMap<Key, Arc<[u8]>>,
    /// Of the outcomes, with what they take beside.
    bytes: u64,
}

/// What a snapshot holds of the table.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    clock: u64,
    floor: u64,
    outcomes: OrdMap<Key, Arc<[u8]>>,
}

/// What is known about a request that arrives.
pub(crate) enum Seen {
    New,
    Before(Outcome),
    /// It must not be applied: it may have been already, and its outcome be forgotten.
    Forgotten,
}

impl Dedup {
    /// By the rules of `level`, one of `levels`.
    pub(crate) fn look(&self, id: RequestId, level: &Level, levels: Levels) -> Seen {
        match self.outcomes.get(&key(id)) {
            Some(outcome) => {
                let outcome = decode_outcome(outcome, levels);
                Seen::Before(with_words(outcome.expect("what is kept was encoded here or read once before")))
            }
            None if id.sequence <= self.floor => Seen::Forgotten,
            None if id.sequence > self.clock.saturating_add(level.sequence_ahead_max) => Seen::Forgotten,
            None => Seen::New,
        }
    }

    /// `agreed` is what members agree on of its outcome.
    pub(crate) fn record(&mut self, id: RequestId, agreed: &[u8], level: &Level) {
        let outcome: Arc<[u8]> = agreed.into();
        self.clock = self.clock.max(id.sequence);
        self.bytes += cost(&outcome);
        self.outcomes.insert(key(id), outcome);
        while self.bytes > level.outcome_bytes_max
            && let Some(lowest) = self.outcomes.get_min().map(|(key, _)| *key)
        {
            let dropped = self.outcomes.remove(&lowest);
            self.bytes -= dropped.as_ref().map_or(0, cost);
            self.floor = self.floor.max(lowest.0);
        }
    }

    /// A sequence above it is new to the store.
    pub(crate) fn clock(&self) -> u64 {
        self.clock
    }

    pub(crate) fn forget_all(&mut self) {
        *self = Self { clock: self.clock, floor: self.clock, ..Self::default() };
    }
}

/// The words of an outcome are not kept.
fn with_words(outcome: Outcome) -> Outcome {
    match outcome {
        Err(Refusal::BadDraft { key, .. }) => {
            Err(Refusal::BadDraft { key, reason: "the draft was refused before".into() })
        }
        outcome => outcome,
    }
}

fn key(id: RequestId) -> Key {
    (id.sequence, id.client)
}

fn cost(outcome: &Arc<[u8]>) -> u64 {
    outcome.len() as u64 + OUTCOME_OVERHEAD_BYTES
}

impl From<Dedup> for Kept {
    fn from(Dedup { clock, floor, outcomes, .. }: Dedup) -> Self {
        Self { clock, floor, outcomes }
    }
}

impl Kept {
    /// An error where one of the outcomes cannot be read.
    pub(crate) fn restore(self, levels: Levels) -> Result<Dedup, CorruptEntry> {
        let Self { clock, floor, outcomes } = self;
        outcomes.values().try_for_each(|outcome| decode_outcome(outcome, levels).map(drop))?;
        let bytes = outcomes.values().map(cost).sum();
        Ok(Dedup { clock, floor, outcomes, bytes })
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Applied, ObjectKey};

    use super::*;
    use crate::{
        command::encode_agreed,
        level::{FIRST_LEVEL, LEVELS},
    };

    const LEVEL: &Level = &LEVELS[0];

    impl Dedup {
        fn sees(&self, id: RequestId) -> Seen {
            self.look(id, LEVEL, Levels::default())
        }

        fn keep(&mut self, id: RequestId, outcome: &Outcome) {
            self.record(id, &encode_agreed(outcome, FIRST_LEVEL), LEVEL);
        }
    }

    fn outcome(revision: u64) -> Outcome {
        Ok(Applied { revision, revisions: vec![revision] })
    }

    fn id(client: u64, sequence: u64) -> RequestId {
        RequestId { client, sequence }
    }

    #[test]
    fn many_clients_do_not_make_a_retry_new() {
        let mut dedup = Dedup::default();
        for client in 0..10_000 {
            dedup.keep(id(client, 1), &outcome(client));
        }
        for client in 0..10_000 {
            assert!(
                matches!(dedup.sees(id(client, 1)), Seen::Before(Ok(applied)) if applied.revision == client)
            );
        }
    }

    #[test]
    fn what_is_forgotten_is_never_taken_for_new() {
        let mut dedup = Dedup::default();
        let large = |client| Ok(Applied { revision: client, revisions: vec![u64::MAX; 10_000] });
        for sequence in 1..=300 {
            dedup.keep(id(sequence % 7, sequence), &large(sequence));
            assert!(dedup.bytes <= LEVEL.outcome_bytes_max);
        }
        assert!(dedup.floor > 0);
        for sequence in 1..=300 {
            let seen = dedup.sees(id(sequence % 7, sequence));
            match sequence <= dedup.floor {
                true => assert!(matches!(seen, Seen::Forgotten)),
                false => assert!(matches!(seen, Seen::Before(outcome) if outcome == large(sequence))),
            }
        }
        assert!(matches!(dedup.sees(id(999, 1)), Seen::Forgotten), "it may have been there");
        assert!(matches!(dedup.sees(id(999, dedup.clock() + 1)), Seen::New));
        let clock = dedup.clock();
        dedup.forget_all();
        assert!(matches!(dedup.sees(id(300 % 7, 300)), Seen::Forgotten));
        assert!(matches!(dedup.sees(id(1, clock + 1)), Seen::New));
    }

    #[test]
    fn no_client_uses_the_clock_up() {
        let dedup = Dedup::default();
        assert!(matches!(dedup.sees(id(1, u64::MAX)), Seen::Forgotten));
        assert!(matches!(dedup.sees(id(1, LEVEL.sequence_ahead_max)), Seen::New));
    }

    #[test]
    fn words_take_no_room() {
        let bad = |reason: &str| {
            let mut dedup = Dedup::default();
            let key = ObjectKey::new("configmaps", "default", "a");
            dedup.keep(id(1, 1), &Err(Refusal::BadDraft { key, reason: reason.into() }));
            dedup
        };
        assert_eq!(bad("short"), bad(&"long".repeat(1_000)));
    }
}
