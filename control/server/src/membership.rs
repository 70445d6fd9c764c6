//! Who the members are and where: every member follows their objects; the leader promotes learners and publishes the
//! members as the endpoints of the service `kubernetes`.

use std::{collections::BTreeMap, time::Duration};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, View, Write};
use coracle_raft::{MemberChange, Status};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::{Instant, interval};

use crate::{
    drafts::{self, editable, encode, new_draft},
    join::host,
    peers::{MEMBERS, MemberSpec, members},
    storage::ReplicatedStorage,
};

/// A learner is caught up when it is at most so many entries behind.
const LAG_ENTRIES_MAX: u64 = 250;

/// How often learners are looked at.
const LEARNER_PERIOD: Duration = Duration::from_millis(200);

/// Between two tries to publish something.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

const SLICES: &str = "endpointslices.discovery.k8s.io";

/// Calls `changed` with the members now and after each change of them, for as long as the process lives.
pub async fn follow(storage: ReplicatedStorage, mut changed: impl FnMut(&BTreeMap<u64, MemberSpec>) + Send) {
    let mut last = None;
    loop {
        let (view, mut events) = storage.hub().everything();
        let mut known = members(&view);
        loop {
            if !known.is_empty() && last.as_ref() != Some(&known) {
                changed(&known);
                last = Some(known.clone());
            }
            match events.next().await {
                Ok(events) if events.iter().any(|event| event.object.key.resource.as_str() == MEMBERS) => {
                    known = members(&storage.view());
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}

/// Tells the cluster this member's address where it has changed since the last start. Tries until it is known.
pub async fn announce(storage: ReplicatedStorage, me: MemberSpec) {
    let key = ObjectKey::new(MEMBERS, "", &me.id.to_string());
    loop {
        if let Ok(view) = storage.linearizable().await {
            let Some(object) = view.get(&key) else { return };
            if members(&view).get(&me.id) == Some(&me) {
                return;
            }
            let mut draft = editable(object);
            draft["spec"] = json!({ "id": me.id, "name": me.name, "address": me.address });
            let update = Transaction::update(key.clone(), encode(&draft), object.revision);
            if let Ok(Ok(_)) = storage.propose(update).await {
                tracing::info!(member = me.id, address = %me.address, "address announced");
                return;
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Makes voters of learners that have been healthy for so long, as long as this member leads.
pub async fn promote_learners(storage: &ReplicatedStorage, healthy_for: Duration) {
    let mut healthy_since: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut ticks = interval(LEARNER_PERIOD);
    loop {
        ticks.tick().await;
        let status = storage.status();
        healthy_since.retain(|id, _| is_healthy(&status, *id));
        for &id in status.learners.iter().filter(|id| is_healthy(&status, **id)) {
            healthy_since.entry(id).or_insert_with(Instant::now);
        }
        let ready: Vec<u64> = healthy_since
            .iter()
            .filter(|(_, since)| since.elapsed() >= healthy_for)
            .map(|(&id, _)| id)
            .collect();
        let promoted = &ready[..promotable(status.voters.len(), ready.len())];
        if promoted.is_empty() {
            continue;
        }
        // One joint change: with several single ones the cluster would rest at an even number in between.
        let changes = promoted.iter().map(|&id| MemberChange::Promote(id)).collect();
        match storage.raft().change_members(changes).await {
            Ok(()) => {
                tracing::info!(members = ?promoted, "learners promoted to voters");
                healthy_since.retain(|id, _| !promoted.contains(id));
            }
            Err(error) => tracing::debug!(members = ?promoted, %error, "learners not promoted yet"),
        }
    }
}

fn is_healthy(status: &Status, id: u64) -> bool {
    let caught_up = |matched: u64| status.last.saturating_sub(matched) <= LAG_ENTRIES_MAX;
    let known = status.learners.contains(&id);
    known
        && status
            .progress
            .iter()
            .any(|(member, matched, active)| *member == id && *active && caught_up(*matched))
}

/// How many of the ready learners become voters. An even number of voters tolerates no more than the odd one below
/// it and needs one more for a quorum: a cluster never rests there.
fn promotable(voters: usize, ready: usize) -> usize {
    if (voters + ready) % 2 == 1 { ready } else { ready.saturating_sub(1) }
}

/// Keeps the EndpointSlices of the service `kubernetes` at the members' addresses, as long as this member leads.
pub async fn publish_endpoints(storage: &ReplicatedStorage) {
    loop {
        let (_, mut events) = storage.hub().everything();
        loop {
            if let Err(error) = publish_once(storage).await {
                tracing::debug!(%error, "the endpoints of the service kubernetes are not published yet");
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            let concerns_us = |key: &ObjectKey| {
                key.resource.as_str() == MEMBERS
                    || key.resource.as_str() == SLICES
                        && &*key.name.namespace == "default"
                        && is_ours(&key.name.name)
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
                let same = ["endpoints", "ports"].iter().all(|field| draft[field] == slice[field]);
                for field in ["endpoints", "ports"] {
                    draft[field] = slice[field].clone();
                }
                (!same).then(|| Transaction::update(key.clone(), encode(&draft), object.revision))
            }
        };
        drafts::write(storage, plan).await?;
    }
    let view = storage.view();
    let stale = view.list(SLICES, Some("default")).map(|object| object.name());
    for name in stale.filter(|name| is_ours(name) && !wanted.contains_key(*name)) {
        let key = ObjectKey::new(SLICES, "default", name);
        let plan = |view: &View| {
            view.get(&key)?;
            Some(Transaction { preconditions: vec![], writes: vec![Write::Delete { key: key.clone() }] })
        };
        drafts::write(storage, plan).await?;
    }
    Ok(())
}

fn is_ours(name: &str) -> bool {
    name == "kubernetes" || name.strip_prefix("kubernetes-").is_some_and(|port| port.parse::<u16>().is_ok())
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

/// For tasks that hand the members on.
pub fn addresses(members: &BTreeMap<u64, MemberSpec>) -> BTreeMap<u64, String> {
    members.iter().map(|(&id, member)| (id, member.address.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_never_rests_at_an_even_number_of_voters() {
        assert_eq!(promotable(1, 1), 0);
        assert_eq!(promotable(1, 2), 2);
        assert_eq!(promotable(1, 3), 2);
        assert_eq!(promotable(3, 1), 0);
        assert_eq!(promotable(2, 1), 1);
        assert_eq!(promotable(3, 0), 0);
    }

    #[test]
    fn members_on_one_address_have_a_slice_a_port() {
        let member =
            |id: u64, address: &str| (id, MemberSpec { id, name: "m".into(), address: address.into() });
        let members =
            [member(1, "10.0.0.1:6443"), member(2, "10.0.0.2:6443"), member(3, "10.0.0.1:7000")].into();
        let slices = slices(&members);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes", "kubernetes-7000"]);
        assert_eq!(slices["kubernetes"]["endpoints"].as_array().unwrap().len(), 2);
        assert!(is_ours("kubernetes-7000") && !is_ours("kubernetes-abc"));
    }
}
