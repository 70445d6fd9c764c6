//! Reading and filling fields of objects that are kept as JSON. Paths are JSON pointers (RFC 6901): `/spec/nodeName`.
//!
//! Absent, null and wrongly typed fields all read as empty: the API server has checked types before.

use serde_json::{Map, Value};

/// The string at `path`, or an empty one.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// The integer at `path`.
pub fn integer(value: &Value, path: &str) -> Option<i64> {
    value.pointer(path).and_then(Value::as_i64)
}

/// The boolean at `path`; false where there is none.
pub fn flag(value: &Value, path: &str) -> bool {
    value.pointer(path).and_then(Value::as_bool).unwrap_or(false)
}

/// The list at `path`, or an empty one.
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries of the object at `path`, or none.
pub fn entries<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    value.pointer(path).and_then(Value::as_object).into_iter().flatten()
}

/// How many entries the object at `path` has.
pub fn count(value: &Value, path: &str) -> usize {
    value.pointer(path).and_then(Value::as_object).map_or(0, Map::len)
}

/// Whether there is something other than null at `path`.
pub fn present(value: &Value, path: &str) -> bool {
    value.pointer(path).is_some_and(|found| !found.is_null())
}

/// The condition of this type in `status.conditions`.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    list(object, "/status/conditions").iter().find(|condition| text(condition, "/type") == type_)
}

/// Whether the condition of this type has the status `True`.
pub fn condition_true(object: &Value, type_: &str) -> bool {
    condition(object, type_).is_some_and(|condition| text(condition, "/status") == "True")
}

/// The child object `key` of an object, made where it is absent or null. None where either is no object.
pub fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let slot = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.is_object().then_some(slot)
}

/// The elements of the list at `key`, to be filled in.
pub fn elements<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets `key` of an object where it is absent or null.
pub fn default(value: &mut Value, key: &str, with: impl Into<Value>) {
    if let Some(object) = value.as_object_mut() {
        let slot = object.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = with.into();
        }
    }
}

/// Sets `key` of an object where it is absent, null or an empty string.
pub fn default_text(value: &mut Value, key: &str, with: &str) {
    if text(value, &format!("/{key}")).is_empty()
        && value.get(key).is_none_or(|found| found.is_null() || found.is_string())
        && let Some(object) = value.as_object_mut()
    {
        object.insert(key.to_owned(), with.into());
    }
}
