//! What the cluster has agreed on about keys, as replicated objects: which keys there are, which one is written with,
//! and which member holds which. The keys themselves are never replicated.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use coracle_api::new_draft;
use coracle_objects::{
    Object, ObjectKey, Revision, SEALED_RESOURCES, Transaction, View,
    draft::{editable, encode},
};
use coracle_raft::Status;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::key::KeyId;

/// The resource of the one [`KeyRingState`].
pub const KEY_RINGS: &str = "keyrings.coracle.dev";
/// The resource whose objects say which member holds which keys.
pub const KEY_HOLDERS: &str = "keyholders.coracle.dev";

/// `spec` of the one key ring object. Whoever proposes a sealed draft makes this object's revision a precondition: no
/// write with another key than the agreed one is ever applied, however late it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyRingState {
    /// New drafts are sealed with it. Without one they are written in clear, as before there was encryption; the
    /// leader of such a cluster adds a key by itself.
    pub writing: Option<KeyId>,
    /// Is on its way to all members, and written with once all hold it.
    pub adding: Option<KeyId>,
    /// Every key that something may be sealed with, and the one that is added.
    pub keys: Vec<KeyId>,
    /// Keys that members forget.
    pub dropped: Vec<KeyId>,
}

#[derive(Deserialize)]
struct RingObject {
    spec: KeyRingState,
}

#[derive(Deserialize)]
struct HolderObject {
    spec: Holder,
}

#[derive(Deserialize)]
struct Holder {
    member: u64,
    keys: BTreeSet<KeyId>,
}

impl KeyRingState {
    pub(super) fn key() -> ObjectKey {
        ObjectKey::new(KEY_RINGS, "", "secrets")
    }

    /// With the revision of its object; `None` before there is one.
    pub fn read(view: &View) -> Option<(Revision, Self)> {
        let object = view.get(&Self::key())?;
        Some((object.revision, object.parse::<RingObject>().ok()?.spec))
    }

    /// Writes this state over what `view` has.
    pub(super) fn write(&self, view: &View) -> Transaction {
        put(view, Self::key(), "KeyRing", json!(self))
    }
}

/// Tells which keys a member holds; `None` where the cluster knows.
pub fn announcement(view: &View, member: u64, held: &BTreeSet<KeyId>) -> Option<Transaction> {
    if holders(view).get(&member) == Some(held) {
        return None;
    }
    let key = ObjectKey::new(KEY_HOLDERS, "", &member.to_string());
    Some(put(view, key, "KeyHolder", json!({ "member": member, "keys": held })))
}

fn put(view: &View, key: ObjectKey, kind: &str, spec: serde_json::Value) -> Transaction {
    match view.get(&key) {
        None => {
            let draft = new_draft("coracle.dev/v1", kind, &key, json!({ "spec": spec }), Timestamp::now());
            Transaction::create(key, draft)
        }
        Some(object) => {
            let draft = with_spec(object, spec);
            Transaction::update(key, draft, object.revision)
        }
    }
}

fn with_spec(object: &Object, spec: serde_json::Value) -> Bytes {
    let mut draft = editable(object);
    draft["spec"] = spec;
    encode(&draft)
}

/// The keys that each member says it holds.
pub fn holders(view: &View) -> BTreeMap<u64, BTreeSet<KeyId>> {
    let objects = view.list(KEY_HOLDERS, None).filter_map(|object| object.parse::<HolderObject>().ok());
    objects.map(|holder| (holder.spec.member, holder.spec.keys)).collect()
}

/// Members of the cluster that have not said that they hold a key.
pub fn members_without(key: &KeyId, view: &View, status: &Status) -> Vec<u64> {
    let holders = holders(view);
    let lacks = |member: &u64| !holders.get(member).is_some_and(|keys| keys.contains(key));
    status
        .voters
        .iter()
        .chain(&status.learners)
        .copied()
        .filter(lacks)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// How many objects are sealed with each key, `None` being those in clear. Takes the view as it is stored.
pub fn counts(sealed: &View) -> BTreeMap<Option<String>, u64> {
    let mut counts = BTreeMap::new();
    for object in SEALED_RESOURCES.iter().flat_map(|resource| sealed.list(resource, None)) {
        *counts.entry(object.sealed().map(|sealed| sealed.key.to_owned())).or_default() += 1;
    }
    counts
}
