//! What is known of every pod on this node, and the questions asked about it.

use core::net::IpAddr;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    action::{EventRecord, Failure, StartPlan},
    fields::PodFacts,
    probe::{ProbeKind, ProbeRun, Verdict},
    restart::{Backoff, restarts},
    sources::Sources,
    spec::{Container, Pod, PodUid, RestartPolicy},
    volumes::Fingerprint,
};

/// What the cluster wants of this node.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    pub pods: BTreeMap<PodUid, Arc<Pod>>,
    pub sources: Sources,
    /// The node itself stops: every pod ends within its grace, this at most, and the cluster hears nothing of it, since
    /// the pods are to run again.
    pub stopping: Option<Duration>,
}

/// What there is on this node.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub node: NodeFacts,
    pub pods: BTreeMap<PodUid, PodState>,
}

/// What pods may learn of their node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub host_ip: String,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    /// How far the wall clock is ahead of the node's own time, which no step of the wall clock disturbs: what is due is
    /// reckoned in the node's time, and what is shown is told in the wall's.
    pub wall_ahead: SignedDuration,
}

/// One pod, from its admission until it is forgotten.
#[derive(Clone, Debug)]
pub struct PodState {
    /// The newest object seen.
    pub pod: Arc<Pod>,
    pub start_time: Timestamp,
    pub sandbox: Sandbox,
    /// Kept after the sandbox has gone, for the status.
    pub addresses: Vec<IpAddr>,
    pub volumes: Volumes,
    pub changes: Changes,
    /// Init containers and others, by name.
    pub containers: BTreeMap<String, ContainerState>,
    pub ending: Option<Ending>,
    /// The pod had ended before this process saw it, and nothing of it is to run or to be reported.
    pub finished_before: bool,
    /// Why it is to make room on the node.
    pub eviction: Option<Failure>,
    /// Nothing will run any more, and its volumes are gone.
    pub volumes_freed: bool,
    /// What remained of the pod on this node has been removed and the cluster was told.
    pub removed: bool,
    /// Not sent yet.
    pub events: VecDeque<EventRecord>,
    /// The status sent last.
    pub reported: Option<Value>,
}

/// How often the objects that a pod is made of have changed since it was admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that its volumes name.
    pub volumes: u64,
    /// Those that go into the environments of its containers.
    pub environment: u64,
}

/// The pod's place in the network.
#[derive(Clone, Debug, PartialEq)]
pub enum Sandbox {
    Absent {
        backoff: Backoff,
        retry_at: Option<Timestamp>,
    },
    Creating {
        backoff: Backoff,
    },
    Ready,
    /// It has been taken away: what runs in it has to end, and another is made.
    Lost,
    /// `anew`: another is made then.
    Stopping {
        anew: bool,
    },
    Stopped,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Volumes {
    /// `held`: there is no plan as long as the fingerprint is this one.
    Absent {
        backoff: Backoff,
        retry_at: Option<Timestamp>,
        message: Option<String>,
        held: Option<Fingerprint>,
    },
    /// `message`: what was told before.
    Writing { fingerprint: Fingerprint, mounted: bool, backoff: Backoff, message: Option<String> },
    /// `refused`: the newest could not be written, and is tried again. What was written before is there.
    Mounted { fingerprint: Fingerprint, refused: Option<(Backoff, Timestamp)> },
}

/// A pod that has to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    pub since: Timestamp,
    pub grace: Duration,
    pub failure: Option<Failure>,
}

/// One container of a pod.
#[derive(Clone, Debug, Default)]
pub struct ContainerState {
    pub phase: Phase,
    /// Numbers the attempts; answers of older attempts are dropped.
    pub restart_count: u32,
    /// `status.lastState.terminated`.
    pub last: Option<Terminated>,
    /// Waits between restarts.
    pub backoff: Backoff,
    /// Waits between failed pulls and starts.
    pub refusals: Backoff,
    /// Why there was no seat for it, from then on until it runs or something else is wrong.
    pub no_seat: Option<String>,
    /// What the newest attempt was asked to run, as the pod named it.
    pub image: String,
    /// `name@sha256:...` of the image, once present.
    pub image_id: String,
    /// The newest that has run.
    pub instance: Option<Instance>,
}

/// What runs, or ran last, and not what is to run next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// `wasm://...`
    pub container_id: String,
    /// As the pod named it then.
    pub image: String,
    pub image_id: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Phase {
    #[default]
    Idle,
    Pulling,
    /// A pull or a start failed.
    Refused(Refused),
    /// The image is there.
    Pulled(Pulled),
    Starting,
    /// All was ready, and the sandbox had no seat for it. It has not run, so that this is no restart.
    Unseated(Unseated),
    Running(Running),
    Terminated(Terminated),
}

