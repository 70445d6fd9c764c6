//! v1.Event of a pod, without a name: the server names and deduplicates it.

use coracle_core::{EventRecord, Pod};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The component that clients look for in events of pods.
const COMPONENT: &str = "kubelet";

pub fn event(pod: &Pod, record: &EventRecord, node: &str, now: Timestamp) -> Value {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut involved = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "uid": pod.metadata.uid.as_str(),
        "resourceVersion": pod.metadata.resource_version,
    });
    if !record.field_path.is_empty() {
        involved["fieldPath"] = record.field_path.clone().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "namespace": pod.metadata.namespace },
        "involvedObject": involved,
        "type": if record.warning { "Warning" } else { "Normal" },
        "reason": record.reason,
        "message": record.message,
        "source": { "component": COMPONENT, "host": node },
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}
