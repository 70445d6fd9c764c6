//! A member's disk: the raft crate's [`MemoryDisk`], which can go out in the middle of anything.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_raft::wal::{Disk, DiskFile, Fault, MemoryDisk, MemoryFile, Space};

use crate::rng::Rng;

/// What reaches a disk as a whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;

/// A [`Disk`] with a fuse. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    inner: MemoryDisk,
    fuse: Arc<Mutex<Fuse>>,
}

struct Fuse {
    /// So many operations still succeed. None: all.
    left: Option<u64>,
    /// Writes are taken, and done by nobody.
    deaf: bool,
    rng: Rng,
}

/// An open file of a [`SimDisk`].
pub struct SimFile {
    inner: MemoryFile,
    fuse: Arc<Mutex<Fuse>>,
}

impl SimDisk {
    pub fn new(rng: Rng) -> SimDisk {
        SimDisk {
            inner: MemoryDisk::new(),
            fuse: Arc::new(Mutex::new(Fuse { left: None, deaf: false, rng })),
        }
    }

    /// After so many operations all others fail, until power is back.
    pub fn burn_after(&self, operations: u64) {
        lock(&self.fuse).left = Some(operations);
    }

    pub fn power_is_back(&self) {
        lock(&self.fuse).left = None;
    }

    /// What is written from now on is not.
    pub fn set_deaf(&self, deaf: bool) {
        lock(&self.fuse).deaf = deaf;
    }

    /// So many more bytes than now are taken, and no others. None: as many as one likes.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.inner.set_capacity(bytes.map(|bytes| self.inner.used() + bytes));
    }

    /// What was not synced is lost, torn, or there after all.
    pub fn lose_power(&self) {
        let mut fuse = lock(&self.fuse);
        let rng = &mut fuse.rng;
        if rng.chance(500) {
            // Names may have reached the disk although nobody asked for it.
            let _ = self.inner.sync_directory();
        }
        let (kept, torn) = (rng.below(1001), rng.below(300));
        self.inner.crash(|bytes| match rng.below(1000) {
            drawn if drawn < torn => rng.index(bytes.len() + 1),
            _ if rng.chance(kept) => bytes.len(),
            _ => 0,
        });
    }

    pub fn set_fault(&self, fault: Fault) {
        self.inner.set_fault(fault);
    }
}

/// A run has one thread, so nobody can have panicked with the lock held and gone on.
fn lock(fuse: &Mutex<Fuse>) -> MutexGuard<'_, Fuse> {
    fuse.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one operation off the fuse.
fn step(fuse: &Mutex<Fuse>) -> io::Result<()> {
    match &mut lock(fuse).left {
        Some(0) => Err(io::Error::other("the power is off")),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        Ok(SimFile { inner: self.inner.open(name)?, fuse: self.fuse.clone() })
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<SimFile> {
        step(&self.fuse)?;
        Ok(SimFile { inner: self.inner.create(name, bytes)?, fuse: self.fuse.clone() })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        step(&self.fuse)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        step(&self.fuse)?;
        self.inner.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        step(&self.fuse)?;
        self.inner.sync_directory()
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_all(&self) -> io::Result<Vec<u8>> {
        self.inner.read_all()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, out)
    }

    /// While the fuse burns, a write is many: any of its sectors may be lost.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        step(&self.fuse)?;
        if lock(&self.fuse).deaf {
            return Ok(());
        }
        if lock(&self.fuse).left.is_none() {
            return self.inner.write_at(offset, bytes);
        }
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let to_boundary = SECTOR_BYTES - at as usize % SECTOR_BYTES;
            let (sector, tail) = rest.split_at(to_boundary.min(rest.len()));
            self.inner.write_at(at, sector)?;
            at += sector.len() as u64;
            rest = tail;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        step(&self.fuse)?;
        self.inner.sync()
    }
}
