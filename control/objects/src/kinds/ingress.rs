//! networking.k8s.io: Ingresses, IngressClasses and the allocations of service addresses.

mod class;
mod held;

use jiff::Timestamp;
use serde_json::Value;

pub use class::{
    GATEWAY_CONTROLLER, INGRESS_CLASSES, INGRESSES, ingress_class, is_for_gateways, is_gateway_class,
};
pub use held::{hosts_since, note_hosts};

use super::age;
use crate::{
    field_error::FieldError,
    fields::{child, default_text, integer, list, present, text},
    kind::{Column, NameRule, Native, Subresource},
    support,
    validate::{
        rules::{immutable, one_of, or_none},
        syntax::{
            label_1035_faults, port_name_faults, port_number_faults, subdomain_faults, wildcard_faults,
        },
    },
};

const GROUP: &str = "networking.k8s.io";

pub(super) const INGRESS: Native = Native {
    group: GROUP,
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    subresources: &[Subresource::status(GROUP, "Ingress")],
    schema: "io.k8s.api.networking.v1.Ingress",
    columns: &[
        Column::name(),
        Column::text("Class", "The class of gateways that serve it"),
        Column::text("Hosts", "The hosts that it answers for"),
        Column::text("Address", "Where the gateway listens"),
        Column::text("Ports", "80; certificates are not served yet"),
        Column::age(),
    ],
    cells,
    validate,
    warn: Some(|object| support::warnings(&support::INGRESS, &object["spec"], "spec")),
    generational: &["spec"],
    ..Native::BASE
};

pub(super) const INGRESS_CLASS: Native = Native {
    group: GROUP,
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    namespaced: false,
    schema: "io.k8s.api.networking.v1.IngressClass",
    columns: &[
        Column::name(),
        Column::text("Controller", "Who serves ingresses of this class"),
        Column::text("Parameters", "The object that configures it"),
        Column::age(),
    ],
    cells: class_cells,
    defaults: |object| {
        if present(object, "/spec/parameters")
            && let Some(parameters) = child(object, "spec").and_then(|spec| child(spec, "parameters"))
        {
            default_text(parameters, "scope", "Cluster");
        }
    },
    validate: |object, old| {
        let mut errors = Vec::new();
        let controller = text(object, "/spec/controller");
        if controller.is_empty() {
            errors.push(FieldError::required("spec.controller", ""));
        }
        if let Some(old) = old {
            immutable(object, old, "/spec/controller", &mut errors);
        }
        errors
    },
    generational: &["spec"],
    ..Native::BASE
};

/// The claim of one service address; its name is the address.
pub(super) const IP_ADDRESS: Native = Native {
    group: GROUP,
    kind: "IPAddress",
    plural: "ipaddresses",
    singular: "ipaddress",
    short_names: &["ip"],
    namespaced: false,
    schema: "io.k8s.api.networking.v1.IPAddress",
    columns: &[Column::name(), Column::text("ParentRef", "Who has the address"), Column::age()],
    cells: |object, now| {
        let part = |key: &str| text(object, &format!("/spec/parentRef/{key}")).to_owned();
        let parts = [part("resource"), part("group"), part("namespace"), part("name")];
        let resource =
            if parts[1].is_empty() { parts[0].clone() } else { format!("{}.{}", parts[0], parts[1]) };
        let parent: Vec<&str> = [&resource, &parts[2], &parts[3]]
            .into_iter()
            .map(String::as_str)
            .filter(|part| !part.is_empty())
            .collect();
        vec![name(object), or_none(&parent.join("/")).into(), created(object, now)]
    },
    validate: |object, old| {
        let mut errors = Vec::new();
        for key in ["resource", "name"] {
            if text(object, &format!("/spec/parentRef/{key}")).is_empty() {
                errors.push(FieldError::required(format!("spec.parentRef.{key}"), ""));
            }
        }
        if let Some(old) = old {
            immutable(object, old, "/spec/parentRef", &mut errors);
        }
        errors
    },
    name_rule: NameRule::IpAddress,
    ..Native::BASE
};

fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}

