//! Event objects: named, counted where they repeat, and removed after an hour.

use std::time::Duration;

use coracle_api::{Storage, fresh_uid};
use coracle_controllers::EventRecord;
use coracle_leader::events::{Remembered, of_record, old_events, written};
use coracle_node_link::EventSink;
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_storage::ReplicatedStorage;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::tokens;

/// Events that may wait to be written; more are dropped, as they only tell people what happened.
const WAITING_MAX: usize = 2048;

/// Events written at a time.
const BATCH_MAX: usize = 64;

/// How often old events are looked for, and how many go at a time.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);
const SWEEP_BATCH: usize = 256;

/// Takes events without waiting for them to be written.
#[derive(Clone)]
pub struct EventRecorder {
    waiting: mpsc::Sender<Value>,
}

impl EventRecorder {
    /// Written to this store, in whose name it is.
    pub fn start(storage: impl Storage) -> Self {
        let (waiting, events) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_all(storage, events));
        Self { waiting }
    }

    /// Takes what a controller or the scheduler reports.
    pub fn record(&self, record: &EventRecord) {
        if !self.take(of_record(record)) {
            tracing::debug!("an event is dropped: too many are waiting");
        }
    }

    /// Takes a core v1 Event without a name. `false` where too many are waiting.
    pub fn take(&self, event: Value) -> bool {
        if event["involvedObject"]["name"].as_str().is_none_or(str::is_empty) {
            tracing::debug!("an event without an involved object is dropped");
            return true;
        }
        self.waiting.try_send(event).is_ok()
    }
}

/// Those that nodes tell of.
impl EventSink for EventRecorder {
    fn take(&self, event: Value) -> bool {
        EventRecorder::take(self, event)
    }
}

async fn write_all(storage: impl Storage, mut events: mpsc::Receiver<Value>) {
    let mut remembered = Remembered::default();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while events.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let named = remembered.name(batch.drain(..), &storage.view(), rand::random::<u64>);
        let writes = named.into_iter().map(|(key, event, times)| write(&storage, key, event, times));
        futures::future::join_all(writes.collect::<Vec<_>>()).await;
    }
}

async fn write(storage: &impl Storage, key: ObjectKey, event: Value, times: u64) {
    let now = Timestamp::now();
    let uid = fresh_uid();
    let written = coracle_api::write(storage, |view| written(view, &key, &event, times, &uid, now));
    if let Err(error) = written.await {
        tracing::debug!(%error, event = %key.name, "an event was not written");
    }
}

/// Removes old events and expired join tokens, as long as this member leads.
pub async fn sweep(storage: &ReplicatedStorage) {
    let mut ticks = tokio::time::interval(SWEEP_PERIOD);
    loop {
        ticks.tick().await;
        for deletion in tokens::expired(&storage.view(), Timestamp::now()) {
            if let Err(error) = storage.propose(deletion).await {
                tracing::debug!(%error, "an expired join token stays for now");
            }
        }
        // It reads every event of the cluster, so not on a thread that others wait for.
        let view = storage.view();
        let old = tokio::task::spawn_blocking(move || old_events(&view, Timestamp::now()));
        let old = old.await.unwrap_or_default();
        for some in old.chunks(SWEEP_BATCH) {
            let writes = some.iter().map(|key| Write::Delete { key: key.clone() }).collect();
            if let Err(error) = storage.propose(Transaction { preconditions: vec![], writes }).await {
                tracing::debug!(%error, "old events stay for now");
            }
        }
    }
}
