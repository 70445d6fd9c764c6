//! Built-in admission: what a write depends on in the rest of the cluster, and what is filled in from there.

mod namespaces;
mod pods;
pub mod services;

use coracle_objects::{Kind, Object, ObjectKey, View, kinds::note_hosts};
use serde_json::Value;

use crate::{config::ApiConfig, error::ApiError, metadata, transact::Extra};

/// The state in which a write is decided.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub kind: &'static Kind,
    pub view: &'a View,
    pub config: &'a ApiConfig,
    pub key: &'a ObjectKey,
}

impl Context<'_> {
    fn now(&self) -> String {
        metadata::time((self.config.now)())
    }
}

/// Completes a new object. Called after the kind's defaults and before validation.
pub fn on_create(context: &Context<'_>, object: &mut Value) -> Result<Extra, ApiError> {
    let mut extra = namespaces::require(context)?;
    match (context.kind.group, context.kind.kind) {
        ("", "Pod") => pods::require_account(context, object)?,
        ("", "Service") => extra.and(services::allocate(context, None, object)?),
        ("networking.k8s.io", "Ingress") => note_hosts(None, object, &context.now()),
        _ => {}
    }
    Ok(extra)
}

/// Whether [`on_create`] fills in what is validated then: what is at fault in one state may be right in another.
pub fn completes(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

/// Completes a changed object. Called after the kind's defaults and before validation.
pub fn on_update(context: &Context<'_>, old: &Value, new: &mut Value) -> Result<Extra, ApiError> {
    match (context.kind.group, context.kind.kind) {
        ("", "Service") => services::allocate(context, Some(old), new),
        ("networking.k8s.io", "Ingress") => {
            note_hosts(Some(old), new, &context.now());
            Ok(Extra::default())
        }
        _ => Ok(Extra::default()),
    }
}

/// What goes together with an object.
pub fn on_delete(view: &View, object: &Object) -> Extra {
    if object.key.resource.as_str() == "services" {
        services::release(view, object)
    } else {
        Extra::default()
    }
}
