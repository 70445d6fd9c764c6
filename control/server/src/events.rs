//! Event objects: named, counted where they repeat, and removed after an hour.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use coracle_api::Storage;
use coracle_controllers::EventRecord;
use coracle_objects::{Expect, Object, ObjectKey, Transaction, View, Write, registry};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    drafts::{self, editable, encode, new_draft, rfc3339},
    storage::ReplicatedStorage,
    tokens,
};

const EVENTS: &str = "events";

/// Events that may wait to be written; more are dropped, as they only tell people what happened.
const WAITING_MAX: usize = 2048;

/// Events written at a time.
const BATCH_MAX: usize = 64;

/// Events that are remembered so that a repetition is counted.
const REMEMBERED_MAX: usize = 4096;

/// How long an event is kept after it last happened, how often old ones are looked for, and how many go at a time.
const KEPT_HOURS: i64 = 1;
const SWEEP_PERIOD: Duration = Duration::from_secs(60);
const SWEEP_BATCH: usize = 256;

/// Characters of an object's name in the names of its events, which a dot and 16 digits follow; 253 is the most.
const INVOLVED_NAME_MAX: usize = 236;

/// What makes two events the same.
type Sameness = [String; 6];

/// Takes events without waiting for them to be written.
#[derive(Clone)]
pub struct EventRecorder {
    waiting: mpsc::Sender<Value>,
}

impl EventRecorder {
    pub fn start(storage: ReplicatedStorage) -> Self {
        let (waiting, events) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_all(storage, events));
        Self { waiting }
    }

    /// Takes what a controller or the scheduler reports.
    pub fn record(&self, record: &EventRecord) {
        let key = &record.regarding;
        let kind = registry::by_resource(key.resource.as_str());
        let taken = self.take(json!({
            "involvedObject": {
                "kind": kind.map_or("", |kind| kind.kind),
                "apiVersion": kind.map_or_else(String::new, |kind| kind.api_version()),
                "namespace": *key.name.namespace,
                "name": *key.name.name,
                "uid": record.uid,
            },
            "type": record.type_.as_str(),
            "reason": record.reason,
            "message": record.message,
            "source": { "component": record.reporting_component },
        }));
        if !taken {
            tracing::debug!("an event is dropped: too many are waiting");
        }
    }

    /// Takes an event as a node sends it: a core v1 Event without a name. `false` where too many are waiting.
    pub fn take(&self, event: Value) -> bool {
        if event["involvedObject"]["name"].as_str().is_none_or(str::is_empty) {
            tracing::debug!("an event without an involved object is dropped");
            return true;
        }
        self.waiting.try_send(event).is_ok()
    }
}

/// Names given to events, the oldest forgotten first.
#[derive(Default)]
struct Remembered {
    keys: BTreeMap<Sameness, ObjectKey>,
    order: VecDeque<Sameness>,
}

impl Remembered {
    fn insert(&mut self, sameness: Sameness, key: ObjectKey) {
        if self.keys.insert(sameness.clone(), key).is_none() {
            self.order.push_back(sameness);
        }
        while self.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }
}

async fn write_all(storage: ReplicatedStorage, mut events: mpsc::Receiver<Value>) {
    let mut remembered = Remembered::default();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while events.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut counted: BTreeMap<Sameness, (Value, u64)> = BTreeMap::new();
        for event in batch.drain(..) {
            counted.entry(sameness(&event)).or_insert((event, 0)).1 += 1;
        }
        let writes = counted.into_iter().map(|(sameness, (event, times))| {
            let known = remembered.keys.get(&sameness).filter(|key| storage.view().get(key).is_some());
            let key = known.cloned().unwrap_or_else(|| new_key(&event));
            remembered.insert(sameness, key.clone());
            write(&storage, key, event, times)
        });
        futures::future::join_all(writes.collect::<Vec<_>>()).await;
    }
}

