//! Fields that cannot mean anything for a WebAssembly component, and those that are not served yet. They are refused,
//! never ignored.
//!
//! What holds anyway is accepted: a guest is never root, never privileged, has no capability and no writable root
//! filesystem, so `runAsNonRoot: true`, `privileged: false`, `capabilities.drop` and the like are true as they stand.

use serde_json::Value;

use crate::{
    field_error::FieldError,
    fields::{flag, integer, list, present, text},
};

const NO_USERS: &str = "a WebAssembly component has no users or groups: its sandbox grants only what the pod's spec \
    names; leave the field out";
const NO_LABELS: &str = "a WebAssembly component is confined by its sandbox, not by the host's security modules; leave \
    the field out";

/// Constraints of placement that the scheduler does not know yet. Where only preferred, they may be left unmet.
const UNKNOWN_CONSTRAINTS: [&str; 2] = [
    "affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution",
    "affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution",
];

/// Checks a pod's spec; containers are checked by [`check_container`].
pub(super) fn check_spec(spec: &Value, field: &str, errors: &mut Vec<FieldError>) {
    check_unserved(spec, field, errors);
    let host = "a pod has no access to its node's ";
    for (key, what) in [
        ("hostNetwork", "network: use a Service of type NodePort or an Ingress"),
        ("hostPID", "processes: leave the field out"),
        ("hostIPC", "interprocess communication: leave the field out"),
    ] {
        if flag(spec, &format!("/{key}")) {
            errors.push(FieldError::forbidden(format!("{field}.{key}"), format!("{host}{what}")));
        }
    }
    if flag(spec, "/shareProcessNamespace") {
        let detail = "a WebAssembly component has no processes that could be shared: leave the field out";
        errors.push(FieldError::forbidden(format!("{field}.shareProcessNamespace"), detail));
    }
    if present(spec, "/os") {
        let detail = "a pod runs WebAssembly components, which have no operating system: leave the field out";
        errors.push(FieldError::forbidden(format!("{field}.os"), detail));
    }
    let at = format!("{field}.securityContext");
    let empty = Value::Null;
    let context = spec.get("securityContext").unwrap_or(&empty);
    check_context(context, &at, errors);
    for key in ["fsGroup", "supplementalGroups", "fsGroupChangePolicy", "supplementalGroupsPolicy"] {
        if present(context, &format!("/{key}")) {
            errors.push(FieldError::forbidden(format!("{at}.{key}"), NO_USERS));
        }
    }
    if !list(context, "/sysctls").is_empty() {
        let detail = "a WebAssembly component has no kernel parameters: leave the field out";
        errors.push(FieldError::forbidden(format!("{at}.sysctls"), detail));
    }
}

/// What a pod would rely on and not get.
fn check_unserved(spec: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for path in UNKNOWN_CONSTRAINTS {
        if !list(spec, &format!("/{path}")).is_empty() {
            let detail = "required affinity between pods is not served yet: prefer it, or use a nodeSelector";
            errors.push(FieldError::forbidden(format!("{field}.{}", path.replace('/', ".")), detail));
        }
    }
    for (index, constraint) in list(spec, "/topologySpreadConstraints").iter().enumerate() {
        if text(constraint, "/whenUnsatisfiable") != "ScheduleAnyway" {
            let at = format!("{field}.topologySpreadConstraints[{index}].whenUnsatisfiable");
            let detail = "spreading as a condition is not served yet: say ScheduleAnyway; pods of one owner are \
                spread over nodes by themselves";
            errors.push(FieldError::forbidden(at, detail));
        }
    }
    if !list(spec, "/hostAliases").is_empty() {
        let detail = "names of a pod's own are not served yet: use a Service";
        errors.push(FieldError::forbidden(format!("{field}.hostAliases"), detail));
    }
}

/// Checks one container.
pub(super) fn check_container(container: &Value, field: &str, errors: &mut Vec<FieldError>) {
    if present(container, "/lifecycle/postStart") {
        let detail =
            "hooks after a start are not served yet: do the work in the component or an init container";
        errors.push(FieldError::forbidden(format!("{field}.lifecycle.postStart"), detail));
    }
    let at = format!("{field}.securityContext");
    let empty = Value::Null;
    let context = container.get("securityContext").unwrap_or(&empty);
    check_context(context, &at, errors);
    for key in ["privileged", "allowPrivilegeEscalation"] {
        if flag(context, &format!("/{key}")) {
            let detail =
                "a WebAssembly component runs in a sandbox that knows no privileges: leave the field out";
            errors.push(FieldError::forbidden(format!("{at}.{key}"), detail));
        }
    }
    if !list(context, "/capabilities/add").is_empty() {
        let detail = "a WebAssembly component has no Linux capabilities: leave the field out";
        errors.push(FieldError::forbidden(format!("{at}.capabilities.add"), detail));
    }
    if !matches!(text(context, "/procMount"), "" | "Default") {
        let detail = "a WebAssembly component has no /proc: leave the field out";
        errors.push(FieldError::forbidden(format!("{at}.procMount"), detail));
    }
    if !list(container, "/volumeDevices").is_empty() {
        let detail = "a WebAssembly component has no block devices: mount a volume instead";
        errors.push(FieldError::forbidden(format!("{field}.volumeDevices"), detail));
    }
    for (index, port) in list(container, "/ports").iter().enumerate() {
        if integer(port, "/hostPort").is_some_and(|port| port != 0) {
            let detail = "a pod does not use its node's ports: use a Service of type NodePort or an Ingress";
            errors.push(FieldError::forbidden(format!("{field}.ports[{index}].hostPort"), detail));
        }
    }
}

/// What the security contexts of pods and of containers share.
fn check_context(context: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for key in ["runAsUser", "runAsGroup"] {
        if present(context, &format!("/{key}")) {
            errors.push(FieldError::forbidden(format!("{field}.{key}"), NO_USERS));
        }
    }
    for key in ["seLinuxOptions", "windowsOptions"] {
        if present(context, &format!("/{key}")) {
            errors.push(FieldError::forbidden(format!("{field}.{key}"), NO_LABELS));
        }
    }
    for key in ["seccompProfile", "appArmorProfile"] {
        if !matches!(text(context, &format!("/{key}/type")), "" | "RuntimeDefault") {
            errors.push(FieldError::forbidden(format!("{field}.{key}"), NO_LABELS));
        }
    }
}
