//! Events that a node sends: only about itself and its pods, and not too many.

use std::time::Duration;

use coracle_objects::{ObjectKey, View};
use serde_json::{Map, Value, json};

use crate::{node_object, references::node_of};

/// Events of one link a second in the long run, and at once.
const EVENTS_PER_SECOND: f64 = 10.0;
const EVENTS_BURST: f64 = 100.0;

/// The largest event that is taken, in bytes.
const EVENT_BYTES_MAX: usize = 16 * 1024;

/// The events that one link may send: a token bucket. Moments are counted from any beginning.
pub struct Allowance {
    left: f64,
    at: Duration,
}

impl Allowance {
    pub fn new(now: Duration) -> Self {
        Self { left: EVENTS_BURST, at: now }
    }

    /// Takes one event from the allowance; `false` where it is used up.
    pub fn take(&mut self, now: Duration) -> bool {
        let regained = now.saturating_sub(self.at).as_secs_f64() * EVENTS_PER_SECOND;
        self.left = (self.left + regained).min(EVENTS_BURST);
        self.at = now;
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

/// Tells people that a node had no room for so many events.
pub fn dropped(view: &View, node: &str, count: u64) -> Option<Value> {
    let object = view.get(&node_object::key(node)).filter(|_| count > 0)?;
    let uid = object.meta.uid.as_str();
    Some(json!({
        "involvedObject": { "apiVersion": "v1", "kind": "Node", "namespace": "", "name": node, "uid": uid },
        "type": "Warning",
        "reason": "EventsDropped",
        "message": "events of this node were dropped while it had no link, or had too many of them",
        "source": { "component": "kubelet", "host": node },
    }))
}

/// The event as it may be recorded, or why it is not. Only fields that a node may set are kept.
pub fn admit(view: &View, node: &str, event_json: &[u8]) -> Result<Value, String> {
    if event_json.len() > EVENT_BYTES_MAX {
        return Err(format!("it is larger than {EVENT_BYTES_MAX} bytes"));
    }
    let event: Value = serde_json::from_slice(event_json).map_err(|error| error.to_string())?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // Whatever else stands there, or is not text, is left out.
    let fields = ["apiVersion", "kind", "namespace", "name", "uid", "resourceVersion", "fieldPath"];
    let mut involved: Map<String, Value> = Map::new();
    for name in fields {
        if let Some(value) = event["involvedObject"][name].as_str() {
            involved.insert(name.into(), value.into());
        }
    }
    let field = |name: &str| involved.get(name).and_then(Value::as_str).unwrap_or_default();
    let (namespace, name) = (field("namespace"), field("name"));
    match (field("apiVersion"), field("kind")) {
        ("v1", "Node") if name == node && view.get(&node_object::key(node)).is_some() => {
            involved.insert("namespace".into(), "".into());
        }
        // The pod's own name and namespace were valid when it was made.
        ("v1", "Pod") => {
            let pod = view.get(&ObjectKey::new("pods", namespace, name));
            pod.filter(|pod| node_of(pod).as_deref() == Some(node))
                .ok_or("it is about a pod of another node")?;
        }
        _ => return Err("it is about neither the node nor a pod".into()),
    }
    Ok(json!({
        "involvedObject": involved,
        "type": if event["type"] == "Warning" { "Warning" } else { "Normal" },
        "reason": text(&event["reason"]),
        "message": text(&event["message"]),
        "source": { "component": text(&event["source"]["component"]), "host": node },
    }))
}

#[cfg(test)]
mod tests {
    use coracle_objects::Object;

    use super::*;

    fn view() -> View {
        let mut view = View::default();
        let pod = |node: &str| json!({ "metadata": {}, "spec": { "nodeName": node } });
        for (key, draft) in [
            (node_object::key("n1"), json!({ "metadata": {} })),
            (ObjectKey::new("pods", "default", "mine"), pod("n1")),
            (ObjectKey::new("pods", "default", "theirs"), pod("n2")),
        ] {
            let object = Object::from_draft(key.clone(), draft.to_string().as_bytes(), 1).unwrap();
            view.tables.entry(key.resource).or_default().insert(key.name, object.into());
        }
        view
    }

    fn try_event(kind: &str, namespace: &str, name: &str) -> Result<Value, String> {
        let involved = json!({ "apiVersion": "v1", "kind": kind, "namespace": namespace, "name": name });
        let event = json!({
            "metadata": { "name": "x" },
            "involvedObject": involved,
            "type": "Normal",
            "reason": "Started",
            "source": { "component": "kubelet", "host": "n2" },
        });
        admit(&view(), "n1", event.to_string().as_bytes())
    }

    #[test]
    fn a_node_speaks_of_itself_and_of_its_pods_only() {
        let event = try_event("Pod", "default", "mine").unwrap();
        assert_eq!(event["source"]["host"], "n1");
        assert!(event.get("metadata").is_none());
        assert_eq!(try_event("Node", "kube-system", "n1").unwrap()["involvedObject"]["namespace"], "");
        for (kind, namespace, name) in [
            ("Pod", "default", "theirs"),
            ("Pod", "default", "absent"),
            ("Pod", "../x", "mine"),
            ("Node", "", "n2"),
            ("Secret", "default", "mine"),
        ] {
            assert!(try_event(kind, namespace, name).is_err(), "{kind} {namespace}/{name}");
        }
        assert!(admit(&view(), "n1", b"{").is_err());
    }

    #[test]
    fn the_allowance_comes_back_with_time() {
        let start = Duration::from_secs(60);
        let mut allowance = Allowance::new(start);
        assert_eq!((0..200).filter(|_| allowance.take(start)).count(), 100);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..200).filter(|_| allowance.take(later)).count(), 10);
    }
}
