//! Objects that the control plane itself makes, as drafts.

use bytes::Bytes;
use coracle_objects::{Object, ObjectKey, by_resource};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use coracle_objects::draft::timestamp as rfc3339;

/// The draft of a new object. `body` has the fields beside `apiVersion`, `kind` and `metadata`; what it has under
/// `metadata` is added to the new metadata.
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
    metadata.insert("creationTimestamp".into(), rfc3339(now).into());
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

pub fn encode(draft: &Value) -> Bytes {
    serde_json::to_vec(draft).expect("a JSON value encodes into memory").into()
}
