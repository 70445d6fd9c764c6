//! JSON patch (RFC 6902), bounded: a few `copy` operations could otherwise double a value again and again, in size or
//! in depth, and a few thousand that insert at the head of a long list move all of it each time.

use json_patch::PatchOperation;
use serde_json::Value;

use super::PatchError;

/// How many operations one JSON patch may have.
pub const JSON_OPERATIONS_MAX: usize = 10_000;
/// How much one JSON patch may copy, in bytes of JSON.
pub const JSON_COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How many values one JSON patch may move from their places: those behind an insertion or removal in a list, and
/// those within what a `move` names.
pub const JSON_MOVED_MAX: usize = 10_000_000;
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
    let (mut copied, mut moved) = (0, 0);
    for operation in operations {
        moved += moves(&patched, operation);
        if moved > JSON_MOVED_MAX {
            return Err(PatchError::MovesTooMuch);
        }
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

/// How many values an operation moves from their places.
fn moves(target: &Value, operation: &PatchOperation) -> usize {
    let behind = |path: &str| {
        let (list, at) = path.rsplit_once('/')?;
        let list = target.pointer(list)?.as_array()?;
        Some(list.len().saturating_sub(at.parse().ok()?))
    };
    let behind = |path: &str| behind(path).unwrap_or(0);
    match operation {
        PatchOperation::Add(add) => behind(add.path.as_str()),
        PatchOperation::Copy(copy) => behind(copy.path.as_str()),
        PatchOperation::Remove(remove) => behind(remove.path.as_str()),
        PatchOperation::Move(one) => {
            let (from, path) = (one.from.as_str(), one.path.as_str());
            behind(from) + behind(path) + target.pointer(from).map_or(0, size)
        }
        PatchOperation::Replace(_) | PatchOperation::Test(_) => 0,
    }
}

/// How many values there are in a value, itself among them.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 1 + elements.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<usize>(),
        _ => 1,
    }
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

    #[test]
    fn what_moves_a_long_list_again_and_again_is_refused() {
        let target = json!({"a": vec![0; 100_000], "b": {}});
        let with = |operation: Value, times: usize| {
            apply(target.clone(), vec![operation; times].into()).map(|patched| patched["a"][0].clone())
        };
        let at_the_head = json!({"op": "add", "path": "/a/0", "value": 1});
        assert_eq!(with(at_the_head.clone(), 50), Ok(json!(1)));
        assert_eq!(with(at_the_head, 10_000), Err(PatchError::MovesTooMuch));
        assert_eq!(with(json!({"op": "remove", "path": "/a/0"}), 10_000), Err(PatchError::MovesTooMuch));
        assert_eq!(with(json!({"op": "add", "path": "/a/-", "value": 1}), 10_000), Ok(json!(0)));
        let there_and_back = [
            json!({"op": "move", "from": "/a", "path": "/c"}),
            json!({"op": "move", "from": "/c", "path": "/a"}),
        ];
        let moves = there_and_back.iter().cycle().take(1000).cloned().collect();
        assert_eq!(apply(target.clone(), moves), Err(PatchError::MovesTooMuch));
    }
}
