//! What the files of a volume take of the disk, counted as they change.
//!
//! A file counts with its length, however little of it was written, and each name with [`ENTRY_BYTES`] beside. A file without
//! a name counts until nobody has it open. What is in the volume before its first guest comes is counted then, once.
//!
//! Locks are taken in this order: names, the length of a file, what is held.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use super::found::{Found, found};
use crate::ledger::{self, Bound, Charge, Holding, Refused};
use crate::refusals::What;

/// Bytes that a name in a directory, with what it stands for, counts as.
pub(crate) const ENTRY_BYTES: u64 = 4 << 10;

/// More than any file system has, and little enough to be added up.
const BYTES_MAX: u64 = 1 << 60;

/// Which file it is, among all of a volume. wasmtime-wasi's hash of device and inode.
pub(super) type FileId = (u64, u64);

/// What a name of a volume stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    pub(super) id: FileId,
    /// The file's length; none where it is no file.
    pub(super) bytes: Option<u64>,
    pub(super) is_last_name: bool,
}

/// What a volume's files take, on the account of its pod.
pub(crate) struct Usage {
    bytes_max: Option<u64>,
    /// What a name takes of the inodes, in bytes of the disk, beyond [`ENTRY_BYTES`]: of what all share alone.
    inode_bytes: u64,
    names: RwLock<()>,
    held: Mutex<Held>,
}

struct Held {
    charge: Charge,
    inodes: Charge,
    /// Files that guests have open.
    open: HashMap<FileId, Open>,
}

impl Held {
    fn shrink_by_name(&mut self, inode_bytes: u64) {
        self.charge.shrink(ENTRY_BYTES);
        self.inodes.shrink(inode_bytes);
    }
}

struct Open {
    handles: usize,
    /// Nothing leads to it but who has it open.
    has_no_name: bool,
    length: Arc<Mutex<()>>,
}

impl Usage {
    /// Of a volume that may take so much. What its names take of inodes beside, so many bytes each, is on another account
    /// without a limit of its own.
    pub(crate) fn new(
        account: &Arc<ledger::Account>,
        bytes_max: Option<u64>,
        (inodes, inode_bytes): (&Arc<ledger::Account>, u64),
    ) -> Arc<Usage> {
        let nothing = |account| Charge::nothing(account, Holding::Disk);
        let held = Held { charge: nothing(account), inodes: nothing(inodes), open: HashMap::new() };
        Arc::new(Usage { bytes_max, inode_bytes, names: RwLock::new(()), held: Mutex::new(held) })
    }

    /// Counts what there is in the volume, which no guest has yet. Blocks.
    pub(crate) fn count(&self, dir: &Path) {
        let found = found(dir);
        let mut held = self.held.lock();
        held.charge.set_held(bytes_of(found));
        held.inodes.set_held(found.names.saturating_mul(self.inode_bytes));
    }

    /// So much more, which the node is to write before it is counted anew, or whose bound forbids it.
    pub(crate) fn take(&self, names: u64, bytes: u64) -> Result<(), Refused> {
        let mut held = self.held.lock();
        let Held { charge, inodes, .. } = &mut *held;
        let more = bytes_of(Found { names, bytes });
        charge.grow(more)?;
        inodes.grow(names.saturating_mul(self.inode_bytes)).inspect_err(|_| charge.shrink(more))
    }

    /// For what makes names, takes them away or has them stand for something else: while this is held none is opened or
    /// closed either.
    pub(crate) fn change_names(&self) -> ChangeNames<'_> {
        ChangeNames { usage: self, _alone: self.names.write() }
    }

    /// For what opens, and makes nothing.
    pub(super) fn keep_names(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read()
    }

    /// Bytes that are counted now.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.held.lock().charge.amount()
    }

    /// Files that are open.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.held.lock().open.len()
    }

    /// Counts a file as open. The names must be kept as they are, or changed by the caller alone.
    pub(super) fn opened(self: &Arc<Usage>, id: FileId, file: Arc<File>) -> OpenFile {
        let mut held = self.held.lock();
        let new = || Open { handles: 0, has_no_name: false, length: Arc::default() };
        let open = held.open.entry(id).or_insert_with(new);
        open.handles += 1;
        OpenFile { usage: Arc::clone(self), id, file, length: Arc::clone(&open.length) }
    }

    fn grow(&self, bytes: u64) -> Result<(), ErrorCode> {
        let mut held = self.held.lock();
        let all = held.charge.amount().saturating_add(bytes);
        let limit = self.bytes_max.unwrap_or(BYTES_MAX).min(BYTES_MAX);
        let grown = if all > limit {
            let refused = Refused {
                what: What::Disk,
                bound: Bound::Volume,
                held: held.charge.amount(),
                asked: bytes,
                limit,
                all: limit,
            };
            held.charge.account().note(refused);
            Err(refused)
        } else {
            held.charge.grow(bytes)
        };
        // As of Linux' project quotas: programs know what to do about a disk that is full.
        grown.map_err(|refused| {
            held.charge.account().remember(refused);
            ErrorCode::InsufficientSpace
        })
    }

    fn grow_by_name(&self) -> Result<(), ErrorCode> {
        self.grow(ENTRY_BYTES)?;
        let mut held = self.held.lock();
        held.inodes.grow(self.inode_bytes).map_err(|refused| {
            held.charge.shrink(ENTRY_BYTES);
            held.charge.account().remember(refused);
            ErrorCode::InsufficientSpace
        })
    }

    fn shrink(&self, bytes: u64) {
        self.held.lock().charge.shrink(bytes);
    }
}

