//! The Node object and its Lease, as they follow from what a node says of itself.

use core::net::IpAddr;
use std::collections::BTreeMap;

pub use coracle_controllers::GATEWAY_ANNOTATION;
use coracle_objects::{
    Object, ObjectKey, Quantity, Transaction, View,
    draft::{editable, encode, new_draft, timestamp},
};
use coracle_proto::node::Hello;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::validation;

/// Where other nodes reach this node's fabric (`host:port`).
pub const FABRIC_ANNOTATION: &str = "coracle.dev/fabric-address";
/// Changes with every start of the node's process.
const BOOT_ANNOTATION: &str = "coracle.dev/boot-id";
/// On Nodes whose nodes' certificates are bound to them: whether a node has ever linked.
pub const JOINED_ANNOTATION: &str = "coracle.dev/joined";
const WAITING: &str = "waiting";
const LINKED: &str = "linked";
const LOCAL_ARTIFACTS_ANNOTATION: &str = "coracle.dev/allow-local-artifacts";

/// How long a lease says that it holds.
pub const LEASE_SECONDS: u64 = 600;

/// What a node says of itself with each heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

/// Whether a node is known to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// It has not been heard of for too long.
    Unknown,
}

pub fn key(node: &str) -> ObjectKey {
    ObjectKey::new("nodes", "", node)
}

/// The Node of a node that joins. It is there before the node has a certificate, which is bound to it.
pub fn joined(node: &str, uid: &str, now: Timestamp) -> Transaction {
    let key = key(node);
    let metadata = json!({ "annotations": { JOINED_ANNOTATION: WAITING } });
    let body = json!({ "metadata": metadata, "spec": {}, "status": {} });
    Transaction::create(key.clone(), new_draft("v1", "Node", &key, body, uid, now))
}

/// Has a Node that there is be that of a node which joins again with a token for it; `None` where it is already.
pub fn joined_again(object: &Object) -> Option<Transaction> {
    let mut draft = editable(object);
    let before = draft.clone();
    put_text(&mut draft["metadata"]["annotations"], JOINED_ANNOTATION, LINKED);
    (draft != before).then(|| Transaction::update(object.key.clone(), encode(&draft), object.revision))
}

/// Whether a node has joined and never linked.
pub fn never_linked(object: &Object) -> bool {
    joined_annotation(object).as_deref() == Some(WAITING)
}

/// Whether the node's certificates are bound to its Node.
pub fn is_bound(object: &Object) -> bool {
    joined_annotation(object).is_some()
}

/// The uid of the Node that a node's certificate is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundTo(pub String);

/// Whether a certificate is of this Node. It is bound to it by the uid. One of a version before there was that is good
/// as long as its Node knows of no other: a Node that was made by a join, or has linked with a certificate that is bound,
/// takes no other kind any more.
pub fn is_certified(object: &Object, bound_to: Option<&BoundTo>) -> bool {
    match bound_to {
        Some(BoundTo(uid)) => *uid == object.meta.uid,
        None => !is_bound(object),
    }
}

/// What a node is told whose certificate is of no Node that there is.
pub fn node_gone(node: &str) -> String {
    format!(
        "there is no node {node} any more that this certificate was issued for; join again with an empty data directory \
         and a new token (`coracle token create --role node`)"
    )
}

fn joined_annotation(object: &Object) -> Option<String> {
    editable(object)["metadata"]["annotations"][JOINED_ANNOTATION].as_str().map(str::to_owned)
}

/// The transaction that makes the Node object say what the node says, or `None` where it does already, or where there is
/// no such node any more. `bound` tells whether the node's certificate is bound to it.
pub fn registration(view: &View, hello: &Hello, bound: bool, now: Timestamp) -> Option<Transaction> {
    let object = view.get(&key(&hello.name))?;
    let mut draft = editable(object);
    let before = draft.clone();
    describe(&mut draft, hello, now);
    if bound {
        put_text(&mut draft["metadata"]["annotations"], JOINED_ANNOTATION, LINKED);
    }
    (draft != before).then(|| Transaction::update(object.key.clone(), encode(&draft), object.revision))
}

fn describe(node: &mut Value, hello: &Hello, now: Timestamp) {
    let labels = &mut node["metadata"]["labels"];
    put_text(labels, "kubernetes.io/hostname", &hello.name);
    for (label, value) in &hello.labels {
        put_text(labels, label, value);
    }
    let annotations = &mut node["metadata"]["annotations"];
    put_text(annotations, FABRIC_ANNOTATION, &hello.fabric_address);
    put_text(annotations, GATEWAY_ANNOTATION, &hello.gateway_address);
    put_text(annotations, BOOT_ANNOTATION, &hello.boot_id);
    put_text(annotations, LOCAL_ARTIFACTS_ANNOTATION, if hello.allow_local_artifacts { "true" } else { "" });
    let status = &mut node["status"];
    status["capacity"] = sorted(hello.capacity.iter());
    status["allocatable"] = sorted(hello.allocatable.iter());
    status["addresses"] = addresses(hello);
    if let Ok(info) = validation::node_info(&hello.node_info_json) {
        status["nodeInfo"] = info;
    }
    set_conditions(status, Readiness::Ready, Some(Pressures::default()), now);
}

