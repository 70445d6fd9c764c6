//! Names, as a pod's resolver would find them.
//!
//! The cluster's names follow the Kubernetes DNS specification 1.1; a pod searches its own namespace first.
//! Names beyond the cluster are for [`crate::resolver`].

use crate::tables::{Service, Tables};
use rand::seq::SliceRandom;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names with fewer dots than this are searched first, as `ndots:5` has it in pods.
const SEARCH_BELOW_DOTS: usize = 5;

/// What the cluster knows of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// At least one address.
    Addresses(Vec<IpAddr>),
    /// The name stands for another one (a service of type ExternalName).
    Alias(String),
    /// The name is the cluster's to know, and it does not exist.
    Nothing,
    /// Not the cluster's to know.
    NotOurs,
}

/// Looks a name up in the cluster, for a pod of `namespace`. The name is in lower case, without its last dot.
pub(crate) fn find(tables: &Tables, domain: &str, namespace: &str, name: &str) -> Found {
    if let Some(inner) = strip_domain(name, domain) {
        return inner.map_or(Found::Nothing, |inner| find_inside(tables, inner));
    }
    let dots = name.matches('.').count();
    if dots < SEARCH_BELOW_DOTS {
        for inner in [format!("{name}.{namespace}.svc"), format!("{name}.svc"), name.to_owned()] {
            match find_inside(tables, &inner) {
                Found::Nothing | Found::NotOurs => {}
                found => return found,
            }
        }
    }
    // A bare label or a name of the cluster's own form is nobody else's.
    if dots == 0 || name.ends_with(".svc") { Found::Nothing } else { Found::NotOurs }
}

/// The part of a name before the cluster's domain; the inner option is none for the domain itself.
fn strip_domain<'a>(name: &'a str, domain: &str) -> Option<Option<&'a str>> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some(None) } else { rest.strip_suffix('.').map(Some) }
}

/// Looks up a name without the cluster's domain.
fn find_inside(tables: &Tables, name: &str) -> Found {
    let labels: Vec<&str> = name.split('.').collect();
    match labels[..] {
        [service, namespace, "svc"] => match tables.service(namespace, service) {
            Some(service) => service_addresses(service),
            None => Found::Nothing,
        },
        [host, service, namespace, "svc"] => match tables.service(namespace, service) {
            Some(service) => endpoint_addresses(tables, service, host),
            None => Found::Nothing,
        },
        [host, namespace, "pod"] => {
            let address = dashed_address(host).or_else(|| tables.pod(namespace, host));
            address.map_or(Found::Nothing, |address| Found::Addresses(vec![address]))
        }
        _ => Found::Nothing,
    }
}

fn service_addresses(service: &Service) -> Found {
    if let Some(name) = &service.entry.external_name {
        return Found::Alias(name.trim_end_matches('.').to_ascii_lowercase());
    }
    if !service.entry.addresses.is_empty() {
        return Found::Addresses(service.entry.addresses.clone());
    }
    let mut addresses: Vec<IpAddr> = service.serving().map(|(_, endpoint)| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.shuffle(&mut rand::rng());
    if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
}

/// An endpoint by its hostname, by its pod's name, or by its address with dashes.
fn endpoint_addresses(tables: &Tables, service: &Service, host: &str) -> Found {
    let wanted = dashed_address(host).or_else(|| tables.pod(&service.entry.namespace, host));
    let addresses: Vec<IpAddr> = service
        .serving()
        .filter(|(_, endpoint)| {
            endpoint.hostname.as_deref() == Some(host) || wanted == Some(endpoint.address)
        })
        .map(|(_, endpoint)| endpoint.address)
        .collect();
    if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
}

fn dashed_address(text: &str) -> Option<IpAddr> {
    let four = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    four.ok().or_else(|| text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}
