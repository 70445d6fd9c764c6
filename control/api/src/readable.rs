//! Objects that this control node cannot show: they are sealed with a key that it does not hold.

use coracle_objects::Object;

use crate::error::ApiError;

/// Refuses an object that is still sealed. It can be deleted, but neither read nor changed.
pub fn check(object: &Object) -> Result<(), ApiError> {
    let Some(sealed) = object.sealed() else { return Ok(()) };
    Err(ApiError::Internal(format!(
        "{} \"{}\" is sealed with key {}, and this control node cannot open it: `coracle cluster keys` says which \
         control nodes hold that key; where none does, restore the key ring file from a backup and start again",
        object.key.resource, object.key.name, sealed.key
    )))
}
