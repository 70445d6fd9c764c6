//! v1.Event of a pod, without a name: the server names and deduplicates it.

use coracle_core::{EventRecord, Pod};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The component that clients look for in events of pods.
const COMPONENT: &str = "kubelet";

/// Bytes of a message, as Kubernetes' recorders cut them: some hold what a pod's spec or a guest chose.
const MESSAGE_BYTES_MAX: usize = 1024;

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
        "message": cut(&record.message),
        "source": { "component": COMPONENT, "host": node },
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}

/// The message, no longer than may be.
fn cut(message: &str) -> String {
    const MARK: &str = " ...";
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MESSAGE_BYTES_MAX - MARK.len());
    format!("{}{MARK}", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_no_longer_than_may_be() {
        assert_eq!(cut("whole"), "whole");
        let long = cut(&"\u{e4}".repeat(MESSAGE_BYTES_MAX));
        assert!(long.len() <= MESSAGE_BYTES_MAX && long.ends_with("\u{e4} ..."), "{long}");
        assert_eq!(cut(&"x".repeat(MESSAGE_BYTES_MAX)).len(), MESSAGE_BYTES_MAX);
    }
}
