//! How the observed state changes: by what the node's machinery reports (`apply`) and by what is begun (`begin`).

mod admit;

mod sources;

use core::net::IpAddr;
use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    action::{Action, Failure, StartPlan},
    eviction::EVICTED,
    pod::{
        ContainerEnding, ContainerState, Ending, Instance, Observed, Phase, Planning, PodState, Pulled,
        Refused, Running, Sandbox, Terminated, Unseated, Volumes,
    },
    probe::{ProbeKind, ProbeRun},
    restart::{Backoff, after, go_duration},
    spec::{Pod, PodUid},
    volumes::Fingerprint,
};

/// What happened on the node. Those of containers carry the attempt that they answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    SandboxReady {
        uid: PodUid,
        addresses: Vec<IpAddr>,
    },
    SandboxFailed {
        uid: PodUid,
        message: String,
    },
    SandboxStopped {
        uid: PodUid,
    },
    /// The pod's address was taken from this node.
    SandboxLost {
        uid: PodUid,
    },
    Mounted {
        uid: PodUid,
        fingerprint: Fingerprint,
    },
    MountFailed {
        uid: PodUid,
        message: String,
    },
    /// There is no plan of the volumes as the sources are.
    VolumesHeld {
        uid: PodUid,
        message: String,
    },
    /// The node needs room that the pod has.
    Evicted {
        uid: PodUid,
        failure: Failure,
    },
    Container {
        uid: PodUid,
        container: String,
        attempt: u32,
        news: News,
    },
}

impl Observation {
    pub fn uid(&self) -> &PodUid {
        match self {
            Observation::SandboxReady { uid, .. }
            | Observation::SandboxFailed { uid, .. }
            | Observation::SandboxStopped { uid }
            | Observation::SandboxLost { uid }
            | Observation::Mounted { uid, .. }
            | Observation::MountFailed { uid, .. }
            | Observation::VolumesHeld { uid, .. }
            | Observation::Evicted { uid, .. }
            | Observation::Container { uid, .. } => uid,
        }
    }
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    PullStarted,
    Pulled {
        image_id: String,
        fetched: Option<Fetched>,
    },
    PullFailed {
        reason: String,
        message: String,
    },
    /// The start is planned, or cannot be as the sources are.
    Planned(Result<Arc<StartPlan>, String>),
    Started {
        container_id: String,
    },
    /// The sandbox has no seat for it now.
    NoSeat {
        message: String,
    },
    /// Seats got free: it may be tried before its time.
    SeatFreed,
    StartFailed {
        reason: String,
        message: String,
    },
    Exited {
        exit: Exit,
        /// What it left as the message of its end, or empty.
        message: String,
    },
    Probed {
        kind: ProbeKind,
        success: bool,
        output: String,
    },
}

/// What a pull fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub took: Duration,
    pub bytes: u64,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Completed(i32),
    Trapped(String),
    OutOfMemory,
    /// Another limit than memory, by name.
    LimitExceeded(String),
    /// Interrupted by this node.
    Killed,
    /// There was no room for it after all, and nothing of it has run.
    Unseated(String),
    /// The node's fault, not the guest's.
    HostFault(String),
}

/// Exit codes as a shell would show them: 128 + the signal that a process would have died of.
const EXIT_HOST_FAULT: i32 = 128;
const EXIT_TRAP: i32 = 134;
const EXIT_KILLED: i32 = 137;
const EXIT_STOPPED: i32 = 143;

impl Observed {
    /// Takes note of a newer object of a pod that is looked after.
    pub fn see(&mut self, pod: &Arc<Pod>) {
        if let Some(state) = self.pods.get_mut(pod.uid()) {
            state.pod = pod.clone();
        }
    }

