//! Validation of containers: names, images, ports, environment, mounts.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{probe, refused, resources, volume::check_relative};
use crate::{
    field_error::FieldError,
    fields::{integer, list, present, text},
    validate::{
        rules::one_of,
        syntax::{env_name_faults, label_faults, port_name_faults, port_number_faults},
    },
};

const ENV_SOURCES: &[&str] = &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"];
const FIELD_PATHS: &[&str] = &[
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
/// Containers of one pod, those that initialize it and those that come later among them.
const CONTAINERS_MAX: usize = 1000;
const PROBES: &[&str] = &["livenessProbe", "readinessProbe", "startupProbe"];

/// Checks all containers of a pod's spec. `volumes` are the names of the pod's volumes.
pub(super) fn validate_all(
    spec: &Value,
    field: &str,
    volumes: &BTreeSet<String>,
    errors: &mut Vec<FieldError>,
) {
    if list(spec, "/containers").is_empty() {
        errors.push(FieldError::required(format!("{field}.containers"), ""));
    }
    let lists = ["/containers", "/initContainers", "/ephemeralContainers"];
    let count: usize = lists.iter().map(|path| list(spec, path).len()).sum();
    if count > CONTAINERS_MAX {
        errors.push(FieldError::too_many(format!("{field}.containers"), count, CONTAINERS_MAX));
        return;
    }
    let mut names = BTreeSet::new();
    for (index, container) in list(spec, "/containers").iter().enumerate() {
        let at = format!("{field}.containers[{index}]");
        validate(container, &at, volumes, &mut names, errors);
        if present(container, "/restartPolicy") {
            let detail = "may not be set for non-init containers";
            errors.push(FieldError::forbidden(format!("{at}.restartPolicy"), detail));
        }
    }
    for (index, container) in list(spec, "/initContainers").iter().enumerate() {
        let at = format!("{field}.initContainers[{index}]");
        validate(container, &at, volumes, &mut names, errors);
        init_only(container, &at, errors);
    }
}

fn init_only(container: &Value, field: &str, errors: &mut Vec<FieldError>) {
    match text(container, "/restartPolicy") {
        "Always" => return,
        "" => {}
        other => errors.push(FieldError::not_supported(format!("{field}.restartPolicy"), other, &["Always"])),
    }
    for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if present(container, &format!("/{key}")) {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(format!("{field}.{key}"), detail));
        }
    }
}

fn validate(
    container: &Value,
    field: &str,
    volumes: &BTreeSet<String>,
    names: &mut BTreeSet<String>,
    errors: &mut Vec<FieldError>,
) {
    let name = text(container, "/name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{field}.name"), ""));
    } else {
        for fault in label_faults(name) {
            errors.push(FieldError::invalid(format!("{field}.name"), name, fault));
        }
        if !names.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(format!("{field}.name"), name));
        }
    }
    let image = text(container, "/image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{field}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{field}.image"), image, detail));
    }
    let policy = text(container, "/imagePullPolicy");
    one_of(format!("{field}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"], errors);
    let policy = text(container, "/terminationMessagePolicy");
    one_of(format!("{field}.terminationMessagePolicy"), policy, &["FallbackToLogsOnError", "File"], errors);
    ports(container, field, errors);
    environment(container, field, errors);
    mounts(container, field, volumes, errors);
    resources::validate(container, field, errors);
    for key in PROBES {
        if let Some(probe) = container.get(*key).filter(|probe| !probe.is_null()) {
            probe::validate(probe, &format!("{field}.{key}"), *key != "readinessProbe", errors);
        }
    }
    for key in ["postStart", "preStop"] {
        let hook = container.get("lifecycle").and_then(|lifecycle| lifecycle.get(key));
        if let Some(hook) = hook.filter(|hook| !hook.is_null()) {
            let kinds = &["exec", "httpGet", "tcpSocket", "sleep"];
            probe::handler(hook, &format!("{field}.lifecycle.{key}"), kinds, errors);
        }
    }
    refused::check_container(container, field, errors);
}

