//! A pod's row: the status column is decided as kubectl users know it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    fields::{condition, condition_true, flag, integer, list, present, text},
    kinds::age,
    validate::rules::or_none,
};

/// What the containers' statuses add up to.
#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    restarts: Restarts,
}

#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += integer(status, "/restartCount").unwrap_or(0);
        let finished = text(status, "/lastState/terminated/finishedAt").parse().ok();
        self.last = self.last.max(finished);
    }

    fn show(self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count > 0 => format!("{} ({} ago)", self.count, age(&last.to_string(), now)),
            _ => self.count.to_string(),
        }
    }
}

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let restartable = list(pod, "/spec/initContainers").iter().filter(|container| is_restartable(container));
    let total = list(pod, "/spec/containers").len() + restartable.count();
    let summary = summarize(pod);
    let status = match terminating(pod) {
        Some(status) => status.to_owned(),
        None => summary.reason,
    };
    let address = match list(pod, "/status/podIPs").first() {
        Some(address) => text(address, "/ip"),
        None => text(pod, "/status/podIP"),
    };
    vec![
        text(pod, "/metadata/name").into(),
        format!("{}/{total}", summary.ready).into(),
        status.into(),
        summary.restarts.show(now).into(),
        age(text(pod, "/metadata/creationTimestamp"), now).into(),
        or_none(address).into(),
        or_none(text(pod, "/spec/nodeName")).into(),
        or_none(text(pod, "/status/nominatedNodeName")).into(),
        gates(pod).into(),
    ]
}

fn terminating(pod: &Value) -> Option<&'static str> {
    if !present(pod, "/metadata/deletionTimestamp") {
        return None;
    }
    if text(pod, "/status/reason") == "NodeLost" {
        return Some("Unknown");
    }
    let ended = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
    (!ended).then_some("Terminating")
}

fn gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let conditions = list(pod, "/status/conditions").iter().rev();
    // The first of a type counts.
    let statuses: BTreeMap<&str, &str> =
        conditions.map(|one| (text(one, "/type"), text(one, "/status"))).collect();
    let open =
        gates.iter().filter(|gate| statuses.get(text(gate, "/conditionType")) == Some(&"True")).count();
    format!("{open}/{}", gates.len())
}

fn is_restartable(container: &Value) -> bool {
    text(container, "/restartPolicy") == "Always"
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "/status/phase");
    let reason = match text(pod, "/status/reason") {
        "" => phase,
        reason => reason,
    };
    let mut summary = Summary { reason: reason.to_owned(), ..Summary::default() };
    let gated = condition(pod, "PodScheduled").is_some_and(|one| text(one, "/reason") == "SchedulingGated");
    if gated {
        summary.reason = "SchedulingGated".to_owned();
    }
    let (initializing, sidecars) = init_containers(pod, &mut summary);
    if !initializing || condition_true(pod, "Initialized") {
        summary.restarts = sidecars;
        containers(pod, &mut summary);
    }
    summary
}

/// Whether the pod still initializes, and the restarts of the init containers that stay (sidecars).
fn init_containers(pod: &Value, summary: &mut Summary) -> (bool, Restarts) {
    let specs = list(pod, "/spec/initContainers");
    let lasting: BTreeSet<&str> =
        specs.iter().filter(|spec| is_restartable(spec)).map(|spec| text(spec, "/name")).collect();
    let mut sidecars = Restarts::default();
    for (index, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        summary.restarts.add(status);
        let sidecar = lasting.contains(text(status, "/name"));
        if sidecar {
            sidecars.add(status);
        }
        let ended = present(status, "/state/terminated");
        let waiting = text(status, "/state/waiting/reason");
        if ended && integer(status, "/state/terminated/exitCode").unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && flag(status, "/started") {
            summary.ready += usize::from(flag(status, "/ready"));
            continue;
        }
        summary.reason = if ended {
            format!("Init:{}", terminated(status))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", specs.len())
        };
        return (true, sidecars);
    }
    (false, sidecars)
}

