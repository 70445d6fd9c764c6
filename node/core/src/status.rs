//! v1.PodStatus of a pod, whole, as kubelet would write it.
//!
//! Source: kubelet `generateAPIPodStatus`, `getPhase`, `convertToAPIContainerStatuses`, `status/generate.go`.

use core::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::{
    pod::{
        ContainerState, NodeFacts, Outcome, Phase, PodState, Pulled, Refused, Sandbox, Terminated, runs_again,
    },
    resources,
    restart::go_duration,
    seats::NO_SEAT,
    spec::{Container, Pod, RestartPolicy},
};

/// The status with this node's own conditions. Others (PodScheduled, readiness gates) are kept by the server, which
/// may know newer ones.
pub fn pod_status(pod: &Pod, state: &PodState, node: &NodeFacts, now: Timestamp) -> Value {
    let phase = phase(pod, state);
    let mut status = Map::new();
    status.insert("phase".into(), phase.into());
    status.insert("conditions".into(), conditions(pod, state, phase, wall(now, node)));
    if let Some(failure) = state.ending.as_ref().and_then(|ending| ending.failure.as_ref()) {
        status.insert("reason".into(), failure.reason.into());
        status.insert("message".into(), failure.message.clone().into());
    }
    // A node that is reached by a name alone knows of no address of its machine.
    if node.host_ip.parse::<IpAddr>().is_ok() {
        status.insert("hostIP".into(), node.host_ip.clone().into());
        status.insert("hostIPs".into(), json!([{ "ip": node.host_ip }]));
    }
    if let Some(first) = state.addresses.first().filter(|_| has_address(state)) {
        let all: Vec<Value> = state.addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        status.insert("podIP".into(), first.to_string().into());
        status.insert("podIPs".into(), all.into());
    }
    status.insert("startTime".into(), time(wall(state.start_time, node)));
    let list = |containers: &mut dyn Iterator<Item = &Container>| -> Value {
        containers.map(|container| container_status(pod, state, container, node.wall_ahead)).collect()
    };
    if !pod.spec.init_containers.is_empty() {
        status.insert("initContainerStatuses".into(), list(&mut pod.spec.init_containers.iter()));
    }
    // As the kubelet reports them: init containers in their order, the others by name.
    let mut by_name: Vec<&Container> = pod.spec.containers.iter().collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    status.insert("containerStatuses".into(), list(&mut by_name.into_iter()));
    bound_texts(&mut status);
    let qos = pod.status["qosClass"].as_str().unwrap_or_else(|| resources::qos_class(pod));
    status.insert("qosClass".into(), qos.into());
    Value::Object(status)
}

/// The reason of a pod that waits until its node is sent it.
pub const WITHHELD: &str = "Withheld";

/// The status of a pod that the node is not sent, with why.
pub fn withheld_status(why: &str, wall: Timestamp) -> Value {
    let condition = |name: &str| {
        let condition = Condition { holds: false, reason: WITHHELD, message: why.to_owned() };
        condition.to_json(name, &[], wall)
    };
    let own = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"].map(condition);
    json!({ "phase": "Pending", "reason": WITHHELD, "message": why, "conditions": own })
}

/// Bytes of JSON that the words of all containers of a pod have together, and those of one text at least and at most.
const TEXTS_BYTES: usize = 384 * 1024;
const TEXT_BYTES: std::ops::RangeInclusive<usize> = 128..=4096;

/// Cuts what containers are said to wait or to have ended for, and the names of their images: users choose how long they
/// are, and a status that is too large tells nothing.
fn bound_texts(status: &mut Map<String, Value>) {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let count: usize = lists.iter().filter_map(|list| status.get(*list)?.as_array()).map(Vec::len).sum();
    // Some three of each container.
    let each = (TEXTS_BYTES / (3 * count.max(1))).clamp(*TEXT_BYTES.start(), *TEXT_BYTES.end());
    for list in lists {
        let Some(Value::Array(containers)) = status.get_mut(list) else { continue };
        for container in containers {
            for text in ["/image", "/state/waiting/message", "/state/terminated/message"] {
                cut(container.pointer_mut(text), each);
            }
            cut(container.pointer_mut("/lastState/terminated/message"), each);
        }
    }
    cut(status.get_mut("message"), *TEXT_BYTES.end());
}

