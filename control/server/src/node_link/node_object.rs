//! The Node object and its Lease, as they follow from what a node says of itself.

use coracle_objects::{Object, ObjectKey, Transaction, View};
use coracle_proto::node::Hello;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::links::Pressures;
use crate::{
    drafts::{editable, encode, new_draft, rfc3339},
    join::host,
};

/// Where other nodes reach this node's fabric, and clients its gateway (`host:port`).
pub const FABRIC_ANNOTATION: &str = "coracle.dev/fabric-address";
pub const GATEWAY_ANNOTATION: &str = "coracle.dev/gateway-address";
/// Changes with every start of the node's process.
const BOOT_ANNOTATION: &str = "coracle.dev/boot-id";
const LOCAL_ARTIFACTS_ANNOTATION: &str = "coracle.dev/allow-local-artifacts";

/// How long a lease says that it holds.
pub const LEASE_SECONDS: u64 = 600;

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

/// The transaction that makes the Node object say what the node says, or `None` where it does already.
pub fn registration(view: &View, hello: &Hello, now: Timestamp) -> Option<Transaction> {
    let key = key(&hello.name);
    match view.get(&key) {
        None => {
            let mut draft = json!({ "spec": {}, "status": {} });
            describe(&mut draft, hello, now);
            Some(Transaction::create(key.clone(), new_draft("v1", "Node", &key, draft, now)))
        }
        Some(object) => {
            let mut draft = editable(object);
            let before = draft.clone();
            describe(&mut draft, hello, now);
            (draft != before).then(|| Transaction::update(key, encode(&draft), object.revision))
        }
    }
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
    let quantities = |map: &std::collections::HashMap<String, String>| {
        let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
        json!(sorted)
    };
    status["capacity"] = quantities(&hello.capacity);
    status["allocatable"] = quantities(&hello.allocatable);
    status["addresses"] = json!([
        { "type": "InternalIP", "address": host(&hello.fabric_address) },
        { "type": "Hostname", "address": hello.name },
    ]);
    if let Ok(info) = serde_json::from_slice::<Value>(&hello.node_info_json) {
        status["nodeInfo"] = info;
    }
    set_conditions(status, Readiness::Ready, Some(Pressures::default()), now);
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
    let time = rfc3339(now);
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

/// The transaction that renews a node's lease.
pub fn lease(view: &View, node: &str, now: Timestamp) -> Transaction {
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
            Transaction::create(key.clone(), new_draft("coordination.k8s.io/v1", "Lease", &key, body, now))
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

    #[test]
    fn a_node_is_registered_once_and_keeps_what_others_wrote() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let created = object(&registration(&View::default(), &hello(), now).unwrap());
        assert_eq!(ready_status(&created), "True");
        let mut draft = editable(&created);
        draft["spec"]["unschedulable"] = true.into();
        let cordoned = Object::from_draft(created.key.clone(), &encode(&draft), 2).unwrap();
        let mut view = View::default();
        view.tables.entry("nodes".into()).or_default().insert(cordoned.key.name.clone(), cordoned.into());
        assert!(registration(&view, &hello(), now).is_none(), "nothing new");
        let restarted = Hello { boot_id: "b".into(), ..hello() };
        let updated = editable(&object(&registration(&view, &restarted, now).unwrap()));
        assert_eq!(updated["spec"]["unschedulable"], true);
        assert_eq!(updated["metadata"]["annotations"][BOOT_ANNOTATION], "b");
    }

    #[test]
    fn conditions_change_only_with_their_status() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let node = object(&registration(&View::default(), &hello(), now).unwrap());
        assert!(transition(&node, Readiness::Ready, Some(Pressures::default()), now).is_none());
        let lost = object(&transition(&node, Readiness::Unknown, None, now).unwrap());
        assert_eq!(ready_status(&lost), "Unknown");
        let pressed = Pressures { memory: true, ..Pressures::default() };
        let pressed = editable(&object(&transition(&lost, Readiness::Ready, Some(pressed), now).unwrap()));
        assert_eq!(pressed["status"]["conditions"][0]["status"], "True");
    }
}
