//! Proposals in the log that wait for their outcome.

use std::collections::{BTreeMap, VecDeque};

use super::Token;
use crate::config::PENDING_PROPOSALS_MAX;

/// The pending proposals by index. An index and a term name an entry for all time, so what is committed at the index
/// either is the proposal, or proves that the proposal never will be.
pub struct Proposals {
    by_index: BTreeMap<u64, Pending>,
    /// (deadline, index, term), in the order of proposing; also of those that have their outcome, until all before them
    /// have theirs.
    deadlines: VecDeque<(u64, u64, u64)>,
    timeout_ticks: u64,
}

struct Pending {
    term: u64,
    token: Token,
}

impl Proposals {
    pub fn new(timeout_ticks: u64) -> Proposals {
        Proposals { by_index: BTreeMap::new(), deadlines: VecDeque::new(), timeout_ticks }
    }

    /// How many more may be added.
    pub fn room(&self) -> usize {
        PENDING_PROPOSALS_MAX.saturating_sub(self.by_index.len())
    }

    /// Notes proposals that were appended from index `first` on. Answers those of an earlier term that had these
    /// indices. Their outcome is unknown: another member may have them still, and win an election before this term's
    /// entries are committed.
    pub fn add(&mut self, first: u64, term: u64, tokens: &[Token], now: u64) -> Vec<Token> {
        let mut overwritten = Vec::new();
        for (index, token) in (first..).zip(tokens) {
            if let Some(old) = self.by_index.insert(index, Pending { term, token: *token }) {
                overwritten.push(old.token);
            }
            self.deadlines.push_back((now + self.timeout_ticks, index, term));
        }
        overwritten
    }

    /// An entry is committed: answers the proposal that it is, or those that it rules out.
    pub fn committed(&mut self, index: u64, term: u64) -> (Option<Token>, Vec<Token>) {
        let found = self.by_index.remove(&index);
        while let Some((_, index, term)) = self.deadlines.front()
            && self.by_index.get(index).is_none_or(|pending| pending.term != *term)
        {
            self.deadlines.pop_front();
        }
        match found {
            Some(pending) if pending.term == term => (Some(pending.token), Vec::new()),
            Some(pending) => (None, vec![pending.token]),
            None => (None, Vec::new()),
        }
    }

    /// Takes those up to `index`: a snapshot holds what has become of them.
    pub fn take_through(&mut self, index: u64) -> Vec<Token> {
        let later = self.by_index.split_off(&(index + 1));
        std::mem::replace(&mut self.by_index, later).into_values().map(|pending| pending.token).collect()
    }

    /// Those whose time is over.
    pub fn expire(&mut self, now: u64) -> Vec<Token> {
        let mut expired = Vec::new();
        while let Some((deadline, index, term)) = self.deadlines.front().copied()
            && deadline <= now
        {
            self.deadlines.pop_front();
            if self.by_index.get(&index).is_some_and(|pending| pending.term == term)
                && let Some(pending) = self.by_index.remove(&index)
            {
                expired.push(pending.token);
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_proposal_has_one_outcome() {
        let mut proposals = Proposals::new(10);
        assert_eq!(proposals.add(5, 1, &[50, 60, 70], 0), Vec::<u64>::new());
        assert_eq!(proposals.committed(5, 1), (Some(50), Vec::<u64>::new()));
        assert_eq!(proposals.committed(6, 2), (None, vec![60]), "another leader's entry is there");
        assert_eq!(proposals.add(7, 3, &[71], 5), vec![70], "this member leads again and has overwritten it");
        assert_eq!(proposals.expire(10), Vec::<u64>::new(), "the deadline of the overwritten one is void");
        assert_eq!(proposals.expire(15), vec![71]);
        assert_eq!(proposals.committed(7, 3), (None, Vec::<u64>::new()));
        assert!(proposals.deadlines.is_empty());
    }
}
