//! Patches: JSON merge (RFC 7386), JSON patch (RFC 6902) and Kubernetes' strategic merge.

mod json;
mod strategic;

use serde_json::Value;
use thiserror::Error;

pub use json::{DEPTH_MAX, JSON_COPIED_BYTES_MAX, JSON_MOVED_MAX, JSON_OPERATIONS_MAX, json, parse_json};
pub use json_patch::PatchOperation;
pub use strategic::strategic;

/// Why a patch cannot be applied. The messages go to the client. The object is untouched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatchError {
    #[error("the patch is not a JSON patch: {0}")]
    NotAJsonPatch(String),
    #[error("the JSON patch has {0} operations, more than the {JSON_OPERATIONS_MAX} that are allowed")]
    TooManyOperations(usize),
    #[error("the JSON patch copies more than {JSON_COPIED_BYTES_MAX} bytes")]
    CopiesTooMuch,
    #[error(
        "the JSON patch moves more than {JSON_MOVED_MAX} values from their places: replace the list as a whole"
    )]
    MovesTooMuch,
    #[error("the patch would nest values deeper than {DEPTH_MAX} levels")]
    TooDeep,
    #[error("{0}")]
    Operation(String),
    #[error("a strategic merge patch must be an object")]
    NotAnObject,
    #[error("unknown patch directive {directive} at {path:?}")]
    UnknownDirective { path: String, directive: String },
    #[error("invalid patch format at {path:?}: {detail}")]
    BadDirective { path: String, detail: String },
    #[error("the item {item} at {path:?} does not contain the declared merge key: {key}")]
    NoMergeKey { path: String, key: String, item: String },
}

/// Applies a JSON merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_examples_of_rfc_7386() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ];
        for (mut target, patch, expected) in cases {
            merge(&mut target, &patch);
            assert_eq!(target, expected);
        }
    }
}
