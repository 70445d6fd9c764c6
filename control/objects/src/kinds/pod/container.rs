//! Validation of containers: names, images, ports, mounts.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    environment,
    names::Names,
    probe, resources,
    volume::{check_length, check_relative},
};
use crate::{
    field_error::FieldError,
    fields::{flag, integer, list, present, text},
    validate::{
        rules::one_of,
        syntax::{label_faults, port_name_faults, port_number_faults},
    },
};

/// Containers of one pod, those that initialize it and those that come later among them.
const CONTAINERS_MAX: usize = 1000;
/// The path by default, which nobody has chosen.
const MESSAGE_PATH: &str = "/dev/termination-log";
const PROBES: &[&str] = &["livenessProbe", "readinessProbe", "startupProbe"];

/// Checks all containers of a pod's spec, whose parts have these names.
pub(super) fn validate_all(spec: &Value, field: &str, known: &Names<'_>, errors: &mut Vec<FieldError>) {
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
        validate(container, &at, known, &mut names, errors);
        if present(container, "/restartPolicy") {
            let detail = "may not be set for non-init containers";
            errors.push(FieldError::forbidden(format!("{at}.restartPolicy"), detail));
        }
    }
    for (index, container) in list(spec, "/initContainers").iter().enumerate() {
        let at = format!("{field}.initContainers[{index}]");
        validate(container, &at, known, &mut names, errors);
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
    known: &Names<'_>,
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
    environment::validate(container, field, known, errors);
    mounts(container, field, known, errors);
    working_dir(container, field, errors);
    message_path(container, field, known, errors);
    resources::validate(container, field, errors);
    for key in PROBES {
        if let Some(probe) = container.get(*key).filter(|probe| !probe.is_null()) {
            probe::validate(probe, &format!("{field}.{key}"), key, errors);
        }
    }
    for key in ["postStart", "preStop"] {
        let hook = container.get("lifecycle").and_then(|lifecycle| lifecycle.get(key));
        if let Some(hook) = hook.filter(|hook| !hook.is_null()) {
            let kinds = &["exec", "httpGet", "tcpSocket", "sleep"];
            probe::handler(hook, &format!("{field}.lifecycle.{key}"), kinds, errors);
        }
    }
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

fn mounts(container: &Value, field: &str, known: &Names<'_>, errors: &mut Vec<FieldError>) {
    let mut paths = BTreeSet::new();
    for (index, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let at = format!("{field}.volumeMounts[{index}]");
        let name = text(mount, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if !known.volumes.contains(name) {
            errors.push(FieldError::not_found(format!("{at}.name"), name));
        }
        mount_path(mount, &at, &mut paths, errors);
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
        let recursive = text(mount, "/recursiveReadOnly");
        if !recursive.is_empty() {
            let at = format!("{at}.recursiveReadOnly");
            one_of(&at, recursive, &["Disabled", "Enabled", "IfPossible"], errors);
            if recursive != "Disabled" && !flag(mount, "/readOnly") {
                errors.push(FieldError::forbidden(at, "may only be specified when readOnly is true"));
            }
        }
    }
}

/// A path at which a container finds a volume, and no other.
fn mount_path<'a>(
    mount: &'a Value,
    field: &str,
    paths: &mut BTreeSet<&'a str>,
    errors: &mut Vec<FieldError>,
) {
    let (path, at) = (text(mount, "/mountPath"), format!("{field}.mountPath"));
    if path.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if path.contains(':') {
        errors.push(FieldError::invalid(at, path, "must not contain ':'"));
    } else if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(at, path, "must not contain '..'"));
    } else if !paths.insert(path.trim_matches('/')) {
        errors.push(FieldError::invalid(at, path, "must be unique"));
    }
}

/// The mount of a container in which a path lies, the innermost.
fn mount_of<'a>(container: &'a Value, path: &str) -> Option<&'a Value> {
    let place = |mount: &'a Value| text(mount, "/mountPath").trim_matches('/');
    let encloses = |mount: &&'a Value| {
        let rest = path.trim_matches('/').strip_prefix(place(mount));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || place(mount).is_empty())
    };
    list(container, "/volumeMounts").iter().filter(encloses).max_by_key(|mount| place(mount).len())
}

/// A component has the files that it mounts, and no others to begin in.
fn working_dir(container: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let (dir, at) = (text(container, "/workingDir"), format!("{field}.workingDir"));
    if dir.is_empty() || dir == "/" {
        return;
    }
    check_length(dir, &at, errors);
    if !dir.starts_with('/') || dir.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(at, dir, "must be an absolute path without '..'"));
    } else if mount_of(container, "/").is_some() {
        let detail = "cannot be another than / where a volume is mounted there: programs take relative paths for such of /";
        errors.push(FieldError::invalid(at, dir, detail));
    } else if mount_of(container, dir).is_none() {
        let detail = "must lie in a volume that the container mounts: a component has no other files";
        errors.push(FieldError::invalid(at, dir, detail));
    }
}

/// Where a container leaves the last word on its end.
fn message_path(container: &Value, field: &str, known: &Names<'_>, errors: &mut Vec<FieldError>) {
    let (path, at) = (text(container, "/terminationMessagePath"), format!("{field}.terminationMessagePath"));
    if path.is_empty() || path == MESSAGE_PATH {
        return;
    }
    check_length(path, &at, errors);
    let is_odd = |part: &str| matches!(part, "" | "." | "..");
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    if folder.is_empty() || !path.starts_with('/') || path.split('/').skip(1).any(is_odd) {
        let detail = "must be the absolute path of a file in a folder, such as /dev/termination-log";
        errors.push(FieldError::invalid(at, path, detail));
        return;
    }
    let is_read_only =
        |mount: &Value| flag(mount, "/readOnly") || known.read_only.contains(text(mount, "/name"));
    if mount_of(container, folder).is_some_and(is_read_only) {
        let detail = "lies in a volume that the container cannot write: choose a path outside of it";
        errors.push(FieldError::invalid(at, path, detail));
    }
}
