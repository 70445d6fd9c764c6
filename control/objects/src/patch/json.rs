//! JSON patch (RFC 6902), bounded: a few `copy` operations could otherwise double a value again and again, in size or
//! in depth.

use json_patch::PatchOperation;
use serde_json::Value;

use super::PatchError;

/// How many operations one JSON patch may have.
pub const JSON_OPERATIONS_MAX: usize = 10_000;
/// How much one JSON patch may copy, in bytes of JSON.
pub const JSON_COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How deeply a value may be nested: what the parser takes.
pub const DEPTH_MAX: usize = 127;

/// Reads a JSON patch from its body.
pub fn parse_json(patch: &Value) -> Result<Vec<PatchOperation>, PatchError> {
    let operations: Vec<PatchOperation> = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::NotAJsonPatch(error.to_string()))?;
    if operations.len() > JSON_OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    Ok(operations)
}

/// Applies a JSON patch: all its operations, or on an error none.
pub fn json(target: &mut Value, operations: &[PatchOperation]) -> Result<(), PatchError> {
    let mut patched = target.clone();
    let mut copied = 0;
    for operation in operations {
        let (value, path) = match operation {
            PatchOperation::Add(add) => (Some(&add.value), &add.path),
            PatchOperation::Replace(replace) => (Some(&replace.value), &replace.path),
            PatchOperation::Move(from) => (patched.pointer(from.from.as_str()), &from.path),
            PatchOperation::Copy(from) => {
                let value = patched.pointer(from.from.as_str());
                copied += value.map_or(0, |value| value.to_string().len());
                (value, &from.path)
            }
            PatchOperation::Remove(remove) => (None, &remove.path),
            PatchOperation::Test(test) => (None, &test.path),
        };
        if copied > JSON_COPIED_BYTES_MAX {
            return Err(PatchError::CopiesTooMuch);
        }
        if value.is_some_and(|value| depth(value) + path.count() > DEPTH_MAX) {
            return Err(PatchError::TooDeep);
        }
        json_patch::patch(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Operation(error.to_string()))?;
    }
    *target = patched;
    Ok(())
}

/// The nesting of a value; bounded, as parsing and the check above bound it.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(target: Value, patch: Value) -> Result<Value, PatchError> {
        let mut target = target;
        let before = target.clone();
        let outcome = parse_json(&patch).and_then(|operations| json(&mut target, &operations));
        assert!(outcome.is_ok() || target == before, "a patch that fails changes nothing");
        outcome.map(|()| target)
    }

    #[test]
    fn operations() {
        let patch = json!([{"op": "test", "path": "/a", "value": [1]}, {"op": "add", "path": "/a/-", "value": 2},
            {"op": "replace", "path": "/b~1c", "value": "x"}, {"op": "copy", "from": "/a", "path": "/d"},
            {"op": "move", "from": "/d", "path": "/e"}, {"op": "remove", "path": "/a/0"}]);
        let patched = apply(json!({"a": [1], "b/c": 1}), patch).unwrap();
        assert_eq!(patched, json!({"a": [2], "b/c": "x", "e": [1, 2]}));
    }

    #[test]
    fn what_fails_changes_nothing() {
        let add = json!({"op": "add", "path": "/b", "value": 1});
        assert!(apply(json!({"a": 1}), json!([add, {"op": "test", "path": "/a", "value": 2}])).is_err());
        assert!(apply(json!({"a": 1}), json!([add, {"op": "remove", "path": "/x"}])).is_err());
        assert!(matches!(apply(json!({}), json!({"a": 1})), Err(PatchError::NotAJsonPatch(_))));
        let many = vec![add; JSON_OPERATIONS_MAX + 1];
        assert_eq!(
            apply(json!({}), many.into()),
            Err(PatchError::TooManyOperations(JSON_OPERATIONS_MAX + 1))
        );
    }

    #[test]
    fn copies_are_bounded() {
        let into_itself = vec![json!({"op": "copy", "from": "/a", "path": "/a/b"}); 200];
        assert_eq!(apply(json!({"a": {}}), into_itself.into()), Err(PatchError::TooDeep));
        let beside_itself = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 30];
        assert!(apply(json!({"a": ["x".repeat(1000)]}), beside_itself.into()).is_err());
        let large = vec![json!({"op": "copy", "from": "/a", "path": "/b/-"}); 10];
        let target = json!({"a": "x".repeat(1 << 20), "b": []});
        assert_eq!(apply(target, large.into()), Err(PatchError::CopiesTooMuch));
    }
}