fn addresses(hello: &Hello) -> Value {
    let host = host(&hello.fabric_address);
    let type_ = if host.parse::<IpAddr>().is_ok() { "InternalIP" } else { "InternalDNS" };
    let mut addresses = vec![json!({ "type": "Hostname", "address": hello.name })];
    if !host.is_empty() {
        addresses.insert(0, json!({ "type": type_, "address": host }));
    }
    addresses.into()
}

/// The transaction that has a Node's status say again what its node says of itself, or `None` where it does. Resources
/// that the node says nothing of are somebody else's and stay, as far as they are well formed.
pub fn correction(object: &Object, hello: &Hello) -> Option<Transaction> {
    let mut draft = editable(object);
    let before = draft.clone();
    let status = &mut draft["status"];
    for (key, told) in [("capacity", &hello.capacity), ("allocatable", &hello.allocatable)] {
        let mut resources: BTreeMap<String, Value> =
            told.iter().map(|(name, amount)| (name.clone(), amount.as_str().into())).collect();
        for (name, amount) in status[key].as_object().into_iter().flatten() {
            let fine = Quantity::from_json(amount).is_ok_and(|amount| !amount.is_negative());
            if fine && !resources.contains_key(name) {
                resources.insert(name.clone(), amount.clone());
            }
        }
        let same = |now: &Value| {
            now.as_object().is_some_and(|now| {
                now.len() == resources.len()
                    && resources.iter().all(|(name, amount)| now.get(name) == Some(amount))
            })
        };
        if !same(&status[key]) {
            status[key] = json!(resources);
        }
    }
    status["addresses"] = addresses(hello);
    if let Ok(info) = validation::node_info(&hello.node_info_json) {
        status["nodeInfo"] = info;
    }
    (draft != before).then(|| Transaction::update(object.key.clone(), encode(&draft), object.revision))
}

fn sorted<'a>(quantities: impl Iterator<Item = (&'a String, &'a String)>) -> Value {
    json!(quantities.collect::<BTreeMap<_, _>>())
}

/// `host` of `host:port`; of `[::1]:1` it is `::1`.
pub fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Sets a key of a map that may not exist yet; an empty value removes it.
fn put_text(map: &mut Value, key: &str, value: &str) {
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    if let Some(map) = map.as_object_mut() {
        if value.is_empty() {
            map.remove(key);
        } else {
            map.insert(key.into(), value.into());
        }
    }
}

/// The transaction that makes a node's conditions say this, or `None` where they do already.
pub fn transition(
    object: &Object,
    readiness: Readiness,
    pressures: Option<Pressures>,
    now: Timestamp,
) -> Option<Transaction> {
    let mut draft = editable(object);
    let changed = set_conditions(&mut draft["status"], readiness, pressures, now);
    changed.then(|| Transaction::update(object.key.clone(), encode(&draft), object.revision))
}

