//! Validation of volumes.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    field_error::FieldError,
    fields::{entries, integer, list, text},
    quantity::Quantity,
    validate::syntax::label_faults,
};

/// The kinds of volume that a node of ours can give to a component.
const SUPPORTED: &[&str] = &["configMap", "downwardAPI", "emptyDir", "projected", "secret"];

/// Checks the volumes of a pod's spec; gives their names.
pub(super) fn validate(spec: &Value, field: &str, errors: &mut Vec<FieldError>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (index, volume) in list(spec, "/volumes").iter().enumerate() {
        let at = format!("{field}.volumes[{index}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            for fault in label_faults(name) {
                errors.push(FieldError::invalid(format!("{at}.name"), name, fault));
            }
            if !names.insert(name.to_owned()) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        let sources: Vec<(&String, &Value)> =
            entries(volume, "").filter(|(key, source)| *key != "name" && !source.is_null()).collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::required(&at, "must specify a volume type")),
            [(kind, source), rest @ ..] => {
                check_source(kind, source, &format!("{at}.{kind}"), errors);
                for (kind, _) in rest {
                    let detail = "may not specify more than 1 volume type";
                    errors.push(FieldError::forbidden(format!("{at}.{kind}"), detail));
                }
            }
        }
    }
    names
}

fn check_source(kind: &str, source: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let need = |key: &str, errors: &mut Vec<FieldError>| {
        if text(source, &format!("/{key}")).is_empty() {
            errors.push(FieldError::required(format!("{field}.{key}"), ""));
        }
    };
    match kind {
        "configMap" => need("name", errors),
        "secret" => need("secretName", errors),
        "emptyDir" => {
            if let Some(limit) = source.get("sizeLimit").filter(|limit| !limit.is_null()) {
                match Quantity::from_json(limit) {
                    Err(error) => {
                        errors.push(FieldError::invalid(
                            format!("{field}.sizeLimit"),
                            limit.clone(),
                            error.to_string(),
                        ));
                    }
                    Ok(quantity) if quantity.is_negative() => {
                        let detail = "SizeLimit field must be a valid resource quantity";
                        errors.push(FieldError::forbidden(format!("{field}.sizeLimit"), detail));
                    }
                    Ok(_) => {}
                }
            }
        }
        "persistentVolumeClaim" => {
            let detail = "persistent volumes are not supported yet: use emptyDir, configMap or secret";
            errors.push(FieldError::forbidden(field, detail));
        }
        "hostPath" => {
            let detail = "a pod has no access to its node's files: use emptyDir, configMap or secret";
            errors.push(FieldError::forbidden(field, detail));
        }
        kind if !SUPPORTED.contains(&kind) => {
            let detail = format!(
                "this kind of volume cannot be given to a WebAssembly component; supported: {}",
                SUPPORTED.join(", ")
            );
            errors.push(FieldError::forbidden(field, detail));
        }
        _ => {}
    }
    check_mode(source, "defaultMode", field, errors);
    check_items(kind, source, field, errors);
    if kind == "projected" {
        for (index, source) in list(source, "/sources").iter().enumerate() {
            for (kind, source) in entries(source, "") {
                check_items(kind, source, &format!("{field}.sources[{index}].{kind}"), errors);
            }
        }
    }
}

/// The permissions of a file.
fn check_mode(owner: &Value, key: &str, field: &str, errors: &mut Vec<FieldError>) {
    let mode = integer(owner, &format!("/{key}"));
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(format!("{field}.{key}"), mode, detail));
    }
}

fn check_items(kind: &str, source: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (index, item) in list(source, "/items").iter().enumerate() {
        let at = format!("{field}.items[{index}]");
        check_mode(item, "mode", &at, errors);
        if kind != "downwardAPI" && text(item, "/key").is_empty() {
            errors.push(FieldError::required(format!("{at}.key"), ""));
        }
        let path = text(item, "/path");
        if path.is_empty() {
            errors.push(FieldError::required(format!("{at}.path"), ""));
        } else {
            check_relative(path, &format!("{at}.path"), errors);
        }
    }
}

/// A path below a volume's root.
pub(super) fn check_relative(path: &str, field: &str, errors: &mut Vec<FieldError>) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(field, path, "must be a relative path"));
    } else if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(field, path, "must not contain '..'"));
    }
}
