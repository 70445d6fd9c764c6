//! What one pod has on the disk: its volumes, and what the node writes for it. It is the pod's as long as the files are there,
//! also when nothing of it runs any more.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use crate::files::{ENTRY_BYTES, Reserve, Usage, Volume};
use crate::ledger::{Account, Bound, Charge, Holding, Ledger, NodeBounds, PodBounds, Refused};

/// A pod's part of the disk. Clones are the same; the last one to go gives it back.
#[derive(Clone)]
pub struct PodDisk {
    inner: Arc<Inner>,
}

struct Inner {
    account: Arc<Account>,
    /// For what names take of the inodes beside.
    inodes: Arc<Account>,
    reserve: Arc<Reserve>,
    /// What is counted of each volume, by its directory.
    volumes: Mutex<BTreeMap<PathBuf, Arc<Usage>>>,
    /// What the node writes, by what for.
    written: Mutex<BTreeMap<String, Written>>,
}

impl PodDisk {
    pub(crate) fn new(
        ledger: &Ledger,
        namespace: &Arc<str>,
        bytes_max: Option<u64>,
        reserve: Arc<Reserve>,
    ) -> PodDisk {
        let bounds = PodBounds { disk: bytes_max, ..PodBounds::default() };
        let (account, inodes) = (ledger.bounded_pod(namespace, bounds), ledger.pod(namespace, None));
        let (volumes, written) = Default::default();
        PodDisk { inner: Arc::new(Inner { account, inodes, reserve, volumes, written }) }
    }

    /// One that shares with nobody, for those who have no host.
    #[doc(hidden)]
    pub fn alone(bytes_max: Option<u64>) -> PodDisk {
        let ledger = Ledger::new(NodeBounds::of(None, None, None, 1));
        PodDisk::new(&ledger, &Arc::from(""), bytes_max, Arc::new(Reserve::nothing(ledger.clone())))
    }

    /// Those of pods of these namespaces, which share so many bytes beyond the little that each has for certain, for those who
    /// have no host.
    #[doc(hidden)]
    pub fn sharing(bytes: u64, namespaces: &[&str]) -> Vec<PodDisk> {
        let ledger = Ledger::new(NodeBounds::of(None, None, None, 1));
        let reserve = Arc::new(Reserve::of_bytes(bytes, ledger.clone()));
        let disk = |name: &&str| PodDisk::new(&ledger, &Arc::from(*name), None, Arc::clone(&reserve));
        namespaces.iter().map(disk).collect()
    }

    /// Where what a volume takes is counted. The first to ask may have to count what is there, and so block.
    pub(crate) fn usage(&self, volume: &Volume) -> Arc<Usage> {
        let Inner { account, inodes, reserve, volumes, .. } = &*self.inner;
        let new = || {
            let usage = Usage::new(account, volume.bytes_max, (inodes, reserve.inode_bytes()));
            usage.count(&volume.dir);
            usage
        };
        Arc::clone(volumes.lock().entry(volume.dir.clone()).or_insert_with(new))
    }

    /// Makes a directory of a volume that the pod asks for, with `make`. Fails also where the volume, the pod or the disk has
    /// no room for it.
    pub fn add_dir(&self, volume: &Volume, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let usage = self.usage(volume);
        let full = |_: ErrorCode| io::Error::from(Errno::NOSPC);
        self.inner.reserve.admit(ENTRY_BYTES).map_err(full)?;
        usage.change_names().add_with(make, full)
    }

    /// Counts a volume that the node writes, where an earlier life of it has left one in `dir`. Once it is counted that costs
    /// nothing. Blocks.
    pub fn count_volume(&self, dir: &Path) {
        self.usage(&Volume { dir: dir.to_owned(), bytes_max: None });
    }

    /// Changes a volume that the node writes in `dir` with `write`, which adds at most so many names and bytes before it takes
    /// others away. What is there afterwards counts, also where `write` fails. Without room nothing is written: the error,
    /// `StorageFull`, says whose bound it was. Blocks.
    pub fn write_volume(
        &self,
        dir: &Path,
        (names, bytes): (u64, u64),
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let usage = self.usage(&Volume { dir: dir.to_owned(), bytes_max: None });
        // What was left of one that failed may have gone since.
        usage.count(dir);
        self.inner.reserve.look(bytes);
        usage.take(names, bytes).map_err(|refused| io::Error::new(ErrorKind::StorageFull, refused))?;
        let written = write();
        usage.count(dir);
        written
    }

    /// What the node writes for `what`, as a container's logs.
    pub fn written(&self, what: &str) -> Written {
        let mut written = self.inner.written.lock();
        if let Some(known) = written.get(what) {
            return known.clone();
        }
        let charge = Charge::nothing(&self.inner.account, Holding::Disk);
        let new = Written { charge: Arc::new(Mutex::new(charge)), reserve: Arc::clone(&self.inner.reserve) };
        written.insert(what.to_owned(), new.clone());
        new
    }

    /// It is that of the pod with this address now.
    pub(crate) fn set_address(&self, address: Option<IpAddr>) {
        self.inner.account.set_address(address);
        self.inner.inodes.set_address(address);
    }

    /// What was in this directory is gone, with all volumes of the pod there.
    pub fn forget(&self, dir: &Path) {
        self.inner.volumes.lock().retain(|volume, _| !volume.starts_with(dir));
    }

    /// The bytes that it has, and how many more its names take of the inodes, as their part of the bytes.
    pub fn held(&self) -> (u64, u64) {
        let Inner { account, inodes, .. } = &*self.inner;
        (account.held(Holding::Disk), inodes.held(Holding::Disk))
    }

    /// Why the pod was last given no more of the disk.
    pub(crate) fn refusal(&self) -> Option<Refused> {
        self.inner.account.refusal()
    }
}

/// Whether there are more bytes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grown {
    Yes,
    /// The pod, or its namespace with more than an equal part, has what it may have.
    ItsOwn,
    /// So it has of what is free, which others may have taken.
    Others,
}

/// Bytes that the node has written for a pod. Clones are the same.
#[derive(Clone)]
pub struct Written {
    charge: Arc<Mutex<Charge>>,
    reserve: Arc<Reserve>,
}

impl Written {
    /// So many more, if they may be had. It may ask the file system, and so block.
    pub fn grow(&self, bytes: u64) -> Grown {
        self.reserve.look(bytes);
        let mut charge = self.charge.lock();
        match charge.grow(bytes).map_err(|refused| refused.bound) {
            Ok(()) => Grown::Yes,
            Err(Bound::PodShare | Bound::Node) => Grown::Others,
            Err(Bound::Namespace) if !charge.account().namespace_has_its_part(Holding::Disk) => Grown::Others,
            Err(_) => Grown::ItsOwn,
        }
    }

    /// There are so many, whether they may be or not: others are refused for it.
    pub fn set(&self, bytes: u64) {
        self.charge.lock().set_held(bytes);
    }

    /// How many there are.
    pub fn bytes(&self) -> u64 {
        self.charge.lock().amount()
    }
}
