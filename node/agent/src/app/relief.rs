//! Room on a disk that pods have filled: the pod goes that has taken most of it beyond what it asked for.

use coracle_core::{
    Observation, PodUid,
    eviction::{Shortage, victim},
};
use coracle_wasi_host::{DiskPressure, disk_pressure};
use tokio::time::{Duration, Instant};

use super::App;

/// How long what a pod had is waited for before the next has to go. Much takes long to remove.
const REMOVAL: Duration = Duration::from_secs(60);

/// What has been done about it.
#[derive(Default)]
pub struct Relief {
    /// Too little was free at the last look. What can go without harm goes first: images that nobody uses.
    is_pressed: bool,
    /// The pod that went last, and until when nobody else has to.
    last: Option<(PodUid, Instant)>,
}

impl App {
    /// At each look at most one pod.
    pub(super) fn make_room(&mut self) {
        let pressure = disk_pressure(&self.executor.context().pods_dir, self.relief.is_pressed);
        let was_pressed = std::mem::replace(&mut self.relief.is_pressed, pressure.is_some());
        let Some(pressure) = pressure.filter(|_| was_pressed && self.synced) else { return };
        if self
            .relief
            .last
            .as_ref()
            .is_some_and(|(uid, until)| self.on_disk(uid) != (0, 0) && Instant::now() < *until)
        {
            return;
        }
        let (shortage, of_inodes) = match pressure {
            DiskPressure::Bytes { wanted, free } => (short_of("ephemeral-storage", wanted, free), false),
            DiskPressure::Inodes { wanted, free } => (short_of("inodes", wanted, free), true),
        };
        let held = |uid: &PodUid| {
            let (bytes, inode_bytes) = self.on_disk(uid);
            if of_inodes && inode_bytes > 0 { inode_bytes } else { bytes }
        };
        let Some((uid, failure)) = victim(&self.observed, shortage, held) else {
            return tracing::warn!(
                ?shortage,
                "the disk is nearly full, and not of what pods have written: make room on it"
            );
        };
        tracing::warn!(pod.uid = %uid, reason = failure.message, "a pod is evicted");
        self.relief.last = Some((uid.clone(), Instant::now() + REMOVAL));
        self.observe(Observation::Evicted { uid, failure });
    }

    /// What a pod has on the disk: bytes, and what its names take of the inodes.
    fn on_disk(&self, uid: &PodUid) -> (u64, u64) {
        self.executor.context().disks.get(uid).map_or((0, 0), |disk| disk.held())
    }
}

fn short_of(resource: &'static str, threshold: u64, available: u64) -> Shortage {
    Shortage { resource, threshold, available }
}
