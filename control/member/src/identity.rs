//! The identities of requests. The sequences of all members' requests are one logical clock: what is new has one above
//! all that was heard of, so that the store does not take it for something that it has forgotten.

use std::sync::atomic::{AtomicU64, Ordering};

use coracle_store::RequestId;

/// How often a write is given an identity, where this member is so far behind that the store forgot the one before.
pub const IDENTITIES_MAX: usize = 4;

/// Gives the requests of one start of a process their identities.
#[derive(Debug)]
pub struct Identities {
    client: u64,
    /// The highest sequence that was used or heard of.
    highest: AtomicU64,
}

impl Identities {
    /// `client` is random for each start of a process.
    pub fn new(client: u64) -> Self {
        Self { client, highest: AtomicU64::new(0) }
    }

    /// A new one, above the store's clock as this member knows it.
    pub fn next(&self, clock: u64) -> RequestId {
        self.heard(clock);
        let sequence = self.highest.fetch_add(1, Ordering::Relaxed) + 1;
        RequestId { client: self.client, sequence }
    }

    /// Another has told of this clock.
    pub fn heard(&self, clock: u64) {
        self.highest.fetch_max(clock, Ordering::Relaxed);
    }

    /// The highest sequence that was used or heard of.
    pub fn highest(&self) -> u64 {
        self.highest.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_identity_is_above_all_that_was_used_or_heard_of() {
        let identities = Identities::new(7);
        assert_eq!(identities.next(0), RequestId { client: 7, sequence: 1 });
        assert_eq!(identities.next(5).sequence, 6);
        assert_eq!(identities.next(3).sequence, 7);
        identities.heard(20);
        assert_eq!(identities.highest(), 20);
        assert_eq!(identities.next(3).sequence, 21);
    }
}
