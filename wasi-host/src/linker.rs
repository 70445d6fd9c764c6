//! The one place of all grants: what a guest is linked to, and what its store holds.
//!
//! Nothing is inherited from the process. A guest has the clocks and random numbers, its own arguments, environment,
//! output, directories and network namespace, and nothing that is not named here.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use wasmtime::component::Linker;
use wasmtime::{CallHook, Engine, Store, StoreContextMut};
use wasmtime_wasi::filesystem::Dir;
use wasmtime_wasi::{FsPerms, OpenMode, ResourceTable, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::engine::WasiVersion;
use crate::files::{self, Files, FilesCtxView, FilesView, Usage};
use crate::http::{self, OutgoingHttp};
use crate::ledger::{Account, Refused};
use crate::limits::{RANDOM_BYTES_MAX, StoreLimiter};
use crate::logs::{LogSink, LogStream};
use crate::meter::Meter;
use crate::net::Namespace;
use crate::sandbox::StartError;
use crate::seats::Seat;
use crate::sockets::{self, SocketCtxView, SocketView};
use crate::stdin::OpenStdin;

/// Bytes of one set of HTTP headers, with some 70 for each field.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// Bytes of an instance's structures that are part of what every store takes; most programs have fewer.
const STRUCTURES_FREE: u64 = 256 << 10;

/// A directory of the host that a guest sees.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The directory on the host; for messages only where `pin` is set.
    pub host: PathBuf,
    /// The directory itself, opened where its path was checked: what guests do to that path later changes nothing.
    /// Without it, the path is opened once, when the container is started.
    pub pin: Option<Arc<OwnedFd>>,
    /// Its absolute path in the guest.
    pub guest: String,
    /// Nothing under it can be changed by the guest.
    pub read_only: bool,
    /// The volume that it is of; none where only the node writes it.
    pub volume: Option<Volume>,
}

/// Files that guests of one pod write and share. What they take of the disk is counted together, however often and under
/// whatever paths the volume is mounted.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its directory on the host.
    pub dir: PathBuf,
    /// Bytes that its files may take: their lengths, and 4 KiB for each name.
    pub bytes_max: Option<u64>,
}

/// A mount whose directory was found once and for all.
pub(crate) struct PinnedMount {
    dir: Dir,
    guest: String,
    read_only: bool,
    volume: Option<Volume>,
}

impl PinnedMount {
    /// The mounts of a container, and how many directories they are: each is opened once.
    pub(crate) fn all(mounts: &[Mount]) -> Result<(Vec<PinnedMount>, usize), StartError> {
        let mut opened: BTreeMap<&Path, Dir> = BTreeMap::new();
        let mut all = Vec::with_capacity(mounts.len());
        for mount in mounts {
            let dir = match opened.get(&*mount.host) {
                Some(known) => known.clone(),
                None => {
                    let dir = open(mount).map_err(|error| StartError::Mount {
                        host: mount.host.display().to_string(),
                        guest: mount.guest.clone(),
                        message: error.to_string(),
                    })?;
                    opened.insert(&mount.host, dir.clone());
                    dir
                }
            };
            let (guest, volume) = (mount.guest.clone(), mount.volume.clone());
            all.push(PinnedMount { dir, guest, read_only: mount.read_only, volume });
        }
        Ok((all, opened.len()))
    }

    /// Lets the guest of `files` find the directory. `usage` says where a volume is counted.
    pub(crate) fn mount(self, files: &mut Files, usage: impl FnOnce(&Volume) -> Arc<Usage>) {
        files.mount(self.dir, self.guest, self.read_only, self.volume.as_ref().map(usage));
    }
}

/// Opens a mount's directory, where that has not been done. Fails where it cannot be read as a directory.
fn open(mount: &Mount) -> io::Result<Dir> {
    let dir = match &mount.pin {
        Some(pin) => pin.try_clone()?,
        None => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&mount.host, flags, Mode::empty())?
        }
    };
    // Fails here rather than in the guest's task: the caller can say what is wrong with the spec.
    rustix::fs::openat(&dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Dir::new(dir.into(), FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE, true))
}

