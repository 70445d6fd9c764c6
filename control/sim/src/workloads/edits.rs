//! Edits of documents, one place each: so that a body that was found can be taken apart.

use serde_json::{Value, json};

use super::values;
use crate::rng::Rng;

/// One edit.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The way from the root: names of fields and numbers of elements.
    pub way: Vec<String>,
    pub change: Change,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Set(Value),
    Remove,
    /// Puts the element in twice.
    Double,
}

impl Edit {
    pub fn set(way: &[&str], value: Value) -> Edit {
        Edit { way: way.iter().map(|step| (*step).to_owned()).collect(), change: Change::Set(value) }
    }

    /// Does nothing where the way leads nowhere.
    pub fn apply(&self, document: &mut Value) {
        let Some((last, way)) = self.way.split_last() else { return };
        let mut at = document;
        for step in way {
            let next = match at {
                Value::Object(map) => map.get_mut(step),
                Value::Array(list) => step.parse().ok().and_then(|index: usize| list.get_mut(index)),
                _ => None,
            };
            let Some(next) = next else { return };
            at = next;
        }
        match (at, &self.change) {
            (Value::Object(map), Change::Set(value)) => {
                map.insert(last.clone(), value.clone());
            }
            (Value::Object(map), Change::Remove) => {
                map.shift_remove(last);
            }
            (Value::Array(list), change) => {
                let Some(index) = last.parse().ok().filter(|index: &usize| *index < list.len()) else {
                    return;
                };
                match change {
                    Change::Set(value) => list[index] = value.clone(),
                    Change::Remove => {
                        list.remove(index);
                    }
                    Change::Double => list.insert(index, list[index].clone()),
                }
            }
            _ => {}
        }
    }

    /// The same as a document for a merge patch: the way as maps in each other.
    pub fn as_merge(&self) -> Value {
        let value = match &self.change {
            Change::Set(value) => value.clone(),
            Change::Remove | Change::Double => Value::Null,
        };
        self.way.iter().rev().fold(value, |inner, step| json!({ step: inner }))
    }

    /// The same as an operation of a JSON patch.
    pub fn as_operation(&self) -> Value {
        let path: String =
            self.way.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect();
        match &self.change {
            Change::Set(value) => json!({ "op": "add", "path": path, "value": value }),
            Change::Remove => json!({ "op": "remove", "path": path }),
            Change::Double => json!({ "op": "copy", "from": path, "path": path }),
        }
    }
}

/// An edit of a document of this schema: somewhere in it, or of a field that it could have.
pub fn draw(document: &Value, schema: &Value, rng: &mut Rng) -> Edit {
    let mut way = Vec::new();
    let (mut at, mut schema) = (document, values::resolve(schema));
    loop {
        let deeper = rng.chance(if way.len() < 2 { 850 } else { 700 });
        match at {
            Value::Object(map) if !map.is_empty() && deeper => {
                let Some((name, inner)) = map.iter().nth(rng.index(map.len())) else { break };
                // Who it is stays, mostly: else the write is refused before anything happens.
                if way.is_empty() && matches!(name.as_str(), "apiVersion" | "kind") {
                    continue;
                }
                way.push(name.clone());
                let field = schema.pointer("/properties").and_then(|fields| fields.get(name));
                let field = field.or_else(|| schema.get("additionalProperties"));
                (at, schema) = (inner, field.map_or(&Value::Null, values::resolve));
            }
            Value::Array(list) if !list.is_empty() && deeper => {
                let index = rng.index(list.len());
                way.push(index.to_string());
                schema = schema.get("items").map_or(&Value::Null, values::resolve);
                at = &list[index];
            }
            _ => break,
        }
    }
    let fields = schema.get("properties").and_then(Value::as_object);
    if let Some(fields) = fields.filter(|fields| !fields.is_empty())
        && at.is_object()
        && let Some((name, field)) = fields.iter().nth(rng.index(fields.len()))
    {
        way.push(name.clone());
        return Edit { way, change: Change::Set(values::of_schema(field, rng, 1)) };
    }
    if way.is_empty() {
        way.push("spec".to_owned());
    }
    let change = match rng.below(10) {
        0 | 1 => Change::Remove,
        2 => Change::Double,
        3..=6 => Change::Set(values::any(rng)),
        _ => Change::Set(values::of_schema(schema, rng, 1)),
    };
    Edit { way, change }
}

/// Keeps counts of replicas small where they are allowed at all, those of patches as well: a user may ask for a million
/// pods and get them.
pub fn cap_replicas(document: &mut Value, most: i64) {
    let patches =
        document.get("path").and_then(Value::as_str).is_some_and(|path| path.ends_with("/replicas"));
    match document {
        Value::Object(map) => {
            let is_count = |name: &str| name == "replicas" || (patches && name == "value");
            for (name, value) in map {
                match value.as_i64() {
                    Some(count) if is_count(name) && count > most && count <= i64::from(i32::MAX) => {
                        *value = most.into();
                    }
                    _ => cap_replicas(value, most),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|element| cap_replicas(element, most)),
        _ => {}
    }
}
