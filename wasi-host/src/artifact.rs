//! Artifacts: from the bytes of a `.wasm` file to something that can be instantiated.
//!
//! Compiled code comes from the [`cache`] on disk or from [`compile`], whose process reads a stranger's bytes first
//! ([`inspect`]); what a component may import decides the linker. Whose turn it is to be compiled is in [`turns`], and
//! what cannot be made in [`failures`]. Everything that a user can do wrong here ends as a [`PrepareError`] with the mend
//! in it.

mod cache;
mod child;
mod compile;
mod confine;
mod error;
mod failures;
mod inspect;
mod nesting;
mod turns;
mod verdict;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::HostError;
use crate::engine::{self, Engines, WasiVersion, compatibility};
use crate::linker::{self, State};

use cache::DiskCache;
use compile::Compiler;
use failures::Failures;
use inspect::Kind;
use turns::{Job, Turns, Waiting};

pub use child::compile_child_main;
pub use confine::Confinement;
pub use error::PrepareError;

/// Bytes of a `.wasm` file: several times what interpreters compiled to WebAssembly need.
const WASM_BYTES_MAX: u64 = 256 << 20;

/// Artifacts kept ready in memory beyond those that containers use.
const READY_MAX: usize = 512;

/// Files whose digests are remembered.
const KNOWN_FILES_MAX: usize = 4096;

/// Bytes of a file that are hashed at once.
const PIECE_BYTES: usize = 256 << 10;

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
    /// What compiled code depends on beside the component.
    compatibility: String,
    disk: DiskCache,
    compiler: Compiler,
    turns: Arc<Turns>,
    failures: Failures,
    shelf: Mutex<Shelf>,
    known_files: Mutex<HashMap<PathBuf, KnownFile>>,
    compiled: AtomicU64,
}

/// By digest.
#[derive(Default)]
struct Shelf {
    ready: HashMap<String, Ready>,
    making: HashMap<String, Making>,
    /// Counts up with each use.
    uses: u64,
}

struct Ready {
    artifact: Arc<Artifact>,
    /// The smallest goes first.
    used: u64,
}

type Outcome = Result<Arc<Artifact>, PrepareError>;

/// An artifact in the making. It ends with the last one that waits for it.
struct Making {
    outcome: WeakShared<BoxFuture<'static, Outcome>>,
    job: Arc<Job>,
}

/// One that waits for an artifact. Fields are dropped in this order.
struct Waiter {
    outcome: Shared<BoxFuture<'static, Outcome>>,
    _waiting: Waiting,
    _leaving: Leaving,
}

