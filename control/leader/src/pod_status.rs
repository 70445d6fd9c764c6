//! What a node's report of a pod changes.

use core::net::Ipv4Addr;
use std::sync::Arc;

use coracle_objects::{
    Expect, OBJECT_BYTES_MAX, Object, ObjectKey, Transaction, View, deletion,
    draft::{editable, encode},
};
use coracle_proto::node::{PodGone, PodStatus};
use serde_json::{Value, json};

use crate::{references::node_of, validation};

/// The claimed blocks of pod addresses, and how long the name of each is: they are /24s.
const PODBLOCKS: &str = "podblocks.coracle.dev";
const BLOCK_BITS: u32 = 24;

/// One report about a pod.
#[derive(Clone, Debug)]
pub enum Report {
    Status(PodStatus),
    Gone(PodGone),
}

impl Report {
    pub fn uid(&self) -> &str {
        match self {
            Report::Status(status) => &status.uid,
            Report::Gone(gone) => &gone.uid,
        }
    }

    pub fn key(&self) -> ObjectKey {
        let (namespace, name) = match self {
            Report::Status(status) => (&status.namespace, &status.name),
            Report::Gone(gone) => (&gone.namespace, &gone.name),
        };
        ObjectKey::new("pods", namespace, name)
    }
}

/// What a report says of its pod, in the form of its type; `None` where nothing of the pod is left.
pub fn status_of(report: &Report) -> Result<Option<Value>, String> {
    match report {
        Report::Gone(_) => Ok(None),
        Report::Status(PodStatus { status_json, .. }) => validation::pod_status(status_json).map(Some),
    }
}

/// Why a report is about no pod of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOwn {
    /// There is no such pod any more.
    Gone,
    /// It is another node's.
    Foreign,
}

/// The pod of this node that a report is about.
pub fn own<'a>(view: &'a View, node: &str, report: &Report) -> Result<&'a Arc<Object>, NotOwn> {
    let known = view.get(&report.key()).filter(|object| object.meta.uid == report.uid());
    let object = known.ok_or(NotOwn::Gone)?;
    match node_of(object).as_deref() == Some(node) {
        true => Ok(object),
        false => Err(NotOwn::Foreign),
    }
}

/// Takes out of a status what is no address of this node's pods, and answers what that was. Whoever could name another's
/// would have the traffic to it sent his way.
pub fn drop_foreign_addresses(view: &View, node: &str, status: &mut Value) -> Option<String> {
    let listed = status["podIPs"].as_array().into_iter().flatten().map(|entry| &entry["ip"]);
    let all = [&status["podIP"]].into_iter().chain(listed).filter_map(Value::as_str);
    let foreign = all.filter(|ip| !ip.is_empty()).find(|ip| !is_of_node(view, node, ip))?.to_owned();
    let status = status.as_object_mut()?;
    status.shift_remove("podIP");
    status.shift_remove("podIPs");
    Some(foreign)
}

/// Whether an address is in a block that the node has claimed.
fn is_of_node(view: &View, node: &str, ip: &str) -> bool {
    let Ok(address) = ip.parse::<Ipv4Addr>() else { return false };
    let network = Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - BLOCK_BITS)));
    let block = view.get(&ObjectKey::new(PODBLOCKS, "", &format!("{network}-{BLOCK_BITS}")));
    let block: Value = block.and_then(|block| block.parse().ok()).unwrap_or_default();
    block["spec"]["nodeName"] == node && block["spec"]["cidr"] == format!("{network}/{BLOCK_BITS}")
}

/// The event that tells of it.
pub fn foreign_address(view: &View, report: &Report, node: &str, address: &str) -> Option<Value> {
    let key = report.key();
    let pod = view.get(&key).filter(|pod| pod.meta.uid == report.uid())?;
    Some(json!({
        "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": &*key.name.namespace,
            "name": &*key.name.name, "uid": pod.meta.uid },
        "type": "Warning",
        "reason": "ForeignAddress",
        "message": format!("node {node} reports the address {address} for this pod, which is in no block of addresses \
            of that node: the pod counts as one without an address"),
        "source": { "component": "kubelet", "host": node },
    }))
}

