//! Many transactions, one log entry: what arrives while an entry is under way travels in the next. A lone transaction
//! waits for nothing.

use std::collections::{BTreeMap, VecDeque};

use coracle_objects::{Expect, ObjectKey, Transaction, Write};
use coracle_store::{Outcome, Request, RequestId};

/// Transactions that may wait for an entry.
pub const WAITING_MAX: usize = 1024;

/// Bytes of transactions in one entry, about; one that is larger travels alone.
pub const ENTRY_BYTES: usize = 256 * 1024;

/// Entries of one member under way at a time.
pub const ENTRIES_UNDER_WAY: usize = 2;

/// What an entry of one transaction has beside what [`size`] tells of it, in bytes, at most.
pub const ENTRY_HEAD_BYTES_MAX: usize = 64;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub waiting_max: usize,
    pub entry_bytes: usize,
    pub entries_under_way: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { waiting_max: WAITING_MAX, entry_bytes: ENTRY_BYTES, entries_under_way: ENTRIES_UNDER_WAY }
    }
}

/// Makes entries of requests, in the order in which they come. `T` is where a proposer is answered.
#[derive(Debug)]
pub struct Gatherer<T> {
    bounds: Bounds,
    waiting: VecDeque<Waiting<T>>,
    under_way: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    request: Request,
    bytes: usize,
    proposer: T,
}

/// What is to be proposed as one entry. Once that has ended, however it did, [`Gatherer::ended`] is told.
#[derive(Debug)]
pub struct Entry<T> {
    pub requests: Vec<Request>,
    pub proposers: Proposers<T>,
}

/// Who proposed the requests of an entry, in their order.
#[derive(Debug)]
pub struct Proposers<T>(Vec<(RequestId, T)>);

/// A transaction's outcome and the index of the entry that gave it.
#[derive(Clone, Debug)]
pub struct Committed {
    pub outcome: Outcome,
    pub index: u64,
}

/// The store has left a request out: its outcome may have been forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten;

impl<T> Gatherer<T> {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, waiting: VecDeque::new(), under_way: 0 }
    }

    /// Whether a request that comes now is an entry of its own: nothing is under way, and nobody waits who came before.
    /// Where it is, it counts as under way until [`Gatherer::ended`].
    pub fn goes_alone(&mut self) -> bool {
        let alone = self.under_way == 0 && self.waiting.is_empty();
        self.under_way += usize::from(alone);
        alone
    }

    /// Keeps a request for an entry. Whether [`Gatherer::next_entry`] has one already; given back where too many wait.
    pub fn wait(&mut self, request: Request, proposer: T) -> Result<bool, (Request, T)> {
        if self.waiting.len() >= self.bounds.waiting_max {
            return Err((request, proposer));
        }
        let bytes = size(&request.transaction);
        self.waiting.push_back(Waiting { request, bytes, proposer });
        Ok(self.is_due())
    }

    /// What is to be proposed now. Entries reach raft in the order in which they are taken here.
    pub fn next_entry(&mut self) -> Option<Entry<T>> {
        if !self.is_due() {
            return None;
        }
        self.under_way += 1;
        let (mut requests, mut proposers, mut bytes) = (vec![], vec![], 0);
        while let Some(next) = self.waiting.front() {
            bytes += next.bytes;
            if bytes > self.bounds.entry_bytes && !requests.is_empty() {
                break;
            }
            let Some(Waiting { request, proposer, .. }) = self.waiting.pop_front() else { break };
            proposers.push((request.id, proposer));
            requests.push(request);
        }
        Some(Entry { requests, proposers: Proposers(proposers) })
    }

    /// An entry is not under way any more. Whether [`Gatherer::next_entry`] has another.
    pub fn ended(&mut self) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        self.is_due()
    }

    fn is_due(&self) -> bool {
        self.under_way < self.bounds.entries_under_way && !self.waiting.is_empty()
    }
}

impl<T> Proposers<T> {
    /// Of an entry of one request.
    pub fn one(id: RequestId, proposer: T) -> Self {
        Self(vec![(id, proposer)])
    }

    /// Gives each its own result of the entry that was applied at `index`.
    pub fn deal(
        self,
        results: &[(RequestId, Outcome)],
        index: u64,
        mut answer: impl FnMut(T, Result<Committed, Forgotten>),
    ) {
        let outcomes: BTreeMap<RequestId, &Outcome> =
            results.iter().map(|(id, outcome)| (*id, outcome)).collect();
        for (id, proposer) in self.0 {
            let outcome = outcomes.get(&id).copied().cloned().ok_or(Forgotten);
            answer(proposer, outcome.map(|outcome| Committed { outcome, index }));
        }
    }

    /// All of them, where the entry as a whole has failed.
    pub fn into_all(self) -> impl Iterator<Item = T> {
        self.0.into_iter().map(|(_, proposer)| proposer)
    }
}

/// The result of one request of the entry that was applied at `index`.
pub fn outcome_of(
    results: &[(RequestId, Outcome)],
    index: u64,
    id: RequestId,
) -> Result<Committed, Forgotten> {
    let found = results.iter().find(|(found, _)| *found == id);
    let outcome = found.map(|(_, outcome)| outcome.clone()).ok_or(Forgotten)?;
    Ok(Committed { outcome, index })
}

