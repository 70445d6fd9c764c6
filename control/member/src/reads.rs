//! Linearizable reads: those that wait share a read index, which the leader has a quorum confirm. Whoever comes while one
//! is asked for waits for the next: that one may be older than its question.

use std::time::Duration;

/// Until a linearizable read must have its index, and then its index applied.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Readers that may wait for the next index.
pub const WAITING_MAX: usize = 16 * 1024;

/// The readers of one member. `T` is where a reader is told its index.
#[derive(Debug)]
pub struct Readers<T> {
    waiting_max: usize,
    waiting: Vec<T>,
    asking: bool,
}

impl<T> Readers<T> {
    pub fn new(waiting_max: usize) -> Self {
        Self { waiting_max, waiting: Vec::new(), asking: false }
    }

    /// Whether a reader that comes now asks by itself: nobody asks, and nobody waits. Where it does, it counts as asking
    /// until [`Readers::ended`].
    pub fn goes_alone(&mut self) -> bool {
        let alone = !self.asking && self.waiting.is_empty();
        self.asking |= alone;
        alone
    }

    /// Keeps a reader for the next index. Whether [`Readers::next_round`] has some already; given back where too many wait.
    pub fn wait(&mut self, reader: T) -> Result<bool, T> {
        if self.waiting.len() >= self.waiting_max {
            return Err(reader);
        }
        self.waiting.push(reader);
        Ok(!self.asking)
    }

    /// The readers for whom an index is to be asked for now, which all share it.
    pub fn next_round(&mut self) -> Option<Vec<T>> {
        if self.asking || self.waiting.is_empty() {
            return None;
        }
        self.asking = true;
        Some(std::mem::take(&mut self.waiting))
    }

    /// Nobody asks any more, with an index or without. Whether [`Readers::next_round`] has more.
    pub fn ended(&mut self) -> bool {
        self.asking = false;
        !self.waiting.is_empty()
    }
}

/// How far one reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Read {
    /// No quorum has confirmed an index for it yet.
    #[default]
    Asking,
    /// It sees the state once its member has applied this index.
    Behind(u64),
}

impl Read {
    /// Whether the state is one that it may see, where its member has applied so much.
    pub fn sees(self, applied: u64) -> bool {
        matches!(self, Read::Behind(index) if index <= applied)
    }

    /// What is missing, where its time is up.
    pub fn missing(self) -> &'static str {
        match self {
            Read::Asking => "no quorum confirmed the read in time",
            Read::Behind(_) => "this member is behind the others",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_reader_asks_by_itself_and_the_others_share_the_next_index() {
        let mut readers = Readers::new(WAITING_MAX);
        assert!(readers.goes_alone());
        assert!(!readers.goes_alone());
        assert_eq!(readers.wait(1), Ok(false));
        assert_eq!(readers.wait(2), Ok(false));
        assert_eq!(readers.next_round(), None, "an index is under way, which may be older than they are");
        assert!(readers.ended());
        assert!(!readers.goes_alone(), "others have come before");
        assert_eq!(readers.next_round(), Some(vec![1, 2]));
        assert_eq!(readers.wait(3), Ok(false));
        assert!(readers.ended());
        assert_eq!(readers.next_round(), Some(vec![3]));
        assert!(!readers.ended());
        assert!(readers.goes_alone());
    }

    #[test]
    fn no_more_wait_than_may() {
        let mut readers = Readers::new(1);
        assert_eq!(readers.wait(1), Ok(true), "nobody asks");
        assert_eq!(readers.wait(2), Err(2));
    }

    #[test]
    fn a_reader_sees_what_has_its_index() {
        assert!(!Read::default().sees(9));
        assert!(!Read::Behind(5).sees(4));
        assert!(Read::Behind(5).sees(5));
    }
}