fn ports(container: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let mut names = BTreeSet::new();
    for (index, port) in list(container, "/ports").iter().enumerate() {
        let at = format!("{field}.ports[{index}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            for fault in port_name_faults(name) {
                errors.push(FieldError::invalid(format!("{at}.name"), name, fault));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        match integer(port, "/containerPort").unwrap_or(0) {
            0 => errors.push(FieldError::required(format!("{at}.containerPort"), "")),
            number => {
                for fault in port_number_faults(number) {
                    errors.push(FieldError::invalid(format!("{at}.containerPort"), number, fault));
                }
            }
        }
        one_of(format!("{at}.protocol"), text(port, "/protocol"), &["SCTP", "TCP", "UDP"], errors);
    }
}

fn environment(container: &Value, field: &str, errors: &mut Vec<FieldError>) {
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
            env_source(source, &format!("{at}.valueFrom"), !text(variable, "/value").is_empty(), errors);
        }
    }
    for (index, source) in list(container, "/envFrom").iter().enumerate() {
        let at = format!("{field}.envFrom[{index}]");
        let prefix = text(source, "/prefix");
        for fault in env_name_faults(prefix) {
            errors.push(FieldError::invalid(format!("{at}.prefix"), prefix, fault));
        }
        let given: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|key| present(source, &format!("/{key}")))
            .collect();
        match given.as_slice() {
            [] => {
                let detail = "must specify one of: `configMapRef` or `secretRef`";
                errors.push(FieldError::invalid(at, "", detail));
            }
            [one] if text(source, &format!("/{one}/name")).is_empty() => {
                errors.push(FieldError::required(format!("{at}.{one}.name"), ""));
            }
            [_] => {}
            _ => errors.push(FieldError::invalid(
                at,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

fn env_source(source: &Value, field: &str, has_value: bool, errors: &mut Vec<FieldError>) {
    let given: Vec<&str> =
        ENV_SOURCES.iter().copied().filter(|key| present(source, &format!("/{key}"))).collect();
    let [kind] = given.as_slice() else {
        let detail = match given.len() {
            0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(field, "", detail));
        return;
    };
    if has_value {
        errors.push(FieldError::invalid(field, "", "may not be specified when `value` is not empty"));
    }
    let at = format!("{field}.{kind}");
    let mut need = |key: &str| {
        if text(source, &format!("/{kind}/{key}")).is_empty() {
            errors.push(FieldError::required(format!("{at}.{key}"), ""));
        }
    };
    match *kind {
        "fieldRef" => {
            need("fieldPath");
            let path = text(source, "/fieldRef/fieldPath");
            let maps = ["metadata.labels['", "metadata.annotations['"];
            let subscript = path.ends_with("']") && maps.iter().any(|start| path.starts_with(start));
            if !path.is_empty() && !subscript {
                one_of(format!("{at}.fieldPath"), path, FIELD_PATHS, errors);
            }
        }
        "resourceFieldRef" => need("resource"),
        _ => {
            need("name");
            need("key");
        }
    }
}

fn mounts(container: &Value, field: &str, volumes: &BTreeSet<String>, errors: &mut Vec<FieldError>) {
    let mut paths = BTreeSet::new();
    for (index, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let at = format!("{field}.volumeMounts[{index}]");
        let name = text(mount, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(format!("{at}.name"), name));
        }
        let path = text(mount, "/mountPath");
        if path.is_empty() {
            errors.push(FieldError::required(format!("{at}.mountPath"), ""));
        } else if !paths.insert(path) {
            errors.push(FieldError::invalid(format!("{at}.mountPath"), path, "must be unique"));
        }
        let (sub_path, expression) = (text(mount, "/subPath"), text(mount, "/subPathExpr"));
        check_relative(sub_path, &format!("{at}.subPath"), errors);
        check_relative(expression, &format!("{at}.subPathExpr"), errors);
        if !sub_path.is_empty() && !expression.is_empty() {
            let value = json!(expression);
            errors.push(FieldError::invalid(
                format!("{at}.subPathExpr"),
                value,
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
    }
}
