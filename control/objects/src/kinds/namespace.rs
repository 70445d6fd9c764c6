//! Namespaces.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;
use crate::{
    fields::{child, default, default_text, text},
    kind::{Column, Endpoint, NameRule, Native, Subresource},
};

pub(super) const NAMESPACE: Native = Native {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[
        Subresource::status("", "Namespace"),
        Subresource::new(Endpoint::Finalize, "", "Namespace", &["update"]),
    ],
    schema: "io.k8s.api.core.v1.Namespace",
    columns: &[Column::name(), Column::text("Status", "The status of the namespace"), Column::age()],
    cells,
    defaults,
    selectable_fields: &["status.phase"],
    name_rule: NameRule::Label,
    ..Native::BASE
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        text(object, "/metadata/name").into(),
        text(object, "/status/phase").into(),
        age(text(object, "/metadata/creationTimestamp"), now).into(),
    ]
}

/// The namespace's own name is a label, so that selectors can name namespaces; the finalizer `kubernetes` keeps a
/// deleted namespace until it is empty.
fn defaults(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    if !name.is_empty()
        && let Some(labels) = child(object, "metadata").and_then(|metadata| child(metadata, "labels"))
    {
        default(labels, "kubernetes.io/metadata.name", name);
    }
    let deleting = !text(object, "/metadata/deletionTimestamp").is_empty();
    if let Some(spec) = child(object, "spec")
        && !deleting
    {
        default(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = child(object, "status") {
        default_text(status, "phase", "Active");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_born_active() {
        let mut namespace = json!({"metadata": {"name": "a"}});
        defaults(&mut namespace);
        let expected = json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        assert_eq!(namespace, expected);
    }
}
