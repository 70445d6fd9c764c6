//! Reads that wait for a quorum to confirm that this member still leads.

use super::{Token, mix};
use crate::config::PENDING_READS_MAX;

/// One read index under way serves all who waited when it was asked for. Those that come later wait for the next: the
/// index of the one under way may be older than what they must see.
pub struct Reads {
    member: u64,
    nonce: u64,
    tries: u64,
    retry_ticks: u64,
    timeout_ticks: u64,
    waiting: Vec<Reader>,
    under_way: Option<Try>,
}

#[derive(Clone, Copy)]
struct Reader {
    token: Token,
    deadline: u64,
}

struct Try {
    context: Vec<u8>,
    readers: Vec<Reader>,
    retry_at: u64,
}

impl Reads {
    pub fn new(member: u64, seed: u64, retry_ticks: u64, timeout_ticks: u64) -> Reads {
        Reads {
            member,
            nonce: mix(seed),
            tries: 0,
            retry_ticks,
            timeout_ticks,
            waiting: Vec::new(),
            under_way: None,
        }
    }

    /// Adds a reader; false when too many are waiting.
    pub fn add(&mut self, token: Token, now: u64) -> bool {
        let under_way = self.under_way.as_ref().map_or(0, |attempt| attempt.readers.len());
        if self.waiting.len() + under_way >= PENDING_READS_MAX {
            return false;
        }
        self.waiting.push(Reader { token, deadline: now + self.timeout_ticks });
        true
    }

    /// The context to ask raft with, if a try is due. No context is ever used twice, not even to ask again: an answer
    /// to an earlier question must not pass for one to a later.
    pub fn next_try(&mut self, now: u64) -> Option<Vec<u8>> {
        let mut readers = match &mut self.under_way {
            Some(attempt) if attempt.retry_at > now => return None,
            Some(attempt) => std::mem::take(&mut attempt.readers),
            None => Vec::new(),
        };
        readers.append(&mut self.waiting);
        if readers.is_empty() {
            self.under_way = None;
            return None;
        }
        self.tries += 1;
        let numbers = [self.member, self.nonce, self.tries];
        let context: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.under_way = Some(Try { context: context.clone(), readers, retry_at: now + self.retry_ticks });
        Some(context)
    }

    /// A quorum has confirmed this context: answers those who waited for it.
    pub fn confirmed(&mut self, context: &[u8]) -> Vec<Token> {
        match self.under_way.take_if(|attempt| attempt.context == context) {
            Some(attempt) => attempt.readers.into_iter().map(|reader| reader.token).collect(),
            None => Vec::new(),
        }
    }

    /// Those whose time is over.
    pub fn expire(&mut self, now: u64) -> Vec<Token> {
        let mut expired = Vec::new();
        let under_way = self.under_way.iter_mut().map(|attempt| &mut attempt.readers);
        for readers in under_way.chain([&mut self.waiting]) {
            readers.retain(|reader| {
                if reader.deadline <= now {
                    expired.push(reader.token);
                }
                reader.deadline > now
            });
        }
        expired
    }

    /// Everybody: this member does not lead any more.
    pub fn take_all(&mut self) -> Vec<Token> {
        let under_way = self.under_way.take().map(|attempt| attempt.readers).unwrap_or_default();
        under_way.into_iter().chain(self.waiting.drain(..)).map(|reader| reader.token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_try_serves_all_who_waited_and_none_who_came_later() {
        let mut reads = Reads::new(1, 7, 5, 20);
        assert!(reads.add(1, 0) && reads.add(2, 0));
        let first = reads.next_try(0).expect("readers wait");
        assert!(reads.add(3, 1));
        assert_eq!(reads.next_try(1), None, "one is under way");
        assert_eq!(reads.confirmed(&first), vec![1, 2]);
        assert_eq!(reads.confirmed(&first), Vec::<u64>::new(), "confirmed twice");
        let second = reads.next_try(1).expect("a reader waits");
        assert_ne!(first, second);
        assert_eq!(reads.confirmed(&second), vec![3]);
        assert_eq!(reads.next_try(1), None);
    }

    #[test]
    fn a_lost_try_is_repeated_with_another_context_until_time_is_over() {
        let mut reads = Reads::new(1, 7, 5, 20);
        assert!(reads.add(1, 0));
        let first = reads.next_try(0).expect("a reader waits");
        assert!(reads.add(2, 3));
        let second = reads.next_try(5).expect("time to ask again");
        assert_ne!(first, second);
        assert_eq!(reads.confirmed(&first), Vec::<u64>::new(), "an answer to the older question");
        assert_eq!(reads.expire(20), vec![1]);
        assert_eq!(reads.confirmed(&second), vec![2]);
        assert!(reads.add(3, 21));
        assert_eq!(reads.take_all(), vec![3]);
    }
}
