//! Services.

mod balancer;

use core::net::IpAddr;
use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;
use crate::{
    field_error::FieldError,
    fields::{child, default, default_text, elements, integer, list, text},
    kind::{Column, NameRule, Native, Subresource},
    support,
    validate::{
        meta::validate_labels,
        rules::{format_labels, one_of, or_none, port_or_name},
        syntax::{ip_faults, label_faults, port_number_faults, subdomain_faults},
    },
};

pub use balancer::{OF_A_TYPE, takes};

/// Seconds for which a client stays with an endpoint under `sessionAffinity: ClientIP`.
const AFFINITY_SECONDS: i64 = 10_800;
const AFFINITY_SECONDS_MAX: i64 = 86_400;
/// Families of a service that are looked at: there is one, and a second entry is a fault already.
const FAMILIES_SHOWN_MAX: usize = 3;
/// Ports of one service. Each becomes an entry of every slice of it, and several variables of pods beside it.
const PORTS_MAX: usize = 2000;

pub(super) const SERVICE: Native = Native {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::status("", "Service")],
    schema: "io.k8s.api.core.v1.Service",
    columns: &[
        Column::name(),
        Column::text("Type", "How the service is reached"),
        Column::text("Cluster-IP", "Its address within the cluster"),
        Column::text("External-IP", "Its addresses for the outside"),
        Column::text("Port(s)", "Its ports, with node ports"),
        Column::age(),
        Column::wide("Selector", "The labels of the pods that serve it"),
    ],
    cells,
    defaults,
    validate,
    warn: Some(warnings),
    selectable_fields: &["spec.clusterIP", "spec.type"],
    name_rule: NameRule::Label1035,
    ..Native::BASE
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        text(object, "/metadata/name").into(),
        text(object, "/spec/type").into(),
        or_none(text(object, "/spec/clusterIP")).into(),
        external(object).into(),
        ports(object).into(),
        age(text(object, "/metadata/creationTimestamp"), now).into(),
        format_labels(object, "/spec/selector").into(),
    ]
}

