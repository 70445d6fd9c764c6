//! How the observed state changes: by what the node's machinery reports (`apply`) and by what is begun (`begin`).

mod admit;

mod news;

mod sources;

use core::net::IpAddr;
use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

pub use news::{Exit, Fetched, News};

use crate::{
    action::{Action, Failure},
    eviction::EVICTED,
    pod::{
        ContainerEnding, Ending, Observed, Phase, Planning, PodState, Pulled, Running, Sandbox, Terminated,
        Volumes,
    },
    restart::{Backoff, after},
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
}
