//! Checks and texts that several kinds share.

use serde_json::Value;

use super::syntax::port_name_faults;
use crate::{
    field_error::FieldError,
    fields::{self, entries, integer, list, text},
    selector::{LabelSelector, REQUIREMENTS_MAX},
};

/// The text, or what tables show in place of an empty one.
pub fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// `a=1,b=2` in the order of the keys, or `<none>`: how tables show labels.
pub fn format_labels(object: &Value, path: &str) -> String {
    let mut labels: Vec<String> =
        entries(object, path).map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or(""))).collect();
    labels.sort_unstable();
    or_none(&labels.join(",")).to_owned()
}

/// A `v1.LabelSelector` as tables show it.
pub fn format_selector(selector: Option<&Value>) -> String {
    let text = match LabelSelector::from_json(selector) {
        Ok(selector) if !selector.nothing => {
            let mut selector = selector;
            selector.requirements.sort_by(|one, other| one.key.cmp(&other.key));
            selector.to_string()
        }
        Ok(_) => String::new(),
        Err(_) => "<error>".to_owned(),
    };
    or_none(&text).to_owned()
}

/// The text must be one of these.
pub fn one_of(field: impl Into<String>, value: &str, supported: &[&str], errors: &mut Vec<FieldError>) {
    if !supported.contains(&value) {
        errors.push(FieldError::not_supported(field, value, supported));
    }
}

/// The integer at `path`, where present, must not be negative.
pub fn not_negative(object: &Value, path: &str, field: impl Into<String>, errors: &mut Vec<FieldError>) {
    if let Some(value) = integer(object, path).filter(|value| *value < 0) {
        errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
    }
}

/// The counts of a workload's status: none is negative, none of the parts more than the whole.
pub fn replica_counts(object: &Value, parts: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    not_negative(object, "/status/replicas", "status.replicas", &mut errors);
    let count = |field: &str| integer(object, &format!("/status/{field}")).unwrap_or(0);
    let whole = count("replicas");
    for part in parts {
        let field = format!("status.{part}");
        not_negative(object, &format!("/status/{part}"), field.clone(), &mut errors);
        if count(part) > whole {
            errors.push(FieldError::invalid(field, count(part), "cannot be greater than status.replicas"));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let detail = "cannot be greater than readyReplicas";
        errors.push(FieldError::invalid("status.availableReplicas", count("availableReplicas"), detail));
    }
    errors
}

/// A port given by number or by name.
pub fn port_or_name(value: Option<&Value>, field: &str, errors: &mut Vec<FieldError>) {
    match value {
        Some(Value::Number(number)) if number.as_i64().is_none_or(|port| !(1..=65535).contains(&port)) => {
            errors.push(FieldError::invalid(field, number.clone(), "must be between 1 and 65535, inclusive"));
        }
        Some(Value::String(name)) => {
            for fault in port_name_faults(name) {
                errors.push(FieldError::invalid(field, name.as_str(), fault));
            }
        }
        Some(Value::Number(_)) => {}
        _ => errors.push(FieldError::required(field, "")),
    }
}

/// A `v1.LabelSelector` of a workload: well formed.
pub fn label_selector(selector: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let count = fields::count(selector, "/matchLabels") + list(selector, "/matchExpressions").len();
    if count > REQUIREMENTS_MAX {
        errors.push(FieldError::too_many(field, count, REQUIREMENTS_MAX));
        return;
    }
    for (index, expression) in list(selector, "/matchExpressions").iter().enumerate() {
        let at = format!("{field}.matchExpressions[{index}]");
        let given = !list(expression, "/values").is_empty();
        match text(expression, "/operator") {
            "In" | "NotIn" if !given => errors.push(FieldError::required(
                format!("{at}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if given => errors.push(FieldError::forbidden(
                format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{at}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
    }
    if errors.is_empty()
        && let Err(error) = LabelSelector::from_json(Some(selector))
    {
        errors.push(FieldError::invalid(field, selector.clone(), error.to_string()));
    }
}

/// The field at `path` must be what it was.
pub fn immutable(object: &Value, old: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let (now, before) = (object.pointer(path), old.pointer(path));
    if now.filter(|value| !value.is_null()) != before.filter(|value| !value.is_null()) {
        let field = path.trim_start_matches('/').replace('/', ".");
        errors.push(FieldError::invalid(field, now.cloned().unwrap_or(Value::Null), "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requirements_of_a_workloads_selector_are_bounded() {
        let with = |count: usize| {
            let absent = |at: usize| json!({"key": format!("a{at}"), "operator": "DoesNotExist"});
            let selector = json!({"matchExpressions": (0..count).map(absent).collect::<Vec<_>>()});
            let mut errors = Vec::new();
            label_selector(&selector, "spec.selector", &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(with(1000), [""; 0]);
        assert_eq!(with(1001), ["spec.selector: Too many: 1001: must have at most 1000 items"]);
    }
}
