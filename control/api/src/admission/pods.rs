//! Pods: the service account that they name must be there.

use coracle_objects::{ObjectKey, fields};
use serde_json::Value;

use super::Context;
use crate::error::ApiError;

/// The account that every namespace has. It is made after its namespace, and pods need not wait for it.
const DEFAULT_ACCOUNT: &str = "default";

/// Refuses a pod whose service account is not there.
pub fn require_account(context: &Context<'_>, pod: &Value) -> Result<(), ApiError> {
    let name = fields::text(pod, "/spec/serviceAccountName");
    let namespace = &context.key.name.namespace;
    let key = ObjectKey::new("serviceaccounts", namespace, name);
    if name.is_empty() || name == DEFAULT_ACCOUNT || context.view.get(&key).is_some() {
        return Ok(());
    }
    let reason =
        format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
    Err(ApiError::forbidden(context.kind, &context.key.name.name, reason))
}
