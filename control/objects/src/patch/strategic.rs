//! Strategic merge patch: a merge patch that merges lists by key, and carries directives (`$patch`, `$retainKeys`,
//! `$setElementOrder/...`, `$deleteFromPrimitiveList/...`).
//!
//! What merges how is said by [`crate::schema`]. Nulls of the patch delete; those that find nothing to delete leave
//! nothing behind.

mod list;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::PatchError;
use crate::{
    field_path::{FieldPath, shown},
    schema::{self, PatchStrategy},
    value_set::ValueSet,
};
use list::Elements;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of this schema (`io.k8s.api.core.v1.Pod`). On an error the target is
/// left untouched. For an unknown schema the patch is a merge patch, directives aside.
pub fn strategic(target: &mut Value, patch: &Value, schema: &str) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else { return Err(PatchError::NotAnObject) };
    let original = target.as_object().cloned().unwrap_or_default();
    let merged = merge_object(original, patch, Some(schema), &FieldPath::Root)?;
    *target = Value::Object(merged);
    Ok(())
}

/// Where a field stands: its path for messages, and what the schema says of it.
struct Field<'a> {
    path: FieldPath<'a>,
    /// The schema of the value, its elements or its values.
    child: Option<&'a str>,
    strategy: PatchStrategy,
    /// Of a merged list of objects.
    key: &'a str,
}

impl<'a> Field<'a> {
    fn new(schema: Option<&str>, path: &'a FieldPath<'a>, name: &'a str) -> Field<'a> {
        let field = schema.and_then(|schema| schema::field(schema, name));
        Field {
            path: FieldPath::Field(path, name),
            child: field.and_then(|field| Some(field.type_.innermost()?.schema())),
            strategy: field.map_or(PatchStrategy::Unstated, |field| field.merge.patch),
            key: field.map_or("", |field| &field.merge.patch_key),
        }
    }

    fn bad(&self, detail: &str) -> PatchError {
        PatchError::BadDirective { path: self.path.shown(), detail: detail.to_owned() }
    }

    fn elements(&self) -> Elements<'_> {
        Elements { key: self.key, child: self.child, path: &self.path }
    }
}

/// Merges a patch into an object. `original` is empty for what did not exist: directives then leave no trace.
fn merge_object(
    original: Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Option<&str>,
    path: &FieldPath<'_>,
) -> Result<Map<String, Value>, PatchError> {
    let mut merged = match patch.get(DIRECTIVE) {
        None => original,
        Some(Value::String(directive)) => match directive.as_str() {
            "merge" => original,
            // What is left of the patch is the whole new object.
            "replace" => Map::new(),
            "delete" => return Ok(Map::new()),
            other => {
                return Err(PatchError::UnknownDirective { path: path.shown(), directive: shown(other) });
            }
        },
        Some(other) => {
            return Err(PatchError::UnknownDirective {
                path: path.shown(),
                directive: shown(&other.to_string()),
            });
        }
    };
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        retain_keys(&mut merged, keys, patch, path)?;
    }
    for (name, order) in patch {
        if let Some(name) = name.strip_prefix(SET_ORDER) {
            let field = Field::new(schema, path, name);
            ordered_list(&mut merged, name, patch.get(name), order, &field)?;
        }
    }
    // All at once: taking one field out of an object in order moves all that follow.
    if patch.values().any(Value::is_null) {
        merged.retain(|name, _| patch.get(name).is_none_or(|value| !value.is_null()));
    }
    for (name, value) in patch {
        if name == DIRECTIVE || name == RETAIN_KEYS || name.starts_with(SET_ORDER) {
            continue;
        }
        if let Some(name) = name.strip_prefix(DELETE_FROM) {
            let field = Field::new(schema, path, name);
            let Value::Array(unwanted) = value else { return Err(field.bad("a delete list must be a list")) };
            if let Some(Value::Array(list)) = merged.get_mut(name) {
                let unwanted = ValueSet::of(unwanted);
                list.retain(|element| !unwanted.contains(element));
            }
            continue;
        }
        if value.is_null() {
            continue;
        }
        // Lists that come with an order were merged above.
        let has_order = patch.contains_key(&format!("{SET_ORDER}{name}"));
        if has_order && value.is_array() {
            continue;
        }
        merge_field(&mut merged, name, value, &Field::new(schema, path, name))?;
    }
    Ok(merged)
}

