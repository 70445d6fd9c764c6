//! Pods that this process sees for the first time: new ones, and those of an earlier life of the node.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::news::EXIT_KILLED;
use crate::{
    pod::{Changes, ContainerState, Instance, Phase, PodState, Sandbox, Terminated, Volumes},
    restart::Backoff,
    spec::{Pod, RestartPolicy},
};

impl PodState {
    /// A pod seen for the first time by this process. What its status says of an earlier life is taken over, its times
    /// as the node's own: the wall clock is `wall_ahead` of that.
    pub(super) fn admit(pod: Arc<Pod>, now: Timestamp, wall_ahead: SignedDuration) -> Self {
        let times = Times { now, wall_ahead };
        let finished_before = pod.was_terminal();
        let start_time = times.read(&pod.status["startTime"]).unwrap_or(now);
        let statuses = old_statuses(&pod);
        let containers = pod
            .all_containers()
            .map(|container| {
                let name = &container.name;
                let old = statuses.get(&(pod.is_init(name), name.as_str()));
                let state = old.map(|old| earlier_life(&pod, name, old, &times)).unwrap_or_default();
                (name.clone(), state)
            })
            .collect();
        let addresses = match &pod.status["podIPs"] {
            Value::Array(all) => all.iter().filter_map(|one| one["ip"].as_str()?.parse().ok()).collect(),
            _ => Vec::new(),
        };
        Self {
            start_time,
            sandbox: Sandbox::Absent { backoff: Backoff::default(), retry_at: None },
            addresses,
            volumes: Volumes::Absent {
                backoff: Backoff::default(),
                retry_at: None,
                message: None,
                held: None,
            },
            changes: Changes::default(),
            containers,
            ending: None,
            finished_before,
            eviction: None,
            volumes_freed: false,
            removed: false,
            events: VecDeque::new(),
            reported: None,
            pod,
        }
    }
}

/// What the status says of the pod's containers, by whether they are init containers and by their names.
fn old_statuses(pod: &Pod) -> BTreeMap<(bool, &str), &Value> {
    let lists = [(true, "initContainerStatuses"), (false, "containerStatuses")];
    let all = lists.into_iter().flat_map(|(init, list)| {
        let statuses = pod.status[list].as_array().into_iter().flatten().rev();
        statuses.filter_map(move |one| Some(((init, one["name"].as_str()?), one)))
    });
    all.collect()
}

/// Reads the times of a status, which are the wall clock's.
struct Times {
    now: Timestamp,
    wall_ahead: SignedDuration,
}

impl Times {
    /// Nothing of an earlier life can be later than now, whatever the wall clock said then.
    fn read(&self, text: &Value) -> Option<Timestamp> {
        let wall: Timestamp = text.as_str()?.parse().ok()?;
        Some(wall.checked_sub(self.wall_ahead).unwrap_or(wall).min(self.now))
    }
}

/// What a reported status says of a container in an earlier life of this node.
///
/// Init containers run again in the new sandbox. Other containers that had ended for good stay ended; one that was
/// running is started again with the next number, or is given up where the restart policy is Never, since it may
/// have done its work.
fn earlier_life(pod: &Pod, name: &str, old: &Value, times: &Times) -> ContainerState {
    let count = old["restartCount"].as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
    let mut state = ContainerState { restart_count: count, ..ContainerState::default() };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let end = |end: &Value| Terminated {
        exit_code: end["exitCode"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
        reason: text(&end["reason"]),
        message: text(&end["message"]),
        started_at: times.read(&end["startedAt"]),
        finished_at: times.read(&end["finishedAt"]).unwrap_or(times.now),
        container_id: text(&end["containerID"]),
        announced: false,
        outdated: false,
    };
    let current = &old["state"];
    state.last = old["lastState"].get("terminated").map(end);
    let lost = current.get("running").map(|running| Terminated {
        exit_code: EXIT_KILLED,
        reason: "ContainerStatusUnknown".to_owned(),
        message: "The container was lost when its node was restarted".to_owned(),
        started_at: times.read(&running["startedAt"]),
        finished_at: times.now,
        container_id: text(&old["containerID"]),
        announced: false,
        outdated: false,
    });
    let was_over = current.get("terminated").map(end);
    if !pod.is_init(name) && pod.spec.restart_policy != RestartPolicy::Always {
        let over = was_over.clone().or_else(|| lost.clone());
        if let Some(end) = over {
            state.instance = Some(Instance {
                container_id: text(&old["containerID"]),
                image: text(&old["image"]),
                image_id: text(&old["imageID"]),
            });
            state.phase = Phase::Terminated(end);
            return state;
        }
    }
    if let Some(end) = was_over.or(lost) {
        state.last = Some(end);
    }
    // Whatever ran before was another attempt.
    if state.last.is_some() {
        state.restart_count += 1;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{action::Action, pod::Observed, spec::PodUid, status::pod_status};

    #[test]
    fn times_of_an_earlier_life_are_the_nodes_own_and_are_told_in_the_wall_clocks() {
        let json = br#"{"metadata":{"name":"p","namespace":"d","uid":"u"},
            "spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]},
            "status":{"startTime":"2026-01-01T02:00:00Z","containerStatuses":[{"name":"c","state":{"terminated":
                {"exitCode":0,"startedAt":"2026-01-01T02:00:10Z","finishedAt":"2026-01-01T09:00:00Z"}}}]}}"#;
        let uid = PodUid::from("u");
        let pods = BTreeMap::from([(uid.clone(), Arc::new(Pod::parse(json).unwrap()))]);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        // The wall clock is an hour ahead of the node's time.
        let now = at("2026-01-01T03:00:00Z");
        let mut observed = Observed::default();
        observed.node.wall_ahead = SignedDuration::from_hours(1);
        observed.begin(&Action::Admit { uid: uid.clone() }, &pods, now);
        let state = &observed.pods[&uid];
        assert_eq!(state.start_time, at("2026-01-01T01:00:00Z"));
        let Phase::Terminated(end) = &state.containers["c"].phase else { panic!("it had ended") };
        assert_eq!(
            (end.started_at, end.finished_at),
            (Some(at("2026-01-01T01:00:10Z")), now),
            "not later than now"
        );
        let status = pod_status(&pods[&uid], state, &observed.node, now);
        assert_eq!(status["startTime"], "2026-01-01T02:00:00Z");
        let told = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(told["startedAt"], "2026-01-01T02:00:10Z");
        // Where the wall clock is set, so is what is told.
        observed.node.wall_ahead = SignedDuration::from_hours(-1);
        let status = pod_status(&pods[&uid], &observed.pods[&uid], &observed.node, now);
        assert_eq!(status["startTime"], "2026-01-01T00:00:00Z");
    }
}
