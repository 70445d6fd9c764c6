//! Artifacts: from the bytes of a `.wasm` file to something that can be instantiated.
//!
//! What a file is decides [`inspect`]; compiled code comes from the [`cache`] on disk or from [`compile`]; what it may
//! import decides the linker. Everything that a user can do wrong here ends as a [`PrepareError`] with the mend in it.

mod cache;
mod compile;
mod inspect;
mod nesting;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::HostError;
use crate::engine::{self, Engines, WasiVersion, compatibility};
use crate::linker::{self, State};

use cache::DiskCache;
use compile::Compilers;
use inspect::Form;

pub use compile::compile_child_main;

/// Bytes of a `.wasm` file: several times what interpreters compiled to WebAssembly need.
const WASM_BYTES_MAX: u64 = 256 << 20;

/// Artifacts kept ready in memory beyond those that containers use.
const READY_MAX: usize = 512;

/// Files whose digests are remembered.
const KNOWN_FILES_MAX: usize = 4096;

/// How a component is run, decided by what it exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// `wasi:cli/run`: a server or a job.
    Command,
    /// `wasi:http/incoming-handler` of WASI 0.2: a fresh instance a request.
    HttpP2,
    /// `wasi:http/handler` of WASI 0.3: instances serve many requests.
    HttpP3,
}

/// Why a file cannot be run. The texts are shown to users.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Neither a component nor a module.
    #[error("not WebAssembly: the file begins with {begins}; build it with a target such as wasm32-wasip2")]
    NotWasm {
        /// The first bytes, readable.
        begins: String,
    },
    /// A core module that wants another host than WASI.
    #[error(
        "the core module imports {imports}, which no WASI host offers; build it for wasm32-wasip2 (or wasm32-wasip1), \
         or make it a component"
    )]
    NotWasi {
        /// The foreign imports, at most a few of them.
        imports: String,
    },
    /// Compiled by a clang whose wasi-libc corrupts memory under the preview 1 adapter.
    #[error(
        "the module was built with clang {version}, whose memory allocator corrupts data under WASI; rebuild it with \
         clang 15.0.7 or newer (wasi-sdk 19 or newer)"
    )]
    OldClang {
        /// As the producers section names it.
        version: String,
    },
    /// Nothing to call.
    #[error(
        "nothing to run: it exports {exports}, but neither wasi:cli/run (a program) nor wasi:http/incoming-handler or \
         wasi:http/handler (a server); is it a library?"
    )]
    NoEntry {
        /// What it exports instead, at most a few names.
        exports: String,
    },
    /// It imports what this host does not have.
    #[error("the component needs what this host does not offer: {message}")]
    MissingImport {
        /// The linker's words for it.
        message: String,
    },
    /// Invalid, or beyond the compiler's limits.
    #[error("it does not compile: {message}")]
    Compile {
        /// The compiler's words for it.
        message: String,
    },
    /// Larger than any sensible program.
    #[error("the file has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The file's size.
        bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// The file cannot be read, or the cache directory cannot be written.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl PrepareError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PrepareError {
        let path = path.to_owned();
        move |source| PrepareError::Io { what, path, source }
    }
}

/// A component that is compiled, linked and ready for instances.
pub struct Artifact {
    digest: String,
    entry: Entry,
    /// Seats that one instance takes.
    pub(crate) weight: u32,
    pub(crate) pre: Pre,
}

/// The prepared component by the world that it is called through.
pub(crate) enum Pre {
    CommandP2(wasmtime_wasi::p2::bindings::CommandPre<State>),
    CommandP3(wasmtime_wasi::p3::bindings::CommandPre<State>),
    HttpP2(ProxyPre<State>),
    HttpP3(ServicePre<State>),
}

