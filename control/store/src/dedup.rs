//! Remembers the outcomes of recent requests, so that a retry is answered and not done again.
//!
//! Part of the replicated state: every member must remember and forget the same things.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::command::{Outcome, RequestId};

/// Proposing processes that are remembered. A cluster has at most some tens of members; each start is a new client.
const CLIENTS_MAX: usize = 64;

/// Outcomes remembered a client. A client must not have more requests than this under way at a time.
pub const OUTCOMES_A_CLIENT_MAX: usize = 2048;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Client {
    /// The table's `clock` when it was last used.
    used: u64,
    /// The highest sequence whose outcome was dropped. At or below it nothing is known any more.
    forgotten: u64,
    outcomes: OrdMap<u64, Outcome>,
}

/// Client -> recent (sequence, outcome).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dedup {
    /// Counts recorded requests: a logical time for dropping the client that was quiet longest.
    clock: u64,
    clients: OrdMap<u64, Client>,
}

/// What is known about a request that arrives.
pub(crate) enum Seen {
    New,
    Before(Outcome),
    /// So old that its outcome may have been dropped. It must not be applied: it may have been already.
    Forgotten,
}

impl Dedup {
    pub(crate) fn look(&self, id: RequestId) -> Seen {
        let Some(client) = self.clients.get(&id.client) else { return Seen::New };
        match client.outcomes.get(&id.sequence) {
            Some(outcome) => Seen::Before(outcome.clone()),
            None if id.sequence <= client.forgotten => Seen::Forgotten,
            None => Seen::New,
        }
    }

    pub(crate) fn record(&mut self, id: RequestId, outcome: Outcome) {
        self.clock += 1;
        if !self.clients.contains_key(&id.client) && self.clients.len() >= CLIENTS_MAX {
            self.drop_quietest();
        }
        let client = self.clients.entry(id.client).or_default();
        client.used = self.clock;
        client.outcomes.insert(id.sequence, outcome);
        if client.outcomes.len() > OUTCOMES_A_CLIENT_MAX
            && let Some((&oldest, _)) = client.outcomes.get_min().map(|(key, value)| (key, value))
        {
            client.outcomes.remove(&oldest);
            client.forgotten = client.forgotten.max(oldest);
        }
    }

    fn drop_quietest(&mut self) {
        let quietest = self.clients.iter().min_by_key(|(_, client)| client.used).map(|(id, _)| *id);
        if let Some(id) = quietest {
            self.clients.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::Applied;

    use super::*;

    fn outcome(revision: u64) -> Outcome {
        Ok(Applied { revision, revisions: vec![] })
    }

    #[test]
    fn old_outcomes_are_forgotten_but_never_taken_for_new() {
        let mut dedup = Dedup::default();
        for sequence in 1..=OUTCOMES_A_CLIENT_MAX as u64 + 1 {
            dedup.record(RequestId { client: 1, sequence }, outcome(sequence));
        }
        assert!(matches!(dedup.look(RequestId { client: 1, sequence: 1 }), Seen::Forgotten));
        assert!(
            matches!(dedup.look(RequestId { client: 1, sequence: 2 }), Seen::Before(Ok(a)) if a.revision == 2)
        );
        assert!(matches!(dedup.look(RequestId { client: 1, sequence: 9999 }), Seen::New));
    }

    #[test]
    fn the_client_that_was_quiet_longest_makes_room() {
        let mut dedup = Dedup::default();
        for client in 0..CLIENTS_MAX as u64 {
            dedup.record(RequestId { client, sequence: 1 }, outcome(1));
        }
        dedup.record(RequestId { client: 0, sequence: 2 }, outcome(2));
        dedup.record(RequestId { client: 999, sequence: 1 }, outcome(3));
        assert_eq!(dedup.clients.len(), CLIENTS_MAX);
        assert!(dedup.clients.contains_key(&0));
        assert!(!dedup.clients.contains_key(&1));
    }
}
