//! What statuses of several kinds have in common: conditions, and addresses.

use serde_json::Value;

use super::{
    rules::one_of,
    syntax::{ip_faults, qualified_name_faults},
};
use crate::{
    field_error::{FIELD_ERRORS_MAX, FieldError},
    fields::{entries, list, text},
    quantity::Quantity,
};

/// The conditions of an object: each of a type, and true, false or unknown.
pub fn conditions(object: &Value, errors: &mut Vec<FieldError>) {
    for (index, condition) in list(object, "/status/conditions").iter().enumerate() {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        let field = format!("status.conditions[{index}]");
        if text(condition, "/type").is_empty() {
            errors.push(FieldError::required(format!("{field}.type"), ""));
        }
        let status = text(condition, "/status");
        one_of(format!("{field}.status"), status, &["False", "True", "Unknown"], errors);
    }
}

/// An address (`status.podIP`) and the list that begins with it (`status.podIPs`).
pub fn addresses(object: &Value, one: &str, all: &str, errors: &mut Vec<FieldError>) {
    let address = text(object, &format!("/status/{one}"));
    if !address.is_empty() {
        let faults = ip_faults(address).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid(format!("status.{one}"), address, fault)));
    }
    let list = list(object, &format!("/status/{all}"));
    for (index, entry) in list.iter().enumerate() {
        if errors.len() >= FIELD_ERRORS_MAX {
            return;
        }
        let ip = text(entry, "/ip");
        let field = format!("status.{all}[{index}].ip");
        errors.extend(ip_faults(ip).into_iter().map(|fault| FieldError::invalid(field.clone(), ip, fault)));
    }
    if list.first().is_some_and(|first| text(first, "/ip") != address) {
        let detail = format!("must be equal to `{one}`");
        errors.push(FieldError::invalid(format!("status.{all}[0].ip"), text(&list[0], "/ip"), detail));
    }
}

/// Amounts of resources: names that are well formed, and quantities of which none is negative. Of pods there are whole
/// ones.
pub fn quantities(object: &Value, key: &str, errors: &mut Vec<FieldError>) {
    for (name, quantity) in entries(object, &format!("/status/{key}")) {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        let field = format!("status.{key}[{name}]");
        for fault in qualified_name_faults(name) {
            errors.push(FieldError::invalid(field.clone(), name.as_str(), fault));
        }
        match Quantity::from_json(quantity) {
            Ok(parsed) if parsed.is_negative() => {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(field, quantity.clone(), detail));
            }
            Ok(parsed) if name == "pods" && parsed.milli() % 1000 != 0 => {
                errors.push(FieldError::invalid(field, quantity.clone(), "must be an integer"));
            }
            Ok(_) => {}
            Err(error) => errors.push(FieldError::invalid(field, quantity.clone(), error.to_string())),
        }
    }
}
