//! The members as endpoints of the service `kubernetes`, in EndpointSlices and, for older clients, Endpoints.

use std::collections::{BTreeMap, BTreeSet};

use coracle_api::{Storage, WriteError, new_draft, write};
use coracle_objects::{
    ObjectKey, Transaction, View, Write,
    draft::{editable, encode, next_generation},
    is_api_slice,
};
use coracle_storage::{
    ReplicatedStorage,
    peers::{MEMBERS, MemberSpec, members},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::RETRY_PAUSE;
use crate::{bootstrap, join::host};

const SLICES: &str = "endpointslices.discovery.k8s.io";
const ENDPOINTS: &str = "endpoints";

/// What an object of ours is of, and its fields that are kept as they are to be.
struct Shape {
    api_version: &'static str,
    kind: &'static str,
    fields: &'static [&'static str],
}

const SLICE: Shape =
    Shape { api_version: "discovery.k8s.io/v1", kind: "EndpointSlice", fields: &["endpoints", "ports"] };
const OLDER: Shape = Shape { api_version: "v1", kind: "Endpoints", fields: &["subsets"] };

/// Keeps the service `kubernetes`, its EndpointSlices and its Endpoints at the members' addresses, as long as this member
/// leads.
pub async fn publish(storage: &ReplicatedStorage) {
    loop {
        let (_, mut events) = storage.hub().follow();
        loop {
            if let Err(error) = publish_once(storage).await {
                tracing::debug!(%error, "the endpoints of the service kubernetes are not published yet");
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            let concerns_us = |key: &ObjectKey| {
                key.resource.as_str() == MEMBERS
                    || *key == bootstrap::kubernetes_service_key()
                    || *key == endpoints_key()
                    || key.resource.as_str() == SLICES
                        && &*key.name.namespace == "default"
                        && is_api_slice(&key.name.name)
            };
            let lagged = loop {
                match events.next().await {
                    Ok(events) if events.iter().any(|event| concerns_us(&event.object.key)) => break false,
                    Ok(_) => {}
                    Err(_) => break true,
                }
            };
            if lagged {
                break;
            }
        }
    }
}

async fn publish_once(storage: &ReplicatedStorage) -> Result<(), WriteError> {
    write(storage, missing_service).await?;
    let members = members(&storage.view());
    let by_port = by_port(&members);
    keep(storage, &OLDER, &endpoints_key(), &endpoints(&by_port)).await?;
    let wanted = slices(&by_port);
    for (name, slice) in &wanted {
        keep(storage, &SLICE, &ObjectKey::new(SLICES, "default", name), slice).await?;
    }
    let view = storage.view();
    let stale = view.list(SLICES, Some("default")).map(|object| object.name());
    for name in stale.filter(|name| is_api_slice(name) && !wanted.contains_key(*name)) {
        let key = ObjectKey::new(SLICES, "default", name);
        let plan = |view: &View| {
            view.get(&key)?;
            Some(Transaction { preconditions: vec![], writes: vec![Write::Delete { key: key.clone() }] })
        };
        write(storage, plan).await?;
    }
    Ok(())
}

/// Makes an object, or what of it is ours, as it is to be.
async fn keep(
    storage: &ReplicatedStorage,
    shape: &Shape,
    key: &ObjectKey,
    wanted: &Value,
) -> Result<(), WriteError> {
    let plan = |view: &View| match view.get(key) {
        None => {
            let draft = new_draft(shape.api_version, shape.kind, key, wanted.clone(), Timestamp::now());
            Some(Transaction::create(key.clone(), draft))
        }
        Some(object) => {
            let mut draft = editable(object);
            if shape.fields.iter().all(|field| draft[field] == wanted[field]) {
                return None;
            }
            for field in shape.fields {
                draft[*field] = wanted[field].clone();
            }
            if draft["metadata"]["generation"].is_number() {
                next_generation(&mut draft);
            }
            Some(Transaction::update(key.clone(), encode(&draft), object.revision))
        }
    };
    write(storage, plan).await.map(drop)
}

fn endpoints_key() -> ObjectKey {
    ObjectKey::new(ENDPOINTS, "default", "kubernetes")
}

/// Makes the service where somebody has deleted it. Its address is kept for it.
fn missing_service(view: &View) -> Option<Transaction> {
    let key = bootstrap::kubernetes_service_key();
    if view.get(&key).is_some() {
        return None;
    }
    let draft = new_draft("v1", "Service", &key, bootstrap::kubernetes_service(), Timestamp::now());
    Some(Transaction::create(key, draft))
}

/// The members' addresses by their ports.
fn by_port(members: &BTreeMap<u64, MemberSpec>) -> BTreeMap<u16, BTreeSet<&str>> {
    let mut by_port: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
    for member in members.values() {
        let port = member.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let address = host(&member.address);
        if let (Some(port), Ok(_)) = (port, address.parse::<std::net::Ipv4Addr>()) {
            by_port.entry(port).or_default().insert(address);
        }
    }
    by_port
}

/// Slices are made of them by nobody else.
fn endpoints(by_port: &BTreeMap<u16, BTreeSet<&str>>) -> Value {
    let subsets = by_port.iter().map(|(port, addresses)| {
        let addresses: Vec<_> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        json!({ "addresses": addresses, "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] })
    });
    json!({
        "metadata": { "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": subsets.collect::<Vec<_>>(),
    })
}

/// All endpoints of a slice share its ports, so there is one slice for each port that members have.
fn slices(by_port: &BTreeMap<u16, BTreeSet<&str>>) -> BTreeMap<String, Value> {
    let slices = by_port.iter().enumerate().map(|(at, (port, addresses))| {
        let name = if at == 0 { "kubernetes".into() } else { format!("kubernetes-{port}") };
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| json!({ "addresses": [address], "conditions": { "ready": true } }))
            .collect();
        let slice = json!({
            "metadata": { "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        });
        (name, slice)
    });
    slices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_on_one_address_have_a_slice_a_port() {
        let member = |id: u64, address: &str| {
            (id, MemberSpec { id, address: address.into(), ..MemberSpec::default() })
        };
        let members =
            [member(1, "10.0.0.1:6443"), member(2, "10.0.0.2:6443"), member(3, "10.0.0.1:7000")].into();
        let by_port = by_port(&members);
        let slices = slices(&by_port);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes", "kubernetes-7000"]);
        assert_eq!(slices["kubernetes"]["endpoints"].as_array().unwrap().len(), 2);
        let endpoints = endpoints(&by_port);
        assert_eq!(endpoints["subsets"][0]["addresses"], json!([{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }]));
        assert_eq!(endpoints["subsets"][1]["ports"][0]["port"], 7000);
        assert!(is_api_slice("kubernetes-7000") && !is_api_slice("kubernetes-abc"));
    }
}