fn created(object: &Value, now: Timestamp) -> Value {
    age(text(object, "/metadata/creationTimestamp"), now).into()
}

fn class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let part = |key: &str| text(object, &format!("/spec/parameters/{key}"));
    let kind = match (part("kind"), part("apiGroup")) {
        (kind, "") => kind.to_owned(),
        (kind, group) => format!("{kind}.{group}"),
    };
    let parameters =
        if present(object, "/spec/parameters") { format!("{kind}/{}", part("name")) } else { String::new() };
    vec![
        name(object),
        text(object, "/spec/controller").into(),
        or_none(&parameters).into(),
        created(object, now),
    ]
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut hosts: Vec<&str> = list(object, "/spec/rules")
        .iter()
        .map(|rule| text(rule, "/host"))
        .filter(|host| !host.is_empty())
        .collect();
    let more = hosts.len().saturating_sub(3);
    hosts.truncate(3);
    let hosts = match (hosts.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, 0) => hosts.join(","),
        (false, more) => format!("{} + {more} more...", hosts.join(",")),
    };
    let addresses: Vec<&str> = list(object, "/status/loadBalancer/ingress")
        .iter()
        .map(|point| match text(point, "/ip") {
            "" => text(point, "/hostname"),
            ip => ip,
        })
        .collect();
    vec![
        name(object),
        or_none(ingress_class(object).unwrap_or_default()).into(),
        hosts.into(),
        addresses.join(",").into(),
        "80".into(),
        created(object, now),
    ]
}

fn validate(object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let rules = list(object, "/spec/rules");
    if rules.is_empty() && !present(object, "/spec/defaultBackend") {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", Value::Null, detail));
    }
    if let Some(backend) = object.pointer("/spec/defaultBackend").filter(|backend| !backend.is_null()) {
        check_backend(backend, "spec.defaultBackend", &mut errors);
    }
    let class = text(object, "/spec/ingressClassName");
    if !class.is_empty() {
        for fault in subdomain_faults(class) {
            errors.push(FieldError::invalid("spec.ingressClassName", class, fault));
        }
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        let host = text(rule, "/host");
        check_host(host, &format!("{field}.host"), &mut errors);
        let paths = list(rule, "/http/paths");
        if present(rule, "/http") && paths.is_empty() {
            errors.push(FieldError::required(format!("{field}.http.paths"), ""));
        }
        for (index, path) in paths.iter().enumerate() {
            check_path(path, &format!("{field}.http.paths[{index}]"), &mut errors);
        }
    }
    for (index, tls) in list(object, "/spec/tls").iter().enumerate() {
        for (at, host) in list(tls, "/hosts").iter().enumerate() {
            check_host(host.as_str().unwrap_or(""), &format!("spec.tls[{index}].hosts[{at}]"), &mut errors);
        }
        let secret = text(tls, "/secretName");
        if !secret.is_empty() {
            let field = format!("spec.tls[{index}].secretName");
            errors.extend(
                subdomain_faults(secret).into_iter().map(|fault| FieldError::invalid(&field, secret, fault)),
            );
        }
    }
    support::refuse(&support::INGRESS, &object["spec"], "spec", &mut errors);
    errors
}

fn check_host(host: &str, field: &str, errors: &mut Vec<FieldError>) {
    if host.is_empty() {
        return;
    }
    if host.parse::<core::net::IpAddr>().is_ok() {
        errors.push(FieldError::invalid(field, host, "must be a DNS name, not an IP address"));
        return;
    }
    let faults = if host.contains('*') { wildcard_faults(host) } else { subdomain_faults(host) };
    errors.extend(faults.into_iter().map(|fault| FieldError::invalid(field, host, fault)));
}

