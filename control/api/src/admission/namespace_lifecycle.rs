//! Objects are made in namespaces that exist and stay, with what they need there; some namespaces are not deleted. Source: the
//! admission plugins NamespaceLifecycle and ServiceAccount.

use coracle_objects::{Kind, Transaction, admission, admission::NotAdmitted, is_kept_namespace};
use futures::future::{self, BoxFuture, FutureExt};
use serde_json::Value;

use super::{Operation, Plugin, Write};
use crate::error::ApiError;

/// See the module.
pub struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        match write.operation {
            Operation::Create => true,
            Operation::Update => false,
            Operation::Delete => is_kept_namespace(write.key),
        }
    }

    fn mutate<'a>(
        &'a self,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<Transaction, ApiError>> {
        let admitted = admission::admit(write.kind, write.key, object, write.view);
        let required = admitted.map_err(|refused| error_of(write.kind, &write.key.name.name, refused));
        let along = |required: Option<_>| Transaction {
            preconditions: required.into_iter().collect(),
            writes: Vec::new(),
        };
        future::ready(required.map(along)).boxed()
    }

    fn validate<'a>(
        &'a self,
        write: &'a Write<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        let kept =
            || ApiError::forbidden(write.kind, &write.key.name.name, "this namespace may not be deleted");
        future::ready(if object.is_none() { Err(kept()) } else { Ok(()) }).boxed()
    }
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
