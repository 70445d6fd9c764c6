//! A host: engines, artifacts and the guests' executor, shared by all pods of a process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::artifact::{Artifact, CacheDir, CodeStore, Compiles, LocalStore, Pipeline, PrepareError};
use crate::disk::PodDisk;
use crate::engine::Engines;
use crate::executor::Executor;
use crate::files;
use crate::ledger::{Holding, Ledger, NodeBounds};
use crate::limits;
use crate::net::{Namespace, TenantBuffers};
use crate::pool::Pool;
use crate::refusals::Refusals;
use crate::sandbox::{Pod, PodLimits};
use crate::seats::Seats;
use crate::tally::{Tally, Totals};

/// How a host is made.
#[derive(Debug, Clone, Default)]
pub struct HostConfig {
    /// Where compiled components are kept; made (0700) where it does not exist. Must be this user's alone. Guests leave a
    /// part of the file system that it is on free.
    pub cache_dir: PathBuf,
    /// Threads that run guests; 0 is one a core.
    pub guest_threads: usize,
    /// Live instances over all pods; 0 is as many as the machine's limits admit, up to a default.
    pub max_instances: u32,
    /// A binary whose hidden subcommand `compile-component` calls [`crate::compile_child_main`]: compiling then
    /// happens in a limited process. `None` compiles in this process.
    pub compiler: Option<PathBuf>,
}

/// Why a host cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel's limit of mappings is too low for the instances.
    #[error(
        "{instances} instances need {needed} memory mappings and this machine allows {present}; raise the limit with \
         `sysctl -w vm.max_map_count={needed}` or allow fewer instances"
    )]
    MapCount {
        /// What was asked for, or the least that makes sense.
        instances: u32,
        /// Mappings that they take.
        needed: u64,
        /// `vm.max_map_count`.
        present: u64,
    },
    /// wasmtime refuses this machine or configuration.
    #[error("the WebAssembly engine cannot be made: {message}")]
    Engine {
        /// Its words for it.
        message: String,
    },
    /// The cache of compiled components cannot be used.
    #[error("the cache directory {path} cannot be used: {source}; it must be a directory of this user")]
    CacheDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("the guests' threads cannot be started: {0}")]
    Threads(#[source] io::Error),
    /// Guests' timers and files need a runtime for I/O.
    #[error("a host must be made within a tokio runtime")]
    NoRuntime,
}

/// Runs WebAssembly. Cheap to clone; the last clone and the last pod's end stop the guests' threads.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

