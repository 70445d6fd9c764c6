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

use crate::command::{CorruptEntry, Outcome, RequestId, decode_outcome, encode_agreed};

/// Bytes of outcomes that are remembered: some 200,000 ordinary ones.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What an outcome takes beside its own bytes, about.
const OUTCOME_OVERHEAD_BYTES: u64 = 64;

/// A sequence that is further beyond the clock is not taken, so that no client can use the clock up.
const AHEAD_MAX: u64 = 1 << 40;

/// Sequence, then client: the lowest are forgotten first.
type Key = (u64, u64);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub(crate) struct Dedup {
    /// The highest sequence that was ever recorded.
    clock: u64,
    /// The highest sequence that was ever forgotten. At or below it nothing is remembered.
    floor: u64,
    /// Encoded.
    outcomes: OrdMap<Key, Arc<[u8]>>,
    /// Of the outcomes, with what they take beside.
    bytes: u64,
}

/// What a snapshot holds of the table.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
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
    pub(crate) fn look(&self, id: RequestId) -> Seen {
        match self.outcomes.get(&key(id)) {
            Some(outcome) => {
                let outcome = decode_outcome(outcome);
                Seen::Before(with_words(outcome.expect("what is kept was encoded here or read once before")))
            }
            None if id.sequence <= self.floor => Seen::Forgotten,
            None if id.sequence > self.clock.saturating_add(AHEAD_MAX) => Seen::Forgotten,
            None => Seen::New,
        }
    }

    pub(crate) fn record(&mut self, id: RequestId, outcome: &Outcome) {
        let outcome: Arc<[u8]> = encode_agreed(outcome).as_ref().into();
        self.clock = self.clock.max(id.sequence);
        self.bytes += cost(&outcome);
        self.outcomes.insert(key(id), outcome);
        while self.bytes > BYTES_MAX
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

impl TryFrom<Kept> for Dedup {
    type Error = CorruptEntry;

    fn try_from(Kept { clock, floor, outcomes }: Kept) -> Result<Self, CorruptEntry> {
        outcomes.values().try_for_each(|outcome| decode_outcome(outcome).map(drop))?;
        let bytes = outcomes.values().map(cost).sum();
        Ok(Self { clock, floor, outcomes, bytes })
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Applied, ObjectKey};

    use super::*;

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
            dedup.record(id(client, 1), &outcome(client));
        }
        for client in 0..10_000 {
            assert!(
                matches!(dedup.look(id(client, 1)), Seen::Before(Ok(applied)) if applied.revision == client)
            );
        }
    }

    #[test]
    fn what_is_forgotten_is_never_taken_for_new() {
        let mut dedup = Dedup::default();
        let large = |client| Ok(Applied { revision: client, revisions: vec![u64::MAX; 10_000] });
        for sequence in 1..=300 {
            dedup.record(id(sequence % 7, sequence), &large(sequence));
            assert!(dedup.bytes <= BYTES_MAX);
        }
        assert!(dedup.floor > 0);
        for sequence in 1..=300 {
            let seen = dedup.look(id(sequence % 7, sequence));
            match sequence <= dedup.floor {
                true => assert!(matches!(seen, Seen::Forgotten)),
                false => assert!(matches!(seen, Seen::Before(outcome) if outcome == large(sequence))),
            }
        }
        assert!(matches!(dedup.look(id(999, 1)), Seen::Forgotten), "it may have been there");
        assert!(matches!(dedup.look(id(999, dedup.clock() + 1)), Seen::New));
        let clock = dedup.clock();
        dedup.forget_all();
        assert!(matches!(dedup.look(id(300 % 7, 300)), Seen::Forgotten));
        assert!(matches!(dedup.look(id(1, clock + 1)), Seen::New));
    }

    #[test]
    fn no_client_uses_the_clock_up() {
        let dedup = Dedup::default();
        assert!(matches!(dedup.look(id(1, u64::MAX)), Seen::Forgotten));
        assert!(matches!(dedup.look(id(1, AHEAD_MAX)), Seen::New));
    }

    #[test]
    fn words_take_no_room() {
        let bad = |reason: &str| {
            let mut dedup = Dedup::default();
            let key = ObjectKey::new("configmaps", "default", "a");
            dedup.record(id(1, 1), &Err(Refusal::BadDraft { key, reason: reason.into() }));
            dedup
        };
        assert_eq!(bad("short"), bad(&"long".repeat(1_000)));
    }
}
