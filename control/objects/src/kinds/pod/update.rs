//! What of a pod's spec may change after its creation.

use serde_json::Value;

use crate::{
    field_error::FieldError,
    fields::{entries, integer, list, text},
    value_set::ValueSet,
};

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Compares the specs with all that may change made equal; what still differs is refused by name.
pub(super) fn check(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut expected = new.clone();
    for key in ["containers", "initContainers"] {
        let path = format!("/{key}");
        if list(new, &path).len() != list(old, &path).len() {
            errors.push(FieldError::forbidden(
                format!("spec.{key}"),
                "pod updates may not add or remove containers",
            ));
            return;
        }
        let Some(Value::Array(containers)) = expected.get_mut(key) else { continue };
        for (container, before) in containers.iter_mut().zip(list(old, &path)) {
            restore(container, before, "image");
        }
    }
    deadline(new, old, errors);
    let tolerations = ValueSet::of(list(new, "/tolerations"));
    if list(old, "/tolerations").iter().all(|before| tolerations.contains(before)) {
        restore(&mut expected, old, "tolerations");
    }
    let grace = |spec: &Value| integer(spec, "/terminationGracePeriodSeconds");
    if grace(old).is_some_and(|seconds| seconds < 0) && grace(new) == Some(1) {
        restore(&mut expected, old, "terminationGracePeriodSeconds");
    }
    restore(&mut expected, old, "activeDeadlineSeconds");
    restore(&mut expected, old, "ephemeralContainers");
    gates(&mut expected, new, old, errors);
    let differing = differences(&expected, old);
    if !differing.is_empty() {
        errors
            .push(FieldError::forbidden("spec", format!("{MAY_CHANGE}; changed: {}", differing.join(", "))));
    }
}

/// A deadline may be set where there was none, and made shorter.
fn deadline(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let seconds = |spec: &Value| integer(spec, "/activeDeadlineSeconds");
    let Some(before) = seconds(old) else { return };
    match seconds(new) {
        None => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid("spec.activeDeadlineSeconds", Value::Null, detail));
        }
        Some(after) if after > before => {
            let detail = format!("must be less than or equal to previous value of {before}");
            errors.push(FieldError::invalid("spec.activeDeadlineSeconds", after, detail));
        }
        Some(_) => {}
    }
}

/// Scheduling gates may be removed, never added. While there are some, the node selector may be narrowed.
fn gates(expected: &mut Value, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let known = list(old, "/schedulingGates");
    let before = ValueSet::of(known);
    for gate in list(new, "/schedulingGates").iter().filter(|gate| !before.contains(gate)) {
        let detail =
            format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "/name"));
        errors.push(FieldError::forbidden("spec.schedulingGates", detail));
    }
    restore(expected, old, "schedulingGates");
    let selected =
        |key: &str, value: &Value| new.get("nodeSelector").and_then(|map| map.get(key)) == Some(value);
    if !known.is_empty() && entries(old, "/nodeSelector").all(|(key, value)| selected(key, value)) {
        restore(expected, old, "nodeSelector");
    }
}

fn restore(value: &mut Value, old: &Value, key: &str) {
    let Some(object) = value.as_object_mut() else { return };
    match old.get(key) {
        Some(before) => object.insert(key.to_owned(), before.clone()),
        None => object.shift_remove(key),
    };
}

/// The fields of the specs that differ, null and absent being the same.
fn differences(new: &Value, old: &Value) -> Vec<String> {
    let field = |spec: &Value, key: &str| spec.get(key).filter(|value| !value.is_null()).cloned();
    let mut keys: Vec<&String> = entries(new, "").chain(entries(old, "")).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.dedup();
    let differing = keys.into_iter().filter(|key| field(new, key) != field(old, key));
    differing.map(|key| format!("spec.{key}")).collect()
}
