//! Validation of a pod's affinity to nodes.

use serde_json::Value;

use crate::{
    field_error::FieldError,
    fields::{integer, list, present, text},
    validate::{
        rules::one_of,
        syntax::{label_value_faults, qualified_name_faults},
    },
};

const OPERATORS: &[&str] = &["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"];

/// Checks what of `spec.affinity` the scheduler goes by.
pub(super) fn check(spec: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let Some(affinity) = spec.pointer("/affinity/nodeAffinity").filter(|affinity| !affinity.is_null()) else {
        return;
    };
    let field = format!("{field}.affinity.nodeAffinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    if present(affinity, &format!("/{required}")) {
        let (terms, at) =
            (list(affinity, &format!("/{required}/nodeSelectorTerms")), format!("{field}.{required}"));
        if terms.is_empty() {
            let detail = "must have at least one node selector term";
            errors.push(FieldError::required(format!("{at}.nodeSelectorTerms"), detail));
        }
        for (index, term) in terms.iter().enumerate() {
            check_term(term, &format!("{at}.nodeSelectorTerms[{index}]"), errors);
        }
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, one) in list(affinity, &format!("/{preferred}")).iter().enumerate() {
        let at = format!("{field}.{preferred}[{index}]");
        let weight = integer(one, "/weight").unwrap_or(0);
        if !(1..=100).contains(&weight) {
            errors.push(FieldError::invalid(format!("{at}.weight"), weight, "must be in the range 1-100"));
        }
        check_term(&one["preference"], &format!("{at}.preference"), errors);
    }
}

fn check_term(term: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (index, requirement) in list(term, "/matchExpressions").iter().enumerate() {
        let at = format!("{field}.matchExpressions[{index}]");
        check_requirement(requirement, &at, errors);
        let key = text(requirement, "/key");
        let faults = qualified_name_faults(key).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid(format!("{at}.key"), key, fault)));
        for (index, value) in list(requirement, "/values").iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            let at = format!("{at}.values[{index}]");
            errors.extend(
                label_value_faults(value).into_iter().map(|fault| FieldError::invalid(&at, value, fault)),
            );
        }
    }
    for (index, requirement) in list(term, "/matchFields").iter().enumerate() {
        let at = format!("{field}.matchFields[{index}]");
        one_of(format!("{at}.key"), text(requirement, "/key"), &["metadata.name"], errors);
        one_of(format!("{at}.operator"), text(requirement, "/operator"), &["In", "NotIn"], errors);
        if list(requirement, "/values").len() != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(format!("{at}.values"), detail));
        }
    }
}

fn check_requirement(requirement: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let values = list(requirement, "/values");
    let at = format!("{field}.values");
    match text(requirement, "/operator") {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(at, detail));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(at, detail));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required(at, detail));
        }
        "Gt" | "Lt" if values[0].as_str().is_none_or(|value| value.parse::<i64>().is_err()) => {
            errors.push(FieldError::invalid(at, values[0].clone(), "must be an integer"));
        }
        operator => one_of(format!("{field}.operator"), operator, OPERATORS, errors),
    }
}
