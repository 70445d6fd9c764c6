//! Binding: how a pod gets its node, whoever gives it.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    draft::{child, set_condition, timestamp},
    fields,
    object::Object,
};

/// Why a pod gets no node.
#[derive(Debug)]
pub enum NotBound {
    Deleting,
    /// It has this one.
    Bound(String),
    /// Somebody holds it back: `spec.schedulingGates`.
    Gated,
    Unreadable(serde_json::Error),
}

impl From<serde_json::Error> for NotBound {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error)
    }
}

/// The pod's draft with `spec.nodeName`, the condition PodScheduled and further annotations.
pub fn bind(
    pod: &Object,
    node: &str,
    annotations: &Map<String, Value>,
    now: Timestamp,
) -> Result<Bytes, NotBound> {
    if pod.meta.deletion_timestamp.is_some() {
        return Err(NotBound::Deleting);
    }
    bound_draft(&pod.draft(), node, annotations, now)
}

/// The condition PodScheduled, whose transition is of now where it is one.
pub fn scheduled(status: &str, reason: Option<(&str, &str)>, now: Timestamp) -> Value {
    let mut condition = json!({ "type": "PodScheduled", "status": status });
    if let Some((reason, message)) = reason {
        (condition["reason"], condition["message"]) = (reason.into(), message.into());
    }
    (condition["lastProbeTime"], condition["lastTransitionTime"]) = (Value::Null, timestamp(now).into());
    condition
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
struct NodeFields {
    /// Whether it is there, whatever it is; likewise the other.
    #[serde(default, deserialize_with = "present")]
    node_name: bool,
    #[serde(default, deserialize_with = "present")]
    scheduling_gates: bool,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

/// Where nothing but the node and the status is another the rest of the draft's bytes is copied, not parsed and written
/// again: binding is what the scheduler does most.
fn bound_draft(
    draft: &[u8],
    node: &str,
    annotations: &Map<String, Value>,
    now: Timestamp,
) -> Result<Bytes, NotBound> {
    let condition = scheduled("True", None, now);
    if annotations.is_empty()
        && let Ok(parts) = serde_json::from_slice::<Parts<'_>>(draft)
        && let Some(status) = parts.status
        && let Ok(NodeFields { node_name: false, scheduling_gates: false }) =
            serde_json::from_str(parts.spec.get())
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
    let bound = fields::text(&value, "/spec/nodeName");
    if !bound.is_empty() {
        return Err(NotBound::Bound(bound.to_owned()));
    }
    if !fields::list(&value, "/spec/schedulingGates").is_empty() {
        return Err(NotBound::Gated);
    }
    child(&mut value, "spec").insert("nodeName".to_owned(), node.into());
    if !annotations.is_empty() {
        let metadata = child(&mut value, "metadata");
        let own = metadata.entry("annotations").or_insert_with(|| json!({}));
        annotations.iter().for_each(|(name, text)| own[name] = text.clone());
    }
    set_condition(&mut value["status"], condition);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.9Z".parse().unwrap()
    }

    fn bound(draft: &str) -> Value {
        serde_json::from_slice(&bound_draft(draft.as_bytes(), "n\"1", &Map::new(), now()).unwrap()).unwrap()
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
        let null = r#"{"metadata":{"name":"a"},"spec":{"nodeName":null,"containers":[{"name":"c"}]},"status":{"phase":"Pending"}}"#;
        assert_eq!(bound(null), expected);
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

    #[test]
    fn annotations_come_with_it_and_a_bound_pod_keeps_its_node() {
        let annotations: Map<String, Value> = [("a/b".to_owned(), json!("c"))].into_iter().collect();
        let draft = r#"{"metadata":{"annotations":{"d":"e"}},"spec":{"containers":[]},"status":{}}"#;
        let bound: Value =
            serde_json::from_slice(&bound_draft(draft.as_bytes(), "n", &annotations, now()).unwrap())
                .unwrap();
        assert_eq!(bound["metadata"]["annotations"], json!({"d": "e", "a/b": "c"}));
        let draft = r#"{"metadata":{},"spec":{"nodeName":"other"},"status":{}}"#;
        let refused = bound_draft(draft.as_bytes(), "n", &Map::new(), now());
        assert!(matches!(refused, Err(NotBound::Bound(node)) if node == "other"));
        let gated = |gates: &str| {
            let draft = format!(r#"{{"metadata":{{}},"spec":{{"schedulingGates":{gates}}},"status":{{}}}}"#);
            bound_draft(draft.as_bytes(), "n", &Map::new(), now())
        };
        assert!(matches!(gated(r#"[{"name":"a"}]"#), Err(NotBound::Gated)));
        assert!(gated("[]").is_ok() && gated("null").is_ok());
    }
}
