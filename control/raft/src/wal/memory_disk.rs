//! A disk in memory that forgets what was not synced, for tests and the simulator.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, Space};

/// A [`Disk`] whose crashes and faults are made by a test. Clones share one directory.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    fault: Fault,
    syncs: u64,
    space: Option<Space>,
    capacity: Option<u64>,
}

impl State {
    /// What the files take that have names.
    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].current.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }
}

/// What fails from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Writes fail with "no space left".
    Writes,
    /// Syncs fail; what was written may be lost.
    Syncs,
    /// Syncs fail, and what was written counts as clean from then on: no later sync brings it to the disk.
    SyncsForget,
}

#[derive(Default)]
struct Contents {
    synced: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last sync, in order.
    pending: Vec<(usize, Vec<u8>)>,
}

/// An open file of a [`MemoryDisk`].
pub struct MemoryFile {
    state: Arc<Mutex<State>>,
    file: usize,
}

impl MemoryDisk {
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// Loses everything that was not synced. `torn` decides for each unsynced write how many of its bytes
    /// reach the disk nevertheless, counted from its start (0 for none).
    pub fn crash(&self, mut torn: impl FnMut(&[u8]) -> usize) {
        let mut state = self.state.lock();
        state.names = state.synced_names.clone();
        for file in &mut state.files {
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                let kept = torn(&bytes).min(bytes.len());
                put(&mut file.synced, offset, &bytes[..kept]);
            }
            file.current = file.synced.clone();
        }
    }

    pub fn set_fault(&self, fault: Fault) {
        self.state.lock().fault = fault;
    }

    /// How much room the disk says it has from now on; at first as good as without end.
    pub fn set_space(&self, space: Space) {
        self.state.lock().space = Some(space);
    }

    /// The disk holds so many bytes from now on: a write beyond gets as far as there is room, and fails. None: as many as
    /// one likes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// How many bytes the files take.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// How many file syncs have succeeded.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The present contents of a file.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        state.names.get(name).map(|file| state.files[*file].current.clone())
    }

    /// Puts a file there, synced, as corruption or an older life would have left it.
    pub fn plant(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.files.push(Contents { synced: bytes.to_vec(), current: bytes.to_vec(), pending: Vec::new() });
        let file = state.files.len() - 1;
        state.names.insert(name.to_owned(), file);
        state.synced_names.insert(name.to_owned(), file);
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    if bytes.len() < offset + new.len() {
        bytes.resize(offset + new.len(), 0);
    }
    bytes[offset..offset + new.len()].copy_from_slice(new);
}

fn not_found() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let file = *self.state.lock().names.get(name).ok_or_else(not_found)?;
        Ok(MemoryFile { state: self.state.clone(), file })
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<MemoryFile> {
        let mut state = self.state.lock();
        if state.fault != Fault::None {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        state.names.remove(name);
        if bytes > state.free() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let zeroes = vec![0; bytes as usize];
        state.files.push(Contents { synced: zeroes.clone(), current: zeroes, pending: Vec::new() });
        let file = state.files.len() - 1;
        state.names.insert(name.to_owned(), file);
        Ok(MemoryFile { state: self.state.clone(), file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        let file = state.names.remove(from).ok_or_else(not_found)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state.lock().names.remove(name).map(|_| ()).ok_or_else(not_found)
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if matches!(state.fault, Fault::Syncs | Fault::SyncsForget) {
            return Err(io::Error::other("injected fault"));
        }
        state.synced_names = state.names.clone();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state.lock();
        let free = state.free();
        Ok(state.space.unwrap_or(Space { total: state.capacity.unwrap_or(u64::MAX), free }))
    }
}

impl DiskFile for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state.lock().files[self.file].current.len() as u64)
    }

    fn read_all(&self) -> io::Result<Vec<u8>> {
        Ok(self.state.lock().files[self.file].current.clone())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let state = self.state.lock();
        let bytes = &state.files[self.file].current;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let taken = rest.len().min(out.len());
        out[..taken].copy_from_slice(&rest[..taken]);
        Ok(taken)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.fault == Fault::Writes {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let free = state.free();
        let file = &mut state.files[self.file];
        let room = (file.current.len() as u64).saturating_add(free).saturating_sub(offset);
        let fits = &bytes[..room.min(bytes.len() as u64) as usize];
        if !fits.is_empty() {
            put(&mut file.current, offset as usize, fits);
            file.pending.push((offset as usize, fits.to_vec()));
        }
        if fits.len() < bytes.len() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock();
        let fault = state.fault;
        let file = &mut state.files[self.file];
        if fault == Fault::SyncsForget {
            file.pending.clear();
        }
        if matches!(fault, Fault::Syncs | Fault::SyncsForget) {
            return Err(io::Error::other("injected fault"));
        }
        for (offset, bytes) in std::mem::take(&mut file.pending) {
            put(&mut file.synced, offset, &bytes);
        }
        state.syncs += 1;
        Ok(())
    }
}
