//! A container's resources.

use serde_json::Value;

use crate::{
    field_error::FieldError,
    fields::{child, default, entries},
    quantity::Quantity,
    validate::syntax::qualified_name_faults,
};

/// What is limited and not requested is requested in the measure of the limit.
pub(super) fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let Some(requests) = child(container, "resources").and_then(|resources| child(resources, "requests"))
    else {
        return;
    };
    for (name, limit) in limits {
        default(requests, &name, limit);
    }
}

/// Writes the amounts in their canonical form (`0.5` becomes `500m`); leaves what is no quantity to validation.
pub(super) fn canonicalize(container: &mut Value) {
    for part in ["limits", "requests"] {
        let amounts = container.pointer_mut(&format!("/resources/{part}")).and_then(Value::as_object_mut);
        for (_, amount) in amounts.into_iter().flatten() {
            if let Ok(quantity) = Quantity::from_json(amount) {
                *amount = quantity.to_string().into();
            }
        }
    }
}

pub(super) fn validate(container: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for part in ["limits", "requests"] {
        for (name, amount) in entries(container, &format!("/resources/{part}")) {
            let at = format!("{field}.resources.{part}[{name}]");
            check_name(name, &at, errors);
            match Quantity::from_json(amount) {
                Err(error) => errors.push(FieldError::invalid(at, amount.clone(), error.to_string())),
                Ok(quantity) if quantity.is_negative() => {
                    let detail = "must be greater than or equal to 0";
                    errors.push(FieldError::invalid(at, amount.clone(), detail));
                }
                Ok(_) => {}
            }
        }
    }
    for (name, request) in entries(container, "/resources/requests") {
        let limit = container.pointer("/resources/limits").and_then(|limits| limits.get(name));
        let limit = limit.and_then(|limit| Quantity::from_json(limit).ok());
        let (Ok(request), Some(limit)) = (Quantity::from_json(request), limit) else { continue };
        if request > limit {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(
                format!("{field}.resources.requests"),
                request.to_string(),
                detail,
            ));
        }
    }
}

fn check_name(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    if name.contains('/') {
        errors.extend(
            qualified_name_faults(name).into_iter().map(|fault| FieldError::invalid(field, name, fault)),
        );
    } else if !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        let detail = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(field, name, detail));
    }
}
