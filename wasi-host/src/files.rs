//! `wasi:filesystem` 0.2 and 0.3 on threads of their own.
//!
//! wasmtime-wasi does what blocks on the runtime's threads for such work, which are everybody's, or on the guest's own
//! thread. Here each call of a guest, its streams' and listings' among them, is done on a [`Pool`] on account of its pod,
//! and the guest waits asynchronously. There wasmtime-wasi's own functions are called, for what paths mean and may reach
//! is theirs to say. What is open is closed there as well: the last handle on a file that was removed frees its blocks.
//!
//! All handles of a guest are the types of this folder, converted by their numbers in the resource table.

mod calls;
mod capability;
mod convert;
mod found;
mod listing;
mod mounts;
mod p2;
mod p3;
mod reserve;
mod transfer;
mod usage;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, Dir, WasiFilesystemCtx};
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;
use wasmtime_wasi::p2::{FsError, FsResult};
use wasmtime_wasi::{FsPerms, OpenMode, WasiCtx};

use crate::ledger::{self, Bound, Charge, Holding, Refused};
use crate::pool::{Call, NotDone, Pool, WAITING_MAX};
use crate::refusals::What;
use crate::shares::{Certain, Holder, Shares};
pub(crate) use capability::PodFiles;
pub(crate) use listing::Listing;
pub use mounts::{Mount, Volume};
pub use reserve::{DiskPressure, disk_pressure};
pub(crate) use reserve::{Reserve, has_room};
use transfer::TRANSFER_BYTES_MAX;
use usage::OpenFile;
pub(crate) use usage::{ENTRY_BYTES, Usage};

/// Calls of all guests that run at once: a pod has at most a third of them, a namespace half.
pub(crate) const CALLS_MAX: usize = 64;

/// Calls that wait for the disk itself to have everything, of all guests at once: more of them make no disk faster, and each
/// wakes a thread that takes its part of the CPU.
const SYNCS_MAX: usize = 8;

/// How many more of either run where they are the only ones of their pods: a disk that does not answer holds up those of others
/// no sooner than the pods of many namespaces wait for it.
const CALLS_CERTAIN: usize = 16;
const SYNCS_CERTAIN: usize = 4;

/// Their threads have the host's own priority: a call is short, and a guest that is due waits for it.
const THREAD_NICE: i32 = 0;

/// Bytes that a stream reads or takes at once where the host's memory is scarce.
const BYTES_SQUEEZED: usize = 4 << 10;

/// Directories that a container mounts beyond which each is charged as an open file; fewer where a pod has fewer files for
/// certain, because the process has few.
const DIRS_FREE: u64 = 4;

/// Bytes of a path, as Linux has it.
const PATH_BYTES_MAX: usize = 4096;

/// The handle type that the generated traits speak of; only its number is ours.
type Handle = Resource<Descriptor>;

/// Where guests' file calls are done.
#[derive(Clone)]
pub(crate) struct Pools {
    pub(crate) calls: Arc<Pool>,
    /// What waits for the disk to have everything: it holds up nothing else.
    syncs: Arc<Pool>,
}

impl Pools {
    pub(crate) fn new() -> Self {
        let shares = |size, all| Shares::with_certain(What::Calls, size, Certain { each: 1, all });
        Self {
            calls: Pool::with("guest-files", shares(CALLS_MAX, CALLS_CERTAIN), THREAD_NICE),
            syncs: Pool::with("guest-syncs", shares(SYNCS_MAX, SYNCS_CERTAIN), THREAD_NICE),
        }
    }
}

/// Where a pod's file calls are done, and on whose account.
pub(crate) struct Account {
    pools: Pools,
    holder: Holder,
    /// What the container has the host hold: open files, and bytes on their way.
    ledger: Arc<ledger::Account>,
    /// What is left of the disk.
    reserve: Arc<Reserve>,
}

impl Account {
    pub(crate) fn new(
        pools: Pools,
        holder: Holder,
        ledger: Arc<ledger::Account>,
        reserve: Arc<Reserve>,
    ) -> Arc<Self> {
        Arc::new(Self { pools, holder, ledger, reserve })
    }

    /// The charge for one more open file. WASI has no error for too many: it is told as a want of memory, of the kernel's.
    fn one_more(&self) -> Result<Charge, ErrorCode> {
        self.ledger.charge(Holding::Files, 1).map_err(|_| ErrorCode::InsufficientMemory)
    }

