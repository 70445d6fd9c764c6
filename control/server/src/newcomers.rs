//! Connections of callers that have not shown who they are: handshakes that go on, and callers without a certificate whose
//! requests have shown no good token either.
//!
//! Anybody can open such connections. They have a bound of their own, and where it is reached the oldest makes room: a
//! flood of them keeps nobody out who finishes a handshake at once.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The connections, in the order in which they came. Cheap to clone.
#[derive(Clone)]
pub struct Newcomers {
    most: usize,
    present: Arc<Mutex<Present>>,
}

#[derive(Default)]
struct Present {
    last: u64,
    places: BTreeMap<u64, CancellationToken>,
}

/// One connection's place, until it is dropped.
pub struct Place {
    number: u64,
    newcomers: Newcomers,
    lost: CancellationToken,
}

impl Newcomers {
    /// At most so many at a time.
    pub fn new(most: usize) -> Self {
        Self { most, present: Arc::default() }
    }

    /// A place for one more.
    pub fn enter(&self) -> Place {
        let lost = CancellationToken::new();
        let mut present = self.present.lock();
        if present.places.len() >= self.most
            && let Some((_, oldest)) = present.places.pop_first()
        {
            oldest.cancel();
        }
        present.last += 1;
        let number = present.last;
        present.places.insert(number, lost.clone());
        Place { number, newcomers: self.clone(), lost }
    }
}

impl Place {
    /// Resolves when another connection needs it; never once it is given back.
    pub fn lost(&self) -> impl Future<Output = ()> + use<> {
        self.lost.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.newcomers.present.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let newcomers = Newcomers::new(2);
        let is_lost = |place: &Place| place.lost().now_or_never().is_some();
        let (first, second) = (newcomers.enter(), newcomers.enter());
        assert!(!is_lost(&first) && !is_lost(&second));
        let third = newcomers.enter();
        assert!(is_lost(&first) && !is_lost(&second) && !is_lost(&third));
        drop(second);
        let fourth = newcomers.enter();
        assert!(!is_lost(&third) && !is_lost(&fourth), "there was room");
        drop((first, third, fourth));
        assert!(newcomers.present.lock().places.is_empty());
    }
}
