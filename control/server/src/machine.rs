//! The state machine that raft drives: applies entries to the store, publishes the view, hands events to watchers.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use coracle_objects::View;
use coracle_raft::{Frozen, StateMachine};
use coracle_store::{Batch, Store, StoreConfig};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{encryption::SecretBox, watch_hub::WatchHub};

/// What an applied entry gives back to its proposer.
#[derive(Clone, Debug)]
pub struct AppliedEntry {
    pub index: u64,
    pub batch: Arc<Batch>,
}

/// A reason for which this member must stop; empty while there is none.
pub type Fatal = watch::Sender<Option<String>>;

/// Owned by raft's apply thread.
pub struct Machine {
    store: Arc<Mutex<Store>>,
    hub: Arc<WatchHub>,
    fatal: Arc<Fatal>,
}

impl Machine {
    /// An empty machine and the hub through which its state is read, opened with these keys.
    pub fn new(fatal: Arc<Fatal>, secrets: Arc<SecretBox>) -> (Self, Arc<WatchHub>) {
        let store = Arc::new(Mutex::new(Store::new(StoreConfig::default())));
        let hub = Arc::new(WatchHub::new(store.clone(), secrets));
        (Self { store, hub: hub.clone(), fatal }, hub)
    }

    /// Makes the process stop. Panics, so that raft neither counts the entry as applied nor answers reads of it.
    fn stop(&self, index: u64, reason: &str) -> ! {
        let reason = format!("entry {index} of the log cannot be applied: {reason}");
        self.fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(reason.clone()).is_none());
        panic!("{reason}");
    }
}

/// The store at one moment, as it goes into a snapshot.
pub struct FrozenStore(pub coracle_store::Frozen);

impl Frozen for FrozenStore {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.write_to(out)
    }
}

impl StateMachine for Machine {
    type Output = AppliedEntry;
    type Frozen = FrozenStore;

    /// The view and the events are published before the outcome is given back: a proposer reads its own writes.
    fn apply(&mut self, index: u64, _term: u64, entry: &[u8]) -> AppliedEntry {
        // Held until the events are sent, so that a watch that begins meanwhile has each event exactly once.
        let mut store = self.store.lock();
        match store.apply(entry) {
            Ok(batch) => {
                let view: View = store.view().clone();
                self.hub.publish(Arc::new(view), &batch.events);
                self.hub.set_clock(store.clock());
                self.hub.checkpoints().lock().applied(index, || store.state_hash());
                AppliedEntry { index, batch: Arc::new(batch) }
            }
            Err(error) => self.stop(index, &error.to_string()),
        }
    }

    fn freeze(&self) -> FrozenStore {
        FrozenStore(self.store.lock().freeze())
    }

    /// Whoever watches has to read again: what happened between the two states is not known here.
    fn restore(&mut self, index: u64, state: &mut dyn Read) -> io::Result<()> {
        let restored = Store::restore(state, StoreConfig::default()).map_err(io::Error::other)?;
        let mut store = self.store.lock();
        *store = restored;
        self.hub.replace(Arc::new(store.view().clone()));
        self.hub.set_clock(store.clock());
        self.hub.checkpoints().lock().begin(index);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn an_entry_that_cannot_be_applied_stops_the_member() {
        let fatal = Arc::new(Fatal::new(None));
        let (mut machine, _hub) = Machine::new(fatal.clone(), Arc::default());
        assert!(catch_unwind(AssertUnwindSafe(|| machine.apply(7, 1, b"\xffnonsense"))).is_err());
        assert!(fatal.borrow().as_deref().is_some_and(|reason| reason.starts_with("entry 7 ")));
    }
}
