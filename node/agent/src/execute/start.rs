//! Starts of containers, and what becomes of them.

use std::{path::PathBuf, sync::Arc};

use coracle_core::{
    Observation, Pod, PodUid, StartPlan,
    observe::{Exit, News},
};
use coracle_wasi_host::{
    Artifact, Container, ContainerLimits, ContainerSpec, PodDisk, StartError, pool::Pool,
};
use sha2::{Digest, Sha256};

use super::{At, Context, Executor, POD_ENDS, PodImages, guarded, plan::holder};
use crate::{
    app::Event,
    logs::{Stream, StreamSink},
    volumes,
};

impl Executor {
    /// Starts a container. What comes of it is an event, whatever happens; a sandbox that has gone is said at once.
    pub(super) fn start(&self, at: At, pod: Arc<Pod>, plan: Arc<StartPlan>) -> Option<Observation> {
        let Some(runtime) = self.runtimes.get(&at.uid) else {
            let message = "the pod's sandbox is gone".to_owned();
            return Some(at.news(News::StartFailed { reason: CREATE_FAILED.to_owned(), message }));
        };
        let (sandbox, context) = (runtime.pod.clone(), self.context.clone());
        let disk = self.disks.get(&at.uid).cloned();
        let ending = runtime.ending.clone();
        let folders = (self.volumes_dir(&at.uid), self.workshop.folders.clone());
        let told = self.context.network.told(&pod.metadata.namespace);
        let images = self.images.get(&at.uid).cloned().unwrap_or_default();
        tokio::spawn(async move {
            let events = context.events.clone();
            let of = at.clone();
            let starting = guarded(async move {
                let ready = ending
                    .run_until_cancelled(ready(&context, &pod, (&of.container, &plan), &images, told))
                    .await;
                let artifact = ready.unwrap_or_else(|| Err(create(POD_ENDS.to_owned())))?;
                let disk = disk.ok_or_else(|| create(POD_ENDS.to_owned()))?;
                start(&context, sandbox, &of, &pod, plan, artifact, (folders.0, folders.1, disk)).await
            });
            let started = starting.await.unwrap_or_else(|message| Err(create(message)));
            let event = match started {
                Ok(container) => Event::Started { at, container },
                Err(StartFailure::NoSeat(message)) => Event::Observed(at.news(News::NoSeat { message })),
                Err(StartFailure::Fault { reason, message }) => {
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
            context.logs.end(&ended.uid, &ended.container).await;
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
}

/// The reason in `state.waiting` of a container that did not come to its start.
const CREATE_FAILED: &str = "CreateContainerError";

enum StartFailure {
    Fault {
        /// The reason in `state.waiting`.
        reason: &'static str,
        message: String,
    },
    /// Nothing is wrong with it: it waits until others end.
    NoSeat(String),
}

fn create(message: String) -> StartFailure {
    StartFailure::Fault { reason: CREATE_FAILED, message }
}

/// Waits for the container's component, and until the network knows of its namespace. Leaves nothing behind when it is given up.
async fn ready(
    context: &Context,
    pod: &Pod,
    (container, plan): (&str, &StartPlan),
    images: &PodImages,
    told: impl Future<Output = ()>,
) -> Result<Arc<Artifact>, StartFailure> {
    let kept = images.lock().get(container).map(|kept| (kept.image.clone(), kept.artifact.clone()));
    // It stays there as long as this holds it.
    let (image, artifact) = kept
        .filter(|(image, _)| image.id == plan.image_id)
        .ok_or_else(|| create(format!("the image {} is not on this node any more", plan.image_id)))?;
    let artifact = match artifact {
        Some(artifact) => artifact,
        None => {
            let artifact = context.host.prepare(&image.path, &pod.metadata.namespace).await;
            artifact.map_err(|error| create(error.to_string()))?
        }
    };
    if let Some(kept) = images.lock().get_mut(container).filter(|kept| kept.image.id == image.id) {
        kept.artifact = Some(artifact.clone());
    }
    told.await;
    Ok(artifact)
}

/// Starts it in the namespace's turn: there is no line before that one, in which another namespace could stand.
async fn start(
    context: &Context,
    sandbox: coracle_wasi_host::Pod,
    at: &At,
    pod: &Pod,
    plan: Arc<StartPlan>,
    artifact: Arc<Artifact>,
    (volumes_dir, folders, disk): (PathBuf, Arc<Pool>, PodDisk),
) -> Result<Container, StartFailure> {
    // The loop has let go of it by now: nothing is copied.
    let plan = Arc::unwrap_or_clone(plan);
    let (logs, log_at) = (context.logs.clone(), at.clone());
    let name = format!("{}/{}/{}", pod.metadata.namespace, pod.metadata.name, at.container);
    let runtime = tokio::runtime::Handle::current();
    let started = folders.call(&holder(&pod.metadata.namespace), move || {
        let _context = runtime.enter();
        let mounts = volumes::mounts(&volumes_dir, &plan.mounts, &disk).map_err(create)?;
        let log_holder = sandbox.namespace().holder().clone();
        let written = disk.written(&log_at.container);
        let log = logs.begin(&log_at.uid, &log_at.container, log_at.attempt, (log_holder, Some(written)));
        let log = log.map_err(|error| create(format!("failed to open the container's log: {error}")))?;
        let spec = ContainerSpec {
            name,
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
        // It opens what is mounted.
        sandbox.start(spec).map_err(|error| match error {
            StartError::NoSeat(full) => StartFailure::NoSeat(full.to_string()),
            error => StartFailure::Fault { reason: "RunContainerError", message: error.to_string() },
        })
    });
    started.await.unwrap_or_else(|error| Err(create(error.to_string())))
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
        Host::Unseated { message } => Exit::Unseated(message),
        Host::HostFault { message } => Exit::HostFault(message),
    }
}
