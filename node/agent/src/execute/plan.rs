//! Plans of starts and volumes, beside the loop: what one pod sizes delays no other.

use std::sync::Arc;

use coracle_core::{
    Observation, PodUid,
    observe::News,
    planning::{StartInputs, VolumeInputs},
    resources::pod_limits,
    volumes::Fingerprint,
};
use coracle_wasi_host::{
    pool::{NotDone, Pool},
    shares::Holder,
};
use tokio::sync::Semaphore;

use super::{At, Executor};
use crate::volumes;

/// Plans that are made at once: a namespace has at most half of them. Each is bounded, and no pod has more than one of
/// its starts planned at a time.
const PLANS_MAX: usize = 4;
/// What is done at once of pods' folders: their volumes are planned, written and opened, their logs begun and removed. A
/// namespace has at most half of it.
const FOLDERS_MAX: usize = 16;

/// Where pods' work that may take long is done, on account of their namespaces.
pub(super) struct Workshop {
    pub plans: Arc<Pool>,
    pub folders: Arc<Pool>,
}

impl Workshop {
    pub fn new() -> Self {
        Self { plans: Pool::new("plans", PLANS_MAX, 0), folders: Pool::new("folders", FOLDERS_MAX, 0) }
    }

    /// What is under way, or waits for its turn.
    pub fn held(&self) -> usize {
        [&self.plans, &self.folders].into_iter().map(|pool| pool.running() + pool.waiting()).sum()
    }
}

/// On whose account the work for a pod is.
pub(super) fn holder(namespace: &str) -> Holder {
    Holder { namespace: namespace.into(), pod: None }
}

/// Does `work` on the pool once all is done that came before it in the same `turn`. Until then it is not in the pool's
/// line: a pod of many containers takes one place.
async fn in_turn<T: Send + 'static>(
    turn: Option<Arc<Semaphore>>,
    pool: Arc<Pool>,
    holder: Holder,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    let turn = match turn {
        Some(turn) => turn.acquire_owned().await.ok(),
        None => None,
    };
    let done = pool.call(&holder, move || {
        let _held = turn;
        work()
    });
    done.await
}

impl Executor {
    pub(super) fn plan(&self, at: At, namespace: &str, inputs: StartInputs) {
        let turn = self.sandboxes.get(&at.uid).map(|sandbox| sandbox.plans.clone());
        let planned = in_turn(turn, self.workshop.plans.clone(), holder(namespace), move || {
            inputs.plan().map(Arc::new)
        });
        self.background(async move {
            let planned = planned.await.unwrap_or_else(|error| Err(error.to_string()));
            at.news(News::Planned(planned))
        });
    }

