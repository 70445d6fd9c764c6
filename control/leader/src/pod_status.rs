//! What a node's report of a pod changes.

use std::sync::Arc;

use coracle_objects::{Expect, Object, ObjectKey, Transaction, View};
use coracle_proto::node::{PodGone, PodStatus};
use serde_json::Value;

use crate::{
    desired::node_of,
    door,
    drafts::{editable, encode},
};

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
        Report::Status(PodStatus { status_json, .. }) => door::pod_status(status_json).map(Some),
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

/// What a report changes; `None` where it changes nothing or is about a pod that is not this node's. `status` is what it
/// says, in the form of its type.
pub fn plan(view: &View, node: &str, report: &Report, status: Option<&Value>) -> Option<Transaction> {
    let object = own(view, node, report).ok()?;
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
}
