//! Desired and observed pods and the time of day into actions. The heart of the node.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    action::{Action, Failure},
    planning::{StartInputs, VolumeInputs, start_fingerprint},
    pod::{
        ContainerState, Desired, Observed, Phase, Planning, PodState, Pulled, Refused, Running, Sandbox,
        Volumes, policy_of, runs_again,
    },
    probe::{ProbeCheck, ProbeKind, Verdict, timeout},
    resources,
    restart::{after, since},
    spec::{Container, Pod, PodUid, RestartPolicy},
    status,
    volumes::{self, Fingerprint},
};

/// How long the error of a failed pull is shown, before the wait for the next try is.
pub const PULL_ERROR_SHOWN: Duration = Duration::from_secs(2);

/// What is to be done for all pods, in order of their uids.
pub fn reconcile(desired: &Desired, observed: &Observed, now: Timestamp) -> Vec<Action> {
    let uids: std::collections::BTreeSet<&PodUid> = desired.pods.keys().chain(observed.pods.keys()).collect();
    uids.into_iter().flat_map(|uid| reconcile_pod(uid, desired, observed, now)).collect()
}

/// What is to be done for one pod now. Empty where nothing is: then nothing is until the next observation, the next
/// change of what is desired, or [`next_wake`].
pub fn reconcile_pod(uid: &PodUid, desired: &Desired, observed: &Observed, now: Timestamp) -> Vec<Action> {
    let uid = uid.clone();
    match (desired.pods.get(&uid), observed.pods.get(&uid)) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec![Action::Admit { uid }],
        (None, Some(state)) if state.removed => vec![Action::Forget { uid }],
        (Some(_), Some(state)) if state.removed => Vec::new(),
        (wanted, Some(state)) => {
            let pod = wanted.unwrap_or(&state.pod);
            let start_fingerprint = start_fingerprint(pod, state);
            let actions = Vec::new();
            let mut step = Step { uid, pod, state, desired, observed, now, start_fingerprint, actions };
            step.run(wanted.is_none());
            step.actions
        }
    }
}

/// When the pod has to be looked at again if nothing happens before, after it was brought to rest at `now`. What was due
/// then and was left undone waits for something else, and would only be left undone again.
pub fn next_wake(state: &PodState, now: Timestamp) -> Option<Timestamp> {
    wakes(state).into_iter().filter(|wake| *wake > now).min()
}

fn wakes(state: &PodState) -> Vec<Timestamp> {
    let mut wakes = Vec::new();
    let pod_kill_at = state.ending.as_ref().map(|ending| after(ending.since, ending.grace));
    if state.ending.is_some() || state.finished_before {
        let live = state.containers.values().filter_map(ContainerState::running);
        wakes.extend(live.flat_map(|running| running_wakes(running, pod_kill_at)));
        return wakes;
    }
    if let Sandbox::Absent { retry_at, .. } = &state.sandbox {
        wakes.extend(*retry_at);
    }
    match &state.volumes {
        Volumes::Absent { retry_at, .. } => wakes.extend(*retry_at),
        Volumes::Mounted { refused, .. } => wakes.extend(refused.map(|(_, retry_at)| retry_at)),
        Volumes::Writing { .. } => {}
    }
    if let Some(seconds) = state.pod.spec.active_deadline_seconds {
        wakes.push(after(state.start_time, Duration::from_secs(seconds.max(0).cast_unsigned())));
    }
    for container in state.containers.values() {
        match &container.phase {
            Phase::Refused(refused) => {
                wakes.push(refused.retry_at);
                if !refused.announced && refused.of_pull {
                    wakes.push(after(refused.since, PULL_ERROR_SHOWN));
                }
            }
            Phase::Unseated(unseated) => wakes.push(unseated.retry_at),
            Phase::Terminated(end) if end.announced => wakes.extend(container.backoff.until(end.finished_at)),
            Phase::Running(running) => wakes.extend(running_wakes(running, pod_kill_at)),
            _ => {}
        }
    }
    wakes
}