fn retain_keys(
    merged: &mut Map<String, Value>,
    keys: &Value,
    patch: &Map<String, Value>,
    path: &FieldPath<'_>,
) -> Result<(), PatchError> {
    let bad = |detail: &str| PatchError::BadDirective { path: path.shown(), detail: detail.to_owned() };
    let Value::Array(keys) = keys else { return Err(bad("$retainKeys must be a list of keys")) };
    let keys: BTreeSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let kept = |name: &str| keys.contains(name);
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        if !value.is_null() && !kept(name) {
            return Err(bad(&format!("$retainKeys does not list the key {name} that the patch sets")));
        }
    }
    merged.retain(|name, _| kept(name));
    Ok(())
}

fn merge_field(
    merged: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    field: &Field<'_>,
) -> Result<(), PatchError> {
    let original = merged.get_mut(name);
    let new = match (value, original) {
        (Value::Object(patch), original) => {
            let original = match original {
                Some(Value::Object(original)) if field.strategy != PatchStrategy::Replace => {
                    std::mem::take(original)
                }
                _ => Map::new(),
            };
            Value::Object(merge_object(original, patch, field.child, &field.path)?)
        }
        (Value::Array(patch), original) if field.strategy == PatchStrategy::Merge => {
            let original = match original {
                Some(Value::Array(original)) => std::mem::take(original),
                _ => Vec::new(),
            };
            Value::Array(field.elements().merge(original, patch)?)
        }
        (other, _) => whole(other, field)?,
    };
    merged.insert(name.to_owned(), new);
    Ok(())
}

/// A value that takes the place of what was there. Directives mean nothing in it.
fn whole(value: &Value, field: &Field<'_>) -> Result<Value, PatchError> {
    match value {
        Value::Array(elements) => elements.iter().map(|element| whole(element, field)).collect(),
        Value::Object(fields) if fields.contains_key(DIRECTIVE) => {
            Err(field.bad("the list is replaced as a whole: its elements cannot carry $patch"))
        }
        Value::Object(fields) => {
            merge_object(Map::new(), fields, field.child, &field.path).map(Value::Object)
        }
        scalar => Ok(scalar.clone()),
    }
}

/// Merges a list whose patch says in which order its elements shall stand.
fn ordered_list(
    merged: &mut Map<String, Value>,
    name: &str,
    patch: Option<&Value>,
    order: &Value,
    field: &Field<'_>,
) -> Result<(), PatchError> {
    let Value::Array(order) = order else { return Err(field.bad("an element order must be a list")) };
    let patch = match patch {
        Some(Value::Array(patch)) => Some(patch),
        // Null deletes the list; anything else replaces it.
        Some(_) => return Ok(()),
        None => None,
    };
    let original = match merged.get(name) {
        Some(Value::Array(original)) => Some(original.clone()),
        _ => None,
    };
    if original.is_none() && patch.is_none() {
        return Ok(());
    }
    let elements = field.elements();
    if let Some(patch) = patch {
        elements.check_order(patch, order)?;
    }
    let original = original.unwrap_or_default();
    let list = match patch {
        Some(patch) if field.strategy == PatchStrategy::Merge => elements.merge(original.clone(), patch)?,
        Some(patch) => patch.iter().map(|element| whole(element, field)).collect::<Result<_, _>>()?,
        None => original.clone(),
    };
    merged.insert(name.to_owned(), Value::Array(elements.arrange(list, order, &original)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_refusal_repeats_of_the_patch_is_bounded() {
        let long = "k".repeat(1_300_000);
        let patch = json!({ "metadata": { &long: { DIRECTIVE: &long } } });
        let refused = strategic(&mut json!({}), &patch, "io.k8s.api.core.v1.Pod").unwrap_err().to_string();
        assert!(
            refused.starts_with("unknown patch directive kkk") && refused.len() < 2000,
            "{}",
            refused.len()
        );
        let patch = json!({ "spec": { "containers": [{ "image": long }] } });
        let refused = strategic(&mut json!({}), &patch, "io.k8s.api.core.v1.Pod").unwrap_err().to_string();
        assert!(refused.contains("spec.containers") && refused.len() < 2000, "{}", refused.len());
    }
}
