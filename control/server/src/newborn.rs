//! A cluster of one, made of the state of another: what has to be different in it.

use std::{cell::RefCell, collections::BTreeSet, io, io::Read};

use coracle_api::new_draft;
use coracle_objects::{
    ObjectKey, Transaction, Write,
    draft::{editable, encode, timestamp},
};
use coracle_raft::recover::Stopped;
use coracle_storage::{
    encryption::{KEY_HOLDERS, KEY_RINGS},
    peers::{MEMBERS, MemberSpec, members},
};
use coracle_store::{Command, Request, RequestId, Store, StoreConfig};
use jiff::Timestamp;

use crate::{
    bootstrap::{self, CLUSTER_INFO},
    certificates,
    error::ServerError,
    tokens,
};

/// A new cluster's revisions begin at least so far above the old one's, whatever the clock says.
pub const REVISIONS_SKIPPED: u64 = 1_000_000_000;

/// Where the revisions of a cluster that is founded now begin: whoever watched the old one reads everything again, and no
/// revision that was ever seen means two things. The old state alone does not tell which were seen: two clusters may be
/// made of one backup, one after the other. But no cluster has a million writes a second, so that the microseconds since
/// 1970 are above all revisions of clusters that were founded so before.
fn first_revision(old: u64, now: Timestamp) -> u64 {
    let micros = u64::try_from(now.as_microsecond()).unwrap_or_default();
    micros.max(old.saturating_add(REVISIONS_SKIPPED))
}

/// What the new cluster does not take over from the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The CAs stay: join tokens and nodes of the old cluster are good in the new one.
    Members,
    /// The CAs are new as well: everybody has to join again.
    Everybody,
    /// As everybody, and nobody has the keys of the sealed Secrets: they are left out.
    EverybodyAndSecrets,
}

/// The whole state of a stopped member, with every entry of its log applied.
pub fn replay(stopped: &Stopped) -> Result<Store, ServerError> {
    let store = RefCell::new(Store::new(StoreConfig::default()));
    let restore = |state: &mut dyn Read| -> io::Result<()> {
        *store.borrow_mut() = Store::restore(state, StoreConfig::default()).map_err(io::Error::other)?;
        Ok(())
    };
    let apply = |_, entry: &[u8]| -> Result<(), String> {
        store.borrow_mut().apply(entry).map(|_| ()).map_err(|error| error.to_string())
    };
    stopped.replay(restore, apply)?;
    Ok(store.into_inner())
}

/// The first id that no member of the old cluster ever had.
pub fn unused_id(store: &Store, used: &[u64]) -> u64 {
    let given = store.view().get(&CLUSTER_INFO.key()).map_or(1, |info| bootstrap::next_member_id(info));
    let known = members(store.view()).into_keys().chain(used.iter().copied()).max().unwrap_or(0);
    given.max(known + 1)
}

/// The sealed objects, each with the id of its key.
pub fn sealed(store: &Store) -> impl Iterator<Item = (ObjectKey, String)> {
    let objects = store.view().tables.values().flat_map(|table| table.values());
    objects.filter_map(|object| Some((object.key.clone(), object.sealed()?.key.to_owned())))
}

/// Makes the state that of a new cluster with `me` as its only member.
pub fn settle(store: &mut Store, cluster_id: &str, me: &MemberSpec, what: Break) -> Result<(), String> {
    settle_at(store, cluster_id, me, what, Timestamp::now())
}

