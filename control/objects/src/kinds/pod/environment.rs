//! Validation of a container's environment.

use serde_json::Value;

use super::{
    names::Names,
    reference::{self, OF_ENVIRONMENT},
};
use crate::{
    field_error::FieldError,
    fields::{list, present, text},
    validate::syntax::env_name_faults,
};

const ENV_SOURCES: &[&str] = &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"];
const MORE_THAN_ONE: &str = "may not have more than one field specified at a time";

pub(super) fn validate(container: &Value, field: &str, names: &Names<'_>, errors: &mut Vec<FieldError>) {
    for (index, variable) in list(container, "/env").iter().enumerate() {
        let at = format!("{field}.env[{index}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            for fault in env_name_faults(name) {
                errors.push(FieldError::invalid(format!("{at}.name"), name, fault));
            }
        }
        if let Some(source) = variable.get("valueFrom").filter(|source| !source.is_null()) {
            let at = format!("{at}.valueFrom");
            if !text(variable, "/value").is_empty() && given(source, ENV_SOURCES).len() == 1 {
                let detail = "may not be specified when `value` is not empty";
                errors.push(FieldError::invalid(&at, "", detail));
            }
            env_source(source, &at, names, errors);
        }
    }
    for (index, source) in list(container, "/envFrom").iter().enumerate() {
        env_from(source, &format!("{field}.envFrom[{index}]"), errors);
    }
}

fn given<'a>(source: &Value, kinds: &[&'a str]) -> Vec<&'a str> {
    kinds.iter().copied().filter(|key| present(source, &format!("/{key}"))).collect()
}

fn env_from(source: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let prefix = text(source, "/prefix");
    for fault in env_name_faults(prefix) {
        errors.push(FieldError::invalid(format!("{field}.prefix"), prefix, fault));
    }
    match given(source, &["configMapRef", "secretRef"]).as_slice() {
        [] => {
            let detail = "must specify one of: `configMapRef` or `secretRef`";
            errors.push(FieldError::invalid(field, "", detail));
        }
        [one] => reference::object_name(&source[*one], "name", &format!("{field}.{one}"), errors),
        _ => errors.push(FieldError::invalid(field, "", MORE_THAN_ONE)),
    }
}

fn env_source(source: &Value, field: &str, names: &Names<'_>, errors: &mut Vec<FieldError>) {
    let given = given(source, ENV_SOURCES);
    let [kind] = given.as_slice() else {
        let detail = match given.len() {
            0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            _ => MORE_THAN_ONE,
        };
        errors.push(FieldError::invalid(field, "", detail));
        return;
    };
    let (source, at) = (&source[*kind], format!("{field}.{kind}"));
    match *kind {
        "fieldRef" => reference::field_ref(source, &at, OF_ENVIRONMENT, errors),
        "resourceFieldRef" => reference::resource_ref(source, &at, (names, false), errors),
        _ => {
            reference::object_name(source, "name", &at, errors);
            reference::data_key(source, &at, errors);
        }
    }
}
