//! Validation of `metadata`, the same for every kind.

use std::collections::BTreeSet;

use serde_json::Value;

use super::syntax::{
    ip_faults, label_1035_faults, label_faults, label_value_faults, qualified_name_faults, subdomain_faults,
};
use crate::{
    field_error::{FIELD_ERRORS_MAX, FieldError},
    fields::{count, entries, flag, list, present, text},
    kind::{Kind, NameRule},
    value_set::ValueSet,
};

/// The labels of an object, or of a selector: as many as a selector has requirements. Each of them is kept in indices and
/// asked for with each change.
pub const LABELS_MAX: usize = crate::selector::REQUIREMENTS_MAX;

/// All labels of an object together: keys and values, in bytes.
pub const LABELS_BYTES_MAX: usize = 256 * 1024;

/// All annotations of an object together: keys and values, in bytes.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

impl NameRule {
    /// What is wrong with a name; none where it is fine.
    pub fn faults(self, name: &str) -> Vec<String> {
        match self {
            NameRule::Subdomain => subdomain_faults(name),
            NameRule::Label => label_faults(name),
            NameRule::Label1035 => label_1035_faults(name),
            NameRule::IpAddress => match name.parse::<core::net::IpAddr>() {
                Ok(address) if address.to_string() == name => Vec::new(),
                Ok(address) => vec![format!("must be in canonical form ({:?})", address.to_string())],
                Err(_) => ip_faults(name),
            },
        }
    }
}

/// The faults of `metadata`: of a new object, or of an update where `old` is given.
///
/// Name and namespace must have been set (from the path, from generateName) before.
pub fn validate_meta(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    name_and_namespace(kind, object, &mut errors);
    validate_labels(object, "/metadata/labels", "metadata.labels", &mut errors);
    validate_annotations(object, "/metadata/annotations", "metadata.annotations", &mut errors);
    for finalizer in list(object, "/metadata/finalizers") {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        let name = finalizer.as_str().unwrap_or("");
        for fault in qualified_name_faults(name) {
            errors.push(FieldError::invalid("metadata.finalizers", name, fault));
        }
    }
    owner_references(object, old, &mut errors);
    if let Some(old) = old {
        immutable_fields(object, old, &mut errors);
    }
    errors
}

fn name_and_namespace(kind: &Kind, object: &Value, errors: &mut Vec<FieldError>) {
    let name = text(object, "/metadata/name");
    let prefix = text(object, "/metadata/generateName");
    if !prefix.is_empty() {
        // What stands at its end may be such that characters must follow. They follow for sure, and a dash makes room for
        // them where it is long.
        let mut sample = prefix.to_owned();
        if sample.len() > 1 && sample.ends_with('-') {
            sample.pop();
            sample.pop();
        }
        sample.push('a');
        for fault in kind.name_rule.faults(&sample) {
            errors.push(FieldError::invalid("metadata.generateName", prefix, fault));
        }
    }
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        for fault in kind.name_rule.faults(name) {
            errors.push(FieldError::invalid("metadata.name", name, fault));
        }
    }
    let namespace = text(object, "/metadata/namespace");
    if !kind.namespaced {
        if !namespace.is_empty() {
            errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
        }
    } else if namespace.is_empty() {
        errors.push(FieldError::required("metadata.namespace", ""));
    } else {
        for fault in label_faults(namespace) {
            errors.push(FieldError::invalid("metadata.namespace", namespace, fault));
        }
    }
}

/// Checks the labels at `path` (a JSON pointer), to be named as `field`.
pub fn validate_labels(object: &Value, path: &str, field: &str, errors: &mut Vec<FieldError>) {
    let count = count(object, path);
    if count > LABELS_MAX {
        errors.push(FieldError::too_many(field, count, LABELS_MAX));
        return;
    }
    let size = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if entries(object, path).map(size).sum::<usize>() > LABELS_BYTES_MAX {
        errors.push(FieldError::too_long(field, LABELS_BYTES_MAX));
    }
    for (key, value) in entries(object, path) {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        for fault in qualified_name_faults(key) {
            errors.push(FieldError::invalid(field, key.as_str(), fault));
        }
        let value = value.as_str().unwrap_or("");
        for fault in label_value_faults(value) {
            errors.push(FieldError::invalid(field, value, fault));
        }
    }
}

/// Checks the annotations at `path` (a JSON pointer), to be named as `field`.
pub fn validate_annotations(object: &Value, path: &str, field: &str, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for (key, value) in entries(object, path) {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        for fault in qualified_name_faults(&key.to_lowercase()) {
            errors.push(FieldError::invalid(field, key.as_str(), fault));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(field, ANNOTATIONS_BYTES_MAX));
    }
}

