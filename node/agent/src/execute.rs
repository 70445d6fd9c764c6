//! Executes actions: calls into the sandbox, the disk, the registry and the network. What comes of it returns as
//! events, or at once where nothing has to be waited for.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use coracle_core::{
    Action, Observation, Pod, PodUid, StartPlan,
    observe::{Exit, News},
    resources::Limits,
    spec::PullPolicy,
};
use coracle_proto::node::{NodeEvent, PodGone, PodStatus};
use coracle_wasi_host::{
    Container, ContainerLimits, ContainerSpec, Host, PodLimits,
    net::{Namespace, NamespaceConfig, NetLimits},
};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    app::Event,
    artifacts::Artifacts,
    blocks::{Blocks, Waiting},
    clock::Clock,
    events,
    link::LinkHandle,
    logs::{Logs, Stream, StreamSink},
    network::PodNetwork,
    probes, volumes,
};

/// Containers that are being started at the same time; the others wait their turn.
const STARTS_MAX: usize = 32;
/// The port that probes come from: nobody listens there.
const PROBE_PORT: u16 = 10250;

/// What the tasks of all pods share.
pub struct Context {
    pub node_name: String,
    pub host: Host,
    pub artifacts: Artifacts,
    pub logs: Arc<Logs>,
    /// `<pods>/<uid>/<volume>`.
    pub pods_dir: PathBuf,
    pub network: PodNetwork,
    pub link: LinkHandle,
    pub clock: Arc<Clock>,
    pub events: mpsc::Sender<Event>,
    /// Random for this process: containers of two lives of a node have different ids.
    pub boot_id: String,
}

/// The running side of all pods. Owned by the event loop.
pub struct Executor {
    context: Arc<Context>,
    runtimes: BTreeMap<PodUid, Runtime>,
    blocks: Blocks,
    waiting: Waiting<WaitingPod>,
    starts: Arc<Semaphore>,
}

struct Runtime {
    namespace: Namespace,
    pod: coracle_wasi_host::Pod,
    address: Ipv4Addr,
    /// By name, with the attempt.
    containers: BTreeMap<String, (u32, Container)>,
}

struct WaitingPod {
    pod: Arc<Pod>,
    preferred: Option<IpAddr>,
    limits: Limits,
}

