//! Finding each other again: a member that hears of no leader asks the others where everybody is, and tells them where
//! it is itself. Without it a member that comes back under another address, or that missed another's, would never be
//! answered: raft's replies go to the addresses that the repliers know.

use std::{collections::BTreeMap, time::Duration};

use coracle_api::Storage;
use coracle_objects::{Expect, ObjectKey, Transaction, Write};
use coracle_proto::cluster::{ProposeRequest, StatusRequest, cluster_client::ClusterClient};
use coracle_raft::GrpcTransport;
use coracle_store::encode_transaction;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::{
    drafts::{editable, encode},
    peers::{MEMBERS, MemberSpec},
    storage::{ReplicatedStorage, leader_client},
};

/// How long a member is without a leader before it asks, and between two rounds. Longer than an election.
const PERIOD: Duration = Duration::from_secs(1);

/// Until another member must have answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks around whenever there is no leader, for as long as the process lives.
pub async fn run(storage: ReplicatedStorage, transport: GrpcTransport, me: MemberSpec) {
    let mut alone = false;
    loop {
        sleep(PERIOD).await;
        let was_alone = std::mem::replace(&mut alone, storage.status().leader.is_none());
        if alone && was_alone {
            ask_all(&storage, &transport, &me).await;
        }
    }
}

async fn ask_all(storage: &ReplicatedStorage, transport: &GrpcTransport, me: &MemberSpec) {
    let known = storage.peers().addresses();
    for id in known.keys().filter(|id| **id != me.id) {
        let Some(channel) = storage.peers().channel(*id) else { continue };
        match timeout(ANSWER_TIMEOUT, ask(storage, channel, me)).await {
            Ok(Ok(found)) => {
                let mut addresses = storage.peers().addresses();
                let before = addresses.clone();
                addresses
                    .extend(found.into_iter().filter(|(id, address)| *id != me.id && !address.is_empty()));
                if addresses != before {
                    tracing::info!(peer = id, "other members' addresses learned");
                    storage.peers().set(&addresses);
                    transport.set_peers(addresses);
                }
            }
            Ok(Err(status)) => {
                tracing::debug!(peer = id, reason = status.message(), "no answer about the members")
            }
            Err(_) => tracing::debug!(peer = id, "no answer about the members in time"),
        }
    }
}

/// The members' addresses as another member knows them. Where mine is outdated there, and it leads, it is told.
async fn ask(
    storage: &ReplicatedStorage,
    channel: Channel,
    me: &MemberSpec,
) -> Result<BTreeMap<u64, String>, tonic::Status> {
    let status = ClusterClient::new(channel.clone()).status(StatusRequest {}).await?.into_inner();
    let found: BTreeMap<u64, String> =
        status.members.into_iter().map(|member| (member.id, member.address)).collect();
    let outdated = found.get(&me.id).is_some_and(|address| *address != me.address);
    if outdated
        && status.leader_id == status.member_id
        && let Some(transaction) = announcement(storage, me)
    {
        let transaction = encode_transaction(&storage.request(transaction));
        leader_client(channel).propose(ProposeRequest { transaction }).await?;
        tracing::info!(
            leader = status.leader_id,
            address = me.address,
            "new address announced to the leader"
        );
    }
    Ok(found)
}

/// What I know of my own object may be old, but nobody else writes it.
fn announcement(storage: &ReplicatedStorage, me: &MemberSpec) -> Option<Transaction> {
    let key = ObjectKey::new(MEMBERS, "", &me.id.to_string());
    let view = storage.view();
    let mut draft = editable(view.get(&key)?);
    draft["spec"] = json!({ "id": me.id, "name": me.name, "address": me.address });
    let write = Write::Put { key: key.clone(), draft: encode(&draft) };
    Some(Transaction { preconditions: vec![], writes: vec![write] }.expecting(key, Expect::Exists))
}
