//! Plans of starts and volumes, beside the loop: what one pod sizes delays no other.

use std::sync::Arc;

use coracle_core::{
    Observation, PodUid,
    observe::News,
    planning::{StartInputs, VolumeInputs},
    volumes::Fingerprint,
};
use coracle_wasi_host::{pool::Pool, shares::Holder};

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

impl Executor {
    pub(super) fn plan(&self, at: At, namespace: &str, inputs: StartInputs) {
        let own = self.runtimes.get(&at.uid).map(|runtime| runtime.plans.clone());
        let (plans, holder) = (self.workshop.plans.clone(), holder(namespace));
        self.background(async move {
            let turn = match own {
                Some(own) => own.acquire_owned().await.ok(),
                None => None,
            };
            let planned = plans.call(&holder, move || {
                let _held = turn;
                inputs.plan().map(Arc::new)
            });
            let planned = planned.await.unwrap_or_else(|error| Err(error.to_string()));
            at.news(News::Planned(planned))
        });
    }

    pub(super) fn mount(&self, uid: PodUid, namespace: &str, fingerprint: Fingerprint, inputs: VolumeInputs) {
        let dir = self.volumes_dir(&uid);
        let of = uid.clone();
        let mounted = self.workshop.folders.call(&holder(namespace), move || {
            let volumes = match inputs.plan() {
                Ok(volumes) => volumes,
                Err(message) => return Observation::VolumesHeld { uid, message },
            };
            match volumes::write(&dir, &volumes) {
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