/// Leaves so many bytes of a text, as JSON writes it.
fn cut(text: Option<&mut Value>, most: usize) {
    let Some(Value::String(text)) = text else { return };
    let written = |letter: char| match letter {
        '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
        letter if letter < ' ' => 6,
        letter => letter.len_utf8(),
    };
    let mut bytes = 0;
    let end = text.char_indices().find(|(_, letter)| {
        bytes += written(*letter);
        bytes > most
    });
    if let Some((end, _)) = end {
        text.truncate(end);
        text.push_str(" ...");
    }
}

/// An address that is taken over from an earlier life is shown only once it is the pod's again, and one that the node
/// has lost is not.
fn has_address(state: &PodState) -> bool {
    match state.sandbox {
        Sandbox::Absent { .. } | Sandbox::Creating { .. } | Sandbox::Lost => false,
        Sandbox::Stopping { anew } => !anew,
        Sandbox::Ready | Sandbox::Stopped => true,
    }
}

/// What the wall clock, as it goes now, says of a moment in the node's time.
fn wall(at: Timestamp, node: &NodeFacts) -> Timestamp {
    shifted(at, node.wall_ahead)
}

fn shifted(at: Timestamp, ahead: SignedDuration) -> Timestamp {
    at.checked_add(ahead).unwrap_or(at)
}

/// Seconds of RFC 3339, as metav1.Time.
fn time(at: Timestamp) -> Value {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

/// The phase of the pod as its containers are now.
pub fn phase(pod: &Pod, state: &PodState) -> &'static str {
    if state.ending.as_ref().is_some_and(|ending| ending.failure.is_some()) {
        return "Failed";
    }
    let sidecars_live = || {
        let sidecars = pod.spec.init_containers.iter().filter(|container| container.is_sidecar());
        sidecars.filter_map(|container| state.container(&container.name)).any(ContainerState::is_live)
    };
    match state.outcome(pod) {
        Some(_) if sidecars_live() => return "Running",
        Some(Outcome::Succeeded) => return "Succeeded",
        Some(Outcome::Failed) => return "Failed",
        None => {}
    }
    let mains = || pod.spec.containers.iter().filter_map(|container| state.container(&container.name));
    if state.ending.is_some() && state.is_still() && mains().all(|main| main.terminated().is_some()) {
        // A deleted pod whose containers are over will not run again, whatever its restart policy.
        let failed = mains().any(|main| main.terminated().is_some_and(|end| end.exit_code != 0));
        return if failed { "Failed" } else { "Succeeded" };
    }
    let never_ran = |container: &ContainerState| {
        container.running().is_none() && container.terminated().is_none() && container.last.is_none()
    };
    let initialized_once = mains().any(|container| !never_ran(container));
    if state.unfinished_init(pod).next().is_some() && !initialized_once || mains().any(never_ran) {
        "Pending"
    } else {
        "Running"
    }
}

fn conditions(pod: &Pod, state: &PodState, phase: &str, now: Timestamp) -> Value {
    let incomplete: Vec<&str> = state.unfinished_init(pod).map(|container| container.name.as_str()).collect();
    let unready: Vec<&str> = pod
        .spec
        .init_containers
        .iter()
        .filter(|container| container.is_sidecar())
        .chain(&pod.spec.containers)
        .filter(|container| !state.container(&container.name).is_some_and(ContainerState::is_ready))
        .map(|container| container.name.as_str())
        .collect();
    let initialized = match phase {
        "Succeeded" => Condition { holds: true, reason: "PodCompleted", message: String::new() },
        _ => Condition::unless(&incomplete, "ContainersNotInitialized", "containers with incomplete status"),
    };
    let containers_ready = match phase {
        "Succeeded" => Condition { holds: false, reason: "PodCompleted", message: String::new() },
        "Failed" => Condition { holds: false, reason: "PodFailed", message: String::new() },
        _ => Condition::unless(&unready, "ContainersNotReady", "containers with unready status"),
    };
    let ready = if containers_ready.holds { gates(pod) } else { containers_ready.clone() };
    let sandbox = Condition { holds: state.sandbox == Sandbox::Ready, ..Condition::default() };
    let own = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ];
    let previous = state.reported.as_ref().unwrap_or(&pod.status)["conditions"].as_array();
    let previous = previous.map(Vec::as_slice).unwrap_or_default();
    let disrupted = state.eviction.as_ref().filter(|_| phase == "Failed").map(|failure| {
        let (holds, reason, message) = (true, "TerminationByKubelet", failure.message.clone());
        ("DisruptionTarget", Condition { holds, reason, message })
    });
    own.iter().chain(&disrupted).map(|(name, one)| one.to_json(name, previous, now)).collect()
}

