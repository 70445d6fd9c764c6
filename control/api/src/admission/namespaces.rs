//! Objects are created in namespaces that exist and are not ending.

use coracle_objects::{Expect, ObjectKey, Precondition};

use super::Context;
use crate::{error::ApiError, transact::Extra};

/// Refuses a new object whose namespace is not there or is ending; the same becomes a precondition.
pub fn require(context: &Context<'_>) -> Result<Extra, ApiError> {
    let mut extra = Extra::default();
    if !context.kind.namespaced {
        return Ok(extra);
    }
    let namespace = &context.key.name.namespace;
    let key = ObjectKey::new("namespaces", "", namespace);
    let Some(found) = context.view.get(&key) else {
        return Err(ApiError::NotFound { resource: key.resource, name: namespace.to_string() });
    };
    if found.meta.deletion_timestamp.is_some() {
        let reason =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiError::NamespaceTerminating {
            resource: context.kind.resource(),
            name: context.key.name.name.to_string(),
            namespace: namespace.to_string(),
            reason,
        });
    }
    extra.preconditions.push(Precondition { key, expect: Expect::NotDeleting });
    Ok(extra)
}
