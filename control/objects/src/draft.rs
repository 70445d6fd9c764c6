//! Making and editing drafts: objects as JSON values on their way to a transaction.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::{by_resource, name::ObjectKey, object::Object};

/// The draft of a new object of the control plane's own. `body` has the fields beside `apiVersion`, `kind` and `metadata`;
/// what it has under `metadata` is added to the new metadata.
pub fn new_draft(
    api_version: &str,
    kind: &str,
    key: &ObjectKey,
    body: Value,
    uid: &str,
    now: Timestamp,
) -> Bytes {
    let mut metadata = Map::new();
    metadata.insert("name".into(), key.name.name.as_ref().into());
    if !key.name.namespace.is_empty() {
        metadata.insert("namespace".into(), key.name.namespace.as_ref().into());
    }
    metadata.insert("uid".into(), uid.into());
    metadata.insert("creationTimestamp".into(), timestamp(now).into());
    if by_resource(key.resource.as_str()).is_some_and(|kind| kind.spec_is_generational()) {
        metadata.insert("generation".into(), 1.into());
    }
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    object.insert("metadata".into(), Value::Null);
    if let Value::Object(body) = body {
        for (field, value) in body {
            match (field.as_str(), value) {
                ("metadata", Value::Object(more)) => metadata.extend(more),
                (_, value) => {
                    object.insert(field, value);
                }
            }
        }
    }
    object.insert("metadata".into(), metadata.into());
    encode(&object.into())
}

/// An object's draft, to be changed and written back.
pub fn editable(object: &Object) -> Value {
    // What is stored was parsed when it was applied.
    serde_json::from_slice(&object.draft()).unwrap_or_else(|_| json!({}))
}

/// The bytes of a draft.
pub fn encode(draft: &Value) -> Bytes {
    serde_json::to_vec(draft).expect("a JSON value encodes into memory").into()
}

/// As Kubernetes writes times: RFC 3339 in UTC with whole seconds.
pub fn timestamp(moment: Timestamp) -> String {
    format!("{moment:.0}")
}

/// `moment` + `duration`, or the end of time.
pub fn later(moment: Timestamp, duration: SignedDuration) -> Timestamp {
    moment.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// The child object at `key`, made where there is none.
pub fn child<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let child = object(value).entry(key).or_insert(Value::Null);
    object(child)
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was just made one")
}

/// Sets `metadata.KEY`.
pub fn set_meta(value: &mut Value, key: &str, to: impl Into<Value>) {
    child(value, "metadata").insert(key.to_owned(), to.into());
}

/// Notes a change of the spec.
pub fn next_generation(value: &mut Value) {
    let metadata = child(value, "metadata");
    let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
    metadata.insert("generation".to_owned(), (generation + 1).into());
}

/// Replaces the condition of the same type in `conditions` of an object's status, or adds it. Where the condition's status
/// stays, so does `lastTransitionTime`.
pub fn set_condition(status: &mut Value, mut condition: Value) {
    let conditions = object(status).entry("conditions").or_insert(Value::Null);
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut().expect("it was just made a list");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_whose_status_stays_keeps_its_time() {
        let condition =
            |status: &str, time: &str| json!({"type": "Ready", "status": status, "lastTransitionTime": time});
        let mut status = json!({"conditions": [{"type": "Other", "status": "True"}]});
        set_condition(&mut status, condition("True", "1"));
        set_condition(&mut status, condition("True", "2"));
        assert_eq!(status["conditions"][1], condition("True", "1"));
        set_condition(&mut status, condition("False", "3"));
        assert_eq!(status["conditions"][1], condition("False", "3"));
        let mut none = Value::Null;
        set_condition(&mut none, condition("True", "4"));
        assert_eq!(none["conditions"], json!([condition("True", "4")]));
    }
}
