//! Decisions as data, and the transactions that carry them out.

use bytes::Bytes;
use coracle_objects::{
    Expect, OBJECT_BYTES_MAX, Object, ObjectKey, Transaction,
    binding::{self, NotBound},
    draft::set_condition,
};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::fault::Fault;

/// The component that events about decisions are reported by.
pub const BINDING_COMPONENT: &str = "default-scheduler";

/// What one call of `schedule` decided.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    pub placements: Vec<Placement>,
    pub failures: Vec<Unplaced>,
    /// Pods and nodes that are left out, because they cannot be read or by a fault of ours.
    pub faults: Vec<Fault>,
    /// What panicked, and with what words: faults of ours.
    pub panics: Vec<String>,
}

/// A pod found its node. Once `transaction` is applied, the server reports the event `Scheduled` with [`Self::message`].
#[derive(Clone, Debug)]
pub struct Placement {
    pub pod: ObjectKey,
    pub uid: String,
    pub node: String,
    /// Sets `spec.nodeName` and the condition PodScheduled, where the pod is unchanged and the node still exists.
    pub transaction: Transaction,
}

impl Placement {
    /// The message of the event `Scheduled`.
    pub fn message(&self) -> String {
        format!("Successfully assigned {} to {}", self.pod.name, self.node)
    }
}

/// A pod found no node, for a reason that its condition does not tell yet. The server reports the event
/// `FailedScheduling` (a warning) with `message`.
#[derive(Clone, Debug)]
pub struct Unplaced {
    pub pod: ObjectKey,
    pub uid: String,
    /// Upstream's sentence: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub message: String,
    /// Sets the condition PodScheduled=False, where the pod is unchanged.
    pub transaction: Transaction,
}

/// The transaction that binds `pod` to the node of this name and uid, or why there is none.
pub fn bind(pod: &Object, node: &str, node_uid: &str, now: Timestamp) -> Result<Transaction, String> {
    let draft = binding::bind(pod, node, &Map::new(), now).map_err(|refused| match refused {
        NotBound::Deleting => "it is being deleted".to_owned(),
        NotBound::Bound(node) => format!("it is on node {node} already"),
        NotBound::Gated => "it has scheduling gates".to_owned(),
        NotBound::Unreadable(error) => unreadable(error),
    })?;
    Ok(update(pod, draft)?.expecting(ObjectKey::new("nodes", "", node), Expect::Uid(node_uid.to_owned())))
}

/// The transaction that says on the pod why it has no node; an error where it cannot.
pub fn explain(pod: &Object, message: &str, now: Timestamp) -> Result<Transaction, String> {
    let condition = binding::scheduled("False", Some(("Unschedulable", message)), now);
    let mut draft: Value = serde_json::from_slice(&pod.draft()).map_err(unreadable)?;
    set_condition(&mut draft["status"], condition);
    update(pod, draft.to_string().into())
}

/// What the store would refuse whenever it is proposed is not.
fn update(pod: &Object, draft: Bytes) -> Result<Transaction, String> {
    match draft.len() {
        0..=OBJECT_BYTES_MAX => Ok(Transaction::update(pod.key.clone(), draft, pod.revision)),
        bytes => {
            Err(format!("with its condition it would take {bytes} bytes; the limit is {OBJECT_BYTES_MAX}"))
        }
    }
}

fn unreadable(error: serde_json::Error) -> String {
    format!("it cannot be read: {error}")
}