fn check_path(path: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let type_ = text(path, "/pathType");
    if type_.is_empty() {
        errors.push(FieldError::required(format!("{field}.pathType"), "pathType must be specified"));
    } else {
        let types = &["Exact", "ImplementationSpecific", "Prefix"];
        one_of(format!("{field}.pathType"), type_, types, errors);
    }
    let value = text(path, "/path");
    let at = format!("{field}.path");
    let left_out = value.is_empty() && type_ == "ImplementationSpecific";
    if !left_out && !value.starts_with('/') {
        errors.push(FieldError::invalid(&at, value, "must be an absolute path"));
    }
    if matches!(type_, "Exact" | "Prefix") {
        for part in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|part| value.contains(part)) {
            errors.push(FieldError::invalid(&at, value, format!("must not contain '{part}'")));
        }
        for end in ["/..", "/."].into_iter().filter(|end| value.ends_with(end)) {
            errors.push(FieldError::invalid(&at, value, format!("cannot end with '{end}'")));
        }
    }
    match path.get("backend") {
        Some(backend) if backend.is_object() => check_backend(backend, &format!("{field}.backend"), errors),
        _ => errors.push(FieldError::required(format!("{field}.backend"), "")),
    }
}

fn check_backend(backend: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let (service, resource) = (present(backend, "/service"), present(backend, "/resource"));
    if service && resource {
        let detail = "cannot set both resource and service backends";
        errors.push(FieldError::invalid(field, backend.clone(), detail));
        return;
    }
    if resource {
        return;
    }
    if !service {
        errors.push(FieldError::required(field, "resource or service backend is required"));
        return;
    }
    let name = text(backend, "/service/name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{field}.service.name"), ""));
    } else {
        for fault in label_1035_faults(name) {
            errors.push(FieldError::invalid(format!("{field}.service.name"), name, fault));
        }
    }
    let (port_name, number) =
        (text(backend, "/service/port/name"), integer(backend, "/service/port/number").unwrap_or(0));
    let faults = match (port_name, number) {
        ("", 0) => {
            errors.push(FieldError::required(field, "port name or number is required"));
            return;
        }
        ("", number) => port_number_faults(number),
        (_, 1..) => vec!["cannot set both port name & port number".to_owned()],
        (name, _) => port_name_faults(name),
    };
    let value = if port_name.is_empty() { Value::from(number) } else { port_name.into() };
    errors.extend(
        faults
            .into_iter()
            .map(|fault| FieldError::invalid(format!("{field}.service.port"), value.clone(), fault)),
    );
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let now = Timestamp::UNIX_EPOCH;
        let ingress = json!({"metadata": {"name": "a"}, "spec": {"ingressClassName": "coracle", "tls": [{}],
            "rules": [{"host": "a.example"}, {"host": "b.example"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}});
        let expected = json!(["a", "coracle", "a.example,b.example", "127.0.0.1", "80", "<unknown>"]);
        assert_eq!(Value::from(cells(&ingress, now)), expected);
        assert_eq!(cells(&json!({}), now)[2], "*");
        let address = json!({"spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "a"}}});
        assert_eq!((IP_ADDRESS.cells)(&address, now)[1], "services/n/a");
    }

    #[test]
    fn ingresses_are_checked() {
        let good = json!({"spec": {"rules": [{"host": "*.a.example", "http": {"paths": [{"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": "a", "port": {"number": 80}}}}]}}]}});
        assert_eq!(validate(&good, None), []);
        let bad = json!({"spec": {"rules": [{"host": "10.0.0.1", "http": {"paths": [
            {"path": "x//y", "pathType": "Prefix", "backend": {"service": {"name": "a", "port": {}}}},
            {"pathType": "Some"}]}}]}});
        let text: String = validate(&bad, None).iter().map(|error| format!("{error}\n")).collect();
        expect![[r#"
            spec.rules[0].host: Invalid value: "10.0.0.1": must be a DNS name, not an IP address
            spec.rules[0].http.paths[0].path: Invalid value: "x//y": must be an absolute path
            spec.rules[0].http.paths[0].path: Invalid value: "x//y": must not contain '//'
            spec.rules[0].http.paths[0].backend: Required value: port name or number is required
            spec.rules[0].http.paths[1].pathType: Unsupported value: "Some": supported values: "Exact", "ImplementationSpecific", "Prefix"
            spec.rules[0].http.paths[1].path: Invalid value: "": must be an absolute path
            spec.rules[0].http.paths[1].backend: Required value
        "#]]
        .assert_eq(&text);
    }
}
