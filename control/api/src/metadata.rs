//! Small reads and edits of an object's metadata that is kept as JSON.

use serde_json::{Map, Value};

use coracle_objects::{fields, value_set::ValueSet};

pub use coracle_objects::draft::timestamp as time;

/// The metadata, made where there is none.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = &mut object["metadata"];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("metadata was just made an object"),
    }
}

/// A text of the metadata; empty where there is none.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or("")
}

pub fn deleting(object: &Value) -> bool {
    fields::present(object, "/metadata/deletionTimestamp")
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    fields::list(object, "/metadata/finalizers").iter().filter_map(Value::as_str)
}

/// Leaves out references to owners that are there already, word for word, as upstream does.
pub fn name_owners_once(object: &mut Value) {
    let Some(Value::Array(owners)) = of(object).get_mut("ownerReferences") else { return };
    let mut seen = ValueSet::default();
    owners.retain(|owner| seen.add(owner, 0));
}

/// Copies a metadata field from another object, also its absence.
pub fn copy(from: &Value, to: &mut Value, field: &str) {
    let found = from.get("metadata").and_then(|metadata| metadata.get(field)).cloned();
    copy_slot(found, of(to), field);
}

/// Copies a top-level field from another object, also its absence.
pub fn copy_part(from: &Value, to: &mut Value, field: &str) {
    let found = from.get(field).cloned();
    if let Some(map) = to.as_object_mut() {
        copy_slot(found, map, field);
    }
}

fn copy_slot(found: Option<Value>, map: &mut Map<String, Value>, field: &str) {
    match found {
        Some(value) => {
            map.insert(field.to_owned(), value);
        }
        None => {
            map.shift_remove(field);
        }
    }
}

/// The bytes that the store takes: kind and apiVersion first, no resourceVersion, no nulls or empty strings in
/// metadata, which clients send and Kubernetes drops.
pub fn draft(kind: &str, api_version: &str, object: &Value) -> Vec<u8> {
    let mut ordered = Map::new();
    ordered.insert("kind".to_owned(), kind.into());
    ordered.insert("apiVersion".to_owned(), api_version.into());
    let mut metadata = object.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    metadata.shift_remove("resourceVersion");
    metadata.retain(|_, value| !empty(value));
    ordered.insert("metadata".to_owned(), Value::Object(metadata));
    for (name, value) in object.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "kind" | "apiVersion" | "metadata") && !value.is_null() {
            ordered.insert(name.clone(), value.clone());
        }
    }
    Value::Object(ordered).to_string().into_bytes()
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_draft_is_in_order_and_without_what_the_store_gives() {
        let object = json!({
            "spec": { "b": 1, "a": null },
            "status": null,
            "metadata": { "name": "x", "resourceVersion": "4", "creationTimestamp": null, "labels": {} },
        });
        let draft = String::from_utf8(draft("Thing", "v1", &object)).unwrap();
        assert_eq!(
            draft,
            r#"{"kind":"Thing","apiVersion":"v1","metadata":{"name":"x"},"spec":{"b":1,"a":null}}"#
        );
    }

    #[test]
    fn an_owner_that_is_named_twice_is_named_once() {
        let owner = |name: &str| json!({ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u" });
        let mut object = json!({ "metadata": { "ownerReferences": [owner("a"), owner("a"), owner("b")] } });
        name_owners_once(&mut object);
        assert_eq!(object["metadata"]["ownerReferences"], json!([owner("a"), owner("b")]));
    }

    #[test]
    fn times_have_whole_seconds() {
        assert_eq!(time("2026-01-02T03:04:05.6Z".parse().unwrap()), "2026-01-02T03:04:05Z");
    }
}