    /// Takes in what happened. News of forgotten pods and of older attempts change nothing.
    pub fn apply(&mut self, observation: Observation, now: Timestamp) {
        match observation {
            Observation::SandboxReady { uid, addresses } => {
                let Some(state) = self.pods.get_mut(&uid) else { return };
                state.sandbox = Sandbox::Ready;
                state.addresses = addresses;
            }
            Observation::SandboxFailed { uid, message } => {
                let Some(state) = self.pods.get_mut(&uid) else { return };
                if let Sandbox::Creating { mut backoff } = state.sandbox.clone() {
                    backoff.grant(now, now);
                    state.sandbox = Sandbox::Absent { backoff, retry_at: Some(after(now, backoff.wait())) };
                }
                let message = format!("Failed to create pod sandbox: {message}");
                state.event(true, "FailedCreatePodSandBox", message);
            }
            Observation::SandboxStopped { uid } => {
                if let Some(state) = self.pods.get_mut(&uid) {
                    state.sandbox_stopped();
                }
            }
            Observation::Evicted { uid, failure } => {
                if let Some(state) = self.pods.get_mut(&uid) {
                    state.eviction.get_or_insert(failure);
                }
            }
            Observation::SandboxLost { uid } => {
                if let Some(state) = self.pods.get_mut(&uid)
                    && state.sandbox == Sandbox::Ready
                {
                    state.sandbox = Sandbox::Lost;
                }
            }
            Observation::Mounted { uid, fingerprint } => {
                if let Some(state) = self.pods.get_mut(&uid) {
                    state.volumes = Volumes::Mounted { fingerprint, refused: None };
                }
            }
            Observation::MountFailed { uid, message } => {
                let Some(state) = self.pods.get_mut(&uid) else { return };
                let mut backoff = match state.volumes {
                    Volumes::Writing { backoff, .. } | Volumes::Absent { backoff, .. } => backoff,
                    Volumes::Mounted { .. } => Backoff::default(),
                };
                backoff.grant(now, now);
                let retry_at = after(now, backoff.wait());
                state.volumes = match state.volumes {
                    // Containers go on with what was written before.
                    Volumes::Writing { fingerprint, mounted: true, .. }
                    | Volumes::Mounted { fingerprint, .. } => {
                        Volumes::Mounted { fingerprint, refused: Some((backoff, retry_at)) }
                    }
                    _ => {
                        let (retry_at, message) = (Some(retry_at), Some(message.clone()));
                        Volumes::Absent { backoff, retry_at, message, held: None }
                    }
                };
                state.event(true, "FailedMount", message);
            }
            Observation::VolumesHeld { uid, message } => {
                if let Some(state) = self.pods.get_mut(&uid) {
                    state.hold_volumes(message);
                }
            }
            Observation::Container { uid, container, attempt, news } => {
                let Some(state) = self.pods.get_mut(&uid) else { return };
                if state.containers.get(&container).is_some_and(|c| c.restart_count == attempt) {
                    state.apply_news(&container, news, now);
                }
            }
        }
    }

    /// Takes note that `action` is being done, so that it is not asked for again.
    pub fn begin(
        &mut self,
        action: &Action,
        pods: &std::collections::BTreeMap<PodUid, Arc<Pod>>,
        now: Timestamp,
    ) {
        if let Action::Admit { uid } = action {
            if let Some(pod) = pods.get(uid) {
                let state = PodState::admit(pod.clone(), now, self.node.wall_ahead);
                self.pods.insert(uid.clone(), state);
            }
            return;
        }
        if let Action::Forget { uid } = action {
            self.pods.remove(uid);
            return;
        }
        if let Some(state) = self.pods.get_mut(action.uid()) {
            state.begin(action, now);
        }
    }
}

