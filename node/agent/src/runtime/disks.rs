//! What pods have on the disk: accounts to which volumes, logs and what guests write count alike.

use std::{collections::BTreeMap, sync::Arc};

use coracle_core::PodUid;
use coracle_wasi_host::{Host, PodDisk};
use parking_lot::Mutex;

/// The parts of the disk of all pods of a node. Clones are the same.
#[derive(Clone)]
pub struct Disks {
    host: Host,
    /// They outlive sandboxes: the files are there until they are removed.
    pods: Arc<Mutex<BTreeMap<PodUid, PodDisk>>>,
}

impl Disks {
    pub fn new(host: Host) -> Self {
        Self { host, pods: Arc::default() }
    }

    /// The pod's part, which may be so large; it is made where it has none. Its volumes may be written before it has a sandbox.
    pub fn of(&self, pod: &PodUid, namespace: &str, bytes_max: Option<u64>) -> PodDisk {
        let new = || self.host.disk(&namespace.into(), bytes_max);
        self.pods.lock().entry(pod.clone()).or_insert_with(new).clone()
    }

    /// The pod's part, if it has one.
    pub fn get(&self, pod: &PodUid) -> Option<PodDisk> {
        self.pods.lock().get(pod).cloned()
    }

    /// The same, which is the caller's to keep from now on, until the files are gone.
    pub fn take(&self, pod: &PodUid) -> Option<PodDisk> {
        self.pods.lock().remove(pod)
    }

    pub fn held(&self) -> usize {
        self.pods.lock().len()
    }
}