fn owner_references(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let mut controllers = 0;
    let mut uids = BTreeSet::new();
    let path = "/metadata/ownerReferences";
    // What was stored before the rule was there holds nothing back.
    let stored = old.is_some_and(|old| list(old, path) == list(object, path));
    for (index, owner) in list(object, "/metadata/ownerReferences").iter().enumerate() {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        let field = format!("metadata.ownerReferences[{index}]");
        let version = text(owner, "/apiVersion");
        if version.is_empty() || version.ends_with('/') {
            errors.push(FieldError::invalid(
                format!("{field}.apiVersion"),
                version,
                "version must not be empty",
            ));
        }
        for key in ["kind", "name", "uid"] {
            if text(owner, &format!("/{key}")).is_empty() {
                errors.push(FieldError::invalid(
                    format!("{field}.{key}"),
                    "",
                    format!("{key} must not be empty"),
                ));
            }
        }
        controllers += usize::from(flag(owner, "/controller"));
        let uid = text(owner, "/uid");
        if !uids.insert(uid) && !uid.is_empty() && !stored {
            errors.push(FieldError::duplicate(format!("{field}.uid"), uid));
        }
    }
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true";
        errors.push(FieldError::invalid("metadata.ownerReferences", controllers, detail));
    }
}

fn immutable_fields(object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let path = format!("/metadata/{key}");
        if text(object, &path) != text(old, &path) {
            let field = format!("metadata.{key}");
            errors.push(FieldError::invalid(field, text(object, &path), "field is immutable"));
        }
    }
    if present(old, "/metadata/deletionTimestamp") {
        let before = ValueSet::of(list(old, "/metadata/finalizers"));
        let added = list(object, "/metadata/finalizers").iter().filter(|one| !before.contains(one));
        let added: Vec<&str> = added.filter_map(Value::as_str).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;
    use crate::catalog::by_resource;

    fn faults(resource: &str, object: Value, old: Option<Value>) -> String {
        let errors = validate_meta(by_resource(resource).unwrap(), &object, old.as_ref());
        errors.iter().map(|error| format!("{error}\n")).collect()
    }

    #[test]
    fn a_good_object_has_no_faults() {
        let object = json!({"metadata": {"name": "a.b", "generateName": "a.", "namespace": "n",
            "labels": {"example.com/x": "y"}, "annotations": {"Example.com/x": "any text\n"}, "finalizers": ["a.b/c"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]}});
        assert_eq!(faults("pods", object.clone(), Some(object)), "");
    }

    #[test]
    fn faults_are_named() {
        let object = json!({"metadata": {"name": "A_b", "labels": {"-x": "a b"}, "finalizers": ["/"],
            "annotations": {"x": "y".repeat(ANNOTATIONS_BYTES_MAX)},
            "ownerReferences": [{"controller": true}, {"apiVersion": "v1", "kind": "a", "name": "b", "uid": "c", "controller": true}]}});
        let faults = faults("namespaces", object, None);
        let short: String = faults.lines().map(|line| format!("{:.60}\n", line)).collect();
        expect![[r#"
            metadata.name: Invalid value: "A_b": a lowercase RFC 1123 la
            metadata.labels: Invalid value: "-x": name part must consist
            metadata.labels: Invalid value: "a b": a valid label must be
            metadata.annotations: Too long: may not be more than 262144 
            metadata.finalizers: Invalid value: "/": prefix part must be
            metadata.finalizers: Invalid value: "/": name part must be n
            metadata.finalizers: Invalid value: "/": name part must cons
            metadata.ownerReferences[0].apiVersion: Invalid value: "": v
            metadata.ownerReferences[0].kind: Invalid value: "": kind mu
            metadata.ownerReferences[0].name: Invalid value: "": name mu
            metadata.ownerReferences[0].uid: Invalid value: "": uid must
            metadata.ownerReferences: Invalid value: 2: Only one referen
        "#]]
        .assert_eq(&short);
    }

    #[test]
    fn an_owner_is_named_once() {
        let owner = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u"});
        let object =
            json!({"metadata": {"name": "a", "namespace": "n", "ownerReferences": [owner("p"), owner("q")]}});
        let told = "metadata.ownerReferences[1].uid: Duplicate value: \"u\"\n";
        assert_eq!(faults("pods", object.clone(), None), told);
        assert_eq!(
            faults("pods", object.clone(), Some(json!({"metadata": {"name": "a", "namespace": "n"}}))),
            told
        );
        assert_eq!(faults("pods", object.clone(), Some(object)), "");
    }

    #[test]
    fn labels_are_bounded_in_number_and_bytes() {
        let with = |count: usize, width: usize| {
            let labels: Value = (0..count).map(|at| (format!("{at:0>width$}"), json!(""))).collect();
            faults("pods", json!({"metadata": {"name": "a", "namespace": "n", "labels": labels}}), None)
        };
        assert_eq!(with(LABELS_MAX, 63), "");
        assert_eq!(with(1_001, 63), "metadata.labels: Too many: 1001: must have at most 1000 items\n");
        assert!(with(900, 300).contains("metadata.labels: Too long: may not be more than 262144 bytes"));
    }

    #[test]
    fn scope_and_immutability() {
        let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "1", "deletionTimestamp": "x"}});
        let new = json!({"metadata": {"name": "a", "namespace": "n", "uid": "2", "finalizers": ["x/y"]}});
        expect![[r#"
            metadata.uid: Invalid value: "2": field is immutable
            metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers ["x/y"]
        "#]]
        .assert_eq(&faults("pods", new.clone(), Some(old)));
        assert_eq!(faults("nodes", new, None), "metadata.namespace: Forbidden: not allowed on this type\n");
        expect![[r#"
            metadata.name: Required value: name or generateName is required
            metadata.namespace: Required value
        "#]]
        .assert_eq(&faults("pods", json!({}), None));
    }
}
