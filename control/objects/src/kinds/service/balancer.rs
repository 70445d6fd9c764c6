//! What a Service says of traffic from outside, and of where traffic goes first.

use core::net::IpAddr;

use serde_json::Value;

use crate::{
    field_error::{FIELD_ERRORS_MAX, FieldError},
    fields::{integer, list, present, text},
    validate::{
        rules::one_of,
        syntax::{port_number_faults, qualified_name_faults},
    },
};

/// Fields that only some types of Service have. An update that changes the type and leaves them as they were drops them.
pub const OF_A_TYPE: [&str; 4] =
    ["allocateLoadBalancerNodePorts", "externalTrafficPolicy", "healthCheckNodePort", "loadBalancerClass"];

/// Whether a Service may have a field of [`OF_A_TYPE`].
pub fn takes(service: &Value, field: &str) -> bool {
    let type_ = text(service, "/spec/type");
    match field {
        "externalTrafficPolicy" => matches!(type_, "NodePort" | "LoadBalancer"),
        "healthCheckNodePort" => {
            type_ == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
        }
        _ => type_ == "LoadBalancer",
    }
}

pub fn check(object: &Value, type_: &str, errors: &mut Vec<FieldError>) {
    let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    let policies = ["Cluster", "Local"];
    for (field, values) in [
        ("trafficDistribution", known.as_slice()),
        ("internalTrafficPolicy", &policies),
        ("externalTrafficPolicy", &policies),
    ] {
        let value = text(object, &format!("/spec/{field}"));
        if present(object, &format!("/spec/{field}")) && !value.is_empty() {
            one_of(format!("spec.{field}"), value, values, errors);
        }
    }
    if !text(object, "/spec/externalTrafficPolicy").is_empty() && !takes(object, "externalTrafficPolicy") {
        let detail = "may only be set for externally-accessible services";
        let value = text(object, "/spec/externalTrafficPolicy");
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", value, detail));
    }
    let detail = "may only be used when `type` is 'LoadBalancer'";
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "loadBalancerSourceRanges"] {
        let given = object.pointer(&format!("/spec/{field}")).filter(|value| !value.is_null());
        if given.is_some_and(|value| value != &Value::Array(vec![])) && type_ != "LoadBalancer" {
            errors.push(FieldError::forbidden(format!("spec.{field}"), detail));
        }
    }
    if let Some(class) = object.pointer("/spec/loadBalancerClass").and_then(Value::as_str) {
        let faults = qualified_name_faults(class).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid("spec.loadBalancerClass", class, fault)));
    }
    for (index, range) in list(object, "/spec/loadBalancerSourceRanges").iter().enumerate() {
        if errors.len() >= FIELD_ERRORS_MAX {
            break;
        }
        let range = range.as_str().unwrap_or("");
        if !is_cidr(range.trim()) {
            let field = format!("spec.loadBalancerSourceRanges[{index}]");
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(field, range, detail));
        }
    }
    let Some(port) = integer(object, "/spec/healthCheckNodePort").filter(|port| *port != 0) else { return };
    if takes(object, "healthCheckNodePort") {
        let faults = port_number_faults(port).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid("spec.healthCheckNodePort", port, fault)));
    } else {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", port, detail));
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.bytes().all(|byte| byte.is_ascii_digit())
        && length.parse::<u8>().is_ok_and(|length| length <= most)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut errors = Vec::new();
        let type_ = text(&spec, "/type").to_owned();
        check(&json!({ "spec": spec }), &type_, &mut errors);
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn fields_of_traffic_are_checked() {
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000,
            "loadBalancerClass": "example.com/fast", "loadBalancerSourceRanges": ["10.0.0.0/8", " fd00::/64 "],
            "allocateLoadBalancerNodePorts": true, "trafficDistribution": "PreferClose"});
        assert_eq!(faults(local), [""; 0]);
        assert_eq!(faults(json!({"type": "ClusterIP", "internalTrafficPolicy": "Local"})), [""; 0]);
        for (spec, field) in [
            (json!({"type": "ClusterIP", "trafficDistribution": "Somewhere"}), "spec.trafficDistribution"),
            (json!({"type": "ClusterIP", "internalTrafficPolicy": "Here"}), "spec.internalTrafficPolicy"),
            (json!({"type": "ClusterIP", "externalTrafficPolicy": "Local"}), "spec.externalTrafficPolicy"),
            (json!({"type": "NodePort", "externalTrafficPolicy": "Here"}), "spec.externalTrafficPolicy"),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "a b"}), "spec.loadBalancerClass"),
            (json!({"type": "LoadBalancer", "loadBalancerClass": ""}), "spec.loadBalancerClass"),
            (json!({"type": "ClusterIP", "loadBalancerClass": "a"}), "spec.loadBalancerClass"),
            (
                json!({"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
                "spec.loadBalancerSourceRanges",
            ),
            (
                json!({"type": "ClusterIP", "allocateLoadBalancerNodePorts": false}),
                "spec.allocateLoadBalancerNodePorts",
            ),
            (
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "healthCheckNodePort": 30000}),
                "spec.healthCheckNodePort",
            ),
            (
                json!({"type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 1}),
                "spec.healthCheckNodePort",
            ),
        ] {
            let told = faults(spec.clone());
            assert!(told.contains(&field.to_owned()), "{spec}: {told:?}");
        }
        for range in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/+8", "10.0.0.0/", "fd00::/129"] {
            let told = faults(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [range]}));
            assert_eq!(told, ["spec.loadBalancerSourceRanges[0]"], "{range}");
        }
    }
}
