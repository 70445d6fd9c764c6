//! The state machine that raft drives: applies entries to the store, publishes the view, hands events to watchers.

use std::sync::Arc;

use coracle_objects::View;
use coracle_raft::StateMachine;
use coracle_store::{Batch, Store, StoreConfig};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::watch_hub::WatchHub;

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
    /// After an entry that could not be applied nothing is applied any more.
    stopped: bool,
}

impl Machine {
    /// An empty machine and the hub through which its state is read.
    pub fn new(fatal: Arc<Fatal>) -> (Self, Arc<WatchHub>) {
        let store = Arc::new(Mutex::new(Store::new(StoreConfig::default())));
        let hub = Arc::new(WatchHub::new(store.clone()));
        (Self { store, hub: hub.clone(), fatal, stopped: false }, hub)
    }

    fn stop(&mut self, index: u64, reason: &str) -> AppliedEntry {
        self.stopped = true;
        let reason = format!("entry {index} of the log cannot be applied: {reason}");
        self.fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(reason).is_none());
        AppliedEntry { index, batch: Arc::new(Batch { results: vec![], events: vec![], revision: 0 }) }
    }
}

impl StateMachine for Machine {
    type Output = AppliedEntry;

    /// The view and the events are published before the outcome is given back: a proposer reads its own writes.
    fn apply(&mut self, index: u64, _term: u64, entry: &[u8]) -> AppliedEntry {
        if self.stopped {
            return self.stop(index, "an entry before it could not be applied");
        }
        // Held until the events are sent, so that a watch that begins meanwhile has each event exactly once.
        let mut store = self.store.lock();
        match store.apply(entry) {
            Ok(batch) => {
                let view: View = store.view().clone();
                self.hub.publish(Arc::new(view), &batch.events);
                AppliedEntry { index, batch: Arc::new(batch) }
            }
            Err(error) => {
                drop(store);
                self.stop(index, &error.to_string())
            }
        }
    }
}