/// What a report changes; `None` where it changes nothing or is about a pod that is not this node's. `status` is what it
/// says, in the form of its type.
pub fn plan(view: &View, node: &str, report: &Report, status: Option<&Value>) -> Option<Transaction> {
    let object = own(view, node, report).ok()?;
    match status {
        Some(status) => {
            let mut status = status.clone();
            let _ = drop_foreign_addresses(view, node, &mut status);
            with_status(object, report.uid(), status)
        }
        None => removal(object),
    }
}

fn with_status(object: &Object, uid: &str, mut status: Value) -> Option<Transaction> {
    let mut draft = editable(object);
    keep_conditions_of_others(&draft["status"], &mut status);
    if draft["status"] == status {
        return None;
    }
    draft["status"] = status;
    let mut encoded = encode(&draft);
    if encoded.len() > OBJECT_BYTES_MAX {
        leave_containers_out(&mut draft["status"]);
        encoded = encode(&draft);
        if encoded == object.draft() {
            return None;
        }
    }
    let update = Transaction::update(object.key.clone(), encoded, object.revision);
    Some(update.expecting(object.key.clone(), Expect::Uid(uid.to_owned())))
}

/// What a pod whose spec takes nearly all that an object may take tells of itself: its phase, conditions and addresses. No
/// status at all would say less.
fn leave_containers_out(status: &mut Value) {
    let Some(status) = status.as_object_mut() else { return };
    for list in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        status.shift_remove(list);
    }
    let said = format!(
        "the statuses of containers are left out: with them the object would take more than {OBJECT_BYTES_MAX} bytes; \
         make its spec smaller"
    );
    status.insert("message".to_owned(), said.into());
}

