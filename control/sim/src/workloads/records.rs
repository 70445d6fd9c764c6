//! Records of events become objects, by `coracle_leader`'s decisions.

use coracle_controllers::EventRecord;
use coracle_leader::{
    events::{Remembered, of_record, written},
    node_events::admit,
};
use coracle_objects::Transaction;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::storage::{MemoryStorage, uid};
use crate::rng::Rng;

/// Events written at a time.
const BATCH_MAX: usize = 64;

/// Events that wait, and the names of those that were written.
#[derive(Default)]
pub struct Records {
    waiting: Vec<Value>,
    /// As nodes send them, with the node.
    of_nodes: Vec<(String, Value)>,
    remembered: Remembered,
}

impl Records {
    pub fn take(&mut self, record: &EventRecord) {
        self.waiting.push(of_record(record));
    }

    /// An event of a pod, as its node sends it.
    pub fn take_of_pod(&mut self, node: &str, pod: &coracle_core::Pod, event: &coracle_core::EventRecord) {
        let meta = &pod.metadata;
        let event = json!({
            "involvedObject": {
                "kind": "Pod", "apiVersion": "v1", "namespace": meta.namespace, "name": meta.name,
                "uid": meta.uid.as_str(), "fieldPath": event.field_path,
            },
            "type": if event.warning { "Warning" } else { "Normal" },
            "reason": event.reason, "message": event.message,
            "source": { "component": "kubelet", "host": node },
        });
        self.of_nodes.push((node.to_owned(), event));
    }

    /// Another member leads: it remembers none of the names, and what waited is lost.
    pub fn lead_anew(&mut self) {
        (self.remembered, self.waiting) = (Remembered::default(), vec![]);
    }

    /// Hands what waits to `write`. True where anything did.
    pub fn write(
        &mut self,
        storage: &MemoryStorage,
        chance: &mut Rng,
        now: Timestamp,
        mut write: impl FnMut(Transaction),
    ) -> bool {
        let view = coracle_api::Storage::view(storage);
        for (node, event) in self.of_nodes.drain(..) {
            // An event of a pod that is gone or another's is dropped.
            self.waiting.extend(admit(&view, &node, event.to_string().as_bytes()));
        }
        if self.waiting.is_empty() {
            return false;
        }
        let batch = self.waiting.drain(..self.waiting.len().min(BATCH_MAX)).collect::<Vec<_>>();
        for (key, event, times) in self.remembered.name(batch.into_iter(), &view, || chance.number()) {
            let uid = uid(chance);
            let view = coracle_api::Storage::view(storage);
            if let Some(transaction) = written(&view, &key, &event, times, &uid, now) {
                write(transaction);
            }
        }
        true
    }
}
