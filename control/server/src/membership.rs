//! Who the members are and where: every member follows their objects; the leader keeps their number as it should be
//! ([`keeper`]) and publishes them as the endpoints of the service `kubernetes` ([`endpoints`]).

pub mod endpoints;
pub mod keeper;
pub mod policy;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coracle_api::Storage;
use coracle_objects::{
    ObjectKey, Transaction, View,
    draft::{editable, encode},
};
use coracle_raft::Status;
use coracle_storage::{
    ReplicatedStorage,
    machine::Fatal,
    peers::{MEMBERS, MemberSpec, members},
};
use serde_json::json;

use crate::bootstrap::{self, CLUSTER_INFO};

/// Between two tries to publish something.
pub const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How often a member looks whether it was removed.
const REMOVED_PERIOD: Duration = Duration::from_secs(1);

/// Calls `changed` with the members now and after each change of them, for as long as the process lives.
pub async fn follow(storage: ReplicatedStorage, mut changed: impl FnMut(&BTreeMap<u64, MemberSpec>) + Send) {
    let mut last = None;
    loop {
        let (view, mut events) = storage.hub().follow();
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

/// Tells the cluster this member's address and build where they have changed since the last start. Tries until it is
/// known.
pub async fn announce(storage: ReplicatedStorage, me: MemberSpec) {
    let key = ObjectKey::new(MEMBERS, "", &me.id.to_string());
    loop {
        if let Ok(view) = storage.linearizable().await {
            let Some(object) = view.get(&key) else { return };
            if members(&view).get(&me.id) == Some(&me) {
                return;
            }
            let mut draft = editable(object);
            draft["spec"] = json!(me);
            let update = Transaction::update(key.clone(), encode(&draft), object.revision);
            if let Ok(Ok(_)) = storage.propose(update).await {
                tracing::info!(member = me.id, address = %me.address, "address announced");
                return;
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Whether a member was removed for good. Safe on old views: its object came with its id, in one transaction.
pub fn is_removed(view: &View, status: &Status, id: u64) -> bool {
    let given = view.get(&CLUSTER_INFO.key()).is_some_and(|info| bootstrap::next_member_id(info) > id);
    let is_member = status.voters.contains(&id) || status.learners.contains(&id);
    id != 0 && given && !is_member && view.get(&ObjectKey::new(MEMBERS, "", &id.to_string())).is_none()
}

/// As [`is_removed`], by what this member knows now. One that is behind does not know of the newest members, and hears
/// them: it would never catch up otherwise.
pub fn is_former(storage: &ReplicatedStorage, id: u64) -> bool {
    let status = storage.raft().status();
    let status = status.borrow();
    let is_member = status.voters.contains(&id) || status.learners.contains(&id);
    !is_member && is_removed(&storage.view(), &status, id)
}

/// Ends the process when this member finds that it was removed. Never ends by itself.
pub async fn stop_when_removed(storage: ReplicatedStorage, fatal: Arc<Fatal>) {
    while !is_removed(&storage.view(), &storage.status(), storage.member()) {
        tokio::time::sleep(REMOVED_PERIOD).await;
    }
    stop_removed(storage.member(), &fatal);
    std::future::pending::<()>().await;
}

/// Ends the process: this member was removed.
pub fn stop_removed(id: u64, fatal: &Fatal) {
    let reason = format!(
        "member {id} was removed from the cluster; its data directory can be deleted. To come back, this machine joins \
         as a new member with an empty data directory and a new token"
    );
    fatal.send_if_modified(|found| found.is_none() && found.replace(reason).is_none());
}

/// For tasks that hand the members on.
pub fn addresses(members: &BTreeMap<u64, MemberSpec>) -> BTreeMap<u64, String> {
    members.iter().map(|(&id, member)| (id, member.address.clone())).collect()
}
