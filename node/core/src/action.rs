//! What is to be done: the only output of reconcile. An action leaves the executor no choice that matters.

use core::net::IpAddr;
use std::{sync::Arc, time::Duration};

use serde_json::Value;

use crate::{
    message::MessagePlan,
    planning::{StartInputs, VolumeInputs},
    probe::{ProbeCheck, ProbeKind},
    resources::Limits,
    spec::{PodUid, PullPolicy},
    volumes::{Fingerprint, MountPlan},
};

/// One thing to do for one pod.
///
/// The shell gives each to [`crate::Observed::begin`] before it executes it. Those marked *inner* change only the
/// observed state and need no execution.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Inner: begin to look after the pod.
    Admit { uid: PodUid },
    /// Give the pod an address, a network namespace and limits. `preferred` is what it had before a restart of the
    /// node. Answer: SandboxReady or SandboxFailed.
    CreateSandbox { uid: PodUid, preferred: Option<IpAddr>, limits: Limits },
    /// Plan the volumes and write them, first or anew. Answer: Mounted with the fingerprint, VolumesHeld where there is
    /// no plan, or MountFailed.
    Mount { uid: PodUid, fingerprint: Fingerprint, inputs: Box<VolumeInputs> },
    /// Make the image present. Answer: PullStarted where something has to be fetched, then Pulled or PullFailed.
    Pull { uid: PodUid, container: String, attempt: u32, image: String, policy: PullPolicy },
    /// Plan the container's start. Answer: Planned.
    Plan { uid: PodUid, container: String, attempt: u32, fingerprint: Fingerprint, inputs: Box<StartInputs> },
    /// Inner: the wait before the next try becomes visible in status and events.
    Announce { uid: PodUid, container: String },
    /// Run the container. Answer: Started and later Exited, or StartFailed.
    Start { uid: PodUid, container: String, attempt: u32, plan: Arc<StartPlan> },
    /// Make one check. Answer: Probed.
    Probe {
        uid: PodUid,
        container: String,
        attempt: u32,
        kind: ProbeKind,
        check: ProbeCheck,
        timeout: Duration,
    },
    /// Inner: the container has to end; Stop and Kill follow when their time comes.
    End { uid: PodUid, container: String, grace: Duration, why: String },
    /// Close the container's listeners and end its standard input.
    Stop { uid: PodUid, container: String, attempt: u32 },
    /// Interrupt the container.
    Kill { uid: PodUid, container: String, attempt: u32 },
    /// Inner: the pod has to end within this time.
    EndPod { uid: PodUid, grace: Duration, failure: Option<Failure> },
    /// Take the pod off the network and free its address. Logs and volumes stay. Answer: SandboxStopped.
    StopSandbox { uid: PodUid },
    /// Send the status up.
    Report { uid: PodUid, status: Value },
    /// Send an event up.
    Emit { uid: PodUid, event: EventRecord },
    /// Remove the pod's volumes: nothing of it will run any more. Its logs stay.
    FreeVolumes { uid: PodUid },
    /// Remove what is left of the pod on this node and report that it is gone.
    Remove { uid: PodUid },
    /// Inner: neither the cluster nor this node knows the pod any more.
    Forget { uid: PodUid },
}

impl Action {
    pub fn uid(&self) -> &PodUid {
        match self {
            Action::Admit { uid }
            | Action::CreateSandbox { uid, .. }
            | Action::Mount { uid, .. }
            | Action::Pull { uid, .. }
            | Action::Plan { uid, .. }
            | Action::Announce { uid, .. }
            | Action::Start { uid, .. }
            | Action::Probe { uid, .. }
            | Action::End { uid, .. }
            | Action::Stop { uid, .. }
            | Action::Kill { uid, .. }
            | Action::EndPod { uid, .. }
            | Action::StopSandbox { uid }
            | Action::Report { uid, .. }
            | Action::Emit { uid, .. }
            | Action::FreeVolumes { uid }
            | Action::Remove { uid }
            | Action::Forget { uid } => uid,
        }
    }
}

impl Action {
    /// What is done, without what it is done with: environments and volumes hold secrets.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Admit { .. } => "admit",
            Action::CreateSandbox { .. } => "create sandbox",
            Action::Mount { .. } => "mount",
            Action::Pull { .. } => "pull",
            Action::Plan { .. } => "plan",
            Action::Announce { .. } => "announce",
            Action::Start { .. } => "start",
            Action::Probe { .. } => "probe",
            Action::End { .. } => "end",
            Action::Stop { .. } => "stop",
            Action::Kill { .. } => "kill",
            Action::EndPod { .. } => "end pod",
            Action::StopSandbox { .. } => "stop sandbox",
            Action::Report { .. } => "report",
            Action::Emit { .. } => "emit",
            Action::FreeVolumes { .. } => "free volumes",
            Action::Remove { .. } => "remove",
            Action::Forget { .. } => "forget",
        }
    }
}

/// How to start a container, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct StartPlan {
    /// argv[0] first.
    pub arguments: Vec<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<MountPlan>,
    pub limits: Limits,
    /// The port on which the host serves the component where it exports HTTP.
    pub http_port: u16,
    /// The ports on which a core module finds listening sockets.
    pub listen_ports: Vec<u16>,
    /// The image's identity, as Pulled gave it.
    pub image_id: String,
    /// Standard input is open until the container is to stop; otherwise it is at its end from the start.
    pub stdin: bool,
    /// Where relative paths begin, empty for the root.
    pub working_dir: String,
    pub message: MessagePlan,
}

/// Why a whole pod has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

/// An event of a pod or one of its containers, as kubelet names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
    /// `spec.containers{name}`, or empty for the pod itself.
    pub field_path: String,
}