impl Artifact {
    /// How it is run.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// SHA-256 of the `.wasm` file, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) fn version(&self) -> WasiVersion {
        match self.pre {
            Pre::CommandP2(_) | Pre::HttpP2(_) => WasiVersion::P2,
            Pre::CommandP3(_) | Pre::HttpP3(_) => WasiVersion::P3,
        }
    }
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifact")
            .field("digest", &self.digest)
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// All artifacts of a host: at most one compile of the same bytes at a time, in memory as long as they are used.
pub(crate) struct Artifacts {
    engines: Arc<Engines>,
    linker_p2: Linker<State>,
    linker_p3: Linker<State>,
    disk: DiskCache,
    compilers: Compilers,
    ready: Mutex<HashMap<String, Slot>>,
    known_files: Mutex<HashMap<PathBuf, KnownFile>>,
    compiled: std::sync::atomic::AtomicU64,
}

/// One artifact, perhaps in the making.
struct Slot {
    artifact: Arc<OnceCell<Arc<Artifact>>>,
    /// Counts up with each use: the smallest goes first.
    used: u64,
}

/// The digest of a file that has not changed since.
struct KnownFile {
    identity: (u64, u64, SystemTime),
    digest: String,
}

impl Artifacts {
    /// `compiler` is a binary with the subcommand `compile-component`, or none to compile in this process.
    pub(crate) fn new(
        engines: Arc<Engines>,
        cache_dir: &Path,
        compiler: Option<PathBuf>,
    ) -> Result<Artifacts, HostError> {
        let wrong = |error: wasmtime::Error| HostError::Engine { message: format!("{error:#}") };
        Ok(Artifacts {
            linker_p2: linker::linker(&engines.p2, WasiVersion::P2).map_err(wrong)?,
            linker_p3: linker::linker(&engines.p3, WasiVersion::P3).map_err(wrong)?,
            disk: DiskCache::open(cache_dir)?,
            compilers: Compilers::new(compiler),
            engines,
            ready: Mutex::new(HashMap::new()),
            known_files: Mutex::new(HashMap::new()),
            compiled: std::sync::atomic::AtomicU64::new(0),
        })
    }

