//! Endpoints and EndpointSlices: where a service's traffic goes.

use core::net::IpAddr;
use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use crate::{
    field_error::FieldError,
    fields::{default, default_text, elements, integer, list, text},
    kind::{Column, Native},
    validate::{
        rules::{immutable, one_of, or_none},
        syntax::{ip_faults, label_faults, port_number_faults, subdomain_faults},
    },
};

/// How many addresses or ports a cell shows.
const SHOWN_MAX: usize = 3;
/// Upstream's bounds.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;

pub(super) const ENDPOINTS: Native = Native {
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
    ..Native::BASE
};

pub(super) const ENDPOINT_SLICE: Native = Native {
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
    ..Native::BASE
};

fn shown(first: &[String], count: usize) -> String {
    let shown = first[..first.len().min(SHOWN_MAX)].join(",");
    match count.saturating_sub(SHOWN_MAX) {
        0 => or_none(&shown).to_owned(),
        more => format!("{shown} + {more} more..."),
    }
}

/// Each address with each of its ports: only those that are shown are made.
fn endpoints(object: &Value) -> String {
    let mut first = Vec::new();
    let mut count = 0;
    for subset in list(object, "/subsets") {
        let (addresses, ports) = (list(subset, "/addresses"), list(subset, "/ports"));
        count += addresses.len() * ports.len().max(1);
        let pairs = addresses.iter().flat_map(|address| {
            let address = text(address, "/ip");
            let alone = ports.is_empty().then(|| address.to_owned());
            let port = move |port| format!("{address}:{}", integer(port, "/port").unwrap_or(0));
            alone.into_iter().chain(ports.iter().map(port))
        });
        first.extend(pairs.take(SHOWN_MAX.saturating_sub(first.len())));
    }
    shown(&first, count)
}

fn slice_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let port = |port: &Value| integer(port, "/port").map_or_else(|| "*".to_owned(), |port| port.to_string());
    let ports: Vec<String> = list(object, "/ports").iter().map(port).collect();
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { shown(&ports, ports.len()) };
    let addresses = list(object, "/endpoints").iter().flat_map(|endpoint| list(endpoint, "/addresses"));
    let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    let addresses =
        if addresses.is_empty() { "<unset>".to_owned() } else { shown(&addresses, addresses.len()) };
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
                for fault in endpoint_faults(ip) {
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
    for (index, endpoint) in all.iter().take(ENDPOINTS_MAX).enumerate() {
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
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().take(PORTS_MAX).enumerate() {
        let name = text(port, "/name");
        if !names.insert(name) {
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
    match (type_, address.parse::<IpAddr>()) {
        ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => endpoint_faults(address),
        ("IPv4", _) => vec!["must be a valid IPv4 address".to_owned()],
        ("IPv6", _) => vec!["must be a valid IPv6 address".to_owned()],
        ("FQDN", _) => subdomain_faults(address),
        _ => Vec::new(),
    }
}

/// An address that traffic may be sent to: none that means another machine to each that reads it, and none that trusts
/// its caller for being near. Source: `ValidateEndpointIP`.
pub fn endpoint_faults(address: &str) -> Vec<String> {
    let Ok(ip) = address.parse::<IpAddr>() else { return ip_faults(address) };
    let (link_local, link_local_multicast) = match ip.to_canonical() {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let ip = ip.to_canonical();
    [
        (ip.is_unspecified(), "may not be unspecified"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_local_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ]
    .into_iter()
    .filter(|(is, _)| *is)
    .map(|(_, fault)| format!("{fault}: {address}"))
    .collect()
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
    fn addresses_and_ports_are_counted_without_being_made() {
        // All of them together would be 900 million texts.
        let subset = json!({"addresses": vec![json!({"ip": "1.2.3.4"}); 30_000],
            "ports": vec![json!({"port": 80}); 30_000]});
        let shown = "1.2.3.4:80,1.2.3.4:80,1.2.3.4:80 + 899999998 more...";
        assert_eq!(endpoints(&json!({"subsets": [subset, {"addresses": [{"ip": "5.6.7.8"}]}]})), shown);
    }

    #[test]
    fn traffic_is_not_sent_to_what_is_near() {
        let slice = |type_: &str, address: &str| {
            let slice = json!({"addressType": type_, "endpoints": [{"addresses": [address]}]});
            validate_slice(&slice, None).len()
        };
        for address in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "224.0.0.1"] {
            assert_eq!(slice("IPv4", address), 1, "{address}");
            let object = json!({"subsets": [{"notReadyAddresses": [{"ip": address}]}]});
            assert_eq!(validate_endpoints(&object, None).len(), 1, "{address}");
        }
        for address in ["::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1"] {
            assert_eq!(slice("IPv6", address), 1, "{address}");
        }
        assert_eq!(slice("IPv4", "10.128.0.1") + slice("IPv4", "192.0.2.1") + slice("IPv6", "fd00::1"), 0);
    }

    #[test]
    fn long_lists_of_ports_are_read_once() {
        let port = |at: usize| json!({"name": format!("p{at}"), "protocol": "TCP", "port": 1});
        let slice = json!({"addressType": "IPv4", "ports": (0..PORTS_MAX).map(port).collect::<Vec<_>>()});
        assert_eq!(validate_slice(&slice, None), []);
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
