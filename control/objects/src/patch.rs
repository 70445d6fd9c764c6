//! Patches: JSON merge (RFC 7386), JSON patch (RFC 6902) and Kubernetes' strategic merge.

mod strategic;

use serde_json::Value;
use thiserror::Error;

pub use json_patch::PatchOperation;
pub use strategic::strategic;

/// How many operations one JSON patch may have.
pub const JSON_OPERATIONS_MAX: usize = 10_000;

/// Why a patch cannot be applied. The messages go to the client.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatchError {
    #[error("the patch is not a JSON patch: {0}")]
    NotAJsonPatch(String),
    #[error("the JSON patch has {0} operations, more than the {JSON_OPERATIONS_MAX} that are allowed")]
    TooManyOperations(usize),
    /// The object is untouched.
    #[error("the server rejected our request due to an error in our request: {0}")]
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

/// Reads a JSON patch from its body.
pub fn parse_json(patch: &Value) -> Result<Vec<PatchOperation>, PatchError> {
    let operations: Vec<PatchOperation> =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::NotAJsonPatch(error.to_string()))?;
    if operations.len() > JSON_OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    Ok(operations)
}

/// Applies a JSON patch (RFC 6902): all its operations, or on an error none.
pub fn json(target: &mut Value, operations: &[PatchOperation]) -> Result<(), PatchError> {
    json_patch::patch(target, operations).map_err(|error| PatchError::Operation(error.to_string()))
}

#[cfg(test)]
mod tests;