fn external(object: &Value) -> String {
    let given: Vec<&str> = list(object, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match text(object, "/spec/type") {
        "ExternalName" => text(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let points = list(object, "/status/loadBalancer/ingress").iter();
            let mut all: Vec<&str> = points
                .map(|point| match text(point, "/ip") {
                    "" => text(point, "/hostname"),
                    ip => ip,
                })
                .collect();
            all.extend(given);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => or_none(&given.join(",")).to_owned(),
    }
}

fn ports(object: &Value) -> String {
    let one = |port: &Value| {
        let (number, protocol) = (integer(port, "/port").unwrap_or(0), text(port, "/protocol"));
        match integer(port, "/nodePort").unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    };
    let all: Vec<String> = list(object, "/spec/ports").iter().map(one).collect();
    or_none(&all.join(",")).to_owned()
}

fn defaults(object: &mut Value) {
    if let Some(status) = child(object, "status") {
        default(status, "loadBalancer", json!({}));
    }
    let Some(spec) = child(object, "spec") else { return };
    default_text(spec, "sessionAffinity", "None");
    default_text(spec, "type", "ClusterIP");
    // As kube-apiserver does: an update that ends the affinity ends its settings.
    if text(spec, "/sessionAffinity") == "None"
        && let Some(spec) = spec.as_object_mut()
    {
        spec.shift_remove("sessionAffinityConfig");
    }
    if text(spec, "/sessionAffinity") == "ClientIP"
        && let Some(client) =
            child(spec, "sessionAffinityConfig").and_then(|config| child(config, "clientIP"))
    {
        default(client, "timeoutSeconds", AFFINITY_SECONDS);
    }
    let type_ = text(spec, "/type").to_owned();
    if type_ != "ExternalName" {
        default_text(spec, "internalTrafficPolicy", "Cluster");
        default_text(spec, "ipFamilyPolicy", "SingleStack");
        default(spec, "ipFamilies", json!(["IPv4"]));
        let address = text(spec, "/clusterIP").to_owned();
        if !address.is_empty() {
            default(spec, "clusterIPs", json!([address]));
        }
    }
    if matches!(type_.as_str(), "NodePort" | "LoadBalancer") {
        default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    for port in elements(spec, "ports") {
        default_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        if matches!(port.get("targetPort"), Some(Value::String(name)) if name.is_empty())
            || port.get("targetPort") == Some(&json!(0))
        {
            port["targetPort"] = Value::Null;
        }
        if number.is_number() {
            default(port, "targetPort", number);
        }
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let type_ = text(object, "/spec/type");
    one_of("spec.type", type_, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &mut errors);
    let address = text(object, "/spec/clusterIP");
    let headless = address == "None";
    if list(object, "/spec/ports").is_empty() && !headless && type_ != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    check_type(object, type_, address, &mut errors);
    balancer::check(object, type_, &mut errors);
    support::refuse(&support::SERVICE, &object["spec"], "spec", &mut errors);
    errors.extend(service_address_errors(object));
    validate_labels(object, "/spec/selector", "spec.selector", &mut errors);
    one_of("spec.sessionAffinity", text(object, "/spec/sessionAffinity"), &["ClientIP", "None"], &mut errors);
    let seconds = integer(object, "/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    if let Some(seconds) = seconds.filter(|seconds| !(1..=AFFINITY_SECONDS_MAX).contains(seconds)) {
        let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        errors.push(FieldError::invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            detail,
        ));
    }
    let mut families = BTreeSet::new();
    for (index, family) in list(object, "/spec/ipFamilies").iter().take(FAMILIES_SHOWN_MAX).enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        let family = family.as_str().unwrap_or("");
        one_of(field.as_str(), family, &["IPv4"], &mut errors);
        if !families.insert(family) {
            errors.push(FieldError::duplicate(field, family));
        }
    }
    if text(object, "/spec/ipFamilyPolicy") == "RequireDualStack" {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", "RequireDualStack", detail));
    }
    check_ports(object, type_, &mut errors);
    if let Some(old) = old {
        let before = text(old, "/spec/clusterIP");
        let released = type_ == "ExternalName" || text(old, "/spec/type") == "ExternalName";
        if !before.is_empty() && before != address && !released {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", address, "may not change once set"));
        }
    }
    errors
}

fn check_type(object: &Value, type_: &str, address: &str, errors: &mut Vec<FieldError>) {
    match type_ {
        "ExternalName" => {
            let name = text(object, "/spec/externalName");
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                let faults = subdomain_faults(name.trim_end_matches('.'));
                errors.extend(
                    faults.into_iter().map(|fault| FieldError::invalid("spec.externalName", name, fault)),
                );
            }
        }
        "NodePort" | "LoadBalancer" if address == "None" => {
            let detail = format!("may not be set to 'None' for {type_} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", address, detail));
        }
        _ => {}
    }
}

/// What of a service has no effect. Its node ports are those that it was given.
fn warnings(object: &Value) -> Vec<String> {
    let mut warnings = support::warnings(&support::SERVICE, &object["spec"], "spec");
    for (index, port) in list(object, "/spec/ports").iter().enumerate() {
        if text(port, "/protocol") == "UDP" && integer(port, "/nodePort").is_some_and(|number| number != 0) {
            warnings.push(format!(
                "spec.ports[{index}].nodePort: has no effect: node ports of UDP are not served yet"
            ));
            break;
        }
    }
    warnings
}

/// A service has one address, of this cluster's family, by both of its names; an external one has none by either:
/// whoever could write one down would have the traffic to it sent his way.
pub fn service_address_errors(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (type_, address) = (text(object, "/spec/type"), text(object, "/spec/clusterIP"));
    let all = list(object, "/spec/clusterIPs");
    if type_ == "ExternalName" {
        if !address.is_empty() || !all.is_empty() {
            let detail = "may not be set when `type` is 'ExternalName'";
            errors.push(FieldError::forbidden("spec.clusterIPs", detail));
        }
        return errors;
    }
    if all.len() > 1 {
        let detail = "this cluster has addresses of one family: at most one can be given";
        errors.push(FieldError::invalid("spec.clusterIPs", all.to_vec(), detail));
    }
    if all.first().is_some_and(|first| first.as_str().unwrap_or("") != address) {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid("spec.clusterIPs[0]", all[0].clone(), detail));
    }
    if address.is_empty() || address == "None" {
        return errors;
    }
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => {}
        Ok(IpAddr::V6(_)) => {
            let detail = "this cluster has IPv4 service addresses only";
            errors.push(FieldError::invalid("spec.clusterIPs[0]", address, detail));
        }
        Err(_) => {
            let faults = ip_faults(address).into_iter();
            errors.extend(faults.map(|fault| FieldError::invalid("spec.clusterIPs[0]", address, fault)));
        }
    }
    errors
}