impl PodState {
    fn begin(&mut self, action: &Action, now: Timestamp) {
        match action {
            Action::CreateSandbox { .. } => {
                if let Sandbox::Absent { backoff, .. } = self.sandbox {
                    self.sandbox = Sandbox::Creating { backoff };
                }
            }
            Action::Mount { fingerprint, .. } => {
                let (backoff, message) = match &mut self.volumes {
                    Volumes::Absent { backoff, message, .. } => (*backoff, message.take()),
                    Volumes::Mounted { refused: Some((backoff, _)), .. } => (*backoff, None),
                    _ => (Backoff::default(), None),
                };
                let (fingerprint, mounted) = (*fingerprint, self.is_mounted());
                self.volumes = Volumes::Writing { fingerprint, mounted, backoff, message };
            }
            Action::EndPod { grace, failure, .. } => match &mut self.ending {
                Some(ending) => ending.grace = *grace,
                None => {
                    self.ending = Some(Ending { since: now, grace: *grace, failure: failure.clone() });
                    if let Some(failure) = failure {
                        let warning = failure.reason == EVICTED;
                        self.event(warning, failure.reason, failure.message.clone());
                    }
                }
            },
            Action::StopSandbox { .. } => {
                self.sandbox = Sandbox::Stopping { anew: self.sandbox == Sandbox::Lost };
            }
            Action::Report { status, .. } => self.reported = Some(status.clone()),
            Action::Emit { event, .. } => {
                if let Some(at) = self.events.iter().position(|pending| pending == event) {
                    self.events.remove(at);
                }
            }
            Action::FreeVolumes { .. } => self.volumes_freed = true,
            Action::Remove { .. } => self.removed = true,
            Action::Pull { container, image, .. } => self.begin_pull(container, image, now),
            Action::Plan { container, fingerprint, .. } => {
                let Some(state) = self.containers.get_mut(container) else { return };
                if matches!(state.phase, Phase::Unseated(_)) {
                    state.phase = Phase::Pulled(Pulled::default());
                }
                if let Phase::Pulled(pulled) = &mut state.phase {
                    pulled.planning = Planning::UnderWay { fingerprint: *fingerprint };
                }
            }
            Action::Announce { container, .. } => self.announce(container),
            Action::Start { container, .. } => {
                if let Some(state) = self.containers.get_mut(container) {
                    state.phase = Phase::Starting;
                }
            }
            Action::Probe { container, kind, .. } => {
                let pod = self.pod.clone();
                let spec = pod.container(container).and_then(|container| kind.of(container));
                let run = self.running_mut(container).and_then(|running| running.probe_mut(*kind));
                if let (Some(run), Some(spec)) = (run, spec) {
                    run.begin(spec, now);
                }
            }
            Action::End { container, grace, why, .. } => self.end(container, *grace, why, now),
            Action::Stop { container, .. } => {
                if let Some(ending) = self.running_mut(container).and_then(|running| running.ending.as_mut())
                {
                    ending.stopped = true;
                }
            }
            Action::Kill { container, .. } => {
                if let Some(ending) = self.running_mut(container).and_then(|running| running.ending.as_mut())
                {
                    ending.killed = true;
                }
            }
            Action::Admit { .. } | Action::Forget { .. } => {}
        }
    }

    /// A sandbox that was lost is made anew, with another address.
    fn sandbox_stopped(&mut self) {
        if self.sandbox == (Sandbox::Stopping { anew: true }) {
            self.addresses.clear();
            self.sandbox = Sandbox::Absent { backoff: Backoff::default(), retry_at: None };
        } else {
            self.sandbox = Sandbox::Stopped;
        }
    }

    /// A mounted volume whose source went away stays as it is, as on kubelet.
    fn hold_volumes(&mut self, message: String) {
        let Volumes::Writing { fingerprint, mounted, message: told, .. } = &self.volumes else { return };
        let fingerprint = *fingerprint;
        if *mounted {
            self.volumes = Volumes::Mounted { fingerprint, refused: None };
            return;
        }
        let known = told.as_ref() == Some(&message);
        let (backoff, held) = (Backoff::default(), Some(fingerprint));
        self.volumes = Volumes::Absent { backoff, retry_at: None, message: Some(message.clone()), held };
        if !known {
            self.event(true, "FailedMount", message);
        }
    }

    fn running_mut(&mut self, container: &str) -> Option<&mut Running> {
        match &mut self.containers.get_mut(container)?.phase {
            Phase::Running(running) => Some(running),
            _ => None,
        }
    }

    fn begin_pull(&mut self, container: &str, image: &str, now: Timestamp) {
        let Some(state) = self.containers.get_mut(container) else { return };
        // What came of another image says nothing about this one.
        if state.image != image {
            image.clone_into(&mut state.image);
            (state.backoff, state.refusals) = Default::default();
        }
        if let Phase::Terminated(end) = &state.phase {
            state.backoff.grant(end.finished_at, now);
            state.last = Some(Terminated { announced: false, ..end.clone() });
            state.restart_count += 1;
        }
        state.phase = Phase::Pulling;
    }

