//! Editing objects as JSON.

use bytes::Bytes;
use coracle_objects::{Object, ObjectKey, OwnerReference, Transaction};
use serde_json::{Value, json};

pub use coracle_objects::draft::{child, later, next_generation, set_meta, timestamp};

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

/// Replaces the condition of the same type in the object's status, or adds it.
pub fn set_condition(value: &mut Value, condition: Value) {
    coracle_objects::draft::set_condition(&mut value["status"], condition);
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