impl Executor {
    pub fn new(context: Context) -> Self {
        Self {
            context: Arc::new(context),
            runtimes: BTreeMap::new(),
            blocks: Blocks::default(),
            waiting: Waiting::default(),
            starts: Arc::new(Semaphore::new(STARTS_MAX)),
        }
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Does one thing for a pod. What is known at once is returned, the rest comes as events.
    pub fn execute(&mut self, action: Action, pod: &Arc<Pod>) -> Option<Observation> {
        match action {
            Action::CreateSandbox { preferred, limits, .. } => {
                return self.create_sandbox(WaitingPod { pod: pod.clone(), preferred, limits });
            }
            Action::StopSandbox { uid } => {
                self.stop_sandbox(&uid);
                return Some(Observation::SandboxStopped { uid });
            }
            Action::Mount { uid, fingerprint, volumes } => {
                let dir = self.volumes_dir(&uid);
                self.background(async move {
                    let written = tokio::task::spawn_blocking(move || volumes::write(&dir, &volumes)).await;
                    match written.unwrap_or_else(|error| Err(error.to_string())) {
                        Ok(()) => Observation::Mounted { uid, fingerprint },
                        Err(message) => Observation::MountFailed { uid, message },
                    }
                });
            }
            Action::Pull { uid, container, attempt, image, policy } => {
                self.pull(At { uid, container, attempt }, image, policy);
            }
            Action::Start { uid, container, attempt, plan } => {
                return self.start(At { uid, container, attempt }, pod.clone(), *plan);
            }
            Action::Probe { uid, container, attempt, kind, check, timeout } => {
                let namespace = self.runtimes.get(&uid)?.namespace.clone();
                let from = self.blocks.node_address().unwrap_or(Ipv4Addr::LOCALHOST);
                let from = SocketAddr::new(from.into(), PROBE_PORT);
                let at = At { uid, container, attempt };
                self.background(async move {
                    let checked =
                        guarded(async move { probes::check(&namespace, from, &check, timeout).await });
                    let checked = checked.await.unwrap_or_else(Err);
                    let (success, output) =
                        checked.map_or_else(|output| (false, output), |()| (true, String::new()));
                    at.news(News::Probed { kind, success, output })
                });
            }
            Action::Stop { uid, container, attempt } => self.container(&uid, &container, attempt)?.stop(),
            Action::Kill { uid, container, attempt } => self.container(&uid, &container, attempt)?.kill(),
            Action::Report { uid, status } => {
                let coming_up = status["phase"] == "Pending";
                let status_json = serde_json::to_vec(&status).unwrap_or_default().into();
                let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
                let status = PodStatus { namespace, name, uid: uid.to_string(), status_json };
                self.context.link.post(|outbox| outbox.status(status, coming_up));
            }
            Action::Emit { event, .. } => {
                let event = events::event(pod, &event, &self.context.node_name, self.context.clock.now());
                let event_json = serde_json::to_vec(&event).unwrap_or_default().into();
                self.context.link.post(|outbox| outbox.event(NodeEvent { event_json, dropped: 0 }));
            }
            Action::Remove { uid } => self.remove(uid, pod),
            Action::Admit { .. }
            | Action::HoldVolumes { .. }
            | Action::Hold { .. }
            | Action::Announce { .. }
            | Action::End { .. }
            | Action::EndPod { .. }
            | Action::Forget { .. } => {}
        }
        None
    }

    /// Runs a task whose outcome is an observation.
    fn background(&self, task: impl Future<Output = Observation> + Send + 'static) {
        let events = self.context.events.clone();
        tokio::spawn(async move {
            // A closed queue is a node that stops.
            let _ = events.send(Event::Observed(task.await)).await;
        });
    }

    fn volumes_dir(&self, uid: &PodUid) -> PathBuf {
        self.context.pods_dir.join(uid.as_str())
    }

    fn container(&self, uid: &PodUid, name: &str, attempt: u32) -> Option<&Container> {
        let (of, container) = self.runtimes.get(uid)?.containers.get(name)?;
        (*of == attempt).then_some(container)
    }

    /// Every running container with its pod and name.
    pub fn containers(&self) -> impl Iterator<Item = (&PodUid, &str, &Container)> {
        self.runtimes.iter().flat_map(|(uid, runtime)| {
            runtime.containers.iter().map(move |(name, (_, container))| (uid, name.as_str(), container))
        })
    }

    fn create_sandbox(&mut self, wanted: WaitingPod) -> Option<Observation> {
        let Some(address) = self.blocks.take(wanted.preferred) else {
            if let Some(request) = self.waiting.push(wanted) {
                self.context.link.post(|outbox| outbox.claim(request));
            }
            return None;
        };
        let WaitingPod { pod, limits, .. } = wanted;
        let config = NamespaceConfig {
            hostname: pod.hostname().to_owned(),
            addresses: vec![address.into()],
            limits: NetLimits::default(),
        };
        let namespace = Namespace::new(config, self.context.network.uplink(&pod.metadata.namespace));
        self.context.network.attach(address.into(), namespace.clone());
        let limits = PodLimits {
            cpu_weight: limits.cpu_weight,
            cpu_quota: limits.cpu_quota,
            memory_bytes: limits.memory_bytes,
        };
        let sandbox = self.context.host.pod(limits, namespace.clone());
        let runtime = Runtime { namespace, pod: sandbox, address, containers: BTreeMap::new() };
        self.runtimes.insert(pod.uid().clone(), runtime);
        Some(Observation::SandboxReady { uid: pod.uid().clone(), addresses: vec![address.into()] })
    }

    fn stop_sandbox(&mut self, uid: &PodUid) {
        let Some(runtime) = self.runtimes.remove(uid) else { return };
        self.context.network.detach(runtime.address.into());
        runtime.namespace.shutdown();
        self.blocks.release(runtime.address);
    }

    /// A block of addresses is this node's.
    pub fn add_block(&mut self, cidr: &str) {
        if !self.blocks.add(cidr) {
            tracing::warn!(cidr, "a block of pod addresses is no /24");
        }
    }

    /// A claim for more addresses was answered: whoever waits goes on.
    pub fn block_claimed(&mut self, request: u64, cidr: &str, error: &str) -> Vec<Observation> {
        self.context.link.post(|outbox| outbox.claim_answered(request));
        if !cidr.is_empty() {
            self.add_block(cidr);
        }
        if !self.waiting.answered(request) {
            return Vec::new();
        }
        let waiting: Vec<WaitingPod> = self.waiting.drain().collect();
        let failed = |pod: &Pod| Observation::SandboxFailed {
            uid: pod.uid().clone(),
            message: format!("no address for the pod: {error}"),
        };
        let mut observations = Vec::new();
        for wanted in waiting {
            if cidr.is_empty() {
                observations.push(failed(&wanted.pod));
            } else {
                observations.extend(self.create_sandbox(wanted));
            }
        }
        observations
    }

    fn pull(&self, at: At, image: String, policy: PullPolicy) {
        let context = self.context.clone();
        self.background(async move {
            let events = context.events.clone();
            let begun = at.clone();
            let pulled = guarded(async move {
                let mut started = None;
                let pulled = context
                    .artifacts
                    .pull(&image, policy, || {
                        started = Some(tokio::spawn(async move {
                            let _ = events.send(Event::Observed(begun.news(News::PullStarted))).await;
                        }));
                    })
                    .await;
                // Its news comes before the outcome's.
                if let Some(started) = started {
                    let _ = started.await;
                }
                pulled.map_err(|error| {
                    tracing::debug!(image, %error, "pull failed");
                    (error.reason().to_owned(), error.to_string())
                })
            });
            match pulled.await.unwrap_or_else(|message| Err(("ErrImagePull".to_owned(), message))) {
                Ok(present) => at.news(News::Pulled { image_id: present.image_id, fetched: present.fetched }),
                Err((reason, message)) => at.news(News::PullFailed { reason, message }),
            }
        });
    }

    /// Starts a container. What comes of it is an event, whatever happens; a sandbox that has gone is said at once.
    fn start(&self, at: At, pod: Arc<Pod>, plan: StartPlan) -> Option<Observation> {
        let Some(runtime) = self.runtimes.get(&at.uid) else {
            let message = "the pod's sandbox is gone".to_owned();
            return Some(at.news(News::StartFailed { reason: CREATE_FAILED.to_owned(), message }));
        };
        let (sandbox, context, starts) = (runtime.pod.clone(), self.context.clone(), self.starts.clone());
        let dir = self.volumes_dir(&at.uid);
        tokio::spawn(async move {
            let events = context.events.clone();
            let of = at.clone();
            let starting =
                guarded(async move { start(&context, &sandbox, &of, &pod, plan, dir, &starts).await });
            let started =
                starting.await.unwrap_or_else(|message| Err(StartFailure { reason: CREATE_FAILED, message }));
            let event = match started {
                Ok(container) => Event::Started { at, container },
                Err(StartFailure { reason, message }) => {
                    Event::Observed(at.news(News::StartFailed { reason: reason.to_owned(), message }))
                }
            };
            let _ = events.send(event).await;
        });
        None
    }

    /// A container runs: from here on it is watched for its end.
    pub fn started(&mut self, at: At, container: Container) -> Observation {
        let mut id = Sha256::new();
        for part in [at.uid.as_str(), &at.container, &at.attempt.to_string(), &self.context.boot_id] {
            id.update(part);
            id.update([0]);
        }
        let container_id = format!("wasm://{}", hex::encode(id.finalize()));
        match self.runtimes.get_mut(&at.uid) {
            Some(runtime) => {
                runtime.containers.insert(at.container.clone(), (at.attempt, container.clone()));
            }
            // The pod went away meanwhile.
            None => container.kill(),
        }
        let (context, ended) = (self.context.clone(), at.clone());
        self.background(async move {
            let waited = guarded(async move { container.wait().await }).await;
            let exit = waited.map_or_else(Exit::HostFault, exit_of);
            context.logs.end(&ended.uid, &ended.container);
            ended.news(News::Exited(exit))
        });
        at.news(News::Started { container_id })
    }

    /// A container is over: its handle is let go.
    pub fn exited(&mut self, uid: &PodUid, name: &str, attempt: u32) {
        if let Some(runtime) = self.runtimes.get_mut(uid)
            && runtime.containers.get(name).is_some_and(|(of, _)| *of == attempt)
        {
            runtime.containers.remove(name);
        }
    }

    fn remove(&mut self, uid: PodUid, pod: &Pod) {
        self.stop_sandbox(&uid);
        let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let gone = PodGone { namespace, name, uid: uid.to_string() };
        self.context.link.post(|outbox| outbox.gone(gone));
        let (dir, logs) = (self.volumes_dir(&uid), self.context.logs.clone());
        tokio::task::spawn_blocking(move || {
            for removed in [volumes::remove_dir(&dir), logs.remove(&uid)] {
                if let Err(error) = removed {
                    tracing::warn!(pod.uid = %uid, %error, "what a pod left behind could not be removed");
                }
            }
        });
    }

    /// Asks every container to end.
    pub fn stop_all(&self) {
        self.containers().for_each(|(_, _, container)| container.stop());
    }

    /// Ends every pod at once, without a word to the cluster: the node stops, and runs them again when it starts.
    pub fn drop_all(&mut self) {
        for (_, runtime) in std::mem::take(&mut self.runtimes) {
            runtime.containers.values().for_each(|(_, container)| container.kill());
            self.context.network.detach(runtime.address.into());
            runtime.namespace.shutdown();
        }
    }
}

/// One attempt of one container.
#[derive(Clone, Debug)]
pub struct At {
    pub uid: PodUid,
    pub container: String,
    pub attempt: u32,
}

impl At {
    fn news(&self, news: News) -> Observation {
        let At { uid, container, attempt } = self.clone();
        Observation::Container { uid, container, attempt, news }
    }
}

/// Runs a task to its end, or to the words for its panic: whoever waits for its outcome gets one.
async fn guarded<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Result<T, String> {
    tokio::spawn(task).await.map_err(|error| {
        tracing::error!(%error, "a task of the node failed");
        format!("internal error of the node: {error}")
    })
}

/// The reason in `state.waiting` of a container that did not come to its start.
const CREATE_FAILED: &str = "CreateContainerError";

struct StartFailure {
    /// The reason in `state.waiting`.
    reason: &'static str,
    message: String,
}

async fn start(
    context: &Context,
    sandbox: &coracle_wasi_host::Pod,
    at: &At,
    pod: &Pod,
    plan: StartPlan,
    volumes_dir: PathBuf,
    starts: &Semaphore,
) -> Result<Container, StartFailure> {
    let create = |message: String| StartFailure { reason: CREATE_FAILED, message };
    let path = context
        .artifacts
        .path(&plan.image_id)
        .ok_or_else(|| create(format!("the image {} is not on this node any more", plan.image_id)))?;
    let artifact = context.host.prepare(&path).await.map_err(|error| create(error.to_string()))?;
    // After the compiler: what it is busy with holds up no container that is ready to run.
    let _permit = starts.acquire().await.map_err(|error| create(error.to_string()))?;
    let (logs, log_at) = (context.logs.clone(), at.clone());
    let mounts = plan.mounts;
    let prepared = tokio::task::spawn_blocking(move || {
        let mounts = volumes::mounts(&volumes_dir, &mounts)?;
        let log = logs.begin(&log_at.uid, &log_at.container, log_at.attempt);
        Ok((mounts, log.map_err(|error| format!("failed to open the container's log: {error}"))?))
    })
    .await;
    let (mounts, log) = prepared.unwrap_or_else(|error| Err(error.to_string())).map_err(create)?;
    let spec = ContainerSpec {
        name: format!("{}/{}/{}", pod.metadata.namespace, pod.metadata.name, at.container),
        artifact,
        args: plan.arguments,
        env: plan.env,
        mounts,
        limits: ContainerLimits {
            memory_bytes: plan.limits.memory_bytes,
            cpu_quota: plan.limits.cpu_quota,
            cpu_weight: plan.limits.cpu_weight,
        },
        http_port: Some(plan.http_port),
        http_timeout: None,
        stdin_closed: false,
        stdout: Arc::new(StreamSink::new(log.clone(), Stream::Stdout)),
        stderr: Arc::new(StreamSink::new(log, Stream::Stderr)),
    };
    sandbox
        .start(spec)
        .map_err(|error| StartFailure { reason: "RunContainerError", message: error.to_string() })
}

fn exit_of(exit: coracle_wasi_host::Exit) -> Exit {
    use coracle_wasi_host::Exit as Host;
    if exit.is_out_of_memory() {
        return Exit::OutOfMemory;
    }
    match exit {
        Host::Completed { code } => Exit::Completed(code),
        Host::Trapped { message } => Exit::Trapped(message),
        Host::LimitExceeded { resource } => Exit::LimitExceeded(resource.to_owned()),
        Host::Killed => Exit::Killed,
        Host::HostFault { message } => Exit::HostFault(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_has_an_outcome() {
        let failed = guarded(async { Vec::<u32>::new()[usize::from(true)] }).await;
        assert!(failed.unwrap_err().contains("internal error of the node"));
        assert_eq!(guarded(async { 7 }).await, Ok(7));
    }
}