fn gates(pod: &Pod) -> Condition {
    let conditions = pod.status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let closed: Vec<String> = pod
        .spec
        .readiness_gates
        .iter()
        .filter(|gate| {
            !conditions.iter().any(|one| one["type"] == *gate.condition_type && one["status"] == "True")
        })
        .map(|gate| {
            format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type)
        })
        .collect();
    Condition { holds: closed.is_empty(), reason: "ReadinessGatesNotReady", message: closed.join(", ") }
        .cleaned()
}

#[derive(Clone, Default)]
struct Condition {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn unless(names: &[&str], reason: &'static str, what: &str) -> Self {
        let message = format!("{what}: [{}]", names.join(" "));
        Self { holds: names.is_empty(), reason, message }.cleaned()
    }

    /// What holds needs no reason.
    fn cleaned(self) -> Self {
        if self.holds { Self { holds: true, ..Self::default() } } else { self }
    }

    fn to_json(&self, name: &str, previous: &[Value], now: Timestamp) -> Value {
        let status = if self.holds { "True" } else { "False" };
        let same = previous.iter().find(|one| one["type"] == name && one["status"] == status);
        let since = same.and_then(|one| one.get("lastTransitionTime")).filter(|at| at.is_string());
        let mut json = json!({
            "type": name,
            "status": status,
            "lastProbeTime": null,
            "lastTransitionTime": since.cloned().unwrap_or_else(|| time(now)),
        });
        if !self.reason.is_empty() {
            json["reason"] = self.reason.into();
        }
        if !self.message.is_empty() {
            json["message"] = self.message.clone().into();
        }
        json
    }
}

fn container_status(pod: &Pod, state: &PodState, container: &Container, ahead: SignedDuration) -> Value {
    let unknown = ContainerState::default();
    let known = state.container(&container.name).unwrap_or(&unknown);
    let init = pod.is_init(&container.name);
    let ready = if init && !container.is_sidecar() {
        known.terminated().is_some_and(|end| end.exit_code == 0)
    } else {
        known.is_ready()
    };
    let (current, last) = container_states(pod, state, container, known, ahead);
    let mut status = json!({
        "name": container.name,
        "state": current,
        "lastState": last.map_or_else(|| json!({}), |end| json!({ "terminated": terminated(end, ahead) })),
        "ready": ready,
        "restartCount": known.restart_count,
        "image": known.instance.as_ref().map_or(&container.image, |instance| &instance.image),
        "imageID": known.instance.as_ref().map_or("", |instance| &instance.image_id),
        "started": known.has_started(),
    });
    if let Some(instance) = &known.instance {
        status["containerID"] = instance.container_id.clone().into();
    }
    status
}