/// Answers whether any condition changed its status.
fn set_conditions(
    status: &mut Value,
    readiness: Readiness,
    pressures: Option<Pressures>,
    now: Timestamp,
) -> bool {
    let mut changed = false;
    let truth = |pressure: bool| if pressure { "True" } else { "False" };
    match readiness {
        Readiness::Ready => {
            if let Some(Pressures { memory, disk, pid }) = pressures {
                for (type_, pressure, has, has_not) in [
                    ("MemoryPressure", memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
                    ("DiskPressure", disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
                    ("PIDPressure", pid, "KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
                ] {
                    let reason = if pressure { has } else { has_not };
                    changed |=
                        set_condition(status, type_, truth(pressure), reason, "reported by the node", now);
                }
            }
            changed
                | set_condition(status, "Ready", "True", "KubeletReady", "the node is ready to run pods", now)
        }
        Readiness::Unknown => {
            let (reason, message) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
            for type_ in ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"] {
                changed |= set_condition(status, type_, "Unknown", reason, message, now);
            }
            changed
        }
    }
}

/// A condition whose status stays is left as it is.
fn set_condition(
    status: &mut Value,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return false };
    let time = timestamp(now);
    let condition = json!({
        "type": type_, "status": value, "reason": reason, "message": message,
        "lastHeartbeatTime": time, "lastTransitionTime": time,
    });
    match conditions.iter_mut().find(|known| known["type"] == type_) {
        Some(known) if known["status"] == value => false,
        Some(known) => {
            *known = condition;
            true
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}

/// Whether the Ready condition has this status: `True`, `False` or `Unknown`.
pub fn ready_status(object: &Object) -> String {
    let status = editable(object);
    let conditions = status["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready");
    ready.and_then(|ready| ready["status"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// The transaction that renews a node's lease; one that is made has this uid.
pub fn lease(view: &View, node: &str, lease_uid: &str, now: Timestamp) -> Transaction {
    let key = ObjectKey::new("leases.coordination.k8s.io", "kube-node-lease", node);
    let time = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let spec = json!({
        "holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": time,
    });
    match view.get(&key) {
        Some(object) => {
            let mut draft = editable(object);
            draft["spec"] = spec;
            Transaction::update(key, encode(&draft), object.revision)
        }
        None => {
            let uid = view.get(&self::key(node)).map(|object| object.meta.uid.clone()).unwrap_or_default();
            let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid }]);
            let body = json!({ "metadata": { "ownerReferences": owner }, "spec": spec });
            let draft = new_draft("coordination.k8s.io/v1", "Lease", &key, body, lease_uid, now);
            Transaction::create(key, draft)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            name: "n1".into(),
            fabric_address: "10.0.0.1:7443".into(),
            capacity: [("cpu".to_owned(), "2".to_owned())].into(),
            node_info_json: br#"{"kubeletVersion":"v1"}"#.as_slice().into(),
            ..Hello::default()
        }
    }

    fn object(transaction: &Transaction) -> Object {
        let coracle_objects::Write::Put { key, draft } = &transaction.writes[0] else { panic!("a put") };
        Object::from_draft(key.clone(), draft, 1).unwrap()
    }

    fn view_of(object: Object) -> View {
        let mut view = View::default();
        view.tables.entry("nodes".into()).or_default().insert(object.key.name.clone(), object.into());
        view
    }

    /// The Node of a node that has joined and linked.
    fn registered(now: Timestamp) -> Object {
        let joined = object(&joined("n1", "u", now));
        assert!(never_linked(&joined) && is_bound(&joined));
        object(&registration(&view_of(joined), &hello(), true, now).unwrap())
    }

    #[test]
    fn a_node_is_registered_once_and_keeps_what_others_wrote() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let created = registered(now);
        assert_eq!(ready_status(&created), "True");
        assert!(!never_linked(&created) && is_bound(&created));
        let mut draft = editable(&created);
        draft["spec"]["unschedulable"] = true.into();
        let view = view_of(Object::from_draft(created.key.clone(), &encode(&draft), 2).unwrap());
        assert!(registration(&view, &hello(), true, now).is_none(), "nothing new");
        let restarted = Hello { boot_id: "b".into(), ..hello() };
        let updated = editable(&object(&registration(&view, &restarted, true, now).unwrap()));
        assert_eq!(updated["spec"]["unschedulable"], true);
        assert_eq!(updated["metadata"]["annotations"][BOOT_ANNOTATION], "b");
        assert!(registration(&View::default(), &hello(), true, now).is_none(), "a link makes no Node");
    }

    #[test]
    fn a_node_of_an_older_version_is_bound_once_its_certificate_is() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let key = key("n1");
        let draft = new_draft("v1", "Node", &key, json!({ "spec": {}, "status": {} }), "u", now);
        let old = Object::from_draft(key, &draft, 1).unwrap();
        assert!(!is_bound(&old));
        let linked = object(&registration(&view_of(old.clone()), &hello(), false, now).unwrap());
        assert!(!is_bound(&linked));
        assert!(is_bound(&object(&registration(&view_of(linked), &hello(), true, now).unwrap())));
        let again = object(&joined_again(&old).unwrap());
        assert!(is_bound(&again) && !never_linked(&again), "nobody may take it away again");
        assert!(joined_again(&again).is_none());
    }

    #[test]
    fn what_a_node_says_of_itself_is_put_back() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let node = registered(now);
        assert_eq!(correction(&node, &hello()), None);
        let mut bent = editable(&node);
        bent["status"]["capacity"] = json!({ "cpu": "1n", "example.com/gpu": "2", "memory": "-5" });
        bent["status"]["allocatable"] = json!({ "pods": "-5" });
        bent["status"]["addresses"] = Value::Null;
        bent["status"]["nodeInfo"] = Value::Null;
        bent["status"]["conditions"][0]["status"] = "False".into();
        let bent = Object::from_draft(node.key.clone(), &encode(&bent), 2).unwrap();
        let mended = object(&correction(&bent, &hello()).unwrap());
        let status = editable(&mended)["status"].clone();
        assert_eq!(status["capacity"], json!({ "cpu": "2", "example.com/gpu": "2" }));
        assert_eq!(status["allocatable"], json!({}));
        for key in ["addresses", "nodeInfo"] {
            assert_eq!(status[key], editable(&node)["status"][key], "{key}");
        }
        assert_eq!(status["conditions"][0]["status"], "False", "conditions are told with heartbeats");
        assert_eq!(correction(&mended, &hello()), None, "once is enough");
        let by_name = Hello { fabric_address: "host.example:7443".into(), ..hello() };
        assert_eq!(addresses(&by_name)[0]["type"], "InternalDNS");
    }

    #[test]
    fn conditions_change_only_with_their_status() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let node = registered(now);
        assert!(transition(&node, Readiness::Ready, Some(Pressures::default()), now).is_none());
        let lost = object(&transition(&node, Readiness::Unknown, None, now).unwrap());
        assert_eq!(ready_status(&lost), "Unknown");
        let pressed = Pressures { memory: true, ..Pressures::default() };
        let pressed = editable(&object(&transition(&lost, Readiness::Ready, Some(pressed), now).unwrap()));
        assert_eq!(pressed["status"]["conditions"][0]["status"], "True");
    }
}
