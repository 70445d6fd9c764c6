//! Editing objects as JSON.

use bytes::Bytes;
use coracle_objects::{Object, ObjectKey, OwnerReference, Transaction};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

/// An object that a controller has to read and cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub key: ObjectKey,
    pub reason: String,
}

impl Unreadable {
    pub fn new(object: &Object, reason: impl std::fmt::Display) -> Self {
        Self { key: object.key.clone(), reason: reason.to_string() }
    }
}

/// The object's draft, to be edited.
pub fn of(object: &Object) -> Result<Value, Unreadable> {
    serde_json::from_slice(&object.draft()).map_err(|error| Unreadable::new(object, error))
}

pub fn bytes(value: &Value) -> Bytes {
    value.to_string().into()
}

/// A replacement of the object as it is known here.
pub fn put(object: &Object, value: &Value) -> Transaction {
    Transaction::update(object.key.clone(), bytes(value), object.revision)
}

/// Kubernetes' timestamps have whole seconds.
pub fn timestamp(moment: Timestamp) -> String {
    format!("{moment:.0}")
}

/// `moment` + `duration`, or the end of time.
pub fn later(moment: Timestamp, duration: SignedDuration) -> Timestamp {
    moment.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// The child object at `key`, made where there is none.
pub fn child<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    let map = value.as_object_mut().expect("just made an object");
    let child = map.entry(key).or_insert(Value::Null);
    if !child.is_object() {
        *child = json!({});
    }
    child.as_object_mut().expect("just made an object")
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

/// Sets an annotation; answers whether that changed anything.
pub fn annotate(value: &mut Value, key: &str, text: &str) -> bool {
    let metadata = child(value, "metadata");
    let annotations = metadata.entry("annotations").or_insert(Value::Null);
    if !annotations.is_object() {
        *annotations = json!({});
    }
    let annotations = annotations.as_object_mut().expect("just made an object");
    let before = annotations.insert(key.to_owned(), text.into());
    before.as_ref().and_then(Value::as_str) != Some(text)
}

/// Replaces the condition of the same type in `status.conditions`, or adds it. Where the status stays, so does
/// `lastTransitionTime`.
pub fn set_condition(value: &mut Value, mut condition: Value) {
    let conditions = child(value, "status").entry("conditions").or_insert(Value::Null);
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut().expect("just made a list");
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

/// A reference to the owner that controls an object.
pub fn controlled_by(owner: &Object, api_version: &str, kind: &str) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind, "name": owner.name(), "uid": owner.meta.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// Replaces `metadata.ownerReferences`.
pub fn set_owners(value: &mut Value, owners: &[OwnerReference]) {
    let metadata = child(value, "metadata");
    if owners.is_empty() {
        metadata.remove("ownerReferences");
        return;
    }
    let references = owners.iter().map(|owner| {
        let mut reference = json!({
            "apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid,
        });
        if let Some(controller) = owner.controller {
            reference["controller"] = controller.into();
        }
        if let Some(block) = owner.block_owner_deletion {
            reference["blockOwnerDeletion"] = block.into();
        }
        reference
    });
    metadata.insert("ownerReferences".to_owned(), references.collect());
}

/// The key of a namespace's object.
pub fn namespace_key(namespace: &str) -> ObjectKey {
    ObjectKey::new("namespaces", "", namespace)
}