/// `state` and `lastState` of a container.
fn container_states<'a>(
    pod: &Pod,
    state: &PodState,
    container: &Container,
    known: &'a ContainerState,
    ahead: SignedDuration,
) -> (Value, Option<&'a Terminated>) {
    let last = known.last.as_ref();
    let waiting = |reason: &str, message: &str| {
        let mut waiting = json!({ "reason": reason });
        if !message.is_empty() {
            waiting["message"] = message.into();
        }
        json!({ "waiting": waiting })
    };
    match &known.phase {
        Phase::Running(running) => {
            (json!({ "running": { "startedAt": time(shifted(running.since, ahead)) } }), last)
        }
        Phase::Terminated(end)
            if end.announced && state.ending.is_none() && will_restart(pod, container, end) =>
        {
            // The wait that is under way: the one that the last restart left behind.
            let wait = go_duration(known.backoff.wait());
            let name = &container.name;
            let message =
                format!("back-off {wait} restarting failed container={name} pod={}", pod.full_name());
            (waiting("CrashLoopBackOff", &message), Some(end))
        }
        Phase::Terminated(end) => (json!({ "terminated": terminated(end, ahead) }), last),
        Phase::Refused(refused) => (refusal(container, refused, &waiting), last),
        Phase::Pulled(Pulled { held: Some((message, _)), .. }) => {
            (waiting("CreateContainerConfigError", message), last)
        }
        // Also while it is tried again: that comes to nothing more often than not.
        Phase::Unseated(_) | Phase::Pulled(_) | Phase::Starting if known.no_seat.is_some() => {
            (waiting(NO_SEAT, known.no_seat.as_deref().unwrap_or_default()), last)
        }
        Phase::Idle | Phase::Pulling | Phase::Pulled(_) | Phase::Starting | Phase::Unseated(_) => {
            let init = !pod.spec.init_containers.is_empty();
            (waiting(if init { "PodInitializing" } else { "ContainerCreating" }, ""), last)
        }
    }
}

fn refusal(container: &Container, refused: &Refused, waiting: &impl Fn(&str, &str) -> Value) -> Value {
    let Refused { reason, message, .. } = refused;
    if refused.announced && reason.starts_with("ErrImagePull") {
        let text = format!("Back-off pulling image {:?}: {reason}: {message}", container.image);
        waiting("ImagePullBackOff", &text)
    } else {
        waiting(reason, message)
    }
}

fn will_restart(pod: &Pod, container: &Container, end: &Terminated) -> bool {
    runs_again(pod, container, end)
        && (container.is_sidecar() || pod.spec.restart_policy != RestartPolicy::Never)
}

fn terminated(end: &Terminated, ahead: SignedDuration) -> Value {
    let mut json = json!({
        "exitCode": end.exit_code,
        "reason": end.reason,
        "startedAt": end.started_at.map_or(Value::Null, |at| time(shifted(at, ahead))),
        "finishedAt": time(shifted(end.finished_at, ahead)),
        "containerID": end.container_id,
    });
    if !end.message.is_empty() {
        json["message"] = end.message.clone().into();
    }
    json
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Action, Observed};

    #[test]
    fn a_status_is_no_larger_than_its_readers_take_whatever_containers_are_called() {
        for (count, most) in [(1, 32 << 10), (150, 1 << 20), (1000, 1 << 20)] {
            let text = "\u{1}\"x".repeat(5000);
            let container = json!({
                "name": "c", "image": text,
                "state": { "waiting": { "reason": "CreateContainerConfigError", "message": text } },
                "lastState": { "terminated": { "message": text } },
            });
            let mut status = Map::new();
            status.insert("containerStatuses".into(), vec![container; count].into());
            status.insert("message".into(), text.into());
            bound_texts(&mut status);
            assert!(Value::Object(status.clone()).to_string().len() < most, "{count}");
            let told = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
            assert!(told.starts_with("\u{1}\"x") && told.ends_with(" ..."), "{told}");
        }
        let mut short = json!("as it is");
        cut(Some(&mut short), 8);
        assert_eq!(short, "as it is");
        // So is it with a pod's own.
        let containers: Vec<Value> =
            (0..1000).map(|at| json!({ "name": format!("c{at}"), "image": "i".repeat(10_000) })).collect();
        let pod = json!({ "metadata": { "name": "p", "uid": "u" }, "spec": { "containers": containers } });
        let pod = Arc::new(Pod::parse(pod.to_string().as_bytes()).unwrap());
        let (mut observed, uid) = (Observed::default(), pod.uid().clone());
        let (pods, now) = ([(uid.clone(), pod.clone())].into(), Timestamp::UNIX_EPOCH);
        observed.begin(&Action::Admit { uid: uid.clone() }, &pods, now);
        let status = pod_status(&pod, &observed.pods[&uid], &NodeFacts::default(), now);
        assert!(status.to_string().len() < 1 << 20, "{}", status.to_string().len());
    }
}
