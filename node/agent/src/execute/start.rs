//! Starts of containers, and what becomes of them.

use std::{path::PathBuf, sync::Arc};

use coracle_core::{
    Observation, Pod, PodUid, StartPlan,
    observe::{Exit, News},
};
use coracle_wasi_host::{PodDisk, pool::Pool, shares::Holder};
use sha2::{Digest, Sha256};

use super::{At, Context, Executor, POD_ENDS, PodImages, guarded, plan::holder};
use crate::{
    app::Event,
    last_word::LastWord,
    logs::{Stream, StreamSink},
    runtime::{ContainerId, ContainerSpec, Prepared, StartRefused, Stdio},
    volumes,
};

impl Executor {
    /// Starts a container. What comes of it is an event, whatever happens; a sandbox that has gone is said at once.
    pub(super) fn start(&self, at: At, pod: Arc<Pod>, plan: Arc<StartPlan>) -> Option<Observation> {
        let Some(sandbox) = self.sandboxes.get(&at.uid) else {
            let message = "the pod's sandbox is gone".to_owned();
            return Some(at.news(News::StartFailed { reason: CREATE_FAILED.to_owned(), message }));
        };
        let id = ContainerId { sandbox: sandbox.id.clone(), name: at.container.clone(), attempt: at.attempt };
        let log_holder =
            Holder { namespace: pod.metadata.namespace.as_str().into(), pod: Some(sandbox.address.into()) };
        let context = self.context.clone();
        let disk = context.disks.get(&at.uid);
        let ending = sandbox.ending.clone();
        let folders = (self.volumes_dir(&at.uid), self.workshop.folders.clone());
        let told = self.context.network.told(&pod.metadata.namespace);
        let images = self.images.get(&at.uid).cloned().unwrap_or_default();
        tokio::spawn(async move {
            let events = context.events.clone();
            let of = id.clone();
            let starting = guarded(async move {
                let ready =
                    ending.run_until_cancelled(ready(&context, &pod, (&of.name, &plan), &images, told)).await;
                let component = ready.unwrap_or_else(|| Err(create(POD_ENDS.to_owned())))?;
                let disk = disk.ok_or_else(|| create(POD_ENDS.to_owned()))?;
                start(&context, of, &pod, (plan, component), log_holder, (folders.0, folders.1, disk)).await
            });
            let started = starting.await.unwrap_or_else(|message| Err(create(message)));
            let event = match started {
                Ok(last_word) => Event::Started(id, last_word),
                Err(StartFailure::NoSeat(message)) => Event::Observed(at.news(News::NoSeat { message })),
                Err(StartFailure::Fault { reason, message }) => {
                    Event::Observed(at.news(News::StartFailed { reason: reason.to_owned(), message }))
                }
            };
            let _ = events.send(event).await;
        });
        None
    }

    /// A container runs: from here on it is watched for its end, and for what it leaves as the message of that.
    pub fn started(&mut self, id: ContainerId, last_word: LastWord) -> Observation {
        let at = At::from(&id);
        let mut hash = Sha256::new();
        for part in [at.uid.as_str(), &at.container, &at.attempt.to_string(), &self.context.boot_id] {
            hash.update(part);
            hash.update([0]);
        }
        let container_id = format!("wasm://{}", hex::encode(hash.finalize()));
        match self.sandboxes.get_mut(&at.uid) {
            Some(sandbox) => {
                sandbox.containers.insert(at.container.clone(), id.clone());
            }
            // The pod went away meanwhile.
            None => self.context.runtime.kill(&id),
        }
        let (context, ended) = (self.context.clone(), at.clone());
        let folders = self.workshop.folders.clone();
        self.background(async move {
            let (runtime, of) = (context.runtime.clone(), id.clone());
            let exit = guarded(async move { runtime.wait(&of).await }).await;
            let exit = exit.unwrap_or_else(Exit::HostFault);
            context.runtime.remove_container(&id);
            context.logs.end(&ended.uid, &ended.container).await;
            let (failed, holder) = (exit != Exit::Completed(0), last_word.holder.clone());
            let (of, logs) = (ended.clone(), context.logs.clone());
            let message = folders.call(&holder, move || {
                last_word.read(failed, || logs.last_of(&of.uid, &of.container, of.attempt))
            });
            // Without its message it has ended all the same.
            let message = message.await.unwrap_or_default();
            ended.news(News::Exited { exit, message })
        });
        at.news(News::Started { container_id })
    }

