//! The members as endpoints of the service `kubernetes`.

use std::collections::BTreeMap;

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, View, Write, draft::next_generation, is_api_slice};
use jiff::Timestamp;
use serde_json::json;

use super::RETRY_PAUSE;
use crate::{
    bootstrap,
    drafts::{self, editable, encode, new_draft},
    join::host,
    peers::{MEMBERS, MemberSpec, members},
    storage::ReplicatedStorage,
};

const SLICES: &str = "endpointslices.discovery.k8s.io";

/// Keeps the service `kubernetes`, and its EndpointSlices at the members' addresses, as long as this member leads.
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

async fn publish_once(storage: &ReplicatedStorage) -> Result<(), drafts::WriteError> {
    drafts::write(storage, missing_service).await?;
    let wanted = slices(&members(&storage.view()));
    for (name, slice) in &wanted {
        let key = ObjectKey::new(SLICES, "default", name);
        let plan = |view: &View| match view.get(&key) {
            None => {
                let draft =
                    new_draft("discovery.k8s.io/v1", "EndpointSlice", &key, slice.clone(), Timestamp::now());
                Some(Transaction::create(key.clone(), draft))
            }
            Some(object) => {
                let mut draft = editable(object);
                if ["endpoints", "ports"].iter().all(|field| draft[field] == slice[field]) {
                    return None;
                }
                for field in ["endpoints", "ports"] {
                    draft[field] = slice[field].clone();
                }
                next_generation(&mut draft);
                Some(Transaction::update(key.clone(), encode(&draft), object.revision))
            }
        };
        drafts::write(storage, plan).await?;
    }
    let view = storage.view();
    let stale = view.list(SLICES, Some("default")).map(|object| object.name());
    for name in stale.filter(|name| is_api_slice(name) && !wanted.contains_key(*name)) {
        let key = ObjectKey::new(SLICES, "default", name);
        let plan = |view: &View| {
            view.get(&key)?;
            Some(Transaction { preconditions: vec![], writes: vec![Write::Delete { key: key.clone() }] })
        };
        drafts::write(storage, plan).await?;
    }
    Ok(())
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

/// All endpoints of a slice share its ports, so there is one slice for each port that members have.
fn slices(members: &BTreeMap<u64, MemberSpec>) -> BTreeMap<String, serde_json::Value> {
    let mut by_port: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for member in members.values() {
        let port = member.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let address = host(&member.address);
        if let (Some(port), Ok(_)) = (port, address.parse::<std::net::Ipv4Addr>()) {
            by_port.entry(port).or_default().push(address);
        }
    }
    let slices = by_port.into_iter().enumerate().map(|(at, (port, mut addresses))| {
        addresses.sort_unstable();
        addresses.dedup();
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
        let slices = slices(&members);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes", "kubernetes-7000"]);
        assert_eq!(slices["kubernetes"]["endpoints"].as_array().unwrap().len(), 2);
        assert!(is_api_slice("kubernetes-7000") && !is_api_slice("kubernetes-abc"));
    }
}