    /// The charge for bytes that wait for the disk or for the guest.
    fn hold(&self, bytes: usize) -> Result<Charge, ErrorCode> {
        self.ledger.charge(Holding::Heap, bytes as u64).map_err(|_| ErrorCode::InsufficientMemory)
    }

    /// How many of so many bytes may be read, and the charge for them: few where the host's memory is scarce.
    fn hold_some(&self, bytes: usize) -> (usize, Option<Charge>) {
        match self.ledger.try_charge(Holding::Heap, bytes as u64) {
            Ok(charge) => (bytes, Some(charge)),
            Err(_) => (bytes.min(BYTES_SQUEEZED), None),
        }
    }

    /// How many bytes a stream may take at once: few where the host's memory is scarce.
    fn room(&self) -> usize {
        if self.ledger.is_pressed(Holding::Heap) { BYTES_SQUEEZED } else { TRANSFER_BYTES_MAX }
    }

    /// As many of the guest's bytes as a stream may take at once. They are held for as long as they wait.
    fn take_some(&self, bytes: &[u8]) -> Bytes {
        let some = &bytes[..bytes.len().min(self.room())];
        self.ledger.hold_bytes(Bytes::copy_from_slice(some))
    }

    /// Does what may block. By this and [`Account::sync`] alone a guest's file calls reach the disk.
    fn call<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Call<R> {
        self.noted(self.pools.calls.call(&self.holder, work))
    }

    /// Does what waits for the disk to have everything.
    fn sync<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Call<R> {
        self.noted(self.pools.syncs.call(&self.holder, work))
    }

    fn noted<R>(&self, call: Call<R>) -> Call<R> {
        if call.is_refused() {
            self.ledger.note(Refused::full(What::WaitingCalls, Bound::Pod, WAITING_MAX));
        }
        call
    }
}

/// Something of the host's file system that a guest has open. It is closed where closing may block.
pub(crate) struct Opened<T: Send + 'static> {
    /// There until it is closed.
    inner: Option<T>,
    /// For as long as it is open; none for what the pod mounts.
    charge: Option<Charge>,
    /// The volume that it is of, where what that takes is counted.
    volume: Option<Arc<Usage>>,
    /// Of a file in such a volume.
    counted: Option<OpenFile>,
    account: Arc<Account>,
}

impl<T: Send> Opened<T> {
    /// The one place where what a guest has open begins to be held.
    fn new(inner: T, account: &Arc<Account>, charge: Option<Charge>) -> Self {
        let (volume, counted) = Default::default();
        Self { inner: Some(inner), charge, volume, counted, account: Arc::clone(account) }
    }
}

impl<T: Send> Drop for Opened<T> {
    fn drop(&mut self) {
        let open = (self.counted.take(), self.inner.take(), self.charge.take());
        self.account.pools.calls.post(&self.account.holder, move || drop(open));
    }
}

/// A file or directory of a guest.
pub(crate) type OpenDescriptor = Arc<Opened<Descriptor>>;

impl Opened<Descriptor> {
    /// Fails where it has been closed, which none is that a handle leads to.
    pub(crate) fn descriptor(&self) -> Result<&Descriptor, ErrorCode> {
        self.inner.as_ref().ok_or(ErrorCode::BadDescriptor)
    }

    /// The open file, where it is one that may be written.
    fn writable(&self) -> Result<(), ErrorCode> {
        match self.descriptor()? {
            Descriptor::File(file) if file.perms.write_not_permitted() => Err(ErrorCode::NotPermitted),
            Descriptor::File(_) => Ok(()),
            Descriptor::Dir(_) => Err(ErrorCode::BadDescriptor),
        }
    }

    /// Makes a name in its volume.
    fn add_name<R>(&self, work: impl FnOnce() -> FsResult<R>) -> FsResult<R> {
        match &self.volume {
            Some(volume) => volume.change_names().add(work),
            None => work(),
        }
    }

    /// Fails where names of the other stand for what is elsewhere, as between two mounts of Linux.
    fn is_of_one_volume(&self, other: &Self) -> Result<(), ErrorCode> {
        let which = |opened: &Self| opened.volume.as_ref().map(Arc::as_ptr);
        if which(self) == which(other) { Ok(()) } else { Err(ErrorCode::CrossDevice) }
    }

