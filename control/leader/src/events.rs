//! Event objects: named, counted where they repeat, and removed after an hour.

use std::collections::{BTreeMap, VecDeque};

use coracle_controllers::EventRecord;
use coracle_objects::{
    Expect, Object, ObjectKey, Transaction, View, by_resource,
    draft::{editable, encode, new_draft, timestamp},
};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

const EVENTS: &str = "events";

/// Events that are remembered so that a repetition is counted.
const REMEMBERED_MAX: usize = 4096;

/// How long an event is kept after it last happened.
const KEPT_HOURS: i64 = 1;

/// Characters of an object's name in the names of its events, which a dot and 16 digits follow; 253 is the most.
const INVOLVED_NAME_MAX: usize = 236;

/// What a controller or the scheduler reports, as a core v1 Event without a name.
pub fn of_record(record: &EventRecord) -> Value {
    let key = &record.regarding;
    let kind = by_resource(key.resource.as_str());
    json!({
        "involvedObject": {
            "kind": kind.map_or("", |kind| &*kind.kind),
            "apiVersion": kind.map_or_else(String::new, |kind| kind.api_version()),
            "namespace": *key.name.namespace,
            "name": *key.name.name,
            "uid": record.uid,
        },
        "type": record.type_.as_str(),
        "reason": record.reason,
        "message": record.message,
        "source": { "component": record.reporting_component },
    })
}

/// What makes two events the same.
type Sameness = [String; 6];

/// Names given to events, the oldest forgotten first.
#[derive(Default)]
pub struct Remembered {
    keys: BTreeMap<Sameness, ObjectKey>,
    order: VecDeque<Sameness>,
}

impl Remembered {
    /// Counts events that are the same, and names each: as before where it was named and is still there.
    pub fn name(
        &mut self,
        events: impl Iterator<Item = Value>,
        view: &View,
        mut chance: impl FnMut() -> u64,
    ) -> Vec<(ObjectKey, Value, u64)> {
        let mut counted: BTreeMap<Sameness, (Value, u64)> = BTreeMap::new();
        for event in events {
            counted.entry(sameness(&event)).or_insert((event, 0)).1 += 1;
        }
        let named = counted.into_iter().map(|(sameness, (event, times))| {
            let known = self.keys.get(&sameness).filter(|key| view.get(key).is_some());
            let key = known.cloned().unwrap_or_else(|| new_key(&event, chance()));
            self.insert(sameness, key.clone());
            (key, event, times)
        });
        named.collect()
    }

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

/// What is written of an event that happened so many times; one that is made has this uid.
pub fn written(
    view: &View,
    key: &ObjectKey,
    event: &Value,
    times: u64,
    uid: &str,
    now: Timestamp,
) -> Option<Transaction> {
    if let Some(object) = view.get(key) {
        return Some(Transaction::update(key.clone(), repeated(object, times, now), object.revision));
    }
    // A namespace that ends takes no new events: they would keep it from ending.
    let namespace = ObjectKey::new("namespaces", "", &key.name.namespace);
    view.get(&namespace).filter(|namespace| namespace.meta.deletion_timestamp.is_none())?;
    let transaction = Transaction::create(key.clone(), first(key, event, times, uid, now));
    Some(transaction.expecting(namespace, Expect::NotDeleting))
}

fn first(key: &ObjectKey, event: &Value, times: u64, uid: &str, now: Timestamp) -> bytes::Bytes {
    let time = timestamp(now);
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
    new_draft("v1", "Event", key, body, uid, now)
}

fn repeated(object: &Object, times: u64, now: Timestamp) -> bytes::Bytes {
    let mut draft = editable(object);
    draft["count"] = (draft["count"].as_u64().unwrap_or(1) + times).into();
    draft["lastTimestamp"] = timestamp(now).into();
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
fn new_key(event: &Value, number: u64) -> ObjectKey {
    let involved = &event["involvedObject"];
    let namespace =
        involved["namespace"].as_str().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let name: String =
        involved["name"].as_str().unwrap_or("unknown").chars().take(INVOLVED_NAME_MAX).collect();
    let name = name.trim_end_matches(['.', '-']);
    ObjectKey::new(EVENTS, namespace, &format!("{name}.{number:016x}"))
}

/// Events that are to be removed: the last time that they happened is long ago.
pub fn old_events(view: &View, now: Timestamp) -> Vec<ObjectKey> {
    let Ok(limit) = now.checked_sub(KEPT_HOURS.hours()) else { return vec![] };
    let is_old = |object: &&std::sync::Arc<Object>| {
        let draft = editable(object);
        let times = [&draft["lastTimestamp"], &draft["eventTime"], &draft["metadata"]["creationTimestamp"]];
        let last = times.into_iter().find_map(|time| time.as_str()?.parse::<Timestamp>().ok());
        last.is_some_and(|last| last < limit)
    };
    view.list(EVENTS, None).filter(is_old).map(|object| object.key.clone()).collect()
}
