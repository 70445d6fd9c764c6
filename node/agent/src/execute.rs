//! Executes actions: calls into the runtime, the disk, the registry and the network. What comes of it returns as
//! events, or at once where nothing has to be waited for.

mod plan;
mod revisions;
mod sandbox;
mod serving;
mod start;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use coracle_core::{Action, EventRecord, Observation, Pod, PodUid, observe::News, spec::PullPolicy, status};
use coracle_fabric::Name;
use coracle_proto::node::{NodeEvent, PodGone, PodStatus};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::{plan::Workshop, revisions::Revisions, sandbox::WaitingPod};

use crate::{
    app::Event,
    artifacts::{Artifacts, Image, PullError},
    blocks::{Blocks, Waiting},
    clock::Clock,
    events,
    link::LinkHandle,
    logs::Logs,
    network::PodNetwork,
    probes,
    removal::Removals,
    runtime::{ContainerId, Disks, Prepared, Runtime, SandboxId},
};

/// Why a container is not made ready any more.
const POD_ENDS: &str = "the pod ends";
/// The port that probes come from: nobody listens there.
const PROBE_PORT: u16 = 10250;

/// What the tasks of all pods share.
pub struct Context {
    pub node_name: String,
    pub runtime: Arc<dyn Runtime>,
    /// What pods have on the disk, until it is removed.
    pub disks: Disks,
    pub artifacts: Artifacts,
    pub logs: Arc<Logs>,
    pub removals: Removals,
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
    sandboxes: BTreeMap<PodUid, Sandbox>,
    /// How many there were.
    sandboxes_made: u64,
    /// What keeps the images of pods on the node, until they have ended.
    images: BTreeMap<PodUid, PodImages>,
    blocks: Blocks,
    waiting: Waiting<WaitingPod>,
    /// The present link has named all blocks of this node: only then is it known that more are needed.
    blocks_known: bool,
    workshop: Workshop,
    /// Images, and their components, of revisions that have run here: for instances that are started again.
    kept: Revisions,
    /// Those that there are, by namespace and name.
    revisions: BTreeSet<(String, String)>,
    /// Where the pods that are instances of functions serve, of which revision.
    serving: BTreeMap<PodUid, (Name, SocketAddr)>,
    /// The runtime is asked what containers use.
    metering: Option<JoinHandle<()>>,
}

/// What a container's image meant when it was pulled, by container.
type PodImages = Arc<Mutex<BTreeMap<String, Kept>>>;

/// What stays on the node for a container's starts.
#[derive(Clone)]
struct Kept {
    /// As the container names it.
    name: String,
    image: Arc<Image>,
    /// Since it was made ready first: what ran may run again, whatever others have taken since.
    component: Option<Prepared>,
}

/// What a pod's containers share, as long as they may run.
struct Sandbox {
    id: SandboxId,
    address: Ipv4Addr,
    /// The containers of a pod are planned one after the other: they do not take all that plans.
    plans: Arc<Semaphore>,
    /// Cancelled when the pod has to end: what makes its containers ready goes on for others only.
    ending: CancellationToken,
    /// What runs, by name.
    containers: BTreeMap<String, ContainerId>,
    /// The pod's address was taken back: it gets another sandbox.
    is_lost: bool,
}