/// The reason of the first container that has something to say; running ones speak where all others are completed.
fn containers(pod: &Value, summary: &mut Summary) {
    let mut running = false;
    for status in list(pod, "/status/containerStatuses").iter().rev() {
        summary.restarts.add(status);
        let waiting = text(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if present(status, "/state/terminated") {
            summary.reason = terminated(status);
        } else if flag(status, "/ready") && present(status, "/state/running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        summary.reason = if condition_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn terminated(status: &Value) -> String {
    let part = |key: &str| integer(status, &format!("/state/terminated/{key}")).unwrap_or(0);
    match (text(status, "/state/terminated/reason"), part("signal")) {
        ("", 0) => format!("ExitCode:{}", part("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(mut pod: Value) -> String {
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        if pod.get("metadata").is_none() {
            pod["metadata"] = json!({"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"});
        }
        let cells = cells(&pod, now);
        cells[1..4].iter().map(|cell| cell.as_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn running(name: &str, ready: bool) -> Value {
        json!({"name": name, "ready": ready, "started": true, "state": {"running": {}}})
    }

    #[test]
    fn statuses() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let with = |statuses: Value| json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": statuses}});
        let ended = |code: i64, reason: &str| json!({"name": "b", "state": {"terminated": {"exitCode": code, "reason": reason}}});
        let mut ready = with(json!([running("a", true), ended(0, "Completed")]));
        let not_ready = ready.clone();
        ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        let mut gone = with(json!([running("a", true), running("b", true)]));
        gone["metadata"] = json!({"deletionTimestamp": "x"});
        let mut lost = gone.clone();
        lost["status"]["reason"] = "NodeLost".into();
        let backoff = json!({"name": "a", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}});
        let cases = [
            (json!({"spec": spec, "status": {"phase": "Pending"}}), "0/2 Pending 0"),
            (json!({"spec": spec, "status": {"phase": "Failed", "reason": "Evicted"}}), "0/2 Evicted 0"),
            (with(json!([running("a", true), running("b", false)])), "1/2 Running 0"),
            (with(json!([backoff, running("b", true)])), "1/2 CrashLoopBackOff 3 (5m ago)"),
            (with(json!([running("a", true), ended(3, "")])), "1/2 ExitCode:3 0"),
            (with(json!([running("a", true), ended(137, "OOMKilled")])), "1/2 OOMKilled 0"),
            (ready, "1/2 Running 0"),
            (not_ready, "1/2 NotReady 0"),
            (gone, "2/2 Terminating 0"),
            (lost, "2/2 Unknown 0"),
        ];
        for (pod, expected) in cases {
            assert_eq!(row(pod.clone()), expected, "{pod}");
        }
    }

    #[test]
    fn init_containers_speak_first() {
        let pod = |statuses: Value| {
            json!({"spec": {"containers": [{"name": "c"}],
                    "initContainers": [{"name": "a"}, {"name": "s", "restartPolicy": "Always"}]},
                "status": {"phase": "Pending", "initContainerStatuses": statuses,
                    "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "PodInitializing"}}}]}})
        };
        let state = |state: Value| json!({"name": "a", "restartCount": 1, "state": state});
        let done = json!({"name": "a", "state": {"terminated": {"exitCode": 0}}});
        let cases = [
            (json!([state(json!({"running": {}}))]), "0/2 Init:0/2 1"),
            (json!([state(json!({"waiting": {"reason": "PodInitializing"}}))]), "0/2 Init:0/2 1"),
            (json!([state(json!({"waiting": {"reason": "ErrImagePull"}}))]), "0/2 Init:ErrImagePull 1"),
            (json!([state(json!({"terminated": {"exitCode": 2}}))]), "0/2 Init:ExitCode:2 1"),
            (json!([state(json!({"terminated": {"exitCode": 2, "signal": 9}}))]), "0/2 Init:Signal:9 1"),
            (json!([state(json!({"terminated": {"exitCode": 2, "reason": "Error"}}))]), "0/2 Init:Error 1"),
            (json!([done, {"name": "s", "state": {"running": {}}}]), "0/2 Init:1/2 0"),
            (json!([done, running("s", true)]), "1/2 PodInitializing 0"),
        ];
        for (statuses, expected) in cases {
            assert_eq!(row(pod(statuses.clone())), expected, "{statuses}");
        }
    }

    #[test]
    fn wide_columns() {
        let pod = json!({"spec": {"nodeName": "one", "readinessGates": [{"conditionType": "x/y"}, {"conditionType": "z"}]},
            "status": {"podIP": "10.128.0.1", "conditions": [{"type": "z", "status": "True"}]}});
        let wide: Vec<Value> = cells(&pod, Timestamp::UNIX_EPOCH).split_off(5);
        assert_eq!(Value::from(wide), json!(["10.128.0.1", "one", "<none>", "1/2"]));
    }
}