    /// A container is over.
    pub fn exited(&mut self, uid: &PodUid, name: &str, attempt: u32) {
        if let Some(sandbox) = self.sandboxes.get_mut(uid)
            && sandbox.containers.get(name).is_some_and(|id| id.attempt == attempt)
        {
            sandbox.containers.remove(name);
        }
    }
}

/// The reason in `state.waiting` of a container that did not come to its start.
const CREATE_FAILED: &str = "CreateContainerError";
/// The same of one that the runtime did not start.
const RUN_FAILED: &str = "RunContainerError";

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
) -> Result<Prepared, StartFailure> {
    let kept = images.lock().get(container).map(|kept| (kept.image.clone(), kept.component.clone()));
    // It stays there as long as this holds it.
    let (image, component) = kept
        .filter(|(image, _)| image.id == plan.image_id)
        .ok_or_else(|| create(format!("the image {} is not on this node any more", plan.image_id)))?;
    let component = match component {
        Some(component) => component,
        None => {
            let prepared = context.runtime.prepare(image.path.clone(), pod.metadata.namespace.clone());
            prepared.await.map_err(create)?
        }
    };
    if let Some(kept) = images.lock().get_mut(container).filter(|kept| kept.image.id == image.id) {
        kept.component = Some(component.clone());
    }
    told.await;
    Ok(component)
}

/// Starts it in the namespace's turn: there is no line before that one, in which another namespace could stand.
async fn start(
    context: &Context,
    id: ContainerId,
    pod: &Pod,
    (plan, component): (Arc<StartPlan>, Prepared),
    log_holder: Holder,
    (volumes_dir, folders, disk): (PathBuf, Arc<Pool>, PodDisk),
) -> Result<LastWord, StartFailure> {
    // The loop has let go of it by now: nothing is copied.
    let plan = Arc::unwrap_or_clone(plan);
    let (logs, runtime) = (context.logs.clone(), context.runtime.clone());
    let name = format!("{}/{}/{}", pod.metadata.namespace, pod.metadata.name, id.name);
    let of = holder(&pod.metadata.namespace);
    let read_for = of.clone();
    let started = folders.call(&of, move || {
        let mounts = volumes::mounts(&volumes_dir, &plan.mounts, &disk).map_err(create)?;
        let written = disk.written(&id.name);
        let log = logs.begin(&id.sandbox.pod, &id.name, id.attempt, (log_holder, Some(written)));
        let log = log.map_err(|error| create(format!("failed to open the container's log: {error}")))?;
        let spec = ContainerSpec {
            name,
            component,
            arguments: plan.arguments,
            env: plan.env,
            mounts,
            working_dir: plan.working_dir,
            limits: plan.limits,
            http_port: plan.http_port,
            listen_ports: plan.listen_ports,
            stdio: Stdio {
                stdin: plan.stdin,
                stdout: Arc::new(StreamSink::new(log.clone(), Stream::Stdout)),
                stderr: Arc::new(StreamSink::new(log, Stream::Stderr)),
            },
        };
        let last_word = LastWord::before(&volumes_dir, plan.message, read_for);
        runtime.start(&id, spec).map_err(|refused| match refused {
            StartRefused::NoRoom(full) => StartFailure::NoSeat(full),
            StartRefused::Failed(message) => StartFailure::Fault { reason: RUN_FAILED, message },
        })?;
        Ok(last_word)
    });
    started.await.unwrap_or_else(|error| Err(create(error.to_string())))
}