async fn write(storage: &ReplicatedStorage, key: ObjectKey, event: Value, times: u64) {
    let now = Timestamp::now();
    let namespace = ObjectKey::new("namespaces", "", &key.name.namespace);
    let written = drafts::write(storage, |view| {
        if let Some(object) = view.get(&key) {
            return Some(Transaction::update(key.clone(), repeated(object, times, now), object.revision));
        }
        // A namespace that ends takes no new events: they would keep it from ending.
        view.get(&namespace).filter(|namespace| namespace.meta.deletion_timestamp.is_none())?;
        let transaction = Transaction::create(key.clone(), first(&key, &event, times, now));
        Some(transaction.expecting(namespace.clone(), Expect::NotDeleting))
    });
    if let Err(error) = written.await {
        tracing::debug!(%error, event = %key.name, "an event was not written");
    }
}

fn first(key: &ObjectKey, event: &Value, times: u64, now: Timestamp) -> bytes::Bytes {
    let time = rfc3339(now);
    let mut body = event.clone();
    body["metadata"] = json!({});
    body["firstTimestamp"] = time.as_str().into();
    body["lastTimestamp"] = time.into();
    body["count"] = times.into();
    body["eventTime"] = Value::Null;
    body["reportingComponent"] = event["source"]["component"].as_str().unwrap_or("").into();
    body["reportingInstance"] = event["source"]["host"].as_str().unwrap_or("").into();
    if let Some(body) = body.as_object_mut() {
        body.remove("apiVersion");
        body.remove("kind");
    }
    new_draft("v1", "Event", key, body, now)
}

fn repeated(object: &Object, times: u64, now: Timestamp) -> bytes::Bytes {
    let mut draft = editable(object);
    draft["count"] = (draft["count"].as_u64().unwrap_or(1) + times).into();
    draft["lastTimestamp"] = rfc3339(now).into();
    encode(&draft)
}

fn sameness(event: &Value) -> Sameness {
    let involved = &event["involvedObject"];
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    [
        text(&involved["uid"]),
        text(&involved["fieldPath"]),
        text(&event["type"]),
        text(&event["reason"]),
        text(&event["message"]),
        format!(
            "{} {}/{}",
            text(&event["source"]["host"]),
            text(&involved["namespace"]),
            text(&involved["name"])
        ),
    ]
}

/// Events about cluster-scoped objects live in `default`.
fn new_key(event: &Value) -> ObjectKey {
    let involved = &event["involvedObject"];
    let namespace =
        involved["namespace"].as_str().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let name: String =
        involved["name"].as_str().unwrap_or("unknown").chars().take(INVOLVED_NAME_MAX).collect();
    let name = name.trim_end_matches(['.', '-']);
    ObjectKey::new(EVENTS, namespace, &format!("{name}.{:016x}", rand::random::<u64>()))
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
        let Ok(limit) = Timestamp::now().checked_sub(KEPT_HOURS.hours()) else { continue };
        // It reads every event of the cluster, so not on a thread that others wait for.
        let view = storage.view();
        let old = tokio::task::spawn_blocking(move || old_events(&view, limit)).await.unwrap_or_default();
        for some in old.chunks(SWEEP_BATCH) {
            let writes = some.iter().map(|key| Write::Delete { key: key.clone() }).collect();
            if let Err(error) = storage.propose(Transaction { preconditions: vec![], writes }).await {
                tracing::debug!(%error, "old events stay for now");
            }
        }
    }
}

fn old_events(view: &View, limit: Timestamp) -> Vec<ObjectKey> {
    let is_old = |object: &&std::sync::Arc<Object>| {
        let draft = editable(object);
        let times = [&draft["lastTimestamp"], &draft["eventTime"], &draft["metadata"]["creationTimestamp"]];
        let last = times.into_iter().find_map(|time| time.as_str()?.parse::<Timestamp>().ok());
        last.is_some_and(|last| last < limit)
    };
    view.list(EVENTS, None).filter(is_old).map(|object| object.key.clone()).collect()
}