    fn announce(&mut self, container: &str) {
        let pod = self.pod.clone();
        let image = pod.container(container).map(|container| container.image.as_str()).unwrap_or_default();
        let Some(state) = self.containers.get_mut(container) else { return };
        match &mut state.phase {
            Phase::Terminated(end) => {
                end.announced = true;
                let message =
                    format!("Back-off restarting failed container {container} in pod {}", pod.full_name());
                self.container_event(container, true, "BackOff", message);
            }
            Phase::Refused(refused) => {
                refused.announced = true;
                self.container_event(
                    container,
                    false,
                    "BackOff",
                    format!("Back-off pulling image {image:?}"),
                );
                self.container_event(container, true, "Failed", "Error: ImagePullBackOff".to_owned());
            }
            _ => {}
        }
    }

    fn end(&mut self, container: &str, grace: Duration, why: &str, now: Timestamp) {
        let pod = self.pod.clone();
        let hook = pod.container(container).and_then(|container| container.lifecycle.pre_stop.as_ref());
        let sleep = hook.and_then(|hook| hook.sleep.as_ref()).map_or(0, |sleep| sleep.seconds.max(0));
        let sleep = Duration::from_secs(sleep.cast_unsigned()).min(grace);
        let unknown = hook.and_then(|hook| hook.other.keys().next()).cloned();
        let Some(running) = self.running_mut(container) else { return };
        running.ending = Some(ContainerEnding {
            stop_at: after(now, sleep),
            kill_at: after(now, grace),
            stopped: false,
            killed: false,
        });
        self.container_event(container, false, "Killing", why.to_owned());
        if let Some(kind) = unknown {
            let message = format!("PreStopHook failed: hooks of kind {kind} are not served by this node yet");
            self.container_event(container, true, "FailedPreStopHook", message);
        }
    }

    fn apply_news(&mut self, container: &str, news: News, now: Timestamp) {
        let pod = self.pod.clone();
        let Some(spec) = pod.container(container) else { return };
        let ending = self.ending.is_some();
        let Some(state) = self.containers.get_mut(container) else { return };
        match (news, &mut state.phase) {
            (News::PullStarted, Phase::Pulling) => {
                let message = format!("Pulling image {:?}", state.image);
                self.container_event(container, false, "Pulling", message);
            }
            (News::Pulled { image_id, fetched }, Phase::Pulling) => {
                state.image_id = image_id;
                state.phase = Phase::Pulled(Pulled::default());
                let message = pulled_message(&state.image, fetched);
                self.container_event(container, false, "Pulled", message);
            }
            // A pod that ends does not wait for what makes it ready, and says nothing of it.
            (News::PullFailed { .. }, Phase::Pulling) | (News::StartFailed { .. }, Phase::Starting)
                if ending =>
            {
                state.phase = Phase::Idle;
            }
            (News::PullFailed { reason, message }, Phase::Pulling) => {
                state.refuse(&reason, &message, true, now);
                let image = state.image.clone();
                self.pull_failed_events(container, &image, &reason, &message);
            }
            (News::Planned(planned), Phase::Pulled(pulled)) => {
                let Planning::UnderWay { fingerprint } = pulled.planning else { return };
                match planned {
                    Ok(plan) => pulled.planning = Planning::Done(plan),
                    Err(message) => {
                        pulled.planning = Planning::Due;
                        let before = pulled.held.replace((message.clone(), fingerprint));
                        if before.is_none_or(|(told, _)| told != message) {
                            self.container_event(container, true, "Failed", format!("Error: {message}"));
                        }
                    }
                }
            }
            (News::Started { container_id }, Phase::Starting) => {
                let run = |kind: ProbeKind| kind.of(spec).map(|probe| ProbeRun::new(probe, now));
                let (image, image_id) = (state.image.clone(), state.image_id.clone());
                state.instance = Some(Instance { container_id, image, image_id });
                state.refusals = Backoff::default();
                state.no_seat = None;
                state.phase = Phase::Running(Running {
                    since: now,
                    startup: run(ProbeKind::Startup),
                    liveness: run(ProbeKind::Liveness),
                    readiness: run(ProbeKind::Readiness),
                    ending: None,
                });
                self.container_event(container, false, "Created", format!("Created container: {container}"));
                self.container_event(container, false, "Started", format!("Started container {container}"));
            }
            (News::StartFailed { reason, message }, Phase::Starting) => {
                state.refuse(&reason, &message, false, now);
                self.container_event(container, true, "Failed", format!("Error: {message}"));
            }
            (News::NoSeat { message }, Phase::Starting)
            | (News::Exited { exit: Exit::Unseated(message), .. }, Phase::Running(_)) => {
                self.unseat(container, message, now);
            }
            // Whoever is told goes to the end of those that wait.
            (News::SeatFreed, Phase::Unseated(unseated)) => {
                *unseated = Unseated { since: now, retry_at: now };
            }
            (News::Exited { exit, message }, Phase::Running(running)) => {
                let graceful = running.ending.as_ref().is_some_and(|ending| ending.stopped);
                let (is_ending, since) = (running.ending.is_some(), running.since);
                let outdated = is_ending && state.is_outdated(spec);
                let id = state.instance.as_ref().map(|instance| instance.container_id.clone());
                let mut end = terminated(exit, graceful, since, now, id.unwrap_or_default());
                if !message.is_empty() {
                    end.message = message;
                }
                state.phase = Phase::Terminated(Terminated { outdated, ..end });
            }
            (News::Probed { kind, success, output }, Phase::Running(running)) => {
                let Some(probe) = kind.of(spec) else { return };
                if let Some(run) = running.probe_mut(kind) {
                    run.record(probe, success);
                }
                if !success && running.ending.is_none() {
                    let message = format!("{} probe failed: {output}", kind.title());
                    self.container_event(container, true, "Unhealthy", message);
                }
            }
            _ => {}
        }
    }

