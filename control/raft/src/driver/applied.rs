//! How far the state machine is, and who waits for an index: each is woken once, when it is reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Where it is told.
pub struct Teller(Arc<Applied>);

/// Where it is heard.
#[derive(Default)]
pub struct Applied(Mutex<State>);

#[derive(Default)]
struct State {
    index: u64,
    /// By index and then by arrival. Bounded by the callers: each of them has given its own call a bound.
    waiters: BTreeMap<(u64, u64), oneshot::Sender<()>>,
    arrivals: u64,
    ended: bool,
}

/// The state machine has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped;

impl Teller {
    pub fn new(index: u64) -> (Teller, Arc<Applied>) {
        let applied = Arc::new(Applied(Mutex::new(State { index, ..State::default() })));
        (Teller(applied.clone()), applied)
    }

    pub fn index(&self) -> u64 {
        self.0.index()
    }

    /// Everything up to `index` is applied.
    pub fn tell(&self, index: u64) {
        let mut state = self.0.0.lock();
        state.index = index;
        let later = state.waiters.split_off(&(index.saturating_add(1), 0));
        let reached = std::mem::replace(&mut state.waiters, later);
        drop(state);
        for waiter in reached.into_values() {
            // Who has gone away needs nothing.
            let _ = waiter.send(());
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.ended = true;
        state.waiters.clear();
    }
}

impl Applied {
    pub fn index(&self) -> u64 {
        self.0.lock().index
    }

    pub async fn wait(&self, index: u64) -> Result<(), Stopped> {
        let (key, reached) = {
            let mut state = self.0.lock();
            if state.index >= index {
                return Ok(());
            }
            if state.ended {
                return Err(Stopped);
            }
            let (reply, reached) = oneshot::channel();
            state.arrivals += 1;
            let key = (index, state.arrivals);
            state.waiters.insert(key, reply);
            (key, reached)
        };
        let _place = Place { applied: self, key };
        reached.await.map_err(|_| Stopped)
    }
}

/// A waiter that goes away leaves nothing.
struct Place<'a> {
    applied: &'a Applied,
    key: (u64, u64),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.applied.0.lock().waiters.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_those_whose_index_is_reached_are_touched() {
        let (teller, applied) = Teller::new(0);
        assert_eq!(applied.wait(0).now_or_never(), Some(Ok(())));
        let mut first = Box::pin(applied.wait(1));
        let mut second = Box::pin(applied.wait(2));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        teller.tell(1);
        assert_eq!(applied.0.lock().waiters.len(), 1);
        assert_eq!(first.await, Ok(()));
        drop(second);
        assert_eq!(applied.0.lock().waiters.len(), 0);
        assert_eq!(applied.index(), 1);
        let mut third = Box::pin(applied.wait(2));
        assert!(third.as_mut().now_or_never().is_none());
        drop(teller);
        assert_eq!(third.await, Err(Stopped));
        assert_eq!(applied.wait(2).now_or_never(), Some(Err(Stopped)));
    }
}
