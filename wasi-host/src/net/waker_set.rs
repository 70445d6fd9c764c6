//! The tasks that wait for one condition.

use std::task::Waker;

/// Wakers kept at once. One task waits in the usual case; the bound holds against a task that polls with
/// a new waker each time and is never woken.
const WAKERS_MAX: usize = 16;

/// A small set of wakers. One waiter costs no allocation.
#[derive(Debug, Default)]
pub(crate) struct WakerSet {
    first: Option<Waker>,
    rest: Vec<Waker>,
}

impl WakerSet {
    /// Adds a waker unless one that wakes the same task is here. When the set is full the oldest of the rest
    /// is woken for nothing, which any task must bear, and makes room.
    pub(crate) fn register(&mut self, waker: &Waker) {
        match &self.first {
            None => {
                self.first = Some(waker.clone());
                return;
            }
            Some(first) if first.will_wake(waker) => return,
            Some(_) => {}
        }
        if self.rest.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        if self.rest.len() + 1 >= WAKERS_MAX {
            self.rest.remove(0).wake();
        }
        self.rest.push(waker.clone());
    }

    /// Empties the set; the caller wakes what it got after it has left its lock.
    #[must_use = "the tasks wait until they are woken"]
    pub(crate) fn take(&mut self) -> WakerSet {
        std::mem::take(self)
    }

    /// Wakes every task of the set.
    pub(crate) fn wake(self) {
        if let Some(first) = self.first {
            first.wake();
        }
        for waker in self.rest {
            waker.wake();
        }
    }
}