fn settle_at(
    store: &mut Store,
    cluster_id: &str,
    me: &MemberSpec,
    what: Break,
    now: Timestamp,
) -> Result<(), String> {
    let view = store.view().clone();
    let keys =
        |resource: &str| view.list(resource, None).map(|object| object.key.clone()).collect::<Vec<_>>();
    let mut gone: BTreeSet<ObjectKey> = keys(MEMBERS).into_iter().chain(keys(KEY_HOLDERS)).collect();
    let mut writes = Vec::new();
    if what != Break::Members {
        let (authorities, nodes) = certificates::forget_authorities(&view);
        gone.extend(tokens::keys(&view).into_iter().chain(authorities));
        writes.extend(nodes);
    }
    if what == Break::EverybodyAndSecrets {
        gone.extend(sealed(store).map(|(key, _)| key).chain(keys(KEY_RINGS)));
    }
    writes.extend(gone.into_iter().map(|key| Write::Delete { key }));
    let key = ObjectKey::new(MEMBERS, "", &me.id.to_string());
    let draft = new_draft("coracle.dev/v1", "Member", &key, me.to_body(), now);
    writes.push(Write::Put { key, draft });
    if let Some(info) = view.get(&CLUSTER_INFO.key()) {
        let mut draft = editable(info);
        let former = match what {
            Break::Members => bootstrap::with_former_id(info),
            Break::Everybody | Break::EverybodyAndSecrets => String::new(),
        };
        draft["data"]["clusterId"] = cluster_id.into();
        draft["data"]["nextMemberId"] = (me.id + 1).to_string().into();
        draft["data"]["formerClusterIds"] = former.into();
        if what != Break::Members {
            draft["data"][bootstrap::RESTORED_AT] = timestamp(Timestamp::now()).into();
        }
        writes.push(Write::Put { key: info.key.clone(), draft: encode(&draft) });
    }
    let request = Request {
        id: RequestId { client: rand::random(), sequence: store.clock() + 1 },
        transaction: Transaction { preconditions: vec![], writes },
    };
    // At the level that the state has: who could read the old cluster's can read this.
    let command = Command { proposer: me.id, requests: vec![request] };
    let entry = command.encode_at(store.level(), store.levels()).map_err(|error| error.to_string())?;
    let batch = store.apply(&entry).map_err(|error| error.to_string())?;
    if let Some((_, Err(refusal))) = batch.results.first() {
        return Err(format!("the state cannot be changed: {refusal:?}"));
    }
    store.go_on_at(first_revision(store.revision(), now));
    Ok(())
}

#[cfg(test)]
mod tests {
    use coracle_store::{LEVELS, Level, Levels};
    use serde_json::json;

    use super::*;

    fn member(id: u64) -> MemberSpec {
        MemberSpec { id, name: format!("m{id}"), ..MemberSpec::default() }
    }

    fn put(store: &mut Store, api_version: &str, kind: &str, key: ObjectKey, body: serde_json::Value) {
        let draft = new_draft(api_version, kind, &key, body, Timestamp::UNIX_EPOCH);
        let id = RequestId { client: 1, sequence: store.revision() + 1 };
        let request = Request { id, transaction: Transaction::create(key, draft) };
        store.apply(&Command { proposer: 1, requests: vec![request] }.encode()).unwrap();
    }

    #[test]
    fn a_newborn_has_one_member_another_name_and_high_revisions() {
        let mut store = Store::new(StoreConfig::default());
        for id in [1, 2] {
            let key = ObjectKey::new(MEMBERS, "", &id.to_string());
            put(&mut store, "coracle.dev/v1", "Member", key, member(id).to_body());
        }
        let info = json!({ "data": { "clusterId": "old", "nextMemberId": "5" } });
        put(&mut store, "v1", "ConfigMap", CLUSTER_INFO.key(), info);
        let before = store.revision();
        assert_eq!(unused_id(&store, &[1, 2]), 5);
        assert_eq!(unused_id(&store, &[7]), 8);
        settle(&mut store, "new", &member(5), Break::Members).unwrap();
        assert_eq!(members(store.view()), [(5, member(5))].into());
        let info = store.view().get(&CLUSTER_INFO.key()).unwrap();
        assert_eq!(bootstrap::next_member_id(info), 6);
        assert_eq!(editable(info)["data"]["clusterId"], "new");
        assert_eq!(bootstrap::former_ids(store.view()), ["old"]);
        assert!(store.revision() > before + REVISIONS_SKIPPED);
        settle(&mut store, "newer", &member(6), Break::Everybody).unwrap();
        assert_eq!(bootstrap::former_ids(store.view()), [""; 0]);
    }

