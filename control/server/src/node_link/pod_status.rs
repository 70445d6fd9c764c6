//! Writes what a node reports of its pods: the newest report of each pod, many pods at a time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use coracle_objects::{Expect, Object, ObjectKey, Transaction, View};
use coracle_proto::node::{PodGone, PodStatus};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{acknowledgements::Ticket, desired::node_of, door};
use crate::{
    drafts::{self, editable, encode},
    storage::ReplicatedStorage,
};

/// Writes of one node under way at a time.
const UNDER_WAY_MAX: usize = 128;

/// Reports of one node that may wait to be sorted by pod.
const UNSORTED_MAX: usize = 1024;

/// Bytes of reports of one node that may wait. Of each pod only the newest does, so that a node has to have many large
/// ones before its link is read no further.
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a report costs beside its own bytes, about.
const REPORT_BYTES: usize = 256;

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

    fn bytes(&self) -> usize {
        let status = if let Report::Status(status) = self { status.status_json.len() } else { 0 };
        REPORT_BYTES + status
    }
}

/// A report that waits, with its share of the bytes that may.
pub struct Waiting {
    report: Report,
    ticket: Ticket,
    _room: OwnedSemaphorePermit,
}

/// Where a link's reader leaves reports.
pub struct Reports {
    room: Arc<Semaphore>,
    waiting: mpsc::Sender<Waiting>,
}

impl Reports {
    /// For one link, with what [`write_reports`] takes them from.
    pub fn new() -> (Self, mpsc::Receiver<Waiting>) {
        let (waiting, receiver) = mpsc::channel(UNSORTED_MAX);
        (Self { room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)), waiting }, receiver)
    }

    /// Leaves a report of a pod of this node, once there is room. What is about any other pod is dropped here: nothing is
    /// kept under names that a node makes up.
    pub async fn put(&self, view: &View, node: &str, report: Report, ticket: Ticket) {
        if own(view, node, &report).is_none() {
            return ticket.done();
        }
        let bytes = report.bytes().min(WAITING_BYTES_MAX);
        let Ok(room) = self.room.clone().acquire_many_owned(bytes as u32).await else { return };
        // The writer lives as long as this reader.
        let _ = self.waiting.send(Waiting { report, ticket, _room: room }).await;
    }
}

/// Writes reports until the channel closes. A newer report of a pod replaces one that waits; reports of one pod are
/// written one after the other.
pub async fn write_reports(storage: ReplicatedStorage, node: String, mut reports: mpsc::Receiver<Waiting>) {
    // As many as the node has pods: others are not let in.
    let mut waiting: BTreeMap<String, Waiting> = BTreeMap::new();
    let mut order: VecDeque<String> = VecDeque::new();
    let mut busy: BTreeSet<String> = BTreeSet::new();
    let mut under_way: FuturesUnordered<BoxFuture<'_, String>> = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() || !order.is_empty() {
        tokio::select! {
            report = reports.recv(), if open => match report {
                None => open = false,
                Some(report) => {
                    let uid = report.report.uid().to_owned();
                    match waiting.insert(uid.clone(), report) {
                        None => order.push_back(uid),
                        Some(older) => older.ticket.done(),
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

async fn write(storage: &ReplicatedStorage, node: &str, waiting: Waiting, uid: String) -> String {
    let Waiting { report, ticket, _room } = waiting;
    let status = match &report {
        Report::Gone(_) => None,
        Report::Status(PodStatus { status_json, .. }) => match door::pod_status(status_json) {
            Ok(status) => Some(status),
            Err(reason) => {
                let pod = report.key().name;
                tracing::warn!(%pod, node, reason, "a status that a node reports of its pod is refused");
                ticket.done();
                return uid;
            }
        },
    };
    match drafts::write(storage, |view| plan(view, node, &report, status.as_ref())).await {
        Ok(_) => ticket.done(),
        // What is refused is refused again.
        Err(drafts::WriteError::Refused(refusal)) => {
            tracing::warn!(?refusal, pod.uid = uid, node, "a report about a pod is refused");
            ticket.done();
        }
        Err(error) => {
            tracing::warn!(%error, pod.uid = uid, node, "a report about a pod was not written");
        }
    }
    uid
}

/// The pod of this node that a report is about.
fn own<'a>(view: &'a View, node: &str, report: &Report) -> Option<&'a Arc<Object>> {
    let key = report.key();
    let object = view.get(&key).filter(|object| object.meta.uid == report.uid())?;
    if node_of(object).as_deref() != Some(node) {
        tracing::warn!(pod = %key.name, node, "a node reports a pod of another node");
        return None;
    }
    Some(object)
}

/// What a report changes; `None` where it changes nothing or is about a pod that is not this node's. `status` is what it
/// says, in the form of its type.
fn plan(view: &View, node: &str, report: &Report, status: Option<&Value>) -> Option<Transaction> {
    let object = own(view, node, report)?;
    match status {
        Some(status) => with_status(object, report.uid(), status.clone()),
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
    let update = Transaction::update(object.key.clone(), encode(&draft), object.revision);
    Some(update.expecting(object.key.clone(), Expect::Uid(uid.to_owned())))
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

    /// What a report changes, once it has come through the door.
    fn planned(view: &View, node: &str, report: &Report) -> Option<Transaction> {
        let status = match report {
            Report::Status(report) => Some(door::pod_status(&report.status_json).unwrap()),
            Report::Gone(_) => None,
        };
        plan(view, node, report, status.as_ref())
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
        let transaction = planned(&pod(held.clone(), json!({})), "n", &gone()).unwrap();
        assert!(matches!(transaction.writes[0], Write::Put { .. }));
        held["deletionGracePeriodSeconds"] = 0.into();
        assert!(planned(&pod(held, json!({})), "n", &gone()).is_none());
    }

    #[tokio::test]
    async fn nothing_is_kept_of_pods_that_a_node_makes_up() {
        let (reports, mut waiting) = Reports::new();
        let acknowledgements = Arc::default();
        let view = pod(json!({}), json!({}));
        let ticket = |sequence| Ticket::new(sequence, &acknowledgements);
        let text = json!({ "phase": "Running" });
        for (sequence, (node, report)) in
            [("n", status("made-up", &text)), ("m", status("u", &text)), ("m", gone())]
                .into_iter()
                .enumerate()
        {
            reports.put(&view, node, report, ticket(sequence as u64 + 1)).await;
        }
        assert!(waiting.try_recv().is_err());
        assert_eq!(acknowledgements.next().await.done, [1, 2, 3]);
        reports.put(&view, "n", status("u", &text), ticket(4)).await;
        assert_eq!(waiting.try_recv().unwrap().report.uid(), "u");
    }

    #[tokio::test]
    async fn what_waits_has_a_bound_in_bytes() {
        let (reports, mut waiting) = Reports::new();
        let acknowledgements = Arc::default();
        let view = pod(json!({}), json!({}));
        let large = json!({ "message": "x".repeat(WAITING_BYTES_MAX / 3) });
        let put = async || {
            reports.put(&view, "n", status("u", &large), Ticket::new(0, &acknowledgements)).await;
        };
        put().await;
        put().await;
        assert!(futures::FutureExt::now_or_never(put()).is_none(), "it waits for room");
        drop(waiting.try_recv().unwrap());
        put().await;
    }
}
