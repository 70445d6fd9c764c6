//! Records of events become objects, as `coracle_server::events` writes them: named once, counted where they repeat.

use std::collections::BTreeMap;

use coracle_controllers::EventRecord;
use coracle_objects::{Expect, ObjectKey, Transaction, View, by_resource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    clock::rfc3339,
    storage::{MemoryStorage, Writer, uid},
};
use crate::rng::Rng;

/// Events written at a time.
const BATCH_MAX: usize = 64;

/// Characters of an object's name in the names of its events.
const INVOLVED_NAME_MAX: usize = 236;

/// Events that wait, and the names of those that were written.
#[derive(Default)]
pub struct Records {
    waiting: Vec<Value>,
    named: BTreeMap<String, ObjectKey>,
}

impl Records {
    pub fn take(&mut self, record: &EventRecord) {
        let key = &record.regarding;
        let kind = by_resource(key.resource.as_str());
        self.waiting.push(json!({
            "involvedObject": {
                "kind": kind.map_or("", |kind| kind.kind),
                "apiVersion": kind.map_or_else(String::new, |kind| kind.api_version()),
                "namespace": *key.name.namespace, "name": *key.name.name, "uid": record.uid,
            },
            "type": record.type_.as_str(), "reason": record.reason, "message": record.message,
            "source": { "component": record.reporting_component },
        }));
    }

    /// An event of a pod, as its node sends it.
    pub fn take_of_pod(&mut self, node: &str, pod: &coracle_core::Pod, event: &coracle_core::EventRecord) {
        let meta = &pod.metadata;
        self.waiting.push(json!({
            "involvedObject": {
                "kind": "Pod", "apiVersion": "v1", "namespace": meta.namespace, "name": meta.name,
                "uid": meta.uid.as_str(), "fieldPath": event.field_path,
            },
            "type": if event.warning { "Warning" } else { "Normal" },
            "reason": event.reason, "message": event.message,
            "source": { "component": "kubelet", "host": node },
        }));
    }

    /// Writes what waits. True where anything did.
    pub fn write(&mut self, storage: &MemoryStorage, chance: &mut Rng, now: Timestamp) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let batch: Vec<Value> = self.waiting.drain(..self.waiting.len().min(BATCH_MAX)).collect();
        let mut counted: BTreeMap<String, (Value, u64)> = BTreeMap::new();
        for event in batch {
            counted.entry(event.to_string()).or_insert((event, 0)).1 += 1;
        }
        for (sameness, (event, times)) in counted {
            let view = coracle_api::Storage::view(storage);
            let known = self.named.get(&sameness).filter(|key| view.get(key).is_some()).cloned();
            let key = known.unwrap_or_else(|| new_key(&event, chance));
            self.named.insert(sameness, key.clone());
            if let Some(transaction) = transaction(&view, key, event, times, chance, now) {
                // It only tells people what happened: what is refused is dropped.
                let _ = storage.apply(Writer::Events, transaction);
            }
        }
        true
    }
}

fn transaction(
    view: &View,
    key: ObjectKey,
    event: Value,
    times: u64,
    chance: &mut Rng,
    now: Timestamp,
) -> Option<Transaction> {
    if let Some(object) = view.get(&key) {
        let mut draft: Value = serde_json::from_slice(&object.draft()).ok()?;
        draft["count"] = (draft["count"].as_u64().unwrap_or(1) + times).into();
        draft["lastTimestamp"] = rfc3339(now).into();
        return Some(Transaction::update(key, draft.to_string().into(), object.revision));
    }
    let namespace = ObjectKey::new("namespaces", "", &key.name.namespace);
    view.get(&namespace).filter(|namespace| namespace.meta.deletion_timestamp.is_none())?;
    let time = rfc3339(now);
    let mut draft = json!({
        "kind": "Event", "apiVersion": "v1",
        "metadata": {
            "name": *key.name.name, "namespace": *key.name.namespace, "uid": uid(chance),
            "creationTimestamp": time,
        },
        "firstTimestamp": time, "lastTimestamp": time, "count": times, "eventTime": null,
        "reportingComponent": event["source"]["component"], "reportingInstance": "",
    });
    for (field, value) in event.as_object().into_iter().flatten() {
        draft[field] = value.clone();
    }
    let transaction = Transaction::create(key, draft.to_string().into());
    Some(transaction.expecting(namespace, Expect::NotDeleting))
}

fn new_key(event: &Value, chance: &mut Rng) -> ObjectKey {
    let involved = &event["involvedObject"];
    let namespace = involved["namespace"].as_str().filter(|namespace| !namespace.is_empty());
    let name: String =
        involved["name"].as_str().unwrap_or("unknown").chars().take(INVOLVED_NAME_MAX).collect();
    let name = name.trim_end_matches(['.', '-']);
    ObjectKey::new("events", namespace.unwrap_or("default"), &format!("{name}.{:016x}", chance.number()))
}