    /// Does what may change the length of the file, to what `after` makes of what it is.
    fn resize<R>(&self, after: impl FnOnce(u64) -> u64, work: impl FnOnce() -> R) -> Result<R, ErrorCode> {
        match &self.counted {
            Some(counted) => counted.resize(after, work),
            None => Ok(work()),
        }
    }

    /// The open file, where it is one that may be read.
    fn readable(&self) -> Result<(), ErrorCode> {
        match self.descriptor()? {
            Descriptor::File(_) => Ok(()),
            Descriptor::Dir(_) => Err(ErrorCode::IsDirectory),
        }
    }
}

/// The file system of one container: its directories, and where its calls are done.
pub(crate) struct Files {
    account: Arc<Account>,
    /// Has wasmtime-wasi block where it is called.
    blocking: WasiFilesystemCtx,
    /// What the guest finds open, with the paths in it.
    dirs: Vec<(OpenDescriptor, String)>,
}

impl Files {
    pub(crate) fn new(account: Arc<Account>) -> Self {
        let mut wasi = WasiCtx::builder().allow_blocking_current_thread(true).build();
        let blocking = std::mem::take(wasi.filesystem());
        Self { account, blocking, dirs: Vec::new() }
    }

    /// Lets the guest find the directory at `path`, with where the volume that it is of is counted.
    pub(crate) fn mount(&mut self, mut dir: Dir, path: String, read_only: bool, volume: Option<Arc<Usage>>) {
        if read_only {
            (dir.perms, dir.open_mode) = (FsPerms::ReadOnly, OpenMode::READ);
        }
        let mut dir = Opened::new(Descriptor::Dir(dir), &self.account, None);
        dir.volume = volume;
        self.dirs.push((Arc::new(dir), path));
    }

    /// The directories that the guest finds open, with their paths.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = &(OpenDescriptor, String)> {
        self.dirs.iter()
    }

    /// The charge for so many directories that it has open: a few are part of every container.
    fn charge_dirs(&self, count: usize) -> Result<Charge, Refused> {
        let free = DIRS_FREE.min(self.account.ledger.files_guaranteed());
        let beyond = (count as u64).saturating_sub(free);
        self.account.ledger.charge(Holding::Files, beyond)
    }
}

/// What the file functions need of a store.
pub(crate) struct FilesCtxView<'a> {
    /// Where the guest's handles live.
    pub(crate) table: &'a mut ResourceTable,
    pub(crate) files: &'a Arc<Files>,
}

impl FilesCtxView<'_> {
    fn opened(&self, handle: &Handle) -> wasmtime::Result<OpenDescriptor> {
        let opened: &OpenDescriptor = self.table.get(&Resource::new_borrow(handle.rep()))?;
        Ok(Arc::clone(opened))
    }

    fn push(&mut self, opened: OpenDescriptor) -> wasmtime::Result<Handle> {
        Ok(Resource::new_own(self.table.push(opened)?.rep()))
    }

    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Handle, String)>> {
        let files = Arc::clone(self.files);
        files.dirs.iter().map(|(dir, path)| Ok((self.push(Arc::clone(dir))?, path.clone()))).collect()
    }

    fn close(&mut self, handle: &Handle) -> wasmtime::Result<()> {
        self.table.delete(Resource::<OpenDescriptor>::new_own(handle.rep()))?;
        Ok(())
    }
}

/// A path that is not too long to be kept while its call waits.
fn fitting(path: String) -> Result<String, ErrorCode> {
    if path.len() > PATH_BYTES_MAX { Err(ErrorCode::NameTooLong) } else { Ok(path) }
}

/// What a guest is told of a call that was not done.
fn not_done(error: NotDone) -> ErrorCode {
    match error {
        NotDone::Full => ErrorCode::Busy,
        NotDone::Lost => ErrorCode::Io,
    }
}

/// What has been done without waiting, since wasmtime-wasi was told that it may block.
fn now<R>(call: impl Future<Output = FsResult<R>>) -> FsResult<R> {
    use futures::FutureExt as _;
    call.now_or_never().unwrap_or_else(|| Err(FsError::trap(wasmtime::format_err!("a file call would wait"))))
}
