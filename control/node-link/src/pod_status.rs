//! Writes what a node reports of its pods: the newest report of each pod, many pods at a time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use coracle_api::{Storage, WriteError};
use coracle_leader::pod_status::{
    NotOwn, Report, drop_foreign_addresses, foreign_address, own, plan, status_of,
};
use coracle_objects::View;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{acknowledgements::Ticket, events::EventSink};

/// Writes of one node under way at a time.
const UNDER_WAY_MAX: usize = 128;

/// Reports of one node that may wait to be sorted by pod.
const UNSORTED_MAX: usize = 1024;

/// Bytes of reports of one node that may wait. Of each pod only the newest does, so that a node has to have many large
/// ones before its link is read no further.
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a report costs beside its own bytes, about.
const REPORT_BYTES: usize = 256;

fn bytes(report: &Report) -> usize {
    let status = if let Report::Status(status) = report { status.status_json.len() } else { 0 };
    REPORT_BYTES + status
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
        if let Err(reason) = own(view, node, &report) {
            if reason == NotOwn::Foreign {
                tracing::warn!(pod = %report.key().name, node, "a node reports a pod of another node");
            }
            return ticket.done();
        }
        let bytes = bytes(&report).min(WAITING_BYTES_MAX);
        let Ok(room) = self.room.clone().acquire_many_owned(bytes as u32).await else { return };
        // The writer lives as long as this reader.
        let _ = self.waiting.send(Waiting { report, ticket, _room: room }).await;
    }
}

/// Writes reports until the channel closes. A newer report of a pod replaces one that waits; reports of one pod are
/// written one after the other.
pub async fn write_reports(
    storage: impl Storage,
    events: Arc<dyn EventSink>,
    node: String,
    mut reports: mpsc::Receiver<Waiting>,
) {
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
                under_way.push(Box::pin(write(&storage, &*events, &node, report, uid)));
            }
        }
    }
}

async fn write(
    storage: &impl Storage,
    events: &dyn EventSink,
    node: &str,
    waiting: Waiting,
    uid: String,
) -> String {
    let Waiting { report, ticket, _room } = waiting;
    let mut status = match status_of(&report) {
        Ok(status) => status,
        Err(reason) => {
            let pod = report.key().name;
            tracing::warn!(%pod, node, reason, "a status that a node reports of its pod is refused");
            ticket.done();
            return uid;
        }
    };
    // It is dropped here and not by the plan alone, so that it is told once.
    let view = storage.view();
    if let Some(address) = status.as_mut().and_then(|status| drop_foreign_addresses(&view, node, status)) {
        let pod = report.key().name;
        tracing::warn!(%pod, node, address, "an address that a node reports of its pod is not the node's");
        // One that finds no room is told with the next report.
        let _ = foreign_address(&view, &report, node, &address).map(|event| events.take(event));
    }
    drop(view);
    match coracle_api::write(storage, |view| plan(view, node, &report, status.as_ref())).await {
        Ok(_) => ticket.done(),
        // What is refused is refused again.
        Err(error @ (WriteError::Refused(_) | WriteError::Denied(_))) => {
            tracing::warn!(%error, pod.uid = uid, node, "a report about a pod is refused");
            ticket.done();
        }
        Err(error) => {
            tracing::warn!(%error, pod.uid = uid, node, "a report about a pod was not written");
        }
    }
    uid
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Object, ObjectKey, draft::encode};
    use coracle_proto::node::{PodGone, PodStatus};
    use serde_json::{Value, json};

    use super::*;

    /// A pod of node `n`.
    fn view() -> View {
        let key = ObjectKey::new("pods", "default", "p");
        let pod = json!({ "metadata": { "name": "p", "uid": "u" }, "spec": { "nodeName": "n" } });
        let object = Object::from_draft(key.clone(), &encode(&pod), 5).unwrap();
        let mut view = View::default();
        view.tables.entry(key.resource).or_default().insert(key.name, object.into());
        view
    }

    fn status(uid: &str, status: &Value) -> Report {
        let (namespace, name, uid) = ("default".into(), "p".into(), uid.into());
        Report::Status(PodStatus { namespace, name, uid, status_json: status.to_string().into() })
    }

    fn gone() -> Report {
        Report::Gone(PodGone { namespace: "default".into(), name: "p".into(), uid: "u".into() })
    }

    #[tokio::test]
    async fn nothing_is_kept_of_pods_that_a_node_makes_up() {
        let (reports, mut waiting) = Reports::new();
        let acknowledgements = Arc::default();
        let view = view();
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
        let view = view();
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
