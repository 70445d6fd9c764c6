//! Open connections to each endpoint address. They outlive the tables, so that a change forgets no load.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// All that some service or connection knows.
#[derive(Default)]
pub(crate) struct Counters {
    by_address: Arc<Mutex<ByAddress>>,
}

type ByAddress = HashMap<IpAddr, Weak<Counter>>;

/// How many connections through services are open to one address. It goes with the last who knows it.
pub(crate) struct Counter {
    open: AtomicUsize,
    address: IpAddr,
    known: Weak<Mutex<ByAddress>>,
}

impl Counters {
    pub(super) fn of(&self, address: IpAddr) -> Arc<Counter> {
        let mut by_address = self.by_address.lock();
        if let Some(counter) = by_address.get(&address).and_then(Weak::upgrade) {
            return counter;
        }
        let known = Arc::downgrade(&self.by_address);
        let counter = Arc::new(Counter { open: AtomicUsize::new(0), address, known });
        by_address.insert(address, Arc::downgrade(&counter));
        counter
    }

    /// Addresses that are counted.
    pub(crate) fn held(&self) -> usize {
        self.by_address.lock().len()
    }
}

impl Counter {
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let Some(known) = self.known.upgrade() else { return };
        let mut known = known.lock();
        // Another may have taken this one's place already.
        if known.get(&self.address).is_some_and(|counter| counter.strong_count() == 0) {
            known.remove(&self.address);
        }
    }
}

/// One open connection at an endpoint.
pub(crate) struct OpenConnection(Arc<Counter>);

impl OpenConnection {
    pub(crate) fn count(counter: &Arc<Counter>) -> Self {
        counter.open.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_lasts_as_long_as_somebody_knows_it() {
        let (counters, address) = (Counters::default(), IpAddr::from([10, 128, 0, 1]));
        let counter = counters.of(address);
        let connection = OpenConnection::count(&counter);
        drop(counter);
        assert_eq!((counters.of(address).open(), counters.held()), (1, 1), "a connection is left");
        drop(connection);
        assert_eq!(counters.held(), 0);
        let again = counters.of(address);
        assert_eq!((again.open(), counters.held()), (0, 1));
    }
}