/// Takes the artifact off the shelf where it is in the making for nobody.
struct Leaving {
    artifacts: Arc<Artifacts>,
    digest: String,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let making = &mut self.artifacts.shelf.lock().making;
        if making.get(&self.digest).is_some_and(|making| making.outcome.upgrade().is_none()) {
            making.remove(&self.digest);
        }
    }
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
        let compiling = [engines.p2.clone(), engines.p3.clone()];
        Ok(Artifacts {
            linker_p2: linker::linker(&engines.p2, WasiVersion::P2).map_err(wrong)?,
            linker_p3: linker::linker(&engines.p3, WasiVersion::P3).map_err(wrong)?,
            compatibility: format!("{}-{}", compatibility(&engines.p2), compatibility(&engines.p3)),
            disk: DiskCache::open(cache_dir)?,
            compiler: Compiler::new(compiler, compiling).map_err(HostError::Threads)?,
            engines,
            turns: Arc::default(),
            failures: Failures::default(),
            shelf: Mutex::default(),
            known_files: Mutex::new(HashMap::new()),
            compiled: AtomicU64::new(0),
        })
    }

    /// How many components were compiled, and not found in a cache, since the start.
    pub(crate) fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.turns.waiting()
    }

    /// Artifacts in memory, those in the making among them, and files whose digests are remembered.
    pub(crate) fn held(&self) -> (usize, usize) {
        let shelf = self.shelf.lock();
        (shelf.ready.len() + shelf.making.len(), self.known_files.lock().len())
    }

    /// See [`crate::Host::prepare`].
    pub(crate) async fn prepare(self: &Arc<Self>, path: &Path, namespace: &str) -> Outcome {
        let digest = self.identify(path).await?;
        if let Some(artifact) = self.shelf.lock().take(&digest) {
            return Ok(artifact);
        }
        if let Some(error) = self.failures.recall(&digest) {
            return Err(error);
        }
        let mut waiter = self.join(digest, path, namespace)?;
        (&mut waiter.outcome).await
    }

    /// Waits for an artifact with those that wait already, or has it made.
    fn join(self: &Arc<Self>, digest: String, path: &Path, namespace: &str) -> Result<Waiter, PrepareError> {
        let mut shelf = self.shelf.lock();
        let under_way = shelf.making.get(&digest).and_then(|making| {
            let outcome = making.outcome.upgrade()?;
            Some((outcome, Arc::clone(&making.job)))
        });
        let (outcome, job) = under_way.unwrap_or_else(|| {
            let job = self.turns.job();
            let making = Arc::clone(self).make(digest.clone(), path.to_owned(), Arc::clone(&job));
            (making.boxed().shared(), job)
        });
        let waiting = self.turns.wait(&job, namespace)?;
        if let Some(weak) = outcome.downgrade() {
            shelf.making.insert(digest.clone(), Making { outcome: weak, job });
        }
        let leaving = Leaving { artifacts: Arc::clone(self), digest };
        Ok(Waiter { outcome, _waiting: waiting, _leaving: leaving })
    }

    /// The file's digest.
    async fn identify(&self, path: &Path) -> Result<String, PrepareError> {
        let failed = PrepareError::io("cannot read", path);
        let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
        if metadata.len() > WASM_BYTES_MAX {
            return Err(PrepareError::TooLarge { bytes: metadata.len(), limit: WASM_BYTES_MAX });
        }
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let identity = (metadata.ino(), metadata.len(), modified);
        if let Some(known) = self.known_files.lock().get(path).filter(|known| known.identity == identity) {
            return Ok(known.digest.clone());
        }
        let file = path.to_owned();
        let digest =
            blocking(move || digest_of(&file)).await.map_err(PrepareError::io("cannot read", path))?;
        let mut known_files = self.known_files.lock();
        if known_files.len() >= KNOWN_FILES_MAX {
            known_files.clear();
        }
        known_files.insert(path.to_owned(), KnownFile { identity, digest: digest.clone() });
        Ok(digest)
    }

    async fn make(self: Arc<Self>, digest: String, path: PathBuf, job: Arc<Job>) -> Outcome {
        let made = self.build(&digest, &path, &job).await;
        match &made {
            Ok(artifact) => {
                self.failures.forget(&digest);
                tracing::debug!(digest, entry = ?artifact.entry, "artifact ready");
                self.shelf.lock().put(&digest, artifact);
            }
            Err(error) => self.failures.remember(&digest, error),
        }
        made
    }

    async fn build(self: &Arc<Self>, digest: &str, path: &Path, job: &Job) -> Outcome {
        let key = format!("{digest}-{}", self.compatibility);
        let (kind, component) = match self.load(&key).await {
            Some(loaded) => loaded,
            None => {
                self.compile(digest, &key, path, job).await?;
                self.load(&key).await.ok_or_else(|| PrepareError::GivenUp {
                    message: "the compiled code could not be loaded".to_owned(),
                })?
            }
        };
        let (artifacts, digest) = (Arc::clone(self), digest.to_owned());
        // A stranger's types are compared with the host's.
        let linked = blocking(move || {
            let pre = artifacts.link(&component, kind)?;
            Ok(Artifact { digest, entry: kind.entry, weight: engine::weight(&component), pre })
        });
        linked.await.map(Arc::new)
    }

    /// Compiles the file into the cache when the job's turn has come; anew where it had to give up its place.
    async fn compile(&self, digest: &str, key: &str, path: &Path, job: &Job) -> Result<(), PrepareError> {
        let (kind, code) = loop {
            let turn = job.turn().await;
            let (file, expected) = (path.to_owned(), digest.to_owned());
            // Not before, so that what waits takes no memory.
            let wasm = blocking(move || read(&file, &expected)).await?;
            tokio::select! {
                compiled = self.compiler.compile(wasm, self.disk.scratch(key, "wasm")) => break compiled?,
                () = turn.is_over() => tracing::debug!(digest, "a slow compile makes room for others"),
            }
        };
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let (disk, key) = (self.disk.clone(), key.to_owned());
        blocking(move || disk.admit(&key, kind, code)).await
    }

    async fn load(self: &Arc<Self>, key: &str) -> Option<(Kind, Component)> {
        let (artifacts, key) = (Arc::clone(self), key.to_owned());
        blocking(move || artifacts.disk.load(&key, &artifacts.engines)).await
    }

    fn link(&self, component: &Component, kind: Kind) -> Result<Pre, PrepareError> {
        let missing = |error: wasmtime::Error| PrepareError::MissingImport { message: format!("{error:#}") };
        let instance = |linker: &Linker<State>| -> Result<InstancePre<State>, PrepareError> {
            linker.instantiate_pre(component).map_err(missing)
        };
        let linker = match kind.engine {
            WasiVersion::P2 => &self.linker_p2,
            WasiVersion::P3 => &self.linker_p3,
        };
        Ok(match (kind.entry, kind.world) {
            (Entry::Command, WasiVersion::P2) => Pre::CommandP2(
                wasmtime_wasi::p2::bindings::CommandPre::new(instance(linker)?).map_err(missing)?,
            ),
            (Entry::Command, WasiVersion::P3) => Pre::CommandP3(
                wasmtime_wasi::p3::bindings::CommandPre::new(instance(linker)?).map_err(missing)?,
            ),
            (Entry::HttpP2, _) => Pre::HttpP2(ProxyPre::new(instance(linker)?).map_err(missing)?),
            (Entry::HttpP3, _) => Pre::HttpP3(ServicePre::new(instance(linker)?).map_err(missing)?),
        })
    }
}

