//! Built-in admission: what a write depends on in the rest of the cluster, and what is filled in from there.

pub mod services;

use coracle_objects::{
    Kind, ObjectKey, Transaction, View, admission, admission::NotAdmitted, kinds::note_hosts,
};
use serde_json::Value;

use crate::{config::ApiConfig, error::ApiError, metadata};

/// The state in which a write is decided.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub kind: &'a Kind,
    pub view: &'a View,
    pub config: &'a ApiConfig,
    pub key: &'a ObjectKey,
}

impl Context<'_> {
    fn now(&self) -> String {
        metadata::time((self.config.now)())
    }
}

/// Completes a new object. Called after the kind's defaults and before validation. Answers what must hold and what is
/// written along with it, as [`on_update`] does.
pub fn on_create(context: &Context<'_>, object: &mut Value) -> Result<Transaction, ApiError> {
    let (kind, key) = (context.kind, context.key);
    let admitted = admission::admit(kind, key, object, context.view);
    let required = admitted.map_err(|refused| error_of(kind, &key.name.name, refused))?;
    let mut along = Transaction { preconditions: required.into_iter().collect(), writes: Vec::new() };
    match (&*kind.group, &*kind.kind) {
        ("", "Service") => along.join(services::allocate(context, None, object)?),
        ("networking.k8s.io", "Ingress") => note_hosts(None, object, &context.now()),
        _ => {}
    }
    Ok(along)
}

fn error_of(kind: &Kind, name: &str, refused: NotAdmitted) -> ApiError {
    let reason = refused.to_string();
    match refused {
        NotAdmitted::NoNamespace(name) => ApiError::NotFound { resource: "namespaces".into(), name },
        NotAdmitted::Terminating(namespace) => ApiError::NamespaceTerminating {
            resource: kind.resource(),
            name: name.to_owned(),
            namespace,
            reason,
        },
        NotAdmitted::NoAccount { .. } => ApiError::forbidden(kind, name, reason),
    }
}

/// Whether [`on_create`] fills in what is validated then: what is at fault in one state may be right in another.
pub fn completes(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

/// Completes a changed object. Called after the kind's defaults and before validation.
pub fn on_update(context: &Context<'_>, old: &Value, new: &mut Value) -> Result<Transaction, ApiError> {
    match (&*context.kind.group, &*context.kind.kind) {
        ("", "Service") => services::allocate(context, Some(old), new),
        ("networking.k8s.io", "Ingress") => {
            note_hosts(Some(old), new, &context.now());
            Ok(Transaction::default())
        }
        _ => Ok(Transaction::default()),
    }
}
