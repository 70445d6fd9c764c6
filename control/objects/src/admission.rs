//! Admission of new objects: what one needs of the rest of the cluster, and what its kind says of it.
//!
//! The API server and controllers go by this. Source: the admission plugins NamespaceLifecycle and ServiceAccount, and the
//! generic registry's `BeforeCreate`.

use serde_json::Value;

use crate::{Expect, FieldError, Kind, ObjectKey, Precondition, View, fields, validate::meta::validate_meta};

/// The account that every namespace has. It is made after its namespace, and pods need not wait for it.
const DEFAULT_ACCOUNT: &str = "default";

/// Why a new object may not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error("namespaces {0:?} not found")]
    NoNamespace(String),
    #[error("unable to create new content in namespace {0} because it is being terminated")]
    Terminating(String),
    #[error("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found")]
    NoAccount { namespace: String, name: String },
}

/// What a new object of this key needs, and what must hold of that still when it is written.
pub fn admit(
    kind: &Kind,
    key: &ObjectKey,
    object: &Value,
    view: &View,
) -> Result<Option<Precondition>, NotAdmitted> {
    if !kind.namespaced {
        return Ok(None);
    }
    let namespace = &key.name.namespace;
    let stays = in_namespace(namespace, view)?;
    kind.admit(namespace, object, view)?;
    Ok(Some(stays))
}

/// Objects are created in namespaces that exist and are not ending.
pub fn in_namespace(namespace: &str, view: &View) -> Result<Precondition, NotAdmitted> {
    let key = ObjectKey::new("namespaces", "", namespace);
    let found = view.get(&key).ok_or_else(|| NotAdmitted::NoNamespace(namespace.to_owned()))?;
    if found.meta.deletion_timestamp.is_some() {
        return Err(NotAdmitted::Terminating(namespace.to_owned()));
    }
    Ok(Precondition { key, expect: Expect::NotDeleting })
}

/// The service account that a pod names must be there.
pub fn find_account(namespace: &str, pod: &Value, view: &View) -> Result<(), NotAdmitted> {
    let name = fields::text(pod, "/spec/serviceAccountName");
    let key = ObjectKey::new("serviceaccounts", namespace, name);
    if name.is_empty() || name == DEFAULT_ACCOUNT || view.get(&key).is_some() {
        return Ok(());
    }
    Err(NotAdmitted::NoAccount { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// What is wrong with a new object by itself, its defaults filled in.
pub fn faults_of_new(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = validate_meta(kind, object, None);
    errors.extend(kind.validate(object, None));
    if kind.registers_with_status() {
        errors.extend(kind.status_faults(object, None));
    }
    errors
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{Object, by_resource};

    fn view(objects: &[(&str, &str, &str, Value)]) -> View {
        let mut view = View::default();
        for (resource, namespace, name, metadata) in objects {
            let key = ObjectKey::new(resource, namespace, name);
            let mut draft = json!({ "metadata": metadata });
            draft["metadata"]["name"] = (*name).into();
            let object = Object::from_draft(key.clone(), draft.to_string().as_bytes(), 1).unwrap();
            view.tables.entry(key.resource).or_default().insert(key.name, Arc::new(object));
        }
        view
    }

    #[test]
    fn a_namespace_must_be_there_and_stay_and_a_pods_account_be_there() {
        let deleted = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let view = view(&[
            ("namespaces", "", "d", json!({})),
            ("namespaces", "", "ending", deleted),
            ("serviceaccounts", "d", "own", json!({})),
        ]);
        let admitted = |resource: &str, namespace: &str, account: &str| {
            let object = json!({ "spec": { "serviceAccountName": account } });
            let key = ObjectKey::new(resource, namespace, "x");
            admit(by_resource(resource).unwrap(), &key, &object, &view).map_err(|error| error.to_string())
        };
        let stays = Precondition { key: ObjectKey::new("namespaces", "", "d"), expect: Expect::NotDeleting };
        for account in ["", "default", "own"] {
            assert_eq!(admitted("pods", "d", account), Ok(Some(stays.clone())));
        }
        assert_eq!(admitted("configmaps", "d", "other"), Ok(Some(stays)));
        assert_eq!(admitted("nodes", "", "other"), Ok(None));
        let refused = |resource, namespace, account| admitted(resource, namespace, account).unwrap_err();
        let missing = "error looking up service account d/other: serviceaccount \"other\" not found";
        assert_eq!(refused("pods", "d", "other"), missing);
        assert_eq!(refused("configmaps", "none", ""), "namespaces \"none\" not found");
        assert!(refused("pods", "ending", "").contains("being terminated"));
        assert!(
            refused("pods", "none", "other").contains("namespaces"),
            "what is missing first is told first"
        );
    }
}
