//! What the control plane makes of its nodes: their objects, and what they report of their pods.
//!
//! The decisions are those of `coracle_server::node_link` (`node_object`, `monitor`, `pod_status`), which are not to be
//! called from here; they are repeated in the form that matters to the objects.

use coracle_objects::{Expect, Object, ObjectKey, Transaction, View};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::clock::rfc3339;

/// What a node says of a pod.
#[derive(Clone, Debug)]
pub struct Report {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// None where nothing of the pod is left on the node.
    pub status: Option<Value>,
}

impl Report {
    /// The same with another time in it: a fault that is built in.
    pub fn told_anew(mut self, now: Timestamp) -> Report {
        if let Some(status) = &mut self.status {
            status["message"] = now.to_string().into();
        }
        self
    }
}

pub fn node_key(node: &str) -> ObjectKey {
    ObjectKey::new("nodes", "", node)
}

fn draft_of(object: &Object) -> Value {
    serde_json::from_slice(&object.draft()).unwrap_or_else(|_| json!({}))
}

fn put(object: &Object, draft: &Value) -> Transaction {
    Transaction::update(object.key.clone(), draft.to_string().into(), object.revision)
}

/// `spec.nodeName`, by a narrow look of its own.
pub fn node_of(pod: &Object) -> Option<String> {
    #[derive(Deserialize)]
    struct Narrow {
        spec: NarrowSpec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct NarrowSpec {
        node_name: Option<String>,
    }
    pod.parse::<Narrow>().ok()?.spec.node_name
}

/// Whether a pod has ended by itself, whatever else is in it.
pub fn has_ended(pod: &Object) -> bool {
    #[derive(Deserialize)]
    struct Narrow {
        status: Option<NarrowStatus>,
    }
    #[derive(Deserialize)]
    struct NarrowStatus {
        phase: Option<String>,
    }
    let phase = pod.parse::<Narrow>().ok().and_then(|pod| pod.status?.phase);
    matches!(phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// What a report changes, if anything.
pub fn written_report(view: &View, node: &str, report: &Report) -> Option<Transaction> {
    let key = ObjectKey::new("pods", &report.namespace, &report.name);
    let object = view.get(&key).filter(|object| object.meta.uid == report.uid)?;
    if node_of(object).as_deref() != Some(node) {
        return None;
    }
    match &report.status {
        Some(status) => with_status(object, status.clone()),
        None => removal(object),
    }
}

fn with_status(object: &Object, mut status: Value) -> Option<Transaction> {
    let mut draft = draft_of(object);
    let known = draft["status"]["conditions"].as_array().cloned().unwrap_or_default();
    if !known.is_empty() {
        if !status["conditions"].is_array() {
            status["conditions"] = json!([]);
        }
        let conditions = status["conditions"].as_array_mut()?;
        for condition in known {
            if !conditions.iter().any(|reported| reported["type"] == condition["type"]) {
                conditions.push(condition);
            }
        }
    }
    if draft["status"] == status {
        return None;
    }
    draft["status"] = status;
    Some(put(object, &draft).expecting(object.key.clone(), Expect::Uid(object.meta.uid.clone())))
}

fn removal(object: &Object) -> Option<Transaction> {
    object.meta.deletion_timestamp.as_ref()?;
    if object.meta.finalizers.is_empty() {
        return Some(Transaction::delete(object.key.clone(), object.revision));
    }
    let mut draft = draft_of(object);
    if draft["metadata"]["deletionGracePeriodSeconds"] == 0 {
        return None;
    }
    draft["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    Some(put(object, &draft))
}

/// The Node object as a node that links has it. None where it is so already.
pub fn registration(view: &View, node: &str, boot: u32, uid: &str, now: Timestamp) -> Option<Transaction> {
    let key = node_key(node);
    let describe = |draft: &mut Value| {
        for (label, value) in
            [("kubernetes.io/hostname", node), ("kubernetes.io/os", "linux"), ("kubernetes.io/arch", "amd64")]
        {
            object_at(&mut draft["metadata"]["labels"]).insert(label.into(), value.into());
        }
        let annotations = object_at(&mut draft["metadata"]["annotations"]);
        annotations.insert("coracle.dev/fabric-address".into(), "192.0.2.1:7443".into());
        annotations.insert("coracle.dev/boot-id".into(), boot.to_string().into());
        let status = object_at(&mut draft["status"]);
        let quantities = json!({ "cpu": "4", "memory": "4Gi", "pods": "110", "ephemeral-storage": "10Gi" });
        status.insert("capacity".into(), quantities.clone());
        status.insert("allocatable".into(), quantities);
        status.insert("addresses".into(), json!([{ "type": "Hostname", "address": node }]));
        status.insert("nodeInfo".into(), json!({ "kubeletVersion": "v1.33.0", "bootID": boot.to_string() }));
        set_readiness(&mut draft["status"], true, now);
    };
    let Some(object) = view.get(&key) else {
        let mut draft = json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": node, "uid": uid, "creationTimestamp": rfc3339(now) },
            "spec": {}, "status": {},
        });
        describe(&mut draft);
        return Some(Transaction::create(key, draft.to_string().into()));
    };
    let mut draft = draft_of(object);
    let before = draft.clone();
    describe(&mut draft);
    (draft != before).then(|| put(object, &draft))
}

fn object_at(value: &mut Value) -> &mut serde_json::Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("just made an object")
}

/// The transaction that has a node's conditions say whether it is heard of. None where they do.
pub fn transition(object: &Object, heard: bool, now: Timestamp) -> Option<Transaction> {
    let mut draft = draft_of(object);
    set_readiness(&mut draft["status"], heard, now).then(|| put(object, &draft))
}

fn set_readiness(status: &mut Value, heard: bool, now: Timestamp) -> bool {
    let pressures = ["MemoryPressure", "DiskPressure", "PIDPressure"];
    let mut changed = false;
    for type_ in pressures {
        changed |= set_condition(status, type_, if heard { "False" } else { "Unknown" }, now);
    }
    changed | set_condition(status, "Ready", if heard { "True" } else { "Unknown" }, now)
}

fn set_condition(status: &mut Value, type_: &str, value: &str, now: Timestamp) -> bool {
    let conditions = object_at(status).entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let time = rfc3339(now);
    let condition = json!({
        "type": type_, "status": value, "reason": "Heard", "message": "",
        "lastHeartbeatTime": time, "lastTransitionTime": time,
    });
    let Some(conditions) = conditions.as_array_mut() else { return false };
    match conditions.iter_mut().find(|known| known["type"] == type_) {
        Some(known) if known["status"] == value => false,
        Some(known) => {
            *known = condition;
            true
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}
