//! Endpoints and EndpointSlices: where a service's traffic goes.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use crate::{
    field_error::FieldError,
    fields::{default, default_text, elements, integer, list, text},
    registry::{Column, Kind},
    validate::{
        rules::{immutable, one_of, or_none},
        syntax::{ip_faults, label_faults, port_number_faults, subdomain_faults},
    },
};

/// How many addresses or ports a cell shows.
const SHOWN_MAX: usize = 3;
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;

pub(super) const ENDPOINTS: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    columns: &[Column::name(), Column::text("Endpoints", "The addresses that are ready"), Column::age()],
    cells: |object, now| {
        vec![
            text(object, "/metadata/name").into(),
            endpoints(object).into(),
            age(text(object, "/metadata/creationTimestamp"), now).into(),
        ]
    },
    defaults: |object| {
        for port in elements(object, "subsets").flat_map(|subset| elements(subset, "ports")) {
            default_text(port, "protocol", "TCP");
        }
    },
    validate: validate_endpoints,
    ..Kind::BASE
};

pub(super) const ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    columns: &[
        Column::name(),
        Column::text("AddressType", "IPv4, IPv6 or FQDN"),
        Column::text("Ports", "The ports of all its endpoints"),
        Column::text("Endpoints", "The addresses"),
        Column::age(),
    ],
    cells: slice_cells,
    defaults: |object| {
        for port in elements(object, "ports") {
            default(port, "name", "");
            default_text(port, "protocol", "TCP");
        }
    },
    validate: validate_slice,
    generational: &["addressType", "endpoints", "ports"],
    ..Kind::BASE
};

fn shown(all: &[String]) -> String {
    let shown = all[..all.len().min(SHOWN_MAX)].join(",");
    match all.len().saturating_sub(SHOWN_MAX) {
        0 => or_none(&shown).to_owned(),
        more => format!("{shown} + {more} more..."),
    }
}

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(object, "/subsets") {
        let ports = list(subset, "/ports");
        for address in list(subset, "/addresses") {
            let address = text(address, "/ip");
            if ports.is_empty() {
                all.push(address.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{address}:{}", integer(port, "/port").unwrap_or(0))));
        }
    }
    shown(&all)
}

fn slice_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let port = |port: &Value| integer(port, "/port").map_or_else(|| "*".to_owned(), |port| port.to_string());
    let ports: Vec<String> = list(object, "/ports").iter().map(port).collect();
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { shown(&ports) };
    let addresses = list(object, "/endpoints").iter().flat_map(|endpoint| list(endpoint, "/addresses"));
    let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    let addresses = if addresses.is_empty() { "<unset>".to_owned() } else { shown(&addresses) };
    vec![
        text(object, "/metadata/name").into(),
        text(object, "/addressType").into(),
        ports.into(),
        addresses.into(),
        age(text(object, "/metadata/creationTimestamp"), now).into(),
    ]
}

fn validate_endpoints(object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, subset) in list(object, "/subsets").iter().enumerate() {
        let field = format!("subsets[{index}]");
        for key in ["addresses", "notReadyAddresses"] {
            for (index, address) in list(subset, &format!("/{key}")).iter().enumerate() {
                let ip = text(address, "/ip");
                for fault in ip_faults(ip) {
                    errors.push(FieldError::invalid(format!("{field}.{key}[{index}].ip"), ip, fault));
                }
            }
        }
        for (index, port) in list(subset, "/ports").iter().enumerate() {
            check_port(port, &format!("{field}.ports[{index}]"), &mut errors);
        }
    }
    errors
}

fn check_port(port: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let number = integer(port, "/port").unwrap_or(0);
    for fault in port_number_faults(number) {
        errors.push(FieldError::invalid(format!("{field}.port"), number, fault));
    }
    one_of(format!("{field}.protocol"), text(port, "/protocol"), &["TCP", "UDP", "SCTP"], errors);
    let name = text(port, "/name");
    if !name.is_empty() {
        for fault in label_faults(name) {
            errors.push(FieldError::invalid(format!("{field}.name"), name, fault));
        }
    }
}

fn validate_slice(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let type_ = text(object, "/addressType");
    if type_.is_empty() {
        errors.push(FieldError::required("addressType", ""));
    } else {
        one_of("addressType", type_, &["FQDN", "IPv4", "IPv6"], &mut errors);
    }
    let all = list(object, "/endpoints");
    if all.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many("endpoints", all.len(), ENDPOINTS_MAX));
    }
    for (index, endpoint) in all.iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let addresses = list(endpoint, "/addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(&field, "must contain at least 1 address"));
        } else if addresses.len() > ADDRESSES_MAX {
            errors.push(FieldError::too_many(&field, addresses.len(), ADDRESSES_MAX));
        }
        for (index, address) in addresses.iter().enumerate() {
            let address = address.as_str().unwrap_or("");
            for fault in address_faults(type_, address) {
                errors.push(FieldError::invalid(format!("{field}[{index}]"), address, fault));
            }
        }
    }
    let ports = list(object, "/ports");
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many("ports", ports.len(), PORTS_MAX));
    }
    for (index, port) in ports.iter().enumerate() {
        let name = text(port, "/name");
        if ports[..index].iter().any(|other| text(other, "/name") == name) {
            errors.push(FieldError::duplicate(format!("ports[{index}].name"), name));
        }
        one_of(
            format!("ports[{index}].protocol"),
            text(port, "/protocol"),
            &["SCTP", "TCP", "UDP"],
            &mut errors,
        );
    }
    if let Some(old) = old {
        immutable(object, old, "/addressType", &mut errors);
    }
    errors
}

fn address_faults(type_: &str, address: &str) -> Vec<String> {
    match type_ {
        "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
            vec!["must be a valid IPv4 address".to_owned()]
        }
        "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
            vec!["must be a valid IPv6 address".to_owned()]
        }
        "FQDN" => subdomain_faults(address),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let now = Timestamp::UNIX_EPOCH;
        let slice = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "ports": [{"port": 80}, {}],
            "endpoints": [{"addresses": ["10.128.0.1"]}, {"addresses": ["10.128.0.2"]}, {"addresses": ["10.128.0.3"]},
                {"addresses": ["10.128.0.4"]}]});
        let expected =
            json!(["a", "IPv4", "80,*", "10.128.0.1,10.128.0.2,10.128.0.3 + 1 more...", "<unknown>"]);
        assert_eq!(Value::from(slice_cells(&slice, now)), expected);
        assert_eq!(slice_cells(&json!({}), now)[2], "<unset>");
        let object =
            json!({"subsets": [{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80}, {"port": 81}]}]});
        assert_eq!(endpoints(&object), "1.2.3.4:80,1.2.3.4:81");
        assert_eq!(endpoints(&json!({})), "<none>");
    }

    #[test]
    fn slices_are_checked() {
        let mut slice =
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}, {}], "ports": [{}, {}]});
        (ENDPOINT_SLICE.defaults)(&mut slice);
        let fields: Vec<String> = validate_slice(&slice, None).into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["endpoints[0].addresses[0]", "endpoints[1].addresses", "ports[1].name"]);
        let old = json!({"addressType": "IPv6"});
        assert_eq!(validate_slice(&slice, Some(&old)).last().unwrap().field, "addressType");
    }
}
