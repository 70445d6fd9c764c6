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
/// What is left then may be its logs, in bytes.
const LOGS: u64 = 1 << 20;

/// What has been done about it.
#[derive(Default)]
pub struct Relief {
    /// Too little was free at the last look. What can go without harm goes first: images that nobody uses.
    is_pressed: bool,
    /// The pod that went last, and until when nobody else has to.
    last: Option<(PodUid, Instant)>,
    /// It has been said that no pod's end would help.
    is_told: bool,
}

impl App {
    /// At each look at most one pod.
    pub(super) fn make_room(&mut self) {
        let pressure = disk_pressure(&self.executor.context().pods_dir, self.relief.is_pressed);
        let was_pressed = std::mem::replace(&mut self.relief.is_pressed, pressure.is_some());
        self.relief.is_told &= pressure.is_some();
        let Some(pressure) = pressure.filter(|_| was_pressed && self.synced && !self.room_is_coming()) else {
            return;
        };
        let (resource, threshold, available) = match pressure {
            DiskPressure::Bytes { wanted, free } => ("ephemeral-storage", wanted, free),
            DiskPressure::Inodes { wanted, free } => ("inodes", wanted, free),
        };
        let held = |uid: &PodUid| match self.on_disk(uid) {
            (_, inode_bytes) if resource == "inodes" && inode_bytes > 0 => inode_bytes,
            (bytes, _) => bytes,
        };
        if let Some((uid, failure)) =
            victim(&self.observed, Shortage { resource, threshold, available }, held)
        {
            tracing::warn!(pod.uid = %uid, reason = failure.message, "a pod is evicted");
            self.relief.last = Some((uid.clone(), Instant::now() + REMOVAL));
            self.observe(Observation::Evicted { uid, failure });
        } else if !std::mem::replace(&mut self.relief.is_told, true) {
            tracing::warn!(
                resource,
                threshold,
                available,
                "the disk is nearly full, and not of what pods have written: make room on it"
            );
        }
    }

    /// What the last one had is being removed.
    fn room_is_coming(&self) -> bool {
        let going = |(uid, until): &(PodUid, Instant)| self.on_disk(uid).0 > LOGS && Instant::now() < *until;
        self.relief.last.as_ref().is_some_and(going)
    }

    /// What a pod has on the disk: bytes, and what its names take of the inodes.
    fn on_disk(&self, uid: &PodUid) -> (u64, u64) {
        self.executor.context().disks.get(uid).map_or((0, 0), |disk| disk.held())
    }
}