/// What a transaction takes in an entry, in bytes: never less.
pub fn size(transaction: &Transaction) -> usize {
    let writes = transaction.writes.iter().map(|write| match write {
        Write::Put { key, draft } => draft.len() + key_size(key),
        Write::Delete { key } => key_size(key),
    });
    let preconditions = transaction.preconditions.iter().map(|precondition| match &precondition.expect {
        Expect::Uid(uid) => uid.len() + key_size(&precondition.key),
        _ => key_size(&precondition.key),
    });
    writes.sum::<usize>() + preconditions.sum::<usize>()
}

/// With the lengths and numbers that stand beside it.
fn key_size(key: &ObjectKey) -> usize {
    key.resource.as_str().len() + key.name.namespace.len() + key.name.name.len() + 64
}

#[cfg(test)]
mod tests {
    use coracle_objects::Applied;
    use coracle_store::Command;

    use super::*;

    fn id(sequence: u64) -> RequestId {
        RequestId { client: 1, sequence }
    }

    fn request(sequence: u64, bytes: usize) -> Request {
        let key = ObjectKey::new("configmaps", "default", "a");
        Request { id: id(sequence), transaction: Transaction::create(key, vec![b'x'; bytes].into()) }
    }

    fn sequences(entry: Option<Entry<u64>>) -> Vec<u64> {
        let entry = entry.expect("an entry is due");
        let sequences: Vec<u64> = entry.requests.iter().map(|request| request.id.sequence).collect();
        assert_eq!(entry.proposers.into_all().collect::<Vec<_>>(), sequences);
        sequences
    }

    #[test]
    fn what_comes_while_entries_are_under_way_shares_the_next_in_order() {
        let mut gatherer = Gatherer::new(Bounds::default());
        assert!(gatherer.goes_alone());
        assert!(!gatherer.goes_alone(), "another is under way");
        assert!(gatherer.wait(request(1, 10), 1).unwrap());
        assert_eq!(sequences(gatherer.next_entry()), [1]);
        for sequence in 2..=4 {
            assert!(!gatherer.wait(request(sequence, 10), sequence).unwrap());
        }
        assert!(gatherer.next_entry().is_none(), "two are under way");
        assert!(gatherer.ended());
        assert_eq!(sequences(gatherer.next_entry()), [2, 3, 4]);
        assert!(!gatherer.ended());
        assert!(!gatherer.ended());
        assert!(gatherer.goes_alone());
    }

    #[test]
    fn nobody_overtakes_who_waits() {
        let mut gatherer = Gatherer::new(Bounds::default());
        assert!(gatherer.goes_alone());
        gatherer.wait(request(1, 10), 1).unwrap();
        gatherer.ended();
        assert!(!gatherer.goes_alone());
        assert_eq!(sequences(gatherer.next_entry()), [1]);
    }

    #[test]
    fn an_entry_has_its_bytes_and_what_is_larger_goes_by_itself() {
        let mut gatherer = Gatherer::new(Bounds { entries_under_way: 10, ..Bounds::default() });
        let third = ENTRY_BYTES / 3;
        for (sequence, bytes) in [(1, third), (2, third), (3, third), (4, 2 * ENTRY_BYTES), (5, 1)] {
            gatherer.wait(request(sequence, bytes), sequence).unwrap();
        }
        assert_eq!(sequences(gatherer.next_entry()), [1, 2]);
        assert_eq!(sequences(gatherer.next_entry()), [3]);
        assert_eq!(sequences(gatherer.next_entry()), [4]);
        assert_eq!(sequences(gatherer.next_entry()), [5]);
    }

    #[test]
    fn no_more_wait_than_may() {
        let mut gatherer = Gatherer::new(Bounds { waiting_max: 2, ..Bounds::default() });
        for sequence in 1..=2 {
            gatherer.wait(request(sequence, 1), sequence).unwrap();
        }
        let (refused, proposer) = gatherer.wait(request(3, 1), 3).unwrap_err();
        assert_eq!((refused.id, proposer), (id(3), 3));
    }

    #[test]
    fn only_the_forgotten_request_has_no_outcome() {
        let outcome = |revision| Ok(Applied { revision, revisions: vec![] });
        let results = vec![(id(1), outcome(11)), (id(3), outcome(13))];
        let proposers = Proposers((1..=3).map(|sequence| (id(sequence), sequence)).collect());
        let mut dealt = vec![];
        proposers.deal(&results, 5, |proposer, result| {
            dealt.push((proposer, result.map(|done| (done.index, done.outcome.unwrap().revision))));
        });
        assert_eq!(dealt, [(1, Ok((5, 11))), (2, Err(Forgotten)), (3, Ok((5, 13)))]);
        assert_eq!(outcome_of(&results, 5, id(2)).unwrap_err(), Forgotten);
        assert_eq!(outcome_of(&results, 5, id(3)).unwrap().outcome.unwrap().revision, 13);
    }

    #[test]
    fn a_transaction_takes_no_more_than_its_size() {
        let key = |name: &str| ObjectKey::new("configmaps", "default", name);
        let mut transaction = Transaction::create(key("a"), vec![b'x'; 300].into())
            .expecting(key("b"), Expect::Uid("u".repeat(200)))
            .expecting(key(&"n".repeat(250)), Expect::Revision(u64::MAX));
        transaction.writes.extend((0..1000).map(|number| Write::Delete { key: key(&number.to_string()) }));
        let id = RequestId { client: u64::MAX, sequence: u64::MAX };
        let bytes = size(&transaction);
        let requests = vec![Request { id, transaction }];
        let entry = Command { proposer: u64::MAX, requests }.encode();
        assert!(entry.len() <= bytes + ENTRY_HEAD_BYTES_MAX, "{} > {bytes}", entry.len());
    }
}