/// What one container's instances are given.
pub(crate) struct Grants {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) files: Arc<Files>,
    pub(crate) stdout: Arc<dyn LogSink>,
    pub(crate) stderr: Arc<dyn LogSink>,
    /// Standard input waits until this is cancelled and ends then; without it, it is at its end from the start.
    pub(crate) stdin_until: Option<CancellationToken>,
    pub(crate) namespace: Namespace,
    /// On whose account it all is.
    pub(crate) account: Arc<Account>,
    /// Outgoing HTTP requests of the container that may be under way.
    pub(crate) outgoing: Arc<Semaphore>,
}

impl Grants {
    /// The charge for a new store of an instance with structures of so many bytes, or who has no room for it.
    pub(crate) fn meter(&self, version: WasiVersion, structures: u64) -> Result<Meter, Refused> {
        let args = self.args.iter().map(String::len).sum::<usize>();
        let env = self.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let strings = self.args.len() + 2 * self.env.len();
        let copied = args + env + strings * std::mem::size_of::<String>();
        let beyond = structures.saturating_sub(STRUCTURES_FREE);
        Meter::new(&self.account, copied as u64 + beyond, version == WasiVersion::P3)
    }

    /// The data of a new store.
    pub(crate) fn state(&self, seat: Seat, meter: Meter) -> State {
        let mut builder = WasiCtx::builder();
        builder
            .args(&self.args)
            .envs(&self.env)
            .stdout(LogStream::new(Arc::clone(&self.stdout), &self.account))
            .stderr(LogStream::new(Arc::clone(&self.stderr), &self.account))
            .max_random_size(RANDOM_BYTES_MAX);
        if let Some(until) = &self.stdin_until {
            builder.stdin(OpenStdin::new(until.clone()));
        }
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        State {
            table: meter.table(),
            meter,
            wasi: builder.build(),
            http,
            outgoing: OutgoingHttp::new(
                self.namespace.clone(),
                Arc::clone(&self.outgoing),
                Arc::clone(&self.account),
            ),
            namespace: self.namespace.clone(),
            files: Arc::clone(&self.files),
            limiter: StoreLimiter::new(&self.account),
            _seat: seat,
        }
    }
}

/// The data of every store.
///
/// The table is first: what it holds is dropped before what that refers to.
pub(crate) struct State {
    table: ResourceTable,
    meter: Meter,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: OutgoingHttp,
    namespace: Namespace,
    files: Arc<Files>,
    pub(crate) limiter: StoreLimiter,
    /// Its part of the live instances that the host admits.
    _seat: Seat,
}

impl State {
    /// Whether the host may hold more for the guest than it does: more fields, larger ones, another request.
    pub(crate) fn may_grow(&mut self) -> bool {
        self.http();
        !self.meter.is_over()
    }

    /// Something of an outgoing request was set.
    pub(crate) fn note_http_change(&mut self) {
        self.outgoing.note_change();
    }

    /// The head of a request that the guest will have, for as long as the store lives.
    pub(crate) fn hold_head(&mut self, bytes: u64) -> Result<(), Refused> {
        self.meter.hold(bytes)
    }
}

// These are called at each call of a guest, before what it does: it is here that what the last one left is counted.

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.meter.make_room(&mut self.table);
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.meter.make_room(&mut self.table);
        if self.outgoing.take_changed() || self.meter.is_over() {
            self.meter.count(&mut self.table);
            self.outgoing.squeeze(self.meter.is_over());
        }
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

impl SocketView for State {
    fn sockets(&mut self) -> SocketCtxView<'_> {
        self.meter.make_room(&mut self.table);
        SocketCtxView { table: &mut self.table, namespace: &self.namespace }
    }
}

impl FilesView for State {
    fn files(&mut self) -> FilesCtxView<'_> {
        self.meter.make_room(&mut self.table);
        FilesCtxView { table: &mut self.table, files: &self.files }
    }
}

