//! Decisions as data, and the transactions that carry them out.

use bytes::Bytes;
use coracle_objects::{Expect, OBJECT_BYTES_MAX, Object, ObjectKey, Transaction};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::fault::Fault;

/// The component that events about decisions are reported by.
pub const BINDING_COMPONENT: &str = "default-scheduler";

/// What one call of `schedule` decided.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    pub placements: Vec<Placement>,
    pub failures: Vec<Unplaced>,
    /// Pods and nodes that are left out, because they cannot be read or by a fault of ours.
    pub faults: Vec<Fault>,
    /// What panicked, and with what words: faults of ours.
    pub panics: Vec<String>,
}

/// A pod found its node. Once `transaction` is applied, the server reports the event `Scheduled` with [`Self::message`].
#[derive(Clone, Debug)]
pub struct Placement {
    pub pod: ObjectKey,
    pub uid: String,
    pub node: String,
    /// Sets `spec.nodeName` and the condition PodScheduled, where the pod is unchanged and the node still exists.
    pub transaction: Transaction,
}

impl Placement {
    /// The message of the event `Scheduled`.
    pub fn message(&self) -> String {
        format!("Successfully assigned {} to {}", self.pod.name, self.node)
    }
}

/// A pod found no node, for a reason that its condition does not tell yet. The server reports the event
/// `FailedScheduling` (a warning) with `message`.
#[derive(Clone, Debug)]
pub struct Unplaced {
    pub pod: ObjectKey,
    pub uid: String,
    /// Upstream's sentence: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub message: String,
    /// Sets the condition PodScheduled=False, where the pod is unchanged.
    pub transaction: Transaction,
}

/// The transaction that binds `pod` to the node of this name and uid, or why there is none.
pub fn bind(pod: &Object, node: &str, node_uid: &str, now: Timestamp) -> Result<Transaction, String> {
    let draft = bound_draft(&pod.draft(), node, now).map_err(unreadable)?;
    Ok(update(pod, draft)?.expecting(ObjectKey::new("nodes", "", node), Expect::Uid(node_uid.to_owned())))
}

/// The transaction that says on the pod why it has no node; an error where it cannot.
pub fn explain(pod: &Object, message: &str, now: Timestamp) -> Result<Transaction, String> {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastProbeTime": null, "lastTransitionTime": rfc3339(now),
    });
    let mut draft: Value = serde_json::from_slice(&pod.draft()).map_err(unreadable)?;
    if let Some(object) = draft.as_object_mut() {
        set_condition(object.entry("status").or_insert_with(|| json!({})), condition);
    }
    update(pod, draft.to_string().into())
}

/// What the store would refuse whenever it is proposed is not.
fn update(pod: &Object, draft: Bytes) -> Result<Transaction, String> {
    match draft.len() {
        0..=OBJECT_BYTES_MAX => Ok(Transaction::update(pod.key.clone(), draft, pod.revision)),
        bytes => {
            Err(format!("with its condition it would take {bytes} bytes; the limit is {OBJECT_BYTES_MAX}"))
        }
    }
}

fn unreadable(error: serde_json::Error) -> String {
    format!("it cannot be read: {error}")
}

#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow)]
    spec: &'a RawValue,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeField {
    node_name: Option<serde::de::IgnoredAny>,
}