fn running_wakes(running: &Running, pod_kill_at: Option<Timestamp>) -> Vec<Timestamp> {
    if let Some(ending) = &running.ending {
        let kill_at = pod_kill_at.map_or(ending.kill_at, |at| at.min(ending.kill_at));
        return match (ending.stopped, ending.killed) {
            (_, true) => vec![],
            (true, false) => vec![kill_at],
            (false, false) => vec![ending.stop_at, kill_at],
        };
    }
    let due = ProbeKind::ALL.into_iter().filter(|kind| probes_now(running, *kind));
    due.filter_map(|kind| running.probe(kind)).filter(|run| !run.in_flight).map(|run| run.next_at).collect()
}

/// The startup probe runs until it has passed; the others only then.
fn probes_now(running: &Running, kind: ProbeKind) -> bool {
    (kind == ProbeKind::Startup) != running.has_started()
}

struct Step<'a> {
    uid: PodUid,
    pod: &'a Pod,
    state: &'a PodState,
    desired: &'a Desired,
    observed: &'a Observed,
    now: Timestamp,
    /// One for all containers.
    start_fingerprint: Fingerprint,
    actions: Vec<Action>,
}

impl Step<'_> {
    fn run(&mut self, object_is_gone: bool) {
        self.decide_ending(object_is_gone);
        let ended = if self.state.ending.is_some() {
            self.wind_down()
        } else if self.state.finished_before {
            self.free_volumes();
            false
        } else if self.state.outcome(self.pod).is_some() {
            self.finish();
            false
        } else {
            self.bring_up();
            false
        };
        self.report(object_is_gone);
        if ended && self.actions.is_empty() {
            let deleted = object_is_gone || self.pod.is_deleting();
            if deleted {
                self.actions.push(Action::Remove { uid: self.uid.clone() });
            } else {
                self.free_volumes();
            }
        }
    }

    /// Whether the pod has to end, and how soon.
    fn decide_ending(&mut self, object_is_gone: bool) {
        let uid = self.uid.clone();
        let grace = if object_is_gone {
            Some(Duration::ZERO)
        } else if let Some(most) = self.desired.stopping {
            Some(self.pod.grace().min(most))
        } else {
            self.pod.is_deleting().then(|| self.pod.grace())
        };
        if let Some(grace) = grace {
            if self.state.ending.as_ref().is_none_or(|ending| grace < ending.grace) {
                self.actions.push(Action::EndPod { uid, grace, failure: None });
            }
            return;
        }
        if self.state.ending.is_some() || self.state.finished_before || self.state.outcome(self.pod).is_some()
        {
            return;
        }
        if let Some(failure) = self.state.eviction.clone() {
            // Whatever it still writes takes room from the others.
            self.actions.push(Action::EndPod { uid, grace: Duration::ZERO, failure: Some(failure) });
            return;
        }
        let deadline = self.pod.spec.active_deadline_seconds.map(|seconds| seconds.max(0).cast_unsigned());
        let over =
            deadline.is_some_and(|seconds| since(self.state.start_time, self.now).as_secs() >= seconds);
        if over {
            let failure = Failure {
                reason: "DeadlineExceeded",
                message: "Pod was active on the node longer than the specified deadline".into(),
            };
            let grace = self.pod.grace();
            self.actions.push(Action::EndPod { uid, grace, failure: Some(failure) });
        }
    }

    /// Ends the containers of a pod that has to go: sidecars last, in reverse order. True when nothing is left.
    fn wind_down(&mut self) -> bool {
        let Some(ending) = &self.state.ending else { return false };
        let kill_at = after(ending.since, ending.grace);
        let left = Duration::try_from(kill_at.duration_since(self.now)).unwrap_or_default();
        let pod = self.pod;
        for container in pod.all_containers().filter(|container| !container.is_sidecar()) {
            self.wind_down_container(&container.name, left, kill_at);
        }
        let live = |container: &&Container| {
            self.state.container(&container.name).is_some_and(ContainerState::is_live)
        };
        if !pod.all_containers().filter(|container| !container.is_sidecar()).any(|container| live(&container))
        {
            let sidecar =
                pod.spec.init_containers.iter().rev().filter(|container| container.is_sidecar()).find(live);
            if let Some(sidecar) = sidecar {
                self.wind_down_container(&sidecar.name, left, kill_at);
            }
        } else if left.is_zero() {
            for sidecar in pod.spec.init_containers.iter().filter(|container| container.is_sidecar()) {
                self.wind_down_container(&sidecar.name, left, kill_at);
            }
        }
        // Files that came after the removal would be left behind.
        self.sandbox_is_gone() && self.state.is_still() && !self.state.is_being_written()
    }

    fn wind_down_container(&mut self, name: &str, grace: Duration, pod_kill_at: Timestamp) {
        let Some(running) = self.state.container(name).and_then(ContainerState::running) else { return };
        if running.ending.is_none() {
            let (uid, container) = (self.uid.clone(), name.to_owned());
            let why = format!("Stopping container {name}");
            self.actions.push(Action::End { uid, container, grace, why });
        } else {
            self.press(name, running, Some(pod_kill_at));
        }
    }

    /// Stop and Kill of a container that has to end, when their time has come.
    fn press(&mut self, name: &str, running: &Running, pod_kill_at: Option<Timestamp>) {
        let Some(ending) = &running.ending else { return };
        let (uid, container) = (self.uid.clone(), name.to_owned());
        let attempt = self.state.containers[name].restart_count;
        let kill_at = pod_kill_at.map_or(ending.kill_at, |at| at.min(ending.kill_at));
        let kill = kill_at <= self.now;
        if !ending.stopped && !kill && ending.stop_at <= self.now {
            self.actions.push(Action::Stop { uid, container, attempt });
        } else if kill && !ending.killed {
            self.actions.push(Action::Kill { uid, container, attempt });
        }
    }

    /// Takes the sandbox down, once nothing runs in it. True when it is gone.
    fn sandbox_is_gone(&mut self) -> bool {
        match self.state.sandbox {
            Sandbox::Absent { .. } | Sandbox::Stopped => true,
            Sandbox::Ready | Sandbox::Lost => {
                if self.state.is_still() {
                    self.actions.push(Action::StopSandbox { uid: self.uid.clone() });
                }
                false
            }
            Sandbox::Creating { .. } | Sandbox::Stopping { .. } => false,
        }
    }

    /// The pod has done its work: sidecars end, the network goes, logs and status stay.
    fn finish(&mut self) {
        let pod = self.pod;
        let grace = pod.grace();
        for container in pod.all_containers() {
            let name = &container.name;
            let Some(running) = self.state.container(name).and_then(ContainerState::running) else {
                continue;
            };
            if running.ending.is_none() {
                let why = format!("Stopping container {name}");
                self.actions.push(Action::End { uid: self.uid.clone(), container: name.clone(), grace, why });
            } else {
                self.press(name, running, None);
            }
        }
        if self.sandbox_is_gone() {
            self.free_volumes();
        }
    }

    /// Removes the volumes of a pod of which nothing will run any more.
    fn free_volumes(&mut self) {
        let is_used = !self.state.is_still() || self.state.is_being_written();
        if !is_used && !self.state.volumes_freed && self.desired.stopping.is_none() {
            self.actions.push(Action::FreeVolumes { uid: self.uid.clone() });
        }
    }

    /// Ends everything that runs in a sandbox that is the pod's no longer, then the sandbox itself.
    fn leave_sandbox(&mut self) {
        let pod = self.pod;
        for container in pod.all_containers() {
            let name = &container.name;
            let Some(running) = self.state.container(name).and_then(ContainerState::running) else {
                continue;
            };
            if running.ending.is_none() {
                let why = "Pod sandbox changed, it will be killed and re-created.".to_owned();
                let (uid, container) = (self.uid.clone(), name.clone());
                self.actions.push(Action::End { uid, container, grace: Duration::ZERO, why });
            } else {
                self.press(name, running, Some(self.now));
            }
        }
        self.sandbox_is_gone();
    }

    fn bring_up(&mut self) {
        if self.state.sandbox == Sandbox::Lost {
            self.leave_sandbox();
            return;
        }
        if let Sandbox::Absent { retry_at, .. } = &self.state.sandbox
            && retry_at.is_none_or(|at| at <= self.now)
        {
            let (uid, limits) = (self.uid.clone(), resources::pod_limits(self.pod));
            let preferred = self.state.addresses.first().copied();
            self.actions.push(Action::CreateSandbox { uid, preferred, limits });
        }
        self.mount();
        if self.state.sandbox != Sandbox::Ready || !self.state.is_mounted() {
            return;
        }
        let pod = self.pod;
        let unfinished = self.state.unfinished_init(pod).next().map(|container| container.name.as_str());
        for container in &pod.spec.init_containers {
            let current = unfinished == Some(container.name.as_str());
            // Sidecars before the current init container are kept running.
            if current || container.is_sidecar() {
                self.advance(container);
            }
            if current {
                return;
            }
        }
        for container in &pod.spec.containers {
            self.advance(container);
        }
    }

    fn mount(&mut self) {
        let fingerprint = volumes::fingerprint(self.pod, self.state);
        let uid = self.uid.clone();
        match &self.state.volumes {
            Volumes::Writing { .. } => return,
            Volumes::Mounted { fingerprint: same, refused: None } if *same == fingerprint => return,
            Volumes::Mounted { refused: Some((_, at)), .. } if *at > self.now => return,
            Volumes::Absent { retry_at: Some(at), .. } if *at > self.now => return,
            Volumes::Absent { held: Some(same), .. } if *same == fingerprint => return,
            Volumes::Mounted { .. } | Volumes::Absent { .. } => {}
        }
        let inputs = Box::new(VolumeInputs {
            pod: self.shared_pod(),
            sources: self.desired.sources.clone(),
            facts: self.state.facts(&self.observed.node),
        });
        self.actions.push(Action::Mount { uid, fingerprint, inputs });
    }

    /// The pod as it is desired now; as it was seen last where it is not any more.
    fn shared_pod(&self) -> Arc<Pod> {
        self.desired.pods.get(&self.uid).unwrap_or(&self.state.pod).clone()
    }

    /// Moves one container on by one step.
    fn advance(&mut self, container: &Container) {
        let Some(state) = self.state.container(&container.name) else { return };
        let outdated = state.is_outdated(container);
        match &state.phase {
            Phase::Idle => self.pull(container, state.restart_count),
            Phase::Refused(_) | Phase::Unseated(_) if outdated => self.pull(container, state.restart_count),
            Phase::Refused(refused) => self.advance_refused(container, state, refused),
            Phase::Pulled(pulled) => self.start(container, state, pulled),
            Phase::Unseated(unseated) if unseated.retry_at <= self.now => {
                self.plan(container, state, None);
            }
            Phase::Terminated(end) if runs_again(self.pod, container, end) => {
                match state.backoff.until(end.finished_at).filter(|at| *at > self.now && !outdated) {
                    None => self.pull(container, state.restart_count + 1),
                    Some(_) if !end.announced => self.announce(container),
                    Some(_) => {}
                }
            }
            Phase::Running(running) if running.ending.is_some() => self.press(&container.name, running, None),
            Phase::Running(_) if outdated => self.replace(container),
            Phase::Running(running) => self.watch(container, state, running),
            Phase::Pulling | Phase::Starting | Phase::Unseated(_) | Phase::Terminated(_) => {}
        }
    }

    fn advance_refused(&mut self, container: &Container, state: &ContainerState, refused: &Refused) {
        if refused.retry_at <= self.now {
            self.pull(container, state.restart_count);
        } else if refused.of_pull && !refused.announced && after(refused.since, PULL_ERROR_SHOWN) <= self.now
        {
            self.announce(container);
        }
    }

    fn announce(&mut self, container: &Container) {
        self.actions.push(Action::Announce { uid: self.uid.clone(), container: container.name.clone() });
    }

    fn pull(&mut self, container: &Container, attempt: u32) {
        self.actions.push(Action::Pull {
            uid: self.uid.clone(),
            container: container.name.clone(),
            attempt,
            image: container.image.clone(),
            policy: container.pull_policy(),
        });
    }

    /// Starts a container whose start is planned, and has it planned before.
    fn start(&mut self, container: &Container, state: &ContainerState, pulled: &Pulled) {
        let (uid, name, attempt) = (self.uid.clone(), container.name.clone(), state.restart_count);
        match &pulled.planning {
            Planning::UnderWay { .. } => {}
            _ if state.is_outdated(container) => self.pull(container, attempt),
            Planning::Done(plan) => {
                self.actions.push(Action::Start { uid, container: name, attempt, plan: plan.clone() });
            }
            Planning::Due => self.plan(container, state, pulled.held.as_ref().map(|(_, held)| *held)),
        }
    }

    /// Has a container's start planned, unless it is `held` as long as everything is as it is.
    fn plan(&mut self, container: &Container, state: &ContainerState, held: Option<Fingerprint>) {
        let fingerprint = self.start_fingerprint;
        if held == Some(fingerprint) {
            return;
        }
        let (uid, name, attempt) = (self.uid.clone(), container.name.clone(), state.restart_count);
        let inputs = Box::new(StartInputs {
            pod: self.shared_pod(),
            container: name.clone(),
            sources: self.desired.sources.clone(),
            facts: self.state.facts(&self.observed.node),
            image_id: state.image_id.clone(),
        });
        self.actions.push(Action::Plan { uid, container: name, attempt, fingerprint, inputs });
    }

    /// Ends a container of which the pod names another image now: that one is run next.
    fn replace(&mut self, container: &Container) {
        let seconds = self.pod.spec.termination_grace_period_seconds;
        let seconds = seconds.unwrap_or(crate::spec::GRACE_SECONDS_DEFAULT);
        let why = format!("Container {} definition changed, will be restarted", container.name);
        let (uid, container) = (self.uid.clone(), container.name.clone());
        let grace = Duration::from_secs(seconds.max(0).cast_unsigned());
        self.actions.push(Action::End { uid, container, grace, why });
    }

    /// Probes of a running container: what failed for good ends it, what is due goes out.
    fn watch(&mut self, container: &Container, state: &ContainerState, running: &Running) {
        for kind in [ProbeKind::Startup, ProbeKind::Liveness] {
            let failed = running.probe(kind).is_some_and(|run| run.verdict == Verdict::Failed);
            if let (true, Some(probe)) = (failed, kind.of(container)) {
                let seconds = probe.termination_grace_period_seconds;
                let grace = seconds
                    .or(self.pod.spec.termination_grace_period_seconds)
                    .unwrap_or(crate::spec::GRACE_SECONDS_DEFAULT);
                let grace = Duration::from_secs(grace.max(0).cast_unsigned());
                let what = kind.title().to_lowercase();
                let then = if policy_of(self.pod, container) == RestartPolicy::Never {
                    ""
                } else {
                    ", will be restarted"
                };
                let why = format!("Container {} failed {what} probe{then}", container.name);
                let (uid, container) = (self.uid.clone(), container.name.clone());
                self.actions.push(Action::End { uid, container, grace, why });
                return;
            }
        }
        for kind in ProbeKind::ALL {
            let due =
                probes_now(running, kind) && running.probe(kind).is_some_and(|run| run.is_due(self.now));
            if let (true, Some(probe)) = (due, kind.of(container)) {
                self.actions.push(Action::Probe {
                    uid: self.uid.clone(),
                    container: container.name.clone(),
                    attempt: state.restart_count,
                    kind,
                    check: ProbeCheck::of(probe, container),
                    timeout: timeout(probe),
                });
            }
        }
    }

    /// The status where it changed, and the events. Nothing is reported of an object that is gone, nor by a node that
    /// stops: its pods are to run again.
    fn report(&mut self, object_is_gone: bool) {
        if object_is_gone || self.state.finished_before || self.desired.stopping.is_some() {
            return;
        }
        // What is begun now changes the state; the report waits until it has come to rest.
        if self.actions.is_empty() {
            let status = status::pod_status(self.pod, self.state, &self.observed.node, self.now);
            if self.state.reported.as_ref() != Some(&status) {
                self.actions.push(Action::Report { uid: self.uid.clone(), status });
            }
        }
        for event in &self.state.events {
            self.actions.push(Action::Emit { uid: self.uid.clone(), event: event.clone() });
        }
    }
}