fn check_ports(object: &Value, type_: &str, errors: &mut Vec<FieldError>) {
    let ports = list(object, "/spec/ports");
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many("spec.ports", ports.len(), PORTS_MAX));
        return;
    }
    let mut known = Known::default();
    for (index, port) in ports.iter().enumerate() {
        check_port(port, &format!("spec.ports[{index}]"), ports.len() == 1, type_, &mut known, errors);
    }
}

/// What the ports before have taken.
#[derive(Default)]
struct Known<'a> {
    names: BTreeSet<&'a str>,
    numbers: BTreeSet<(i64, &'a str)>,
    node_ports: BTreeSet<(i64, &'a str)>,
}

fn check_port<'a>(
    port: &'a Value,
    field: &str,
    alone: bool,
    type_: &str,
    known: &mut Known<'a>,
    errors: &mut Vec<FieldError>,
) {
    let name = text(port, "/name");
    if name.is_empty() {
        if !alone {
            errors.push(FieldError::required(format!("{field}.name"), ""));
        }
    } else {
        for fault in label_faults(name) {
            errors.push(FieldError::invalid(format!("{field}.name"), name, fault));
        }
        if !known.names.insert(name) {
            errors.push(FieldError::duplicate(format!("{field}.name"), name));
        }
    }
    let number = integer(port, "/port").unwrap_or(0);
    for fault in port_number_faults(number) {
        errors.push(FieldError::invalid(format!("{field}.port"), number, fault));
    }
    let protocol = text(port, "/protocol");
    one_of(format!("{field}.protocol"), protocol, &["SCTP", "TCP", "UDP"], errors);
    port_or_name(port.get("targetPort"), &format!("{field}.targetPort"), errors);
    if !known.numbers.insert((number, protocol)) {
        errors.push(FieldError::duplicate(field, json!({"port": number, "protocol": protocol})));
    }
    let Some(node_port) = integer(port, "/nodePort").filter(|port| *port != 0) else { return };
    let at = format!("{field}.nodePort");
    if matches!(type_, "ClusterIP" | "ExternalName") {
        errors.push(FieldError::forbidden(at, format!("may not be used when `type` is '{type_}'")));
        return;
    }
    let faults = port_number_faults(node_port);
    errors.extend(faults.into_iter().map(|fault| FieldError::invalid(at.clone(), node_port, fault)));
    if !known.node_ports.insert((node_port, protocol)) {
        errors.push(FieldError::duplicate(at, node_port));
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "a"}, "spec": spec});
        defaults(&mut service);
        service
    }

    #[test]
    fn a_service_is_filled_in() {
        let service = service(json!({"ports": [{"port": 80}], "type": "NodePort"}));
        let expected = json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "NodePort",
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]});
        assert_eq!(service["spec"], expected);
        assert_eq!(service["status"], json!({"loadBalancer": {}}));
        assert_eq!(validate(&service, None), []);
    }

    #[test]
    fn rows() {
        let row = |mut spec: Value| {
            spec["ports"] = json!([{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]);
            Value::from(cells(&service(spec), Timestamp::UNIX_EPOCH))
        };
        let ports = "80:30080/TCP,53/UDP";
        assert_eq!(
            row(json!({"clusterIP": "10.96.0.1", "selector": {"b": "2", "a": "1"}})),
            json!(["a", "ClusterIP", "10.96.0.1", "<none>", ports, "<unknown>", "a=1,b=2"])
        );
        assert_eq!(row(json!({"type": "LoadBalancer"}))[3], "<pending>");
        assert_eq!(row(json!({"type": "ExternalName", "externalName": "x.y"}))[3], "x.y");
    }

    #[test]
    fn services_are_checked() {
        let old = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        let new = service(json!({"clusterIP": "10.96.0.2", "type": "ClusterIP", "externalIPs": ["1.2.3.4"],
            "ports": [{"port": 0, "name": "a"}, {"port": 80, "nodePort": 30000, "name": "a", "protocol": "SCTP"}, {"port": 80, "protocol": "SCTP", "targetPort": "A"}]}));
        let text: String = validate(&new, Some(&old)).iter().map(|error| format!("{error}\n")).collect();
        expect![[r#"
            spec.externalIPs: Forbidden: service addresses exist only in the cluster's virtual network: reach the service from outside by a NodePort or an Ingress
            spec.ports[1].protocol: Forbidden: components have no SCTP sockets: say TCP or UDP
            spec.ports[2].protocol: Forbidden: components have no SCTP sockets: say TCP or UDP
            spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.ports[1].name: Duplicate value: "a"
            spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'
            spec.ports[2].name: Required value
            spec.ports[2].targetPort: Invalid value: "A": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
            spec.ports[2].targetPort: Invalid value: "A": must contain at least one letter (a-z)
            spec.ports[2]: Duplicate value: {"port":80,"protocol":"SCTP"}
            spec.clusterIPs[0]: Invalid value: "10.96.0.2": may not change once set
        "#]]
        .assert_eq(&text);
        assert_eq!(validate(&service(json!({})), None)[0].field, "spec.ports");
        assert_eq!(validate(&service(json!({"clusterIP": "None"})), None), []);
    }

    fn faults(service: &Value) -> Vec<String> {
        validate(service, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_external_service_has_no_address() {
        let with = |field: &str, value: Value| {
            let mut service = service(json!({"type": "ExternalName", "externalName": "a.b"}));
            service["spec"][field] = value;
            faults(&service)
        };
        let refused = ["spec.clusterIPs: Forbidden: may not be set when `type` is 'ExternalName'"];
        assert_eq!(with("clusterIPs", json!(["10.96.0.1"])), refused);
        assert_eq!(with("clusterIP", json!("10.96.0.1")), refused);
        assert_eq!(with("clusterIP", json!("")), [""; 0]);
    }

    #[test]
    fn an_address_is_one_and_of_our_family() {
        let with = |address: &str, all: Value| {
            faults(&service(json!({"clusterIP": address, "clusterIPs": all, "ports": [{"port": 80}]})))
        };
        assert_eq!(with("10.96.0.1", json!(["10.96.0.1"])), [""; 0]);
        assert_eq!(
            with("fd00::1", json!(["fd00::1"])),
            [r#"spec.clusterIPs[0]: Invalid value: "fd00::1": this cluster has IPv4 service addresses only"#]
        );
        for mapped in ["::ffff:10.96.0.1", "10.096.0.1", "10.96.0.1 "] {
            assert_eq!(with(mapped, json!([mapped])).len(), 1, "{mapped}");
        }
        assert!(with("", json!(["10.96.0.1"]))[0].contains("first value must match `clusterIP`"));
        assert!(with("10.96.0.1", json!(["10.96.0.1", "10.96.0.2"]))[0].contains("at most one can be given"));
    }

    #[test]
    fn an_affinity_that_ends_has_no_settings() {
        let config = json!({"clientIP": {"timeoutSeconds": 60}});
        let with = |affinity: &str| {
            let spec = json!({"sessionAffinity": affinity, "sessionAffinityConfig": config, "ports": [{"port": 80}]});
            service(spec)["spec"].get("sessionAffinityConfig").cloned()
        };
        assert_eq!((with("ClientIP"), with("None")), (Some(config.clone()), None));
    }

    #[test]
    fn a_family_is_named_once() {
        let with =
            |families: Value| faults(&service(json!({"ipFamilies": families, "ports": [{"port": 80}]})));
        assert_eq!(with(json!(["IPv4"])), [""; 0]);
        assert_eq!(with(json!(["IPv4", "IPv4"])), [r#"spec.ipFamilies[1]: Duplicate value: "IPv4""#]);
    }

    #[test]
    fn the_number_of_ports_is_bounded() {
        let with = |count: usize| {
            let port = |at: usize| json!({"name": format!("p{at}"), "port": at + 1, "targetPort": "http"});
            faults(&service(json!({"ports": (0..count).map(port).collect::<Vec<_>>()})))
        };
        assert_eq!(with(PORTS_MAX), [""; 0]);
        assert_eq!(with(20_000), ["spec.ports: Too many: 20000: must have at most 2000 items"]);
    }
}