    #[test]
    fn a_newborn_has_the_level_of_the_old_cluster_whatever_this_build_knows() {
        const TWO: &[Level] = &[LEVELS[0], LEVELS[0]];
        for level in [1, 2] {
            let config = StoreConfig { levels: Levels::new(TWO), ..StoreConfig::default() };
            let mut store = Store::new(config);
            let key = ObjectKey::new("configmaps", "default", "a");
            let draft = new_draft("v1", "ConfigMap", &key, json!({}), Timestamp::UNIX_EPOCH);
            let id = RequestId { client: 1, sequence: 1 };
            let requests = vec![Request { id, transaction: Transaction::create(key, draft) }];
            let entry = Command { proposer: 1, requests }.encode_at(level, store.levels()).unwrap();
            store.apply(&entry).unwrap();
            settle(&mut store, "new", &member(5), Break::Everybody).unwrap();
            assert_eq!(store.level(), level);
        }
    }

    #[test]
    fn two_clusters_of_one_state_have_no_revision_in_common() {
        let mut old = Store::new(StoreConfig::default());
        put(&mut old, "v1", "ConfigMap", ObjectKey::new("configmaps", "default", "a"), json!({}));
        let founded = |store: &Store, at: i64| {
            let mut store = store.clone();
            let at = Timestamp::from_second(at).unwrap();
            settle_at(&mut store, "new", &member(5), Break::Members, at).unwrap();
            store
        };
        // One goes on for a minute, with more writes than any disk takes; then another is made of the same state.
        const BEGUN: i64 = 1_900_000_000;
        let first = founded(&old, BEGUN);
        let second = founded(&old, BEGUN + 60);
        assert!(second.revision() > first.revision() + 60 * 100_000);
        // Where the clock is behind it does not go back at least.
        let third = founded(&second, BEGUN - 1_000);
        assert!(third.revision() >= second.revision() + REVISIONS_SKIPPED);
        // Clients keep them in numbers of 53 bits, some.
        assert!(third.revision() < 1 << 53);
    }

    #[test]
    fn new_authorities_know_nothing_of_the_former_ones() {
        let mut store = Store::new(StoreConfig::default());
        for (resource, kind) in [
            ("trusts.coracle.dev", "Trust"),
            ("trustholders.coracle.dev", "TrustHolder"),
            ("authorities.coracle.dev", "Authorities"),
        ] {
            put(&mut store, "coracle.dev/v1", kind, ObjectKey::new(resource, "", "1"), json!({ "spec": {} }));
        }
        let node = ObjectKey::new("nodes", "", "n1");
        put(&mut store, "v1", "Node", node.clone(), json!({ "spec": { "podCIDR": "10.0.0.0/24" } }));
        let mut draft = editable(store.view().get(&node).unwrap());
        draft["metadata"]["annotations"] = json!({ "coracle.dev/trust-generation": "3", "mine": "stays" });
        let write = Write::Put { key: node.clone(), draft: encode(&draft) };
        let id = RequestId { client: 2, sequence: 1 };
        let request = Request { id, transaction: Transaction { preconditions: vec![], writes: vec![write] } };
        store.apply(&Command { proposer: 1, requests: vec![request] }.encode()).unwrap();
        let count = |store: &Store| {
            let counts = ["trusts", "trustholders", "authorities"];
            counts.map(|name| store.view().count(&format!("{name}.coracle.dev"))).iter().sum::<usize>()
        };
        settle(&mut store, "recovered", &member(5), Break::Members).unwrap();
        assert_eq!(count(&store), 3, "the CAs stay");
        settle(&mut store, "restored", &member(6), Break::Everybody).unwrap();
        assert_eq!(count(&store), 0);
        let node = editable(store.view().get(&node).unwrap());
        assert_eq!(node["metadata"]["annotations"], json!({ "mine": "stays" }));
        assert_eq!(node["spec"]["podCIDR"], "10.0.0.0/24");
    }
}
