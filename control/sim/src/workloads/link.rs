//! What the control plane makes of its nodes' words, by `coracle_leader`'s decisions; and what nodes say.

use std::net::Ipv4Addr;

use coracle_leader::{
    node_object,
    pod_status::{self, Report},
};
use coracle_objects::{Object, Transaction, View};
use coracle_proto::node::{Hello, PodGone, PodStatus};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

pub use coracle_leader::{node_object::key as node_key, references::node_of};

/// A node's word of a pod; without a status nothing of the pod is left there.
pub fn report(pod: &coracle_core::Pod, status: Option<Value>) -> Report {
    let meta = &pod.metadata;
    let (namespace, name, uid) = (meta.namespace.clone(), meta.name.clone(), meta.uid.to_string());
    match status {
        Some(status) => {
            let status_json = status.to_string().into();
            Report::Status(PodStatus { namespace, name, uid, status_json })
        }
        None => Report::Gone(PodGone { namespace, name, uid }),
    }
}

/// The same with another time in it: a fault that is built in.
pub fn told_anew(mut report: Report, now: Timestamp) -> Report {
    if let Report::Status(told) = &mut report
        && let Ok(mut status) = serde_json::from_slice::<Value>(&told.status_json)
    {
        status["message"] = now.to_string().into();
        told.status_json = status.to_string().into();
    }
    report
}

/// What a report changes, if anything; what is not of its type is refused, as at the door.
pub fn written_report(view: &View, node: &str, report: &Report) -> Option<Transaction> {
    let status = pod_status::status_of(report).ok()?;
    pod_status::plan(view, node, report, status.as_ref())
}

/// The Node object as a node that links has it; where there is none, the node joins first. None where it is so already.
pub fn registration(view: &View, node: &str, boot: u32, uid: &str, now: Timestamp) -> Option<Transaction> {
    if view.get(&node_key(node)).is_none() {
        return Some(node_object::joined(node, uid, now));
    }
    node_object::registration(view, &hello(node, boot), true, now)
}

fn hello(node: &str, boot: u32) -> Hello {
    let texts = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let quantities =
        [("cpu", "4"), ("memory", "4Gi"), ("pods", "110"), ("ephemeral-storage", "10Gi")].as_slice();
    let info = json!({ "kubeletVersion": "v1.33.0", "bootID": boot.to_string() });
    Hello {
        name: node.to_owned(),
        boot_id: boot.to_string(),
        labels: texts(&[("kubernetes.io/os", "linux"), ("kubernetes.io/arch", "amd64")]),
        fabric_address: "192.0.2.1:7443".to_owned(),
        capacity: texts(quantities),
        allocatable: texts(quantities),
        node_info_json: info.to_string().into(),
        ..Hello::default()
    }
}

/// The network of the one block of pod addresses that a node has, `n3` the third.
fn block(node: &str) -> Ipv4Addr {
    let number = node.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or(0);
    Ipv4Addr::new(10, 128, number, 0)
}

/// The claim of a node's block: the rest of its name, and its spec.
pub fn block_claim(node: &str) -> (String, Value) {
    let network = block(node);
    (format!("{network}-24"), json!({ "cidr": format!("{network}/24"), "nodeName": node }))
}

/// The address of a node's pod, by how many it gave out. They come around again: nothing is sent to them here.
pub fn address(node: &str, given: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(block(node)) + 1 + given % 254)
}

/// Whether a pod has ended by itself, whatever else is in it.
pub fn has_ended(pod: &Object) -> bool {
    #[derive(Deserialize)]
    struct Narrow {
        status: Option<NarrowStatus>,
    }
    #[derive(Deserialize)]
    struct NarrowStatus {
        phase: Option<String>,
    }
    let phase = pod.parse::<Narrow>().ok().and_then(|pod| pod.status?.phase);
    matches!(phase.as_deref(), Some("Succeeded" | "Failed"))
}
