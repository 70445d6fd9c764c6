//! Validation of a pod's spec, alone or within a workload's template.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{affinity, container, names::Names, volume};
use crate::{
    field_error::FieldError,
    fields::{entries, integer, list, present, text},
    support::{self, POD_SPEC},
    validate::{
        rules::{not_negative, one_of},
        syntax::{label_faults, label_value_faults, qualified_name_faults, subdomain_faults},
    },
};

/// Where a pod's spec stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kinds) enum Place {
    Pod,
    /// In a workload whose pods must run for ever.
    LastingTemplate,
}

const SECONDS_MAX: i64 = i32::MAX as i64;

/// Checks the spec at `field` (`spec`, `spec.template.spec`).
pub(in crate::kinds) fn validate_spec(spec: &Value, field: &str, place: Place, errors: &mut Vec<FieldError>) {
    let known = Names::of(spec);
    volume::validate(spec, field, &known, errors);
    container::validate_all(spec, field, &known, errors);
    lifetime(spec, field, place, errors);
    let dns = text(spec, "/dnsPolicy");
    let policies = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(format!("{field}.dnsPolicy"), dns, policies, errors);
    let preemption = text(spec, "/preemptionPolicy");
    if !preemption.is_empty() {
        let policies = &["Never", "PreemptLowerPriority"];
        one_of(format!("{field}.preemptionPolicy"), preemption, policies, errors);
    }
    names(spec, field, errors);
    for (key, value) in entries(spec, "/nodeSelector") {
        let at = format!("{field}.nodeSelector");
        errors.extend(
            qualified_name_faults(key).into_iter().map(|fault| FieldError::invalid(&at, key.as_str(), fault)),
        );
        let value = value.as_str().unwrap_or("");
        errors.extend(
            label_value_faults(value).into_iter().map(|fault| FieldError::invalid(&at, value, fault)),
        );
    }
    for (index, toleration) in list(spec, "/tolerations").iter().enumerate() {
        check_toleration(toleration, &format!("{field}.tolerations[{index}]"), errors);
    }
    affinity::check(spec, field, errors);
    gates(spec, field, errors);
    support::refuse(&POD_SPEC, spec, field, errors);
}

fn lifetime(spec: &Value, field: &str, place: Place, errors: &mut Vec<FieldError>) {
    let policy = text(spec, "/restartPolicy");
    let at = format!("{field}.restartPolicy");
    match place {
        Place::Pod if policy.is_empty() => errors.push(FieldError::required(at, "")),
        Place::Pod => one_of(at, policy, &["Always", "OnFailure", "Never"], errors),
        Place::LastingTemplate => one_of(at, policy, &["Always"], errors),
    }
    not_negative(
        spec,
        "/terminationGracePeriodSeconds",
        format!("{field}.terminationGracePeriodSeconds"),
        errors,
    );
    if let Some(seconds) = integer(spec, "/activeDeadlineSeconds") {
        let at = format!("{field}.activeDeadlineSeconds");
        if place == Place::LastingTemplate {
            errors.push(FieldError::forbidden(
                at,
                "activeDeadlineSeconds in a template whose pods run for ever is not supported",
            ));
        } else if !(1..=SECONDS_MAX).contains(&seconds) {
            let detail = format!("must be between 1 and {SECONDS_MAX}, inclusive");
            errors.push(FieldError::invalid(at, seconds, detail));
        }
    }
}

fn names(spec: &Value, field: &str, errors: &mut Vec<FieldError>) {
    type Check = fn(&str) -> Vec<String>;
    let checks: [(&str, Check); 6] = [
        ("nodeName", subdomain_faults),
        ("serviceAccountName", subdomain_faults),
        ("priorityClassName", subdomain_faults),
        ("runtimeClassName", subdomain_faults),
        ("hostname", label_faults),
        ("subdomain", label_faults),
    ];
    for (key, check) in checks {
        let name = text(spec, &format!("/{key}"));
        if !name.is_empty() {
            let at = format!("{field}.{key}");
            errors.extend(check(name).into_iter().map(|fault| FieldError::invalid(&at, name, fault)));
        }
    }
}

fn check_toleration(toleration: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let (key, value) = (text(toleration, "/key"), text(toleration, "/value"));
    let operator = text(toleration, "/operator");
    let effect = text(toleration, "/effect");
    if key.is_empty() {
        if operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{field}.operator"), operator, detail));
        }
    } else {
        let at = format!("{field}.key");
        errors
            .extend(qualified_name_faults(key).into_iter().map(|fault| FieldError::invalid(&at, key, fault)));
    }
    match operator {
        "" | "Equal" => {
            let at = format!("{field}.operator");
            errors.extend(
                label_value_faults(value).into_iter().map(|fault| FieldError::invalid(&at, value, fault)),
            );
        }
        "Exists" if !value.is_empty() => {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(format!("{field}.operator"), value, detail));
        }
        "Exists" => {}
        other => {
            errors.push(FieldError::not_supported(format!("{field}.operator"), other, &["Equal", "Exists"]))
        }
    }
    if !effect.is_empty() {
        let effects = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
        one_of(format!("{field}.effect"), effect, effects, errors);
    }
    if present(toleration, "/tolerationSeconds") && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(format!("{field}.effect"), effect, detail));
    }
}

fn gates(spec: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for (index, gate) in list(spec, "/readinessGates").iter().enumerate() {
        let name = text(gate, "/conditionType");
        let at = format!("{field}.readinessGates[{index}].conditionType");
        errors.extend(
            qualified_name_faults(name).into_iter().map(|fault| FieldError::invalid(&at, name, fault)),
        );
    }
    let gates = list(spec, "/schedulingGates");
    let mut names = BTreeSet::new();
    for (index, gate) in gates.iter().enumerate() {
        let name = text(gate, "/name");
        let at = format!("{field}.schedulingGates[{index}]");
        errors.extend(
            qualified_name_faults(name).into_iter().map(|fault| FieldError::invalid(&at, name, fault)),
        );
        if !names.insert(name) {
            errors.push(FieldError::duplicate(at, name));
        }
    }
    if !gates.is_empty() && !text(spec, "/nodeName").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(format!("{field}.nodeName"), detail));
    }
}