/// A container on its way from its image to its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pulled {
    /// Why it cannot be started now (CreateContainerConfigError), and the fingerprint as long as which that is so.
    pub held: Option<(String, Fingerprint)>,
    pub planning: Planning,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Planning {
    #[default]
    Due,
    UnderWay {
        fingerprint: Fingerprint,
    },
    Done(Arc<StartPlan>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub reason: String,
    pub message: String,
    pub since: Timestamp,
    pub retry_at: Timestamp,
    /// Whether the wait itself is shown now, instead of the error. Only of pulls.
    pub announced: bool,
    pub of_pull: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unseated {
    pub since: Timestamp,
    pub retry_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    pub since: Timestamp,
    pub startup: Option<ProbeRun>,
    pub liveness: Option<ProbeRun>,
    pub readiness: Option<ProbeRun>,
    pub ending: Option<ContainerEnding>,
}

/// A container that has to end.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerEnding {
    pub stop_at: Timestamp,
    pub kill_at: Timestamp,
    pub stopped: bool,
    pub killed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Terminated {
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    pub container_id: String,
    /// Whether the wait for the restart is shown (CrashLoopBackOff).
    pub announced: bool,
    /// The node ended it, and by then the pod named another image: that one is run, whatever the restart policy.
    pub outdated: bool,
}

/// How a pod that has ended of itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    Failed,
}

impl Running {
    pub fn probe(&self, kind: ProbeKind) -> Option<&ProbeRun> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }

    pub fn probe_mut(&mut self, kind: ProbeKind) -> Option<&mut ProbeRun> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
        }
    }

    /// The startup probe, where there is one, has passed.
    pub fn has_started(&self) -> bool {
        self.startup.as_ref().is_none_or(|probe| probe.verdict == Verdict::Passed)
    }

    pub fn is_ready(&self) -> bool {
        self.has_started() && self.readiness.as_ref().is_none_or(|probe| probe.verdict == Verdict::Passed)
    }
}

impl ContainerState {
    pub fn running(&self) -> Option<&Running> {
        if let Phase::Running(running) = &self.phase { Some(running) } else { None }
    }

    pub fn terminated(&self) -> Option<&Terminated> {
        if let Phase::Terminated(terminated) = &self.phase { Some(terminated) } else { None }
    }

    /// Something of it may run: it has to be waited for before the sandbox can go.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running(_))
    }

    /// The pod names another image than the one that this was asked to run.
    pub fn is_outdated(&self, container: &Container) -> bool {
        !self.image.is_empty() && self.image != container.image
    }

    pub fn has_started(&self) -> bool {
        self.running().is_some_and(Running::has_started)
    }

    pub fn is_ready(&self) -> bool {
        self.running().is_some_and(Running::is_ready)
    }
}

/// Whether a container that has ended so is started again.
pub fn runs_again(pod: &Pod, container: &Container, end: &Terminated) -> bool {
    end.outdated || restarts(policy_of(pod, container), end.exit_code)
}

/// The restart policy of one container of a pod: init containers that succeed are done.
pub fn policy_of(pod: &Pod, container: &Container) -> RestartPolicy {
    match (pod.is_init(&container.name), pod.spec.restart_policy) {
        (true, _) if container.is_sidecar() => RestartPolicy::Always,
        (true, RestartPolicy::Always) => RestartPolicy::OnFailure,
        (_, policy) => policy,
    }
}

impl PodState {
    pub fn facts(&self, node: &NodeFacts) -> PodFacts {
        PodFacts {
            node_name: node.name.clone(),
            host_ip: node.host_ip.clone(),
            addresses: self.addresses.clone(),
            node_cpu_milli: node.cpu_milli,
            node_memory_bytes: node.memory_bytes,
        }
    }

    pub fn container(&self, name: &str) -> Option<&ContainerState> {
        self.containers.get(name)
    }

    /// Files of the pod are being written.
    pub fn is_being_written(&self) -> bool {
        matches!(self.volumes, Volumes::Writing { .. })
    }

    pub fn is_mounted(&self) -> bool {
        matches!(self.volumes, Volumes::Mounted { .. } | Volumes::Writing { mounted: true, .. })
    }

    /// Nothing of the pod runs or is about to.
    pub fn is_still(&self) -> bool {
        !self.containers.values().any(ContainerState::is_live)
    }

    /// The init containers that are not done, in order.
    pub fn unfinished_init<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Container> {
        pod.spec.init_containers.iter().filter(|container| {
            let state = self.container(&container.name);
            let done = if container.is_sidecar() {
                state.is_some_and(ContainerState::has_started)
            } else {
                state
                    .and_then(ContainerState::terminated)
                    .is_some_and(|end| end.exit_code == 0 && !end.outdated)
            };
            !done
        })
    }

    /// The pod has ended of itself: every container is over and none will run again, or it failed to initialize.
    pub fn outcome(&self, pod: &Pod) -> Option<Outcome> {
        let never = pod.spec.restart_policy == RestartPolicy::Never;
        let init_failed = never
            && pod.spec.init_containers.iter().filter(|container| !container.is_sidecar()).any(|container| {
                let end = self.container(&container.name).and_then(ContainerState::terminated);
                end.is_some_and(|end| end.exit_code != 0 && !end.outdated)
            });
        if init_failed {
            return Some(Outcome::Failed);
        }
        let mut failed = false;
        for container in &pod.spec.containers {
            let end = self.container(&container.name).and_then(ContainerState::terminated)?;
            if runs_again(pod, container, end) {
                return None;
            }
            failed |= end.exit_code != 0;
        }
        Some(if failed { Outcome::Failed } else { Outcome::Succeeded })
    }

    pub(crate) fn event(&mut self, warning: bool, reason: &'static str, message: String) {
        self.events.push_back(EventRecord { warning, reason, message, field_path: String::new() });
    }

    pub(crate) fn container_event(
        &mut self,
        container: &str,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        let list = if self.pod.is_init(container) { "initContainers" } else { "containers" };
        let field_path = format!("spec.{list}{{{container}}}");
        self.events.push_back(EventRecord { warning, reason, message, field_path });
    }
}
