//! What the cluster has agreed on about its authorities, as replicated objects: how far a change of them has come, and
//! which member and node goes by which state. The authorities with their keys are an object of their own, which is
//! sealed as Secrets are.

use std::collections::{BTreeMap, BTreeSet};

use coracle_api::new_draft;
use coracle_leader::node_object::JOINED_ANNOTATION;
use coracle_objects::{
    Expect, ObjectKey, Transaction, View, Write,
    draft::{editable, encode},
};
use coracle_pki::{Authorities, AuthorityName, Stage};
use coracle_raft::Status;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use coracle_leader::router::TRUSTS;
const HOLDERS: &str = "trustholders.coracle.dev";
const AUTHORITIES: &str = "authorities.coracle.dev";
pub const NODES: &str = "nodes";

/// On a Node: the generation of the authorities that it goes by, as it has said with a certificate of it.
const NODE_ANNOTATION: &str = "coracle.dev/trust-generation";

/// `spec` of the one trust object. Readable by everyone who may read objects: it holds no key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrustState {
    /// Grows with each step of a change.
    pub generation: u64,
    /// When the present step began, in seconds since the epoch.
    pub began_unix: i64,
    /// For how long a step waits for nodes at most, in seconds.
    pub grace_seconds: u64,
    /// The authorities that are being changed, and how far each is.
    pub changing: BTreeMap<AuthorityName, Stage>,
}

#[derive(Deserialize)]
struct Spec<T> {
    spec: T,
}

#[derive(Deserialize)]
struct Holder {
    member: u64,
    generation: u64,
}

impl TrustState {
    /// `None` as long as the authorities are those that the cluster was made with.
    pub fn read(view: &View) -> Option<Self> {
        view.get(&trust_key())?.parse::<Spec<Self>>().ok().map(|object| object.spec)
    }

    /// The generation that everybody should go by.
    pub fn generation(view: &View) -> u64 {
        Self::read(view).map_or(0, |trust| trust.generation)
    }
}

/// Writes the next generation of the authorities, based on what `view` has.
pub fn write(view: &View, authorities: &Authorities, began: Timestamp, grace_seconds: u64) -> Transaction {
    let trust = TrustState {
        generation: authorities.generation,
        began_unix: began.as_second(),
        grace_seconds,
        changing: authorities.changing(),
    };
    let mut transaction = Transaction::default();
    for (key, kind, spec) in
        [(trust_key(), "Trust", json!(trust)), (authorities_key(), "Authorities", json!(authorities))]
    {
        let one = put(view, key, kind, spec);
        transaction.preconditions.extend(one.preconditions);
        transaction.writes.extend(one.writes);
    }
    transaction
}

/// The authorities as they were last written; `None` as long as they are those that the cluster was made with, or
/// where this member lacks the key that they are sealed with.
pub fn authorities(view: &View) -> Option<Authorities> {
    view.get(&authorities_key())?.parse::<Spec<Authorities>>().ok().map(|object| object.spec)
}

/// Tells that a member goes by a generation; `None` where the cluster knows.
pub fn announcement(view: &View, member: u64, generation: u64) -> Option<Transaction> {
    if holders(view).get(&member) == Some(&generation) {
        return None;
    }
    let key = ObjectKey::new(HOLDERS, "", &member.to_string());
    Some(put(view, key, "TrustHolder", json!({ "member": member, "generation": generation })))
}

/// Tells that a node goes by a generation; `None` where the cluster knows, or has no such node.
pub fn node_announcement(view: &View, node: &str, generation: u64) -> Option<Transaction> {
    let object = view.get(&ObjectKey::new(NODES, "", node))?;
    let mut draft = editable(object);
    let annotation = &mut draft["metadata"]["annotations"][NODE_ANNOTATION];
    let generation = Value::from(generation.to_string());
    if *annotation == generation {
        return None;
    }
    *annotation = generation;
    Some(Transaction::update(object.key.clone(), encode(&draft), object.revision))
}

/// The members, and those of them that have not said that they go by this generation.
pub fn members_behind(view: &View, status: &Status, generation: u64) -> (BTreeSet<u64>, Vec<u64>) {
    let holders = holders(view);
    let behind = |member: &u64| holders.get(member).is_none_or(|held| *held < generation);
    let members: BTreeSet<u64> = status.voters.iter().chain(&status.learners).copied().collect();
    let late = members.iter().copied().filter(behind).collect();
    (members, late)
}

/// Nodes that have not said that they go by this generation.
pub fn nodes_behind(view: &View, generation: u64) -> Vec<String> {
    let behind = view.list(NODES, None).filter(|node| {
        let said = editable(node)["metadata"]["annotations"][NODE_ANNOTATION].as_str().map(str::parse::<u64>);
        !matches!(said, Some(Ok(said)) if said >= generation)
    });
    behind.map(|node| node.name().to_owned()).collect()
}

/// Has a cluster with new authorities know nothing of the former ones, nor who went by them.
pub fn forget(view: &View) -> (Vec<ObjectKey>, Vec<Write>) {
    let agreed = [TRUSTS, HOLDERS, AUTHORITIES].into_iter().flat_map(|resource| view.list(resource, None));
    let nodes = view.list(NODES, None).filter_map(|node| {
        let mut draft = editable(node);
        let annotations = draft["metadata"]["annotations"].as_object_mut()?;
        let known = [NODE_ANNOTATION, JOINED_ANNOTATION].map(|name| annotations.remove(name).is_some());
        known.contains(&true).then_some(())?;
        Some(Write::Put { key: node.key.clone(), draft: encode(&draft) })
    });
    (agreed.map(|object| object.key.clone()).collect(), nodes.collect())
}

fn holders(view: &View) -> BTreeMap<u64, u64> {
    let objects = view.list(HOLDERS, None).filter_map(|object| object.parse::<Spec<Holder>>().ok());
    objects.map(|holder| (holder.spec.member, holder.spec.generation)).collect()
}

fn trust_key() -> ObjectKey {
    ObjectKey::new(TRUSTS, "", "cluster")
}

fn authorities_key() -> ObjectKey {
    ObjectKey::new(AUTHORITIES, "", "cluster")
}

fn put(view: &View, key: ObjectKey, kind: &str, spec: Value) -> Transaction {
    match view.get(&key) {
        None => {
            let draft = new_draft("coracle.dev/v1", kind, &key, json!({ "spec": spec }), Timestamp::now());
            Transaction::create(key, draft)
        }
        Some(object) => {
            let mut draft = editable(object);
            draft["spec"] = spec;
            let write = Write::Put { key: key.clone(), draft: encode(&draft) };
            Transaction { preconditions: vec![], writes: vec![write] }
                .expecting(key, Expect::Revision(object.revision))
        }
    }
}
