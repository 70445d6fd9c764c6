//! Plans of starts and volumes, beside the loop: what one pod sizes delays no other.

use std::sync::Arc;

use coracle_core::{
    Observation, PodUid,
    observe::News,
    planning::{StartInputs, VolumeInputs},
    volumes::Fingerprint,
};
use tokio::sync::Semaphore;

use super::{At, Executor};
use crate::volumes;

/// Plans that are made at once. Each is bounded, and no pod has more than one of its starts planned at a time.
const PLANS_MAX: usize = 4;
/// Pods whose volumes are planned and written at once.
const MOUNTS_MAX: usize = 16;

/// Who may plan and write now.
pub(super) struct Planner {
    plans: Arc<Semaphore>,
    mounts: Arc<Semaphore>,
}

impl Planner {
    pub fn new() -> Self {
        Self { plans: Arc::new(Semaphore::new(PLANS_MAX)), mounts: Arc::new(Semaphore::new(MOUNTS_MAX)) }
    }

    /// How many are under way.
    pub fn held(&self) -> usize {
        PLANS_MAX + MOUNTS_MAX - self.plans.available_permits() - self.mounts.available_permits()
    }
}

impl Executor {
    pub(super) fn plan(&self, at: At, inputs: StartInputs) {
        let own = self.runtimes.get(&at.uid).map(|runtime| runtime.plans.clone());
        let all = self.planner.plans.clone();
        self.background(async move {
            let turn = match own {
                Some(own) => own.acquire_owned().await.ok(),
                None => None,
            };
            let permit = all.acquire_owned().await;
            let planned = tokio::task::spawn_blocking(move || {
                let _held = (turn, permit);
                inputs.plan().map(Arc::new)
            });
            let planned = planned.await.unwrap_or_else(|error| Err(error.to_string()));
            at.news(News::Planned(planned))
        });
    }

    pub(super) fn mount(&self, uid: PodUid, fingerprint: Fingerprint, inputs: VolumeInputs) {
        let dir = self.volumes_dir(&uid);
        let mounts = self.planner.mounts.clone();
        self.background(async move {
            let permit = mounts.acquire_owned().await;
            let of = uid.clone();
            let mounted = tokio::task::spawn_blocking(move || {
                let _held = permit;
                let volumes = match inputs.plan() {
                    Ok(volumes) => volumes,
                    Err(message) => return Observation::VolumesHeld { uid, message },
                };
                match volumes::write(&dir, &volumes) {
                    Ok(()) => Observation::Mounted { uid, fingerprint },
                    Err(message) => Observation::MountFailed { uid, message },
                }
            });
            mounted
                .await
                .unwrap_or_else(|error| Observation::MountFailed { uid: of, message: error.to_string() })
        });
    }
}
