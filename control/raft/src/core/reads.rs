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
    /// The other voters, those first that are asked first.
    order: Vec<u64>,
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
    /// How many were asked; None for all.
    asked: Option<usize>,
}

/// A question to the other members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub context: Vec<u8>,
    /// Who is to be asked; None for all.
    pub asked: Option<Vec<u64>>,
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
            order: Vec::new(),
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

    /// What to ask, if a try is due. No context is ever used twice, not even to ask again: an answer to an earlier
    /// question must not pass for one to a later.
    ///
    /// Where `voters` are all that make a quorum, no more are asked at first than complete it: under load each question
    /// costs its member and this one more than the read itself. They are those that have answered in time before.
    pub fn next_try(&mut self, now: u64, voters: Option<&[u64]>) -> Option<Question> {
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
        let asked = voters.map(|voters| self.fewest(voters));
        self.under_way = Some(Try {
            context: context.clone(),
            readers,
            retry_at: now + self.retry_ticks,
            asked: asked.as_ref().map(Vec::len),
        });
        Some(Question { context, asked })
    }

    /// The members that make a quorum together with this one.
    fn fewest(&mut self, voters: &[u64]) -> Vec<u64> {
        self.order.retain(|id| voters.contains(id));
        for id in voters {
            if *id != self.member && !self.order.contains(id) {
                self.order.push(*id);
            }
        }
        self.order[..voters.len() / 2].to_vec()
    }

    /// The number of the try under way, if not all were asked.
    pub fn asked_few(&self) -> Option<u64> {
        self.few().map(|_| self.tries)
    }

    /// The context of the question under way, if only a few were asked.
    pub fn few(&self) -> Option<&[u8]> {
        self.under_way.as_ref().filter(|attempt| attempt.asked.is_some()).map(|attempt| &*attempt.context)
    }

    /// Not all that were asked have answered in time: all are asked now, and those without an answer last from now on.
    pub fn ask_all(&mut self, answered: impl Fn(u64) -> bool) {
        let asked = self.under_way.as_mut().and_then(|attempt| attempt.asked.take()).unwrap_or(0);
        let (quick, slow): (Vec<u64>, _) = self.order.drain(..asked).partition(|id| answered(*id));
        self.order.splice(0..0, quick);
        self.order.extend(slow);
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
        let first = reads.next_try(0, None).expect("readers wait").context;
        assert!(reads.add(3, 1));
        assert_eq!(reads.next_try(1, None), None, "one is under way");
        assert_eq!(reads.confirmed(&first), vec![1, 2]);
        assert_eq!(reads.confirmed(&first), Vec::<u64>::new(), "confirmed twice");
        let second = reads.next_try(1, None).expect("a reader waits").context;
        assert_ne!(first, second);
        assert_eq!(reads.confirmed(&second), vec![3]);
        assert_eq!(reads.next_try(1, None), None);
    }

    #[test]
    fn only_so_many_are_asked_as_a_quorum_needs_and_the_slow_last() {
        let mut reads = Reads::new(1, 7, 5, 20);
        let ask = |reads: &mut Reads, voters: &[u64]| {
            assert!(reads.add(1, 0));
            let question = reads.next_try(0, Some(voters)).expect("a reader waits");
            (question.context, question.asked.expect("not all are asked"))
        };
        let (context, asked) = ask(&mut reads, &[1, 2, 3]);
        assert_eq!(asked, [2]);
        assert_eq!(reads.asked_few(), Some(1));
        assert_eq!(reads.confirmed(&context), [1]);
        assert_eq!(reads.asked_few(), None);
        let (context, asked) = ask(&mut reads, &[1, 2, 3]);
        assert_eq!(asked, [2]);
        reads.ask_all(|_| false);
        assert_eq!(reads.asked_few(), None);
        assert_eq!(reads.confirmed(&context), [1]);
        let (context, asked) = ask(&mut reads, &[1, 2, 3, 4, 5]);
        assert_eq!(asked, [3, 2]);
        reads.ask_all(|id| id == 3);
        assert_eq!(reads.confirmed(&context), [1]);
        let (context, asked) = ask(&mut reads, &[1, 2, 3, 4, 5]);
        assert_eq!(asked, [3, 4]);
        assert_eq!(reads.confirmed(&context), [1]);
        let (context, asked) = ask(&mut reads, &[1, 5, 6, 2]);
        assert_eq!(asked, [5, 2]);
        assert_eq!(reads.confirmed(&context), [1]);
        assert!(ask(&mut reads, &[1]).1.is_empty());
    }

    #[test]
    fn a_lost_try_is_repeated_with_another_context_until_time_is_over() {
        let mut reads = Reads::new(1, 7, 5, 20);
        assert!(reads.add(1, 0));
        let first = reads.next_try(0, None).expect("a reader waits").context;
        assert!(reads.add(2, 3));
        let second = reads.next_try(5, None).expect("time to ask again").context;
        assert_ne!(first, second);
        assert_eq!(reads.confirmed(&first), Vec::<u64>::new(), "an answer to the older question");
        assert_eq!(reads.expire(20), vec![1]);
        assert_eq!(reads.confirmed(&second), vec![2]);
        assert!(reads.add(3, 21));
        assert_eq!(reads.take_all(), vec![3]);
    }
}