    fn pull_failed_events(&mut self, container: &str, image: &str, reason: &str, message: &str) {
        match reason {
            "InvalidImageName" => {
                let text = format!("Failed to apply default image tag {image:?}: {message}");
                self.container_event(container, true, "InspectFailed", text);
            }
            "ErrImageNeverPull" => {
                self.container_event(container, true, "ErrImageNeverPull", message.to_owned());
            }
            _ => {
                let text = format!("Failed to pull image {image:?}: {message}");
                self.container_event(container, true, "Failed", text);
            }
        }
        self.container_event(container, true, "Failed", format!("Error: {reason}"));
    }
}

impl ContainerState {
    fn refuse(&mut self, reason: &str, message: &str, of_pull: bool, now: Timestamp) {
        self.refusals.grant(now, now);
        self.no_seat = None;
        self.phase = Phase::Refused(Refused {
            reason: reason.to_owned(),
            message: message.to_owned(),
            since: now,
            retry_at: after(now, self.refusals.wait()),
            announced: false,
            of_pull,
        });
    }
}

fn pulled_message(image: &str, fetched: Option<Fetched>) -> String {
    let Some(fetched) = fetched else {
        return format!("Container image {image:?} already present on machine");
    };
    let millis = fetched.took.as_millis();
    let took = if millis < 1000 {
        format!("{millis}ms")
    } else if fetched.took.as_secs() < 60 {
        format!("{:.3}s", fetched.took.as_secs_f64())
    } else {
        go_duration(fetched.took)
    };
    format!(
        "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {} bytes.",
        fetched.bytes
    )
}

/// `graceful`: the container had been asked to stop before.
fn terminated(
    exit: Exit,
    graceful: bool,
    started_at: Timestamp,
    finished_at: Timestamp,
    container_id: String,
) -> Terminated {
    let (exit_code, reason, message) = match exit {
        Exit::Completed(0) => (0, "Completed", String::new()),
        Exit::Completed(code) => (code, "Error", String::new()),
        Exit::Trapped(message) => (EXIT_TRAP, "Error", message),
        Exit::OutOfMemory => (EXIT_KILLED, "OOMKilled", String::new()),
        Exit::LimitExceeded(resource) => {
            (EXIT_KILLED, "Error", format!("the limit of {resource} was exceeded"))
        }
        Exit::Killed if graceful => (EXIT_STOPPED, "Error", String::new()),
        Exit::Killed => (EXIT_KILLED, "Error", String::new()),
        Exit::HostFault(message) | Exit::Unseated(message) => (EXIT_HOST_FAULT, "Error", message),
    };
    Terminated {
        exit_code,
        reason: reason.to_owned(),
        message,
        started_at: Some(started_at),
        finished_at,
        container_id,
        announced: false,
        outdated: false,
    }
}
