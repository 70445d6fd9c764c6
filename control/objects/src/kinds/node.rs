//! Nodes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use crate::{
    field_error::{FIELD_ERRORS_MAX, FieldError},
    fields::{condition, default, entries, flag, list, present, text},
    kind::{Column, Native, Subresource},
    validate::{
        rules::{one_of, or_none},
        status::quantities,
        syntax::{ip_faults, label_value_faults, qualified_name_faults},
    },
};

pub(super) const NODE: Native = Native {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::status("", "Node")],
    schema: "io.k8s.api.core.v1.Node",
    columns: &[
        Column::name(),
        Column::text("Status", "The status of the node"),
        Column::text("Roles", "The roles of the node"),
        Column::age(),
        Column::text("Version", "The version of the node's agent"),
        Column::wide("Internal-IP", "The node's address within the cluster"),
        Column::wide("External-IP", "The node's address for the outside"),
        Column::wide("OS-Image", "The operating system that the node reports"),
        Column::wide("Kernel-Version", "The kernel that the node reports"),
        Column::wide("Container-Runtime", "The runtime of the node and its version"),
    ],
    cells,
    defaults: |object| {
        for part in ["spec", "status"] {
            default(object, part, Value::Object(serde_json::Map::new()));
        }
    },
    validate,
    validate_status,
    selectable_fields: &["spec.unschedulable"],
    registers_with_status: true,
    ..Native::BASE
};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = vec![match condition(object, "Ready") {
        Some(ready) if text(ready, "/status") == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if flag(object, "/spec/unschedulable") {
        status.push("SchedulingDisabled");
    }
    let address = |type_: &str| {
        let addresses = list(object, "/status/addresses");
        let found = addresses.iter().find(|address| text(address, "/type") == type_);
        or_none(found.map_or("", |address| text(address, "/address")))
    };
    let info = |key: &str| {
        let found = text(object, &format!("/status/nodeInfo/{key}"));
        if found.is_empty() { "<unknown>" } else { found }
    };
    vec![
        text(object, "/metadata/name").into(),
        status.join(",").into(),
        or_none(&roles(object)).into(),
        age(text(object, "/metadata/creationTimestamp"), now).into(),
        text(object, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

fn roles(object: &Value) -> String {
    let mut roles: Vec<&str> = entries(object, "/metadata/labels")
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, taint) in list(object, "/spec/taints").iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        let (key, effect) = (text(taint, "/key"), text(taint, "/effect"));
        for fault in qualified_name_faults(key) {
            errors.push(FieldError::invalid(format!("{field}.key"), key, fault));
        }
        let value = text(taint, "/value");
        for fault in label_value_faults(value) {
            errors.push(FieldError::invalid(format!("{field}.value"), value, fault));
        }
        if effect.is_empty() {
            errors.push(FieldError::required(format!("{field}.effect"), ""));
        } else {
            let effects = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(format!("{field}.effect"), effect, effects, &mut errors);
        }
        if !seen.insert((key, effect)) {
            let mut error = FieldError::duplicate(field, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    if let Some(old) = old {
        for key in ["podCIDR", "providerID"] {
            let path = format!("/spec/{key}");
            if present(old, &path) && text(old, &path) != text(object, &path) {
                errors.push(FieldError::forbidden(
                    format!("spec.{key}"),
                    "node updates may not change it once it is set",
                ));
            }
        }
    }
    errors
}

fn validate_status(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    quantities(object, "capacity", &mut errors);
    quantities(object, "allocatable", &mut errors);
    let mut seen = BTreeSet::new();
    for (index, entry) in list(object, "/status/addresses").iter().enumerate() {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        let field = format!("status.addresses[{index}]");
        let (type_, address) = (text(entry, "/type"), text(entry, "/address"));
        if type_.is_empty() {
            errors.push(FieldError::required(format!("{field}.type"), ""));
        }
        if address.is_empty() {
            errors.push(FieldError::required(format!("{field}.address"), ""));
        } else if matches!(type_, "InternalIP" | "ExternalIP") {
            let faults = ip_faults(address).into_iter();
            errors
                .extend(faults.map(|fault| FieldError::invalid(format!("{field}.address"), address, fault)));
        }
        if !seen.insert((type_, address)) {
            errors.push(FieldError::duplicate(field, entry.clone()));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::by_resource;

    #[test]
    fn rows() {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let node = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.33.0"}}});
        let expected = json!([
            "a",
            "Ready,SchedulingDisabled",
            "edge,worker",
            "60m",
            "v1.33.0",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>"
        ]);
        assert_eq!(Value::from(cells(&node, now)), expected);
        assert_eq!(cells(&json!({}), now)[1], "Unknown");
    }

    #[test]
    fn a_status_is_checked() {
        let faults = |status: Value| {
            let told = by_resource("nodes").unwrap().status_faults(&json!({ "status": status }), None);
            told.into_iter().map(|error| error.field).collect::<Vec<String>>()
        };
        let fine = json!({"allocatable": {"cpu": "1n", "memory": "9e18", "pods": "110", "example.com/gpu": "1"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fd00::1"},
                {"type": "Hostname", "address": "n1"}],
            "conditions": [{"type": "Ready", "status": "Unknown"}]});
        assert_eq!(faults(fine), [""; 0]);
        let bad = json!({"capacity": {"pods": "-5", "a b": "1", "cpu": "x"}, "allocatable": {"pods": "1.5", "memory": -1},
            "addresses": [{"type": "InternalIP", "address": "n1"}, {"address": "x"}, {"type": "Hostname"},
                {"type": "Hostname"}],
            "conditions": [{"type": "Ready", "status": "Maybe"}, {"type": "Ready", "status": "True"}]});
        expect_test::expect![[r#"
            status.capacity[pods]
            status.capacity[a b]
            status.capacity[cpu]
            status.allocatable[pods]
            status.allocatable[memory]
            status.addresses[0].address
            status.addresses[1].type
            status.addresses[2].address
            status.addresses[3].address
            status.addresses[3]
            status.conditions[0].status
            status.conditions[1]
        "#]]
        .assert_eq(&faults(bad).iter().map(|field| format!("{field}\n")).collect::<String>());
    }

    #[test]
    fn taints_are_checked() {
        let node = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"},
            {"key": "", "effect": "Never"}]}});
        let fields: Vec<String> = validate(&node, None).into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            ["spec.taints[1]", "spec.taints[2].key", "spec.taints[2].key", "spec.taints[2].effect"]
        );
    }
}
