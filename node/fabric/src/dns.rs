//! Names, as a pod's resolver would find them.
//!
//! The cluster's names follow the Kubernetes DNS specification 1.1; a pod searches its own namespace first.
//! Names beyond the cluster are for [`crate::resolver`].

use crate::tables::{Service, Tables};
use rand::seq::SliceRandom;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names with fewer dots than this are searched first, as `ndots:5` has it in pods.
const SEARCH_BELOW_DOTS: usize = 5;

/// Addresses of one answer. A name that has more is answered with some of them, others each time.
const ADDRESSES_MAX: usize = 1000;

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
    let mut addresses = service.some_addresses(ADDRESSES_MAX);
    addresses.shuffle(&mut rand::rng());
    if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
}

/// An endpoint by its hostname, by its pod's name, or by its address with dashes.
fn endpoint_addresses(tables: &Tables, service: &Service, host: &str) -> Found {
    let wanted = dashed_address(host).or_else(|| tables.pod(&service.entry.namespace, host));
    let mut addresses: Vec<IpAddr> = service.addresses_of(host).iter().take(ADDRESSES_MAX).copied().collect();
    addresses.extend(wanted.filter(|address| service.serves(*address) && !addresses.contains(address)));
    if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
}

fn dashed_address(text: &str) -> Option<IpAddr> {
    let four = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    four.ok().or_else(|| text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkState;
    use crate::model::{Endpoint, ServiceEntry};
    use std::collections::{BTreeMap, HashSet};
    use std::sync::Arc;

    /// A headless service of so many endpoints, each with a hostname; those of an odd number are not ready.
    fn headless(endpoints: u16) -> Tables {
        let ports = Arc::new(BTreeMap::new());
        let endpoint = |number: u16| Endpoint {
            address: [10, 128, number.to_be_bytes()[0], number.to_be_bytes()[1]].into(),
            ready: number.is_multiple_of(2),
            hostname: Some(format!("pod-{number}")),
            ports: Arc::clone(&ports),
        };
        let entry = ServiceEntry {
            namespace: "d".into(),
            name: "s".into(),
            endpoints: (0..endpoints).map(endpoint).collect(),
            ..ServiceEntry::default()
        };
        Tables::build(NetworkState { services: vec![entry], ..NetworkState::default() }, &Default::default())
    }

    fn addresses(tables: &Tables, name: &str) -> HashSet<IpAddr> {
        match find(tables, "cluster.local", "d", name) {
            Found::Addresses(addresses) => {
                let distinct: HashSet<IpAddr> = addresses.iter().copied().collect();
                assert_eq!(distinct.len(), addresses.len());
                distinct
            }
            _ => HashSet::new(),
        }
    }

    #[test]
    fn a_name_of_many_addresses_is_answered_with_some_of_them() {
        let (few, many) = (headless(100), headless(20_000));
        assert_eq!(addresses(&few, "s").len(), 50);
        let mut seen = HashSet::new();
        for _ in 0..100 {
            let some = addresses(&many, "s");
            assert_eq!(some.len(), ADDRESSES_MAX);
            seen.extend(some);
        }
        assert!(seen.len() > 9_000, "{} of 10,000 in 100 answers", seen.len());
    }

    #[test]
    fn an_endpoint_is_found_by_its_hostname_and_by_its_address() {
        let tables = headless(10);
        let two: HashSet<IpAddr> = [IpAddr::from([10, 128, 0, 2])].into();
        assert_eq!(addresses(&tables, "pod-2.s.d.svc"), two);
        assert_eq!(addresses(&tables, "10-128-0-2.s.d.svc"), two);
        assert_eq!(addresses(&tables, "pod-3.s.d.svc"), HashSet::new(), "it is not ready");
        assert_eq!(addresses(&tables, "10-128-0-3.s.d.svc"), HashSet::new());
    }
}