/// Conditions that the node does not report are somebody else's: the scheduler's PodScheduled, readiness gates.
fn keep_conditions_of_others(before: &Value, status: &mut Value) {
    let Some(known) = before["conditions"].as_array() else { return };
    if !status["conditions"].is_array() {
        status["conditions"] = Value::Array(vec![]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    for condition in known {
        if !conditions.iter().any(|reported| reported["type"] == condition["type"]) {
            conditions.push(condition.clone());
        }
    }
}

/// Nothing of the pod runs any more: a pod that is being deleted goes, or waits for its finalizers alone.
fn removal(object: &Object) -> Option<Transaction> {
    object.meta.deletion_timestamp.as_ref()?;
    if object.meta.finalizers.is_empty() {
        return Some(Transaction::delete(object.key.clone(), object.revision));
    }
    if object.meta.deletion_grace_period_seconds.unwrap_or(0) == 0 {
        return None;
    }
    let mut draft = editable(object);
    deletion::shorten(&mut draft, 0);
    Some(Transaction::update(object.key.clone(), encode(&draft), object.revision))
}

#[cfg(test)]
mod tests {
    use coracle_objects::Write;
    use serde_json::json;

    use super::*;

    fn view(pod: Value) -> View {
        let key = ObjectKey::new("pods", "default", "p");
        let object = Object::from_draft(key.clone(), &encode(&pod), 5).unwrap();
        let mut view = View::default();
        view.tables.entry(key.resource).or_default().insert(key.name, object.into());
        view
    }

    fn pod(metadata: Value, status: Value) -> View {
        let mut pod =
            json!({ "metadata": { "name": "p", "uid": "u" }, "spec": { "nodeName": "n" }, "status": status });
        pod["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        view(pod)
    }

    fn status(uid: &str, status: &Value) -> Report {
        let status_json = status.to_string().into();
        Report::Status(PodStatus {
            namespace: "default".into(),
            name: "p".into(),
            uid: uid.into(),
            status_json,
        })
    }

    /// What a report changes, once it has been found valid.
    fn planned(view: &View, node: &str, report: &Report) -> Option<Transaction> {
        plan(view, node, report, status_of(report).unwrap().as_ref())
    }

    fn gone() -> Report {
        Report::Gone(PodGone { namespace: "default".into(), name: "p".into(), uid: "u".into() })
    }

    #[test]
    fn a_status_is_written_once_and_keeps_the_schedulers_condition() {
        let scheduled = json!({ "type": "PodScheduled", "status": "True" });
        let view = pod(json!({}), json!({ "phase": "Pending", "conditions": [scheduled] }));
        let running = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] });
        let transaction = planned(&view, "n", &status("u", &running)).unwrap();
        let Write::Put { draft, .. } = &transaction.writes[0] else { panic!("a put") };
        let written: Value = serde_json::from_slice(draft).unwrap();
        assert_eq!(written["status"]["conditions"][1], scheduled);
        assert!(planned(&self::view(written), "n", &status("u", &running)).is_none(), "nothing new");
    }

    #[test]
    fn a_pods_address_is_one_of_its_nodes() {
        let mut view = pod(json!({}), json!({}));
        for (cidr, node) in [("10.128.3.0/24", "n"), ("10.128.4.0/24", "m")] {
            let key = ObjectKey::new(PODBLOCKS, "", &cidr.replace('/', "-"));
            let body =
                json!({ "metadata": { "name": *key.name.name }, "spec": { "cidr": cidr, "nodeName": node } });
            let object = Object::from_draft(key.clone(), &encode(&body), 5).unwrap();
            view.tables.entry(key.resource).or_default().insert(key.name, object.into());
        }
        let written = |first: &str, second: &str| {
            let report = status(
                "u",
                &json!({ "phase": "Running", "podIP": first, "podIPs": [{ "ip": first }, { "ip": second }] }),
            );
            let transaction = planned(&view, "n", &report).unwrap();
            let Write::Put { draft, .. } = &transaction.writes[0] else { panic!("a put") };
            let written: Value = serde_json::from_slice(draft).unwrap();
            assert_eq!(written["status"]["phase"], "Running", "the rest of the report counts");
            written["status"]["podIP"].as_str().map(str::to_owned)
        };
        assert_eq!(written("10.128.3.7", "10.128.3.8").as_deref(), Some("10.128.3.7"));
        for foreign in ["10.128.4.7", "10.128.5.7", "10.96.0.10", "127.0.0.1", "fd00::1"] {
            assert_eq!(written(foreign, "10.128.3.8"), None, "{foreign}");
            assert_eq!(written("10.128.3.7", foreign), None, "{foreign}");
        }
        let told = foreign_address(&view, &status("u", &json!({})), "n", "10.96.0.10").unwrap();
        assert!(told["message"].as_str().unwrap().contains("10.96.0.10"));
    }

    #[test]
    fn reports_of_another_pod_or_node_change_nothing() {
        let view = pod(json!({}), json!({}));
        let running = json!({ "phase": "Running" });
        assert!(planned(&view, "n", &status("earlier", &running)).is_none());
        assert!(planned(&view, "m", &status("u", &running)).is_none());
        assert!(planned(&view, "n", &gone()).is_none(), "it is not being deleted");
    }

    #[test]
    fn a_pod_that_is_gone_is_removed_or_left_to_its_finalizers() {
        let deleting = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let transaction = planned(&pod(deleting.clone(), json!({})), "n", &gone()).unwrap();
        assert!(matches!(transaction.writes[0], Write::Delete { .. }));
        let mut held = deleting;
        held["finalizers"] = json!(["x/y"]);
        held["deletionGracePeriodSeconds"] = 30.into();
        let transaction = planned(&pod(held.clone(), json!({})), "n", &gone()).unwrap();
        assert!(matches!(transaction.writes[0], Write::Put { .. }));
        held["deletionGracePeriodSeconds"] = 0.into();
        assert!(planned(&pod(held, json!({})), "n", &gone()).is_none());
    }

    #[test]
    fn a_pod_that_is_nearly_too_large_has_a_status_without_its_containers() {
        let statuses: Vec<Value> =
            (0..150).map(|at| json!({ "name": format!("c{at}"), "message": "x".repeat(1000) })).collect();
        let reported = json!({ "phase": "Pending", "podIP": "", "containerStatuses": statuses });
        let planned = |padding: usize| {
            let metadata = json!({ "annotations": { "a": "x".repeat(padding) } });
            let view = pod(metadata, json!({}));
            let transaction = plan(&view, "n", &status("u", &reported), Some(&reported)).unwrap();
            let Write::Put { draft, .. } = &transaction.writes[0] else { panic!("{transaction:?}") };
            assert!(draft.len() <= OBJECT_BYTES_MAX);
            serde_json::from_slice::<Value>(draft).unwrap()["status"].clone()
        };
        assert_eq!(planned(OBJECT_BYTES_MAX / 2), reported);
        let cut = planned(OBJECT_BYTES_MAX - 100_000);
        assert_eq!((&cut["phase"], &cut["containerStatuses"]), (&json!("Pending"), &Value::Null));
        assert!(cut["message"].as_str().unwrap().contains("are left out"), "{cut}");
    }
}