/// What pods and containers keep of their host.
pub(crate) struct Inner {
    pub(crate) engines: Arc<Engines>,
    pub(crate) artifacts: Arc<Pipeline>,
    pub(crate) executor: Executor,
    /// Places for live instances.
    pub(crate) seats: Arc<Seats>,
    /// What all pods hold.
    pub(crate) ledger: Ledger,
    /// Where guests' file calls are done.
    pub(crate) files: files::Pools,
    pub(crate) reserve: Arc<files::Reserve>,
    pub(crate) tally: Tally,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Host {
    /// Makes the engines with their pools and starts the guests' threads. Call it within a tokio runtime.
    pub fn new(config: HostConfig) -> Result<Host, HostError> {
        Host::over(config, |dir| Arc::new(LocalStore::new(dir)))
    }

    /// The same with compiled code in another store than this node's directory.
    pub(crate) fn over(
        config: HostConfig,
        store: impl FnOnce(CacheDir) -> Arc<dyn CodeStore>,
    ) -> Result<Host, HostError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| HostError::NoRuntime)?;
        let engines = Arc::new(Engines::new(config.max_instances)?);
        let dir = CacheDir::open(&config.cache_dir)?;
        let artifacts = Pipeline::new(Arc::clone(&engines), &dir, store(dir.clone()), config.compiler)?;
        let artifacts = Arc::new(artifacts);
        let threads = match config.guest_threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            threads => threads,
        };
        let ticked = Arc::clone(&engines);
        let executor =
            Executor::start(threads, &runtime, move || ticked.tick()).map_err(HostError::Threads)?;
        let seats = Seats::new(engines.instances_max);
        let machine = limits::machine_memory();
        let memory = machine.map(limits::guests_memory);
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let bounds = NodeBounds::of(machine, memory, open_files, engines.instances_max);
        tracing::info!(threads, instances = engines.instances_max, ?bounds, "sandbox ready");
        let ledger = Ledger::new(bounds);
        let reserve = Arc::new(files::Reserve::at(config.cache_dir, ledger.clone()));
        let files = files::Pools::new();
        Ok(Host {
            inner: Arc::new(Inner {
                engines,
                artifacts,
                executor,
                seats,
                ledger,
                files,
                reserve,
                tally: Tally::default(),
                runtime,
            }),
        })
    }

    /// Makes a file ready to run: compiled, or loaded from the cache, and linked.
    ///
    /// The same bytes are compiled once, however many ask at the same time, and not again soon where that failed.
    /// Compiles wait their turn on the account of `namespace`. Dropping this gives up the wait, and the compile where
    /// nobody else waits for it.
    pub async fn prepare(&self, wasm: &Path, namespace: &str) -> Result<Arc<Artifact>, PrepareError> {
        self.inner.artifacts.prepare(wasm, namespace).await
    }

    /// A pod without containers. The namespace is the caller's to shut down when the pod is gone.
    pub fn pod(&self, limits: PodLimits, namespace: Namespace) -> Pod {
        let disk = self.disk(&namespace.holder().namespace, None);
        self.pod_on(limits, namespace, disk)
    }

    /// The same of one with a part of the disk that it has already.
    pub fn pod_on(&self, limits: PodLimits, namespace: Namespace, disk: PodDisk) -> Pod {
        Pod::new(Arc::clone(&self.inner), limits, namespace, disk)
    }

    /// A part of the disk for a new pod of the Kubernetes namespace, which may take so many bytes.
    pub fn disk(&self, namespace: &Arc<str>, bytes_max: Option<u64>) -> PodDisk {
        PodDisk::new(&self.inner.ledger, namespace, bytes_max, Arc::clone(&self.inner.reserve))
    }

    /// Where what comes to a namespace's services from outside, and is carried on by this node, is counted.
    pub fn tenant_buffers(&self) -> TenantBuffers {
        TenantBuffers::new(self.inner.ledger.clone())
    }

    /// Where it is noted what is refused on account of this host's pods.
    pub fn refusals(&self) -> &Refusals {
        self.inner.ledger.refusals()
    }

    /// Live instances that this host admits.
    pub fn instances_max(&self) -> u32 {
        self.inner.engines.instances_max
    }

    /// Pods of one container that this host surely has room for, whatever else is true of them: those of one namespace,
    /// programs or HTTP components, of WASI 0.2 or 0.3. Large components take the room of several.
    pub fn pods_max(&self) -> u32 {
        self.inner.seats.pods_max()
    }

    /// Changes when instances end after a container has found no room.
    pub fn seats_freed(&self) -> watch::Receiver<u64> {
        self.inner.seats.freed()
    }

    /// Instances that there could be beside those that there are.
    pub fn instances_free(&self) -> usize {
        self.inner.engines.instances_max.saturating_sub(self.inner.seats.live()) as usize
    }

    /// Containers that wait for a component which is not ready.
    pub fn waiting_for_compiler(&self) -> usize {
        self.inner.artifacts.waiting()
    }

    /// Where guests' file calls are done but for their syncs: how many of them run and wait.
    pub fn files(&self) -> &Pool {
        &self.inner.files.calls
    }

    /// Bytes of linear memory that all guests together may have; none where the machine does not say.
    pub fn memory_max(&self) -> Option<u64> {
        self.inner.ledger.memory_max()
    }

    /// Bytes that this host holds on behalf of its guests beside their own memory, and beside what each pod has for certain.
    pub fn held_bytes(&self) -> u64 {
        self.inner.ledger.held(Holding::Heap)
    }

    /// What has become of compiles since the start.
    pub fn compiles(&self) -> Compiles {
        self.inner.artifacts.compiles()
    }

    /// What it has done since its start.
    pub fn totals(&self) -> Totals {
        self.inner.tally.read(self.inner.executor.cpu(), self.compiles())
    }

    /// What the host holds now, by what it is: for whoever looks for what was not given back.
    pub fn held(&self) -> Vec<(&'static str, usize)> {
        let held = |holding| usize::try_from(self.inner.ledger.held(holding)).unwrap_or(usize::MAX);
        let mut all = vec![
            ("instance seats", self.inner.seats.live() as usize),
            ("namespaces with accounts", self.inner.ledger.tenants()),
            ("guest memory bytes", held(Holding::Memory)),
            ("shared heap bytes of guests", held(Holding::Heap)),
            ("shared open files of guests", held(Holding::Files)),
            ("shared disk bytes of guests", held(Holding::Disk)),
            ("refusals to be told", self.refusals().held().0),
            // Pods and containers keep the host, one reference each.
            ("host references", Arc::strong_count(&self.inner)),
        ];
        all.extend(self.inner.artifacts.held());
        all
    }
}

/// Switches backtraces of errors within libraries off for this process, unless they are asked for by name.
///
/// With `RUST_BACKTRACE=1` each "would block" of a guest's socket would otherwise capture one, which costs more than
/// the call. Binaries call this first in `main`: where it is needed the process replaces itself by the same program
/// with `RUST_LIB_BACKTRACE=0`, since a running process' environment cannot be changed safely. Returns where nothing
/// had to be done, and with the error where the program could not be started anew.
pub fn disable_library_backtraces() -> io::Result<()> {
    use std::os::unix::process::CommandExt;

    let wanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    if !wanted || std::env::var_os("RUST_LIB_BACKTRACE").is_some() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut program = std::process::Command::new(std::env::current_exe()?);
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    Err(program.args(arguments).env("RUST_LIB_BACKTRACE", "0").exec())
}