    pub(super) fn mount(
        &mut self,
        uid: PodUid,
        namespace: &str,
        fingerprint: Fingerprint,
        inputs: VolumeInputs,
    ) {
        let pod = &inputs.pod;
        let disk = self.context.disks.of(&uid, &pod.metadata.namespace, pod_limits(pod).disk_bytes);
        let dir = self.volumes_dir(&uid);
        let of = uid.clone();
        let mounted = self.workshop.folders.call(&holder(namespace), move || {
            volumes::count(&dir, &inputs.pod, &disk);
            let volumes = match inputs.plan() {
                Ok(volumes) => volumes,
                Err(message) => return Observation::VolumesHeld { uid, message },
            };
            match volumes::write(&dir, &volumes, &disk) {
                Ok(()) => Observation::Mounted { uid, fingerprint },
                Err(message) => Observation::MountFailed { uid, message },
            }
        });
        self.background(async move {
            mounted
                .await
                .unwrap_or_else(|error| Observation::MountFailed { uid: of, message: error.to_string() })
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{future::ready, sync::mpsc};

    use coracle_core::{
        Pod,
        fields::PodFacts,
        sources::{Keyed, KeyedData, Source, Sources},
    };
    use coracle_wasi_host::pool::Call;

    use super::*;
    use crate::{app::Event, link::LinkHandle, tests};

    /// Work that goes on until the sender is dropped.
    fn stuck(pool: &Pool, namespace: &str) -> (mpsc::Sender<()>, Call<bool>) {
        let (end, ended) = mpsc::channel::<()>();
        (end, pool.call(&holder(namespace), move || ended.recv().is_err()))
    }

    async fn waits(what: &mut (impl Future + Unpin)) -> bool {
        tokio::select! {
            biased;
            _ = what => false,
            () = ready(()) => true,
        }
    }

    #[tokio::test]
    async fn a_pods_plans_are_made_one_after_the_other_and_anothers_beside_them() {
        let pool = Workshop::new().plans;
        let [own, others] = [(); 2].map(|()| Some(Arc::new(Semaphore::new(1))));
        let (end, ended) = mpsc::channel::<()>();
        let first = in_turn(own.clone(), pool.clone(), holder("d"), move || ended.recv().is_err());
        let (mut first, mut second) =
            (Box::pin(first), Box::pin(in_turn(own, pool.clone(), holder("d"), || 2)));
        assert!(waits(&mut first).await && waits(&mut second).await);
        assert_eq!((pool.running(), pool.waiting()), (1, 0), "the second is not even in line");
        assert_eq!(in_turn(others, pool, holder("d"), || 3).await, Ok(3));
        assert!(waits(&mut second).await);
        drop(end);
        assert_eq!((first.await, second.await), (Ok(true), Ok(2)));
    }

    #[tokio::test]
    async fn volumes_are_on_the_pods_part_of_the_disk_before_it_has_a_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let (events, mut told) = tokio::sync::mpsc::channel(8);
        let context = tests::context(dir.path(), tests::Parts::default(), LinkHandle::new().0, events);
        let mut executor = Executor::new(context);
        let pod = br#"{"metadata":{"name":"p","namespace":"d","uid":"u"},"spec":{
            "containers":[{"name":"c","image":"i","resources":{"limits":{"ephemeral-storage":"2Mi"}}}],
            "volumes":[{"name":"v","configMap":{"name":"cfg","items":[
                {"key":"a","path":"one"},{"key":"a","path":"two"}]}}]}}"#;
        let pod = Arc::new(Pod::parse(pod).unwrap());
        let data = format!(r#"{{"data":{{"a":"{}"}}}}"#, "x".repeat(1 << 20));
        let data = Keyed::Data(Arc::new(KeyedData::from_config_map(data.as_bytes(), 1).unwrap()));
        let mut sources = Sources::default();
        sources.put(("d".into(), "cfg".into()), Source::ConfigMap(data));
        let inputs = VolumeInputs { pod: pod.clone(), sources, facts: PodFacts::default() };
        executor.mount(pod.uid().clone(), "d", 1, inputs);
        match told.recv().await {
            Some(Event::Observed(Observation::MountFailed { message, .. })) => {
                assert!(
                    message.contains("disk: the pod holds 0 of the 2097152 bytes that it may"),
                    "{message}"
                );
            }
            other => panic!("it was mounted: {other:?}"),
        }
        assert!(executor.context.disks.get(pod.uid()).is_some());
    }

    #[tokio::test]
    async fn plans_are_made_beside_the_loop_on_account_of_their_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let (events, mut told) = tokio::sync::mpsc::channel(8);
        let context = tests::context(dir.path(), tests::Parts::default(), LinkHandle::new().0, events);
        let executor = Executor::new(context);
        let plan = |namespace: &str| {
            let pod = format!(
                r#"{{"metadata":{{"name":"p","namespace":"{namespace}","uid":"{namespace}"}},
                    "spec":{{"containers":[{{"name":"c","image":"i"}}]}}}}"#
            );
            let pod = Arc::new(Pod::parse(pod.as_bytes()).unwrap());
            let at = At { uid: pod.uid().clone(), container: "c".into(), attempt: 0 };
            let (sources, facts) = (Sources::default(), PodFacts::default());
            let inputs = StartInputs { pod, container: "c".into(), sources, facts, image_id: "i".into() };
            executor.plan(at, namespace, inputs);
        };
        let planned = |event: Option<Event>| match event {
            Some(Event::Observed(Observation::Container { uid, news: News::Planned(Ok(_)), .. })) => {
                uid.to_string()
            }
            other => panic!("no plan, but {other:?}"),
        };
        // Something else has all places of the namespace.
        let taken = [(); PLANS_MAX / 2].map(|()| stuck(&executor.workshop.plans, "slow"));
        plan("slow");
        while executor.workshop.plans.waiting() == 0 {
            assert!(told.try_recv().is_err(), "it was planned out of its turn");
            tokio::task::yield_now().await;
        }
        plan("other");
        assert_eq!(planned(told.recv().await), "other");
        drop(taken);
        assert_eq!(planned(told.recv().await), "slow");
    }
}