fn bytes_of(found: Found) -> u64 {
    found.names.saturating_mul(ENTRY_BYTES).saturating_add(found.bytes)
}

/// Whoever holds this alone changes the names of a volume.
pub(crate) struct ChangeNames<'a> {
    usage: &'a Usage,
    _alone: RwLockWriteGuard<'a, ()>,
}

impl ChangeNames<'_> {
    /// Makes a name.
    pub(super) fn add<R, E: From<ErrorCode>>(&self, work: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        self.add_with(work, E::from)
    }

    /// The same with errors of another kind.
    pub(crate) fn add_with<R, E>(
        &self,
        work: impl FnOnce() -> Result<R, E>,
        full: impl FnOnce(ErrorCode) -> E,
    ) -> Result<R, E> {
        self.usage.grow_by_name().map_err(full)?;
        work().inspect_err(|_| self.usage.held.lock().shrink_by_name(self.usage.inode_bytes))
    }

    /// A name does not stand any more for what it stood for.
    pub(super) fn removed(&self, named: Named) {
        let mut held = self.usage.held.lock();
        held.shrink_by_name(self.usage.inode_bytes);
        if let Named { id, bytes: Some(bytes), is_last_name: true } = named {
            match held.open.get_mut(&id) {
                Some(open) => open.has_no_name = true,
                // Nobody could have changed its length since it was looked at.
                None => held.charge.shrink(bytes),
            }
        }
    }

    /// Cuts a file off that may be open elsewhere: `length` looks at its length, `work` makes it zero, both `with` what they
    /// need.
    pub(super) fn truncate<T, R, E>(
        &self,
        id: FileId,
        with: &mut T,
        length: impl FnOnce(&mut T) -> Option<u64>,
        work: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let others = self.usage.held.lock().open.get(&id).map(|open| Arc::clone(&open.length));
        let _alone = others.as_ref().map(|length| length.lock());
        let before = length(with).unwrap_or(0);
        let done = work(with)?;
        self.usage.shrink(before);
        Ok(done)
    }
}

/// A file of a volume that a guest has open: one for each time it was opened.
pub(super) struct OpenFile {
    usage: Arc<Usage>,
    id: FileId,
    file: Arc<File>,
    /// Held by whoever changes the file's length.
    length: Arc<Mutex<()>>,
}

impl OpenFile {
    /// Does what may change the file's length: from what it is to what `after` says, where all of it is done.
    pub(super) fn resize<R>(
        &self,
        after: impl FnOnce(u64) -> u64,
        work: impl FnOnce() -> R,
    ) -> Result<R, ErrorCode> {
        let _alone = self.length.lock();
        let before = self.length()?;
        let after = after(before);
        let more = after.saturating_sub(before);
        if more > 0 {
            self.usage.grow(more)?;
        }
        let done = work();
        if after != before {
            // Perhaps a part of it was done.
            self.usage.shrink((before + more).saturating_sub(self.length()?));
        }
        Ok(done)
    }

    fn length(&self) -> Result<u64, ErrorCode> {
        Ok(self.file.metadata()?.len())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let _names = self.usage.names.read();
        let mut held = self.usage.held.lock();
        let Some(open) = held.open.get_mut(&self.id) else { return };
        open.handles -= 1;
        if open.handles > 0 {
            return;
        }
        let frees = open.has_no_name;
        held.open.remove(&self.id);
        if frees {
            held.charge.shrink(self.length().unwrap_or(0));
        }
    }
}