/// The pod's draft with `spec.nodeName` and the condition. The rest of its bytes is copied, not parsed and written
/// again: binding is what the scheduler does most.
fn bound_draft(draft: &[u8], node: &str, now: Timestamp) -> Result<Bytes, serde_json::Error> {
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": rfc3339(now),
    });
    if let Ok(parts) = serde_json::from_slice::<Parts<'_>>(draft)
        && let Some(status) = parts.status
        && let Ok(NodeField { node_name: None }) = serde_json::from_str(parts.spec.get())
        && !parts.spec.get()[1..].trim_start().starts_with('}')
    {
        let mut status_value: Value = serde_json::from_str(status.get())?;
        set_condition(&mut status_value, condition);
        let spec_at = parts.spec.get().as_ptr() as usize - draft.as_ptr() as usize + 1;
        let status_at = status.get().as_ptr() as usize - draft.as_ptr() as usize;
        let name = format!("\"nodeName\":{},", Value::from(node));
        let mut edits = [(spec_at, 0, name), (status_at, status.get().len(), status_value.to_string())];
        edits.sort_by_key(|(at, _, _)| *at);
        return Ok(splice(draft, &edits));
    }
    let mut value: Value = serde_json::from_slice(draft)?;
    if let Some(object) = value.as_object_mut() {
        if let Some(spec) = object.entry("spec").or_insert_with(|| json!({})).as_object_mut() {
            spec.insert("nodeName".to_owned(), node.into());
        }
        set_condition(object.entry("status").or_insert_with(|| json!({})), condition);
    }
    Ok(value.to_string().into())
}

/// Replaces stretches of `bytes`, given as (start, length, replacement) in order and apart from each other.
fn splice(bytes: &[u8], edits: &[(usize, usize, String)]) -> Bytes {
    let growth: usize = edits.iter().map(|(_, _, text)| text.len()).sum();
    let mut result = Vec::with_capacity(bytes.len() + growth);
    let mut copied = 0;
    for (start, length, text) in edits {
        result.extend_from_slice(&bytes[copied..*start]);
        result.extend_from_slice(text.as_bytes());
        copied = start + length;
    }
    result.extend_from_slice(&bytes[copied..]);
    result.into()
}

/// Replaces the condition of the same type, or adds it. A condition whose status stays keeps its transition time.
fn set_condition(status: &mut Value, mut condition: Value) {
    if !status.is_object() {
        *status = Value::Object(Map::new());
    }
    let Some(conditions) =
        status.as_object_mut().map(|status| status.entry("conditions").or_insert(Value::Null))
    else {
        return;
    };
    if !conditions.is_array() {
        *conditions = Value::Array(Vec::new());
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    match conditions.iter_mut().find(|known| known["type"] == condition["type"]) {
        Some(known) => {
            if known["status"] == condition["status"] && known["lastTransitionTime"].is_string() {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

/// Kubernetes' timestamps have whole seconds.
fn rfc3339(now: Timestamp) -> String {
    format!("{now:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(draft: &str) -> Value {
        let now: Timestamp = "2026-01-02T03:04:05.9Z".parse().unwrap();
        serde_json::from_slice(&bound_draft(draft.as_bytes(), "n\"1", now).unwrap()).unwrap()
    }

    #[test]
    fn binding_changes_only_node_name_and_condition() {
        let expected = json!({
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c"}], "nodeName": "n\"1"},
            "status": {"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "True", "lastProbeTime": null,
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            }]},
        });
        let spliced =
            r#"{"metadata":{"name":"a"},"status":{"phase":"Pending"},"spec":{ "containers":[{"name":"c"}]}}"#;
        assert_eq!(bound(spliced), expected);
        let rewritten = r#"{"metadata":{"name":"a"},"spec":{"nodeName":"","containers":[{"name":"c"}]},"status":{"phase":"Pending"}}"#;
        assert_eq!(bound(rewritten), expected);
        let no_status = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c"}]}}"#;
        assert_eq!(bound(no_status)["status"]["conditions"][0]["status"], "True");
    }

    #[test]
    fn a_failed_condition_is_replaced() {
        let draft = r#"{"metadata":{},"spec":{"containers":[]},"status":{"conditions":[
            {"type":"Other","status":"True"},
            {"type":"PodScheduled","status":"False","reason":"Unschedulable","lastTransitionTime":"2020-01-01T00:00:00Z"}]}}"#;
        let conditions = bound(draft)["status"]["conditions"].clone();
        assert_eq!(conditions.as_array().unwrap().len(), 2);
        assert_eq!(conditions[1]["status"], "True");
        assert_eq!(conditions[1].get("reason"), None);
        assert_eq!(conditions[1]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }
}
