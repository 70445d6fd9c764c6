//! Writes what a node reports of its pods: the newest report of each pod, many pods at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_objects::{Expect, Object, ObjectKey, Transaction, View};
use coracle_proto::node::{PodGone, PodStatus};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::Value;
use tokio::sync::mpsc;

use super::desired::node_of;
use crate::{
    drafts::{self, editable, encode},
    storage::ReplicatedStorage,
};

/// Writes of one node under way at a time.
const UNDER_WAY_MAX: usize = 128;

/// Pods of which a report may wait. A node has fewer pods; what is beyond is dropped and reported again by the node.
const WAITING_MAX: usize = 64 * 1024;

/// One report about a pod.
#[derive(Clone, Debug)]
pub enum Report {
    Status(PodStatus),
    Gone(PodGone),
}

impl Report {
    fn uid(&self) -> &str {
        match self {
            Report::Status(status) => &status.uid,
            Report::Gone(gone) => &gone.uid,
        }
    }

    fn key(&self) -> ObjectKey {
        let (namespace, name) = match self {
            Report::Status(status) => (&status.namespace, &status.name),
            Report::Gone(gone) => (&gone.namespace, &gone.name),
        };
        ObjectKey::new("pods", namespace, name)
    }
}

/// Writes reports until the channel closes. A newer report of a pod replaces one that waits; reports of one pod are
/// written one after the other.
pub async fn write_reports(storage: ReplicatedStorage, node: String, mut reports: mpsc::Receiver<Report>) {
    let mut waiting: BTreeMap<String, Report> = BTreeMap::new();
    let mut order: VecDeque<String> = VecDeque::new();
    let mut busy: BTreeSet<String> = BTreeSet::new();
    let mut under_way: FuturesUnordered<BoxFuture<'_, String>> = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() || !order.is_empty() {
        tokio::select! {
            report = reports.recv(), if open => match report {
                None => open = false,
                Some(report) => {
                    let uid = report.uid().to_owned();
                    if waiting.len() < WAITING_MAX && waiting.insert(uid.clone(), report).is_none() {
                        order.push_back(uid);
                    }
                }
            },
            Some(uid) = under_way.next() => {
                busy.remove(&uid);
            }
        }
        for _ in 0..order.len() {
            if under_way.len() >= UNDER_WAY_MAX {
                break;
            }
            let Some(uid) = order.pop_front() else { break };
            if busy.contains(&uid) {
                order.push_back(uid);
            } else if let Some(report) = waiting.remove(&uid) {
                busy.insert(uid.clone());
                under_way.push(Box::pin(write(&storage, &node, report, uid)));
            }
        }
    }
}

async fn write(storage: &ReplicatedStorage, node: &str, report: Report, uid: String) -> String {
    let written = drafts::write(storage, |view| plan(view, node, &report)).await;
    if let Err(error) = written {
        tracing::warn!(%error, pod.uid = uid, node, "a report about a pod was not written");
    }
    uid
}

/// What a report changes; `None` where it changes nothing or is about a pod that is not this node's.
fn plan(view: &View, node: &str, report: &Report) -> Option<Transaction> {
    let key = report.key();
    let object = view.get(&key).filter(|object| object.meta.uid == report.uid())?;
    if node_of(object).as_deref() != Some(node) {
        tracing::warn!(pod = %key.name, node, "a node reports a pod of another node");
        return None;
    }
    match report {
        Report::Status(status) => with_status(object, status),
        Report::Gone(_) => removal(object),
    }
}

fn with_status(object: &Object, report: &PodStatus) -> Option<Transaction> {
    let mut status: Value = serde_json::from_slice(&report.status_json).ok().filter(Value::is_object)?;
    let mut draft = editable(object);
    keep_conditions_of_others(&draft["status"], &mut status);
    if draft["status"] == status {
        return None;
    }
    draft["status"] = status;
    let update = Transaction::update(object.key.clone(), encode(&draft), object.revision);
    Some(update.expecting(object.key.clone(), Expect::Uid(report.uid.clone())))
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
    let mut draft = editable(object);
    if draft["metadata"]["deletionGracePeriodSeconds"] == 0 {
        return None;
    }
    draft["metadata"]["deletionGracePeriodSeconds"] = 0.into();
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

    fn gone() -> Report {
        Report::Gone(PodGone { namespace: "default".into(), name: "p".into(), uid: "u".into() })
    }

    #[test]
    fn a_status_is_written_once_and_keeps_the_schedulers_condition() {
        let scheduled = json!({ "type": "PodScheduled", "status": "True" });
        let view = pod(json!({}), json!({ "phase": "Pending", "conditions": [scheduled] }));
        let running = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] });
        let transaction = plan(&view, "n", &status("u", &running)).unwrap();
        let Write::Put { draft, .. } = &transaction.writes[0] else { panic!("a put") };
        let written: Value = serde_json::from_slice(draft).unwrap();
        assert_eq!(written["status"]["conditions"][1], scheduled);
        assert!(plan(&self::view(written), "n", &status("u", &running)).is_none(), "nothing new");
    }

    #[test]
    fn reports_of_another_pod_or_node_change_nothing() {
        let view = pod(json!({}), json!({}));
        let running = json!({ "phase": "Running" });
        assert!(plan(&view, "n", &status("earlier", &running)).is_none());
        assert!(plan(&view, "m", &status("u", &running)).is_none());
        assert!(plan(&view, "n", &gone()).is_none(), "it is not being deleted");
    }

    #[test]
    fn a_pod_that_is_gone_is_removed_or_left_to_its_finalizers() {
        let deleting = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let transaction = plan(&pod(deleting.clone(), json!({})), "n", &gone()).unwrap();
        assert!(matches!(transaction.writes[0], Write::Delete { .. }));
        let mut held = deleting;
        held["finalizers"] = json!(["x/y"]);
        let transaction = plan(&pod(held.clone(), json!({})), "n", &gone()).unwrap();
        assert!(matches!(transaction.writes[0], Write::Put { .. }));
        held["deletionGracePeriodSeconds"] = 0.into();
        assert!(plan(&pod(held, json!({})), "n", &gone()).is_none());
    }
}
