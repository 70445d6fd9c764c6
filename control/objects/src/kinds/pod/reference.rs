//! References of a pod's spec to objects, their keys, its own fields and resources: such as can be there.

use serde_json::Value;

use super::names::Names;
use crate::{
    field_error::FieldError,
    fields::text,
    quantity::Quantity,
    validate::{
        rules::one_of,
        syntax::{config_key_faults, qualified_name_faults, subdomain_faults},
    },
};

/// Fields of a pod that environments show.
pub(super) const OF_ENVIRONMENT: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that files show.
pub(super) const OF_FILES: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// The name of a ConfigMap or Secret in `holder`.
pub(super) fn object_name(holder: &Value, key: &str, field: &str, errors: &mut Vec<FieldError>) {
    checked(holder, key, field, subdomain_faults, errors);
}

/// A key of its data.
pub(super) fn data_key(holder: &Value, field: &str, errors: &mut Vec<FieldError>) {
    checked(holder, "key", field, config_key_faults, errors);
}

fn checked(
    holder: &Value,
    key: &str,
    field: &str,
    faults: fn(&str) -> Vec<String>,
    errors: &mut Vec<FieldError>,
) {
    let (value, at) = (text(holder, &format!("/{key}")), format!("{field}.{key}"));
    if value.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        errors.extend(faults(value).into_iter().map(|fault| FieldError::invalid(&at, value, fault)));
    }
}

/// A `fieldRef` to one of the `supported` fields, or to one label or annotation.
pub(super) fn field_ref(reference: &Value, field: &str, supported: &[&str], errors: &mut Vec<FieldError>) {
    let version = text(reference, "/apiVersion");
    if !version.is_empty() {
        one_of(format!("{field}.apiVersion"), version, &["v1"], errors);
    }
    let (path, at) = (text(reference, "/fieldPath"), format!("{field}.fieldPath"));
    if path.is_empty() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    let Some((map, rest)) = path.split_once("['") else {
        one_of(at, path, supported, errors);
        return;
    };
    let (Some(key), "metadata.labels" | "metadata.annotations") = (rest.strip_suffix("']"), map) else {
        let detail =
            "only labels and annotations have keys: metadata.labels['KEY'], metadata.annotations['KEY']";
        errors.push(FieldError::invalid(at, path, detail));
        return;
    };
    // Keys of annotations are looked at without regard to case.
    let key = if map == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
    errors.extend(qualified_name_faults(&key).into_iter().map(|fault| FieldError::invalid(&at, path, fault)));
}

/// A `resourceFieldRef`. An environment is of a container, which it means where it names none.
pub(super) fn resource_ref(
    reference: &Value,
    field: &str,
    (names, is_file): (&Names<'_>, bool),
    errors: &mut Vec<FieldError>,
) {
    let (container, at) = (text(reference, "/containerName"), format!("{field}.containerName"));
    if container.is_empty() {
        if is_file {
            errors.push(FieldError::required(at, ""));
        }
    } else if !names.containers.contains(container) {
        errors.push(FieldError::not_found(at, container));
    }
    let resource = text(reference, "/resource");
    if resource.is_empty() {
        errors.push(FieldError::required(format!("{field}.resource"), ""));
    } else {
        one_of(format!("{field}.resource"), resource, RESOURCES, errors);
    }
    let Some(divisor) = reference.get("divisor").filter(|divisor| !divisor.is_null()) else { return };
    let fault = match Quantity::from_json(divisor) {
        Err(error) => error.to_string(),
        Ok(quantity) if quantity.is_negative() => "must be greater than or equal to 0".to_owned(),
        Ok(_) => return,
    };
    errors.push(FieldError::invalid(format!("{field}.divisor"), divisor.clone(), fault));
}
