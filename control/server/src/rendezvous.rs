//! Finding each other again: a member that hears of no leader asks the others where everybody is, and tells them where
//! it is itself. Without it a member that comes back under another address, or that missed another's, would never be
//! answered: raft's replies go to the addresses that the repliers know.
//!
//! Where all have moved at once nobody is where anybody knows; then each that is told of one other finds it, and through it
//! the rest.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coracle_api::Storage;
use coracle_objects::{
    Expect, ObjectKey, Transaction, Write,
    draft::{editable, encode},
};
use coracle_proto::cluster::{ProposeRequest, StatusRequest, cluster_client::ClusterClient};
use coracle_storage::{
    ReplicatedStorage, leader_client,
    machine::Fatal,
    peers::{MEMBERS, MemberSpec},
};
use coracle_store::encode_transaction;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tonic::{Status, transport::Channel};

use crate::{membership, whereabouts::Whereabouts};

/// How long a member is without a leader before it asks, and between two rounds. Longer than an election.
const PERIOD: Duration = Duration::from_secs(1);

/// Until another member must have answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What finding the others takes.
pub struct Rendezvous {
    pub storage: ReplicatedStorage,
    pub whereabouts: Arc<Whereabouts>,
    /// Addresses at which others may be beside those that are known.
    pub seek: Vec<String>,
    pub me: MemberSpec,
    pub cluster_id: String,
    pub fatal: Arc<Fatal>,
}

/// What another member answers.
enum Answer {
    /// Who it is, and the members' addresses as it knows them.
    Addresses { from: u64, found: BTreeMap<u64, String> },
    /// The asking member was removed from the cluster.
    Removed,
}

impl Rendezvous {
    /// Asks around whenever there is no leader or this member belongs to no configuration that it knows, for as long as
    /// the process lives.
    pub async fn run(self) {
        let mut alone = false;
        loop {
            sleep(PERIOD).await;
            let was_alone = std::mem::replace(&mut alone, self.is_alone());
            if alone && was_alone {
                self.ask_all().await;
            }
        }
    }

    /// A member that has applied its own removal never learns that its leader is another's now; a learner may not even
    /// hear of its removal, and then others refuse it.
    fn is_alone(&self) -> bool {
        let status = self.storage.status();
        let is_member = status.voters.contains(&self.me.id) || status.learners.contains(&self.me.id);
        status.leader.is_none() || !is_member || self.storage.notes().lock().refused
    }

    async fn ask_all(&self) {
        let peers = self.storage.peers();
        let known = peers.addresses();
        let connect = peers.connector();
        let sought = self.seek.iter().filter(|address| !known.values().any(|known| known == *address));
        let others = known.iter().filter(|(id, _)| **id != self.me.id);
        let others = others.filter_map(|(id, address)| Some((address, peers.channel(*id)?)));
        let all = others.chain(sought.map(|address| (address, connect(address.clone()))));
        for (address, channel) in all {
            match timeout(ANSWER_TIMEOUT, self.ask(channel)).await {
                Ok(Ok(Answer::Addresses { from, found })) => self.learn(from, address, found),
                Ok(Ok(Answer::Removed)) => return membership::stop_removed(self.me.id, &self.fatal),
                Ok(Err(status)) => {
                    tracing::debug!(address, reason = status.message(), "no answer about the members")
                }
                Err(_) => tracing::debug!(address, "no answer about the members in time"),
            }
        }
    }

    /// The member that answered is where it was asked, whatever it says of itself.
    fn learn(&self, from: u64, address: &str, mut found: BTreeMap<u64, String>) {
        found.insert(from, address.to_owned());
        found.remove(&self.me.id);
        if self.whereabouts.learn(found) {
            tracing::info!(member = from, address, "other members' addresses learned");
        }
    }

    /// Where my address is outdated there, and the member leads, it is told.
    async fn ask(&self, channel: Channel) -> Result<Answer, Status> {
        let question = StatusRequest {
            asking_member: self.me.id,
            asking_address: self.me.address.clone(),
            reports: false,
        };
        let status = ClusterClient::new(channel.clone()).status(question).await?.into_inner();
        if status.cluster_id != self.cluster_id {
            let message = format!("it is of cluster {} now", status.cluster_id);
            return Err(Status::failed_precondition(message));
        }
        if status.asking_member_removed {
            return Ok(Answer::Removed);
        }
        let found: BTreeMap<u64, String> =
            status.members.into_iter().map(|member| (member.id, member.address)).collect();
        let outdated = found.get(&self.me.id).is_some_and(|address| *address != self.me.address);
        if outdated
            && status.leader_id == status.member_id
            && let Some(transaction) = announcement(&self.storage, &self.me)
        {
            let transaction =
                encode_transaction(&self.storage.request(transaction), self.storage.level().get());
            let told = leader_client(channel).propose(ProposeRequest { transaction }).await;
            told.inspect_err(|status| self.storage.learn_clock(status))?;
            tracing::info!(
                leader = status.leader_id,
                address = self.me.address,
                "new address announced to the leader"
            );
        }
        Ok(Answer::Addresses { from: status.member_id, found })
    }
}

/// What I know of my own object may be old, but nobody else writes it.
fn announcement(storage: &ReplicatedStorage, me: &MemberSpec) -> Option<Transaction> {
    let key = ObjectKey::new(MEMBERS, "", &me.id.to_string());
    let view = storage.view();
    let mut draft = editable(view.get(&key)?);
    draft["spec"] = json!(me);
    let write = Write::Put { key: key.clone(), draft: encode(&draft) };
    Some(Transaction { preconditions: vec![], writes: vec![write] }.expecting(key, Expect::Exists))
}