impl Shelf {
    fn take(&mut self, digest: &str) -> Option<Arc<Artifact>> {
        self.uses += 1;
        let ready = self.ready.get_mut(digest)?;
        ready.used = self.uses;
        Some(Arc::clone(&ready.artifact))
    }

    fn put(&mut self, digest: &str, artifact: &Arc<Artifact>) {
        self.uses += 1;
        self.making.remove(digest);
        self.ready.insert(digest.to_owned(), Ready { artifact: Arc::clone(artifact), used: self.uses });
        if self.ready.len() > READY_MAX {
            // What a container uses is held elsewhere too and stays.
            let unused = self.ready.iter().filter(|(_, ready)| Arc::strong_count(&ready.artifact) == 1);
            if let Some(oldest) = unused.min_by_key(|(_, ready)| ready.used).map(|(digest, _)| digest.clone())
            {
                self.ready.remove(&oldest);
            }
        }
    }
}

/// SHA-256 of a file, in hexadecimal.
fn digest_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&piece[..read]),
        }
    }
}

/// A file that has this digest.
fn read(path: &Path, digest: &str) -> Result<Vec<u8>, PrepareError> {
    let failed = PrepareError::io("cannot read", path);
    let mut wasm = Vec::new();
    let file = File::open(path).and_then(|file| file.take(WASM_BYTES_MAX).read_to_end(&mut wasm));
    file.map_err(failed)?;
    if hex::encode(Sha256::digest(&wasm)) == digest {
        Ok(wasm)
    } else {
        Err(PrepareError::Changed { path: path.to_owned() })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_changed_since_is_not_compiled_under_its_old_digest() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("guest.wasm");
        std::fs::write(&path, "first").expect("written");
        let digest = digest_of(&path).expect("readable");
        assert_eq!(read(&path, &digest).expect("the same"), b"first");
        std::fs::write(&path, "other").expect("written");
        assert!(matches!(read(&path, &digest), Err(PrepareError::Changed { .. })));
    }
}
