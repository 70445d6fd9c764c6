//! What every member does for the keys: fetches those that it lacks from another member, forgets dropped ones, and says
//! which it holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use coracle_api::Storage;
use coracle_objects::View;
use coracle_proto::security::{FetchKeysRequest, security_client::SecurityClient};
use tokio::time::{sleep, timeout};

use super::{
    SecretBox,
    key::{KeptKey, Key, KeyId},
    state::{self, KEY_RINGS, KeyRingState},
};
use crate::ReplicatedStorage;

/// Before a key that could not be had is asked for again, or an announcement is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Until a member must have answered.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);

/// Follows the agreed key ring for as long as the process lives.
pub async fn follow(storage: ReplicatedStorage, secrets: Arc<SecretBox>) {
    let mut told = BTreeSet::new();
    loop {
        let (_, mut events) = storage.hub().follow();
        loop {
            let done = step(&storage, &secrets, &mut told).await;
            let retry = async {
                match done {
                    true => std::future::pending().await,
                    false => sleep(RETRY_PAUSE).await,
                }
            };
            let ring_changed = async {
                loop {
                    match events.next().await {
                        Ok(events)
                            if events.iter().any(|event| event.object.key.resource.as_str() == KEY_RINGS) =>
                        {
                            return true;
                        }
                        Ok(_) => {}
                        Err(_) => return false,
                    }
                }
            };
            tokio::select! {
                () = retry => {}
                () = secrets.wanted() => {}
                followed = ring_changed => if !followed { break },
            }
        }
    }
}

/// Whether nothing is left to be done. `told` are the missing keys that the log has named.
async fn step(storage: &ReplicatedStorage, secrets: &SecretBox, told: &mut BTreeSet<KeyId>) -> bool {
    let view = storage.view();
    let agreed = KeyRingState::read(&view).map(|(_, agreed)| agreed);
    let missing = missing(agreed.as_ref(), secrets);
    let mut complete = true;
    if !missing.is_empty() {
        let found = fetch(storage, &missing).await;
        complete = found.len() == missing.len();
        for id in missing.iter().filter(|id| !found.contains_key(*id) && told.insert((*id).clone())) {
            let mend =
                "where no control node has it, restore the key ring file from a backup and start again";
            tracing::error!(key = %id, path = %secrets.path().display(), mend, "a key for Secrets is missing here");
        }
        if !found.is_empty() && !keep(secrets, found) {
            return false;
        }
        storage.hub().reopen();
    }
    let Some(agreed) = agreed else { return complete };
    if !settle(secrets, &agreed) {
        return false;
    }
    announce(storage, secrets, &view).await && complete
}

/// The agreed keys and those that something was met sealed with, without what is held or dropped.
fn missing(agreed: Option<&KeyRingState>, secrets: &SecretBox) -> BTreeSet<KeyId> {
    let ring = secrets.ring();
    let mut missing = secrets.lacking();
    if let Some(agreed) = agreed {
        missing.extend(agreed.keys.iter().cloned());
        missing.retain(|id| !agreed.dropped.contains(id));
    }
    missing.retain(|id| ring.get(id.as_str()).is_none());
    missing
}

/// Asks the leader first, then the others.
async fn fetch(storage: &ReplicatedStorage, missing: &BTreeSet<KeyId>) -> BTreeMap<KeyId, Key> {
    let leader = storage.status().leader;
    let mut members: Vec<u64> = storage.peers().addresses().into_keys().collect();
    members.retain(|member| *member != storage.member());
    members.sort_by_key(|member| Some(*member) != leader);
    let mut found = BTreeMap::new();
    for member in members {
        let ids: Vec<String> =
            missing.iter().filter(|id| !found.contains_key(*id)).map(KeyId::to_string).collect();
        let Some(channel) = storage.peers().channel(member).filter(|_| !ids.is_empty()) else { continue };
        let call = async { SecurityClient::new(channel).fetch_keys(FetchKeysRequest { ids }).await };
        match timeout(FETCH_TIMEOUT, call).await {
            Ok(Ok(answer)) => {
                let kept = answer.into_inner().keys;
                let kept = kept.iter().filter_map(|kept| serde_json::from_slice::<KeptKey>(kept).ok());
                let keys = kept.filter_map(|kept| Key::from_kept(&kept).ok());
                found.extend(keys.filter(|key| missing.contains(&key.id)).map(|key| (key.id.clone(), key)));
            }
            Ok(Err(error)) => tracing::debug!(member, %error, "no keys from a member"),
            Err(_) => tracing::debug!(member, "a member did not hand its keys in time"),
        }
    }
    found
}

fn keep(secrets: &SecretBox, found: BTreeMap<KeyId, Key>) -> bool {
    let ids: Vec<String> = found.keys().map(KeyId::to_string).collect();
    let kept = secrets.change(|ring| found.into_values().for_each(|key| ring.add(key)));
    match &kept {
        Ok(()) => tracing::info!(keys = ?ids, "keys for Secrets fetched"),
        Err(error) => tracing::error!(%error, "the key ring cannot be written"),
    }
    kept.is_ok()
}

/// Brings the file in step with what is agreed on.
fn settle(secrets: &SecretBox, agreed: &KeyRingState) -> bool {
    let ring = secrets.ring();
    let dropped: Vec<&KeyId> = agreed.dropped.iter().filter(|id| ring.get(id.as_str()).is_some()).collect();
    let writing = agreed.writing.as_ref().filter(|id| ring.get(id.as_str()).is_some());
    if dropped.is_empty() && (writing.is_none() || writing == ring.writing.as_ref()) {
        return true;
    }
    let settled = secrets.change(|ring| {
        if let Some(writing) = writing {
            ring.writing = Some(writing.clone());
        }
        dropped.iter().for_each(|id| ring.remove(id));
    });
    if let Err(error) = &settled {
        tracing::error!(%error, "the key ring cannot be written");
    }
    settled.is_ok()
}

async fn announce(storage: &ReplicatedStorage, secrets: &SecretBox, view: &View) -> bool {
    let held: BTreeSet<KeyId> = secrets.ring().ids().cloned().collect();
    match state::announcement(view, storage.member(), &held) {
        None => true,
        Some(announcement) => matches!(storage.propose(announcement).await, Ok(Ok(_))),
    }
}