/// Has the table of the store's tasks grow as its guest needs it. wasmtime makes tasks, streams and futures there without
/// asking anybody; but before each call of a guest to the host, those that it carries out itself as well, this is called. On the
/// engine of 0.2 there is no such table.
pub(crate) fn meter_tasks(store: &mut Store<State>) {
    let places = store.data().meter.tasks();
    let Some(tasks) = store.concurrent_resource_table() else { return };
    tasks.set_max_capacity(places);
    store.call_hook(|mut store, call| {
        if matches!(call, CallHook::CallingHost) {
            // Without room, what is made beyond the last place is refused, and traps.
            make_room_for_tasks(&mut store);
        }
        Ok(())
    });
}

/// Whether there is room for the tasks, streams and futures of one call more.
pub(crate) fn make_room_for_tasks(store: &mut StoreContextMut<'_, State>) -> bool {
    let near_end = store.data().meter.tasks_near_end();
    let is_near_end = |tasks: &mut ResourceTable| tasks.get_any_mut(near_end).is_ok();
    if !store.concurrent_resource_table().is_some_and(is_near_end) {
        return true;
    }
    let Some(places) = store.data_mut().meter.grow_tasks() else { return false };
    if let Some(tasks) = store.concurrent_resource_table() {
        tasks.set_max_capacity(places);
    }
    true
}

/// All that a component may import. What is not here cannot be imported.
pub(crate) fn linker(engine: &Engine, version: WasiVersion) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if version == WasiVersion::P3 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    http::growing::add_p2_to_linker(&mut linker)?;
    if version == WasiVersion::P3 {
        http::growing::add_p3_to_linker(&mut linker)?;
    }
    // The sockets above are the host's own and deny everything, and the files block threads that are everybody's; the
    // pod's take their place.
    sockets::add_p2_to_linker(&mut linker)?;
    files::add_p2_to_linker(&mut linker)?;
    if version == WasiVersion::P3 {
        sockets::add_p3_to_linker(&mut linker)?;
        files::add_p3_to_linker(&mut linker)?;
    }
    Ok(linker)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_pinned_directory_stays_the_same_whatever_takes_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let (host, other) = (dir.path().join("volume"), dir.path().join("secrets"));
        for (path, file) in [(&host, "mine"), (&other, "theirs")] {
            std::fs::create_dir(path).expect("made");
            std::fs::write(path.join(file), "").expect("written");
        }
        let pin = Some(Arc::new(OwnedFd::from(std::fs::File::open(&host).expect("there"))));
        let mount = Mount {
            host: host.clone(),
            pin: None,
            guest: "/data".to_owned(),
            read_only: false,
            volume: None,
        };
        let opened = open(&mount).expect("there");
        std::fs::rename(&host, dir.path().join("moved")).expect("moved");
        std::os::unix::fs::symlink(&other, &host).expect("linked");
        let pinned = open(&Mount { pin, ..mount }).expect("there");
        for dir in [opened, pinned] {
            let path = format!("/proc/self/fd/{}", dir.dir.as_raw_fd());
            let names = std::fs::read_dir(path).expect("readable").flatten();
            let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
            assert_eq!(names, ["mine"]);
        }
    }

    #[test]
    fn a_directory_is_opened_once_however_often_it_is_mounted() {
        let dir = tempfile::tempdir().expect("a directory");
        let mount = |number: usize| Mount {
            host: dir.path().to_owned(),
            pin: None,
            guest: format!("/data/{number}"),
            read_only: number == 0,
            volume: None,
        };
        let mounts: Vec<_> = (0..1000).map(mount).collect();
        let (all, dirs) = PinnedMount::all(&mounts).expect("there");
        assert_eq!((all.len(), dirs), (1000, 1));
        assert!(all.iter().all(|mount| Arc::ptr_eq(&mount.dir.dir, &all[0].dir.dir)));
    }
}