    /// How many components were compiled, and not found in a cache, since the start.
    pub(crate) fn compiled(&self) -> u64 {
        self.compiled.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Artifacts in memory, those in the making among them, and files whose digests are remembered.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.ready.lock().len(), self.known_files.lock().len())
    }

    /// See [`crate::Host::prepare`].
    pub(crate) async fn prepare(&self, path: &Path) -> Result<Arc<Artifact>, PrepareError> {
        let (digest, wasm) = self.identify(path).await?;
        let cell = self.slot(&digest);
        let artifact = cell
            .get_or_try_init(|| async {
                let wasm = match wasm {
                    Some(wasm) => wasm,
                    None => read(path).await?,
                };
                self.build(digest, wasm).await.map(Arc::new)
            })
            .await?;
        Ok(Arc::clone(artifact))
    }

    /// The file's digest, and its bytes where they had to be read for that.
    async fn identify(&self, path: &Path) -> Result<(String, Option<Bytes>), PrepareError> {
        let failed = PrepareError::io("cannot read", path);
        let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
        if metadata.len() > WASM_BYTES_MAX {
            return Err(PrepareError::TooLarge { bytes: metadata.len(), limit: WASM_BYTES_MAX });
        }
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let identity = (metadata.ino(), metadata.len(), modified);
        if let Some(known) = self.known_files.lock().get(path).filter(|known| known.identity == identity) {
            return Ok((known.digest.clone(), None));
        }
        let wasm = read(path).await?;
        let hashed = wasm.clone();
        let digest = blocking(move || hex::encode(Sha256::digest(&hashed))).await;
        let mut known_files = self.known_files.lock();
        if known_files.len() >= KNOWN_FILES_MAX {
            known_files.clear();
        }
        known_files.insert(path.to_owned(), KnownFile { identity, digest: digest.clone() });
        Ok((digest, Some(wasm)))
    }

    fn slot(&self, digest: &str) -> Arc<OnceCell<Arc<Artifact>>> {
        let mut ready = self.ready.lock();
        let used = 1 + ready.values().map(|slot| slot.used).max().unwrap_or(0);
        if ready.len() >= READY_MAX && !ready.contains_key(digest) {
            // What a container uses, or what is being made, is held elsewhere too and stays.
            let unused = |slot: &Slot| {
                Arc::strong_count(&slot.artifact) == 1
                    && slot.artifact.get().is_none_or(|artifact| Arc::strong_count(artifact) == 1)
            };
            let oldest = ready.iter().filter(|(_, slot)| unused(slot)).min_by_key(|(_, slot)| slot.used);
            if let Some(oldest) = oldest.map(|(digest, _)| digest.clone()) {
                ready.remove(&oldest);
            }
        }
        let slot = ready
            .entry(digest.to_owned())
            .or_insert_with(|| Slot { artifact: Arc::new(OnceCell::new()), used });
        slot.used = used;
        Arc::clone(&slot.artifact)
    }

    async fn build(&self, digest: String, wasm: Bytes) -> Result<Artifact, PrepareError> {
        let inspected = wasm.clone();
        let form = blocking(move || inspect::inspect(&inspected)).await?;
        let version = form.version();
        let component = self.component(&digest, version, wasm, &form).await?;
        let (entry, pre) = self.link(&component, &form)?;
        tracing::debug!(digest, entry = ?entry, "artifact ready");
        Ok(Artifact { digest, entry, weight: engine::weight(&component), pre })
    }

    /// The compiled component, from the disk cache where that has it and can vouch for it.
    async fn component(
        &self,
        digest: &str,
        version: WasiVersion,
        wasm: Bytes,
        form: &Form,
    ) -> Result<Component, PrepareError> {
        let engine = self.engines.of(version);
        let key = format!("{digest}-{}-{}", version.name(), compatibility(engine));
        if let Some(component) = self.load(&key, version).await {
            return Ok(component);
        }
        let wasm = match form {
            Form::Component { .. } => wasm,
            Form::Module { .. } => {
                let module = form.clone();
                blocking(move || inspect::componentize(&module, &wasm)).await?
            }
        };
        let output = self.disk.scratch(&key, "cwasm");
        self.compilers.compile(engine, version, wasm, &output).await?;
        self.compiled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let disk = self.disk.clone();
        let stored = key.clone();
        blocking(move || disk.admit(&stored, &output)).await?;
        match self.load(&key, version).await {
            Some(component) => Ok(component),
            None => {
                Err(PrepareError::Compile { message: "the compiled code could not be loaded".to_owned() })
            }
        }
    }

    async fn load(&self, key: &str, version: WasiVersion) -> Option<Component> {
        let disk = self.disk.clone();
        let key = key.to_owned();
        let engine = self.engines.of(version).clone();
        blocking(move || disk.load(&key, &engine)).await
    }

    fn link(&self, component: &Component, form: &Form) -> Result<(Entry, Pre), PrepareError> {
        let missing = |error: wasmtime::Error| PrepareError::MissingImport { message: format!("{error:#}") };
        let instance = |linker: &Linker<State>| -> Result<InstancePre<State>, PrepareError> {
            linker.instantiate_pre(component).map_err(missing)
        };
        let linker = match form.version() {
            WasiVersion::P2 => &self.linker_p2,
            WasiVersion::P3 => &self.linker_p3,
        };
        let pre = match (form.entry(), form.is_p3_entry()) {
            (Entry::Command, false) => Pre::CommandP2(
                wasmtime_wasi::p2::bindings::CommandPre::new(instance(linker)?).map_err(missing)?,
            ),
            (Entry::Command, true) => Pre::CommandP3(
                wasmtime_wasi::p3::bindings::CommandPre::new(instance(linker)?).map_err(missing)?,
            ),
            (Entry::HttpP2, _) => Pre::HttpP2(ProxyPre::new(instance(linker)?).map_err(missing)?),
            (Entry::HttpP3, _) => Pre::HttpP3(ServicePre::new(instance(linker)?).map_err(missing)?),
        };
        Ok((form.entry(), pre))
    }
}

async fn read(path: &Path) -> Result<Bytes, PrepareError> {
    tokio::fs::read(path).await.map(Bytes::from).map_err(PrepareError::io("cannot read", path))
}

/// Runs work that takes milliseconds or more where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and drops this future next.
            Err(_) => std::future::pending().await,
        },
    }
}