impl Executor {
    pub fn new(context: Context) -> Self {
        Self {
            context: Arc::new(context),
            sandboxes: BTreeMap::new(),
            sandboxes_made: 0,
            images: BTreeMap::new(),
            blocks: Blocks::default(),
            waiting: Waiting::default(),
            blocks_known: true,
            workshop: Workshop::new(),
            kept: Revisions::default(),
            revisions: BTreeSet::new(),
            serving: BTreeMap::new(),
            metering: None,
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
                if self.sandboxes.get(&uid).is_none_or(|sandbox| !sandbox.is_lost) {
                    self.images.remove(&uid);
                }
                self.stop_sandbox(&uid);
                return Some(Observation::SandboxStopped { uid });
            }
            Action::Mount { uid, fingerprint, inputs } => {
                self.mount(uid, &pod.metadata.namespace, fingerprint, *inputs);
            }
            Action::Plan { uid, container, attempt, inputs, .. } => {
                self.plan(At { uid, container, attempt }, &pod.metadata.namespace, *inputs);
            }
            Action::Pull { uid, container, attempt, image, policy } => {
                let at = At { uid, container, attempt };
                if let Some(present) = self.keep_of_revision(&at, pod) {
                    return Some(present);
                }
                self.pull(at, &pod.metadata.namespace, image, policy);
            }
            Action::Start { uid, container, attempt, plan } => {
                return self.start(At { uid, container, attempt }, pod.clone(), plan);
            }
            Action::Probe { uid, container, attempt, kind, check, timeout } => {
                let sandbox = self.sandboxes.get(&uid)?;
                let (id, address) = (sandbox.id.clone(), sandbox.address.into());
                let from = self.blocks.node_address().unwrap_or(Ipv4Addr::LOCALHOST);
                let from = SocketAddr::new(from.into(), PROBE_PORT);
                let at = At { uid, container, attempt };
                let runtime = self.context.runtime.clone();
                self.background(async move {
                    let dial = move |to| runtime.dial(&id, from, to);
                    let checked = guarded(async move { probes::check(dial, address, &check, timeout).await });
                    let checked = checked.await.unwrap_or_else(Err);
                    let (success, output) =
                        checked.map_or_else(|output| (false, output), |()| (true, String::new()));
                    at.news(News::Probed { kind, success, output })
                });
            }
            Action::Stop { uid, container, attempt } => {
                self.context.runtime.stop(self.container(&uid, &container, attempt)?);
            }
            Action::Kill { uid, container, attempt } => {
                self.context.runtime.kill(self.container(&uid, &container, attempt)?);
            }
            Action::Report { status, .. } => {
                self.note_serving(pod, &status);
                self.report(pod, &status);
            }
            Action::Emit { event, .. } => self.emit(pod, &event),
            Action::FreeVolumes { uid } => self.free_volumes(&uid),
            Action::Remove { uid } => self.remove(uid, pod),
            Action::EndPod { uid, .. } => {
                self.end_serving(&uid);
                self.sandboxes.get(&uid)?.ending.cancel();
            }
            Action::Admit { .. } | Action::Announce { .. } | Action::End { .. } | Action::Forget { .. } => {}
        }
        None
    }

    fn report(&self, pod: &Pod, status: &Value) {
        let coming_up = status["phase"] == "Pending";
        let status_json = serde_json::to_vec(status).unwrap_or_default().into();
        let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let status = PodStatus { namespace, name, uid: pod.uid().to_string(), status_json };
        self.context.link.post(|outbox| outbox.status(status, coming_up));
    }

    /// Addresses of pods that have a sandbox.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, &PodUid)> {
        self.sandboxes.iter().map(|(uid, sandbox)| (sandbox.address.into(), uid))
    }

    pub fn emit(&self, pod: &Pod, event: &EventRecord) {
        let event = events::event(pod, event, &self.context.node_name, self.context.clock.wall());
        let event_json = serde_json::to_vec(&event).unwrap_or_default().into();
        let namespace = pod.metadata.namespace.clone();
        self.context.link.post(|outbox| outbox.event(namespace, NodeEvent { event_json, dropped: 0 }));
    }

    /// Tells that the node is not sent a pod.
    pub fn tell_withheld(&self, pod: &Pod, why: &str) {
        let record = EventRecord {
            warning: true,
            reason: status::WITHHELD,
            message: why.to_owned(),
            field_path: String::new(),
        };
        self.emit(pod, &record);
        self.report(pod, &status::withheld_status(why, self.context.clock.wall()));
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

    fn container(&self, uid: &PodUid, name: &str, attempt: u32) -> Option<&ContainerId> {
        self.sandboxes.get(uid)?.containers.get(name).filter(|id| id.attempt == attempt)
    }

    /// Every running container.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerId> {
        self.sandboxes.values().flat_map(|sandbox| sandbox.containers.values())
    }

    /// Asks what containers use, unless that is being asked still.
    pub fn meter(&mut self) {
        if self.metering.as_ref().is_none_or(JoinHandle::is_finished) {
            let (metered, events) = (self.context.runtime.usage(), self.context.events.clone());
            self.metering = Some(tokio::spawn(async move {
                let _ = events.send(Event::Metered(metered.await)).await;
            }));
        }
    }

    /// How many there are of what the executor keeps.
    pub fn held(&self) -> [(&'static str, usize); 9] {
        [
            ("sandboxes", self.sandboxes.len()),
            ("pods with a part of the disk", self.context.disks.held()),
            ("pods with images", self.images.len()),
            ("containers", self.containers().count()),
            ("pod addresses", self.blocks.held()),
            ("pods that wait for an address", self.waiting.held()),
            ("plans, mounts and starts", self.workshop.held()),
            ("instances of functions", self.serving.len()),
            ("images of functions", self.kept.len()),
        ]
    }

    fn pull(&mut self, at: At, namespace: &str, image: String, policy: PullPolicy) {
        let (context, namespace, name) = (self.context.clone(), namespace.to_owned(), image.clone());
        let images = self.images.entry(at.uid.clone()).or_default().clone();
        let ending = self.sandboxes.get(&at.uid).map(|sandbox| sandbox.ending.clone()).unwrap_or_default();
        self.background(async move {
            let (events, room) = (context.events.clone(), context.events.clone());
            let begun = at.clone();
            let pulled = guarded(async move {
                let mut started = None;
                let pulling = context.artifacts.pull(&image, &namespace, policy, || {
                    started = Some(tokio::spawn(async move {
                        let _ = events.send(Event::Observed(begun.news(News::PullStarted))).await;
                    }));
                });
                let pulled = ending.run_until_cancelled(pulling).await;
                if let Some(Err(error)) = &pulled
                    && let Some(of_namespace) = error.wants_room()
                {
                    let _ = room.send(Event::RoomWanted(of_namespace.then(|| namespace.clone()))).await;
                }
                // Its news comes before the outcome's.
                if let Some(started) = started {
                    let _ = started.await;
                }
                let failed = |error: PullError| {
                    tracing::debug!(image, %error, "pull failed");
                    (error.reason().to_owned(), error.to_string())
                };
                match pulled {
                    Some(pulled) => pulled.map_err(failed),
                    None => Err(("ErrImagePull".to_owned(), POD_ENDS.to_owned())),
                }
            });
            match pulled.await.unwrap_or_else(|message| Err(("ErrImagePull".to_owned(), message))) {
                Ok(present) => {
                    let image_id = present.image.id.clone();
                    // It stays on the node for the start that follows.
                    let (mut images, image) = (images.lock(), present.image);
                    let known = images.remove(&at.container).filter(|kept| kept.image.id == image.id);
                    let component = known.and_then(|kept| kept.component);
                    images.insert(at.container.clone(), Kept { name, image, component });
                    drop(images);
                    at.news(News::Pulled { image_id, fetched: present.fetched })
                }
                Err((reason, message)) => at.news(News::PullFailed { reason, message }),
            }
        });
    }

    fn free_volumes(&self, uid: &PodUid) {
        self.context.removals.push_of(self.volumes_dir(uid), self.context.disks.get(uid));
    }

    fn remove(&mut self, uid: PodUid, pod: &Pod) {
        self.stop_sandbox(&uid);
        self.images.remove(&uid);
        let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let gone = PodGone { namespace, name, uid: uid.to_string() };
        self.context.link.post(|outbox| outbox.gone(gone));
        let disk = self.context.disks.take(&uid);
        self.context.removals.push_of(self.volumes_dir(&uid), disk.clone());
        // A write of a log that is under way is waited for.
        let context = self.context.clone();
        let holder = plan::holder(&pod.metadata.namespace);
        self.workshop.folders.post(&holder, move || context.logs.remove(&uid, &context.removals, disk));
    }

    /// Ends every pod at once, without a word to the cluster: the node stops, and runs them again when it starts.
    pub fn drop_all(&mut self) {
        self.images.clear();
        self.serving.clear();
        for (_, sandbox) in std::mem::take(&mut self.sandboxes) {
            self.context.runtime.remove_sandbox(&sandbox.id);
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

impl From<&ContainerId> for At {
    fn from(id: &ContainerId) -> Self {
        At { uid: id.sandbox.pod.clone(), container: id.name.clone(), attempt: id.attempt }
    }
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
