//! Pods.

mod affinity;
mod columns;
mod container;
mod defaults;
mod environment;
mod names;
mod probe;
mod qos;
mod reference;
mod resources;
mod spec;
mod status;
mod update;
mod volume;
mod warnings;

use serde_json::Value;

use crate::{
    admission::find_account,
    field_error::FieldError,
    fields::{child, default, default_text, elements, text},
    kind::{Column, Endpoint, Native, Subresource},
};

pub(super) use defaults::{spec_defaults, template_defaults};
pub use qos::qos_class;
pub(super) use spec::{Place, validate_spec};
pub(super) use warnings::of_spec as spec_warnings;

pub(super) const POD: Native = Native {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::status("", "Pod"),
        Subresource::new(Endpoint::Log, "", "Pod", &["get"]),
        Subresource::new(Endpoint::Binding, "", "Binding", &["create"]),
    ],
    schema: "io.k8s.api.core.v1.Pod",
    columns: &[
        Column::name(),
        Column::text("Ready", "How many of its containers are ready"),
        Column::text("Status", "Where the pod stands"),
        Column::text("Restarts", "How often its containers were restarted, and when last"),
        Column::age(),
        Column::wide("IP", "The pod's address"),
        Column::wide("Node", "The node that runs it"),
        Column::wide("Nominated Node", "The node on which room is being made for it"),
        Column::wide("Readiness Gates", "How many of its readiness gates are open"),
    ],
    cells: columns::cells,
    defaults: pod_defaults,
    validate,
    validate_status: status::validate,
    warn: Some(|object| warnings::of_spec(&object["spec"], "spec")),
    selectable_fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    generational: &["spec"],
    admit: find_account,
    graceful: true,
    ..Native::BASE
};

/// No tolerations are added for nodes that are not ready: the pods of a lost node are replaced once it counts as lost.
fn pod_defaults(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    for key in ["containers", "initContainers"] {
        for container in elements(spec, key) {
            resources::requests_from_limits(container);
        }
    }
    default(spec, "enableServiceLinks", true);
    let account = text(spec, "/serviceAccount").to_owned();
    default_text(spec, "serviceAccountName", if account.is_empty() { "default" } else { &account });
    let account = spec["serviceAccountName"].clone();
    spec["serviceAccount"] = account;
    default(spec, "priority", 0);
    default_text(spec, "preemptionPolicy", "PreemptLowerPriority");
    spec_defaults(spec);
    let class = qos_class(spec);
    let is_gated =
        spec.get("schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty());
    if let Some(status) = child(object, "status") {
        default_text(status, "phase", "Pending");
        default_text(status, "qosClass", class);
        if is_gated {
            status::gated(status);
        }
        status::one_address(status);
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let empty = Value::Null;
    let spec = object.get("spec").unwrap_or(&empty);
    let mut errors = Vec::new();
    validate_spec(spec, "spec", Place::Pod, &mut errors);
    if let Some(old) = old {
        update::check(spec, old.get("spec").unwrap_or(&empty), &mut errors);
    }
    errors
}

#[cfg(test)]
mod tests;
