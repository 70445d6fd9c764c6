//! Artifacts: from the bytes of a `.wasm` file to something that can be instantiated.
//!
//! Compiled code comes from the [`cache`] on disk or from [`compile`], whose process reads a stranger's bytes first
//! ([`inspect`]); what a component may import decides the linker. Whose turn it is to be compiled is in [`turns`], what
//! cannot be made in [`failures`], and how much code containers may use in [`room`]. Everything that a user can do wrong
//! here ends as a [`PrepareError`] with the mend in it.

mod cache;
mod child;
mod compile;
mod confine;
mod desk;
mod error;
mod failures;
mod inspect;
mod nesting;
mod room;
mod shelf;
mod slots;
mod structures;
mod turns;
mod verdict;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
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
use crate::digests::{DigestError, Digests};
use crate::engine::{self, Engines, WasiVersion, compatibility};
use crate::linker::{self, State};
use crate::pool::{NotDone, Pool};

use cache::DiskCache;
use compile::Compiler;
use desk::Desk;
use failures::Failures;
use inspect::Kind;
use room::Room;
use shelf::Shelf;
use turns::{Job, Turns, Waiting};

pub use child::compile_child_main;
pub use confine::Confinement;
pub use error::PrepareError;
pub use room::Scarce;

/// Bytes of a `.wasm` file: several times what interpreters compiled to WebAssembly need.
const WASM_BYTES_MAX: u64 = 256 << 20;

/// What is reckoned of a component as it is compiled. What was compiled by a host that reckoned otherwise is compiled anew:
/// count this up with each change.
const RECKONING: u32 = 5;

/// Files that are hashed, and components that are loaded and linked, at once: they are read whole. A namespace has at
/// most half of them.
const LOADS_MAX: usize = 4;

/// Files that are read and written for compiles at once. There are no more compiles than
/// [`turns`] lets run; what else is here was given up and ends by itself.
const COMPILE_FILES_MAX: usize = 8;

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
    engine: WasiVersion,
    /// Seats that one instance takes.
    pub(crate) weight: u32,
    /// Bytes of the host that one instance takes beside its memories and tables.
    pub(crate) structures: u64,
    /// Bytes of the host that it takes as it is loaded, however many instances there are.
    loaded: u64,
    pub(crate) pre: Pre,
}

/// The prepared component by the world that it is called through. Clones are the same.
#[derive(Clone)]
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

    /// The same for another namespace.
    fn again(&self) -> Artifact {
        let Artifact { ref digest, entry, engine, weight, structures, loaded, ref pre } = *self;
        Artifact { digest: digest.clone(), entry, engine, weight, structures, loaded, pre: pre.clone() }
    }

    /// The engine that its stores are of.
    pub(crate) fn engine(&self) -> WasiVersion {
        self.engine
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
    digests: Arc<Digests>,
    /// Where components are loaded and linked.
    loads: Arc<Pool>,
    /// Where a compile's files are read and written. Not in the line for the former: others wait for its turn.
    files: Arc<Pool>,
    compiled: AtomicU64,
}

/// Whether a component was compiled.
type Outcome = Result<(), PrepareError>;

/// A component that is compiled. It ends with the last one that waits for it.
struct Making {
    outcome: WeakShared<BoxFuture<'static, Outcome>>,
    job: Arc<Job>,
}

/// One that waits for a compile. Fields are dropped in this order.
struct Waiter {
    outcome: Shared<BoxFuture<'static, Outcome>>,
    _waiting: Waiting,
    _leaving: Leaving,
}

/// Takes the compile off the shelf where nobody waits for it.
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

impl Artifacts {
    /// `compiler` is a binary with the subcommand `compile-component`, or none to compile in this process.
    pub(crate) fn new(
        engines: Arc<Engines>,
        cache_dir: &Path,
        compiler: Option<PathBuf>,
    ) -> Result<Artifacts, HostError> {
        let wrong = |error: wasmtime::Error| HostError::Engine { message: format!("{error:#}") };
        let compiling = [engines.p2.clone(), engines.p3.clone()];
        let loads = Pool::new("component-loads", LOADS_MAX, 0);
        let disk = DiskCache::open(cache_dir)?;
        Ok(Artifacts {
            linker_p2: linker::linker(&engines.p2, WasiVersion::P2).map_err(wrong)?,
            linker_p3: linker::linker(&engines.p3, WasiVersion::P3).map_err(wrong)?,
            compatibility: format!(
                "{}-{}-{RECKONING}",
                compatibility(&engines.p2),
                compatibility(&engines.p3)
            ),
            disk,
            compiler: Compiler::new(compiler, compiling).map_err(HostError::Threads)?,
            engines,
            turns: Arc::default(),
            failures: Failures::default(),
            shelf: Mutex::new(Shelf::new([Room::for_code(cache_dir), Room::for_loaded()])),
            digests: Digests::new(Arc::clone(&loads), WASM_BYTES_MAX),
            loads,
            files: Pool::new("compile-files", COMPILE_FILES_MAX, 0),
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

    /// What is remembered; of artifacts those in the making as well.
    pub(crate) fn held(&self) -> [(&'static str, usize); 3] {
        let shelf = self.shelf.lock();
        [
            ("artifacts in memory", shelf.ready.len() + shelf.making.len()),
            ("known files", self.digests.held()),
            ("failures of compiles", self.failures.held()),
        ]
    }

    /// See [`crate::Host::prepare`].
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        path: &Path,
        namespace: &str,
    ) -> Result<Arc<Artifact>, PrepareError> {
        let namespace: Arc<str> = namespace.into();
        let digest = self.digests.of(path, &namespace).await.map_err(|error| unidentified(error, path))?;
        if let Some(artifact) = self.shelf.lock().take(&digest, &namespace)? {
            return Ok(artifact);
        }
        if let Some(error) = self.failures.recall(&digest) {
            return Err(error);
        }
        if let Some(artifact) = self.load(&digest, &namespace).await? {
            return Ok(artifact);
        }
        // It may have been compiled in vain meanwhile.
        if let Some(error) = self.failures.recall(&digest) {
            return Err(error);
        }
        let mut waiter = self.join(digest.clone(), path, &namespace)?;
        (&mut waiter.outcome).await?;
        drop(waiter);
        self.load(&digest, &namespace).await?.ok_or_else(|| {
            let message = "the compiled code could not be loaded; the node's log says why".to_owned();
            let error = PrepareError::GivenUp { message };
            // Compiled again at once it would come to the same.
            self.failures.remember(&digest, &error);
            error
        })
    }

    /// Waits for a compile with those that wait already, or has it made.
    fn join(
        self: &Arc<Self>,
        digest: String,
        path: &Path,
        namespace: &Arc<str>,
    ) -> Result<Waiter, PrepareError> {
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

    async fn make(self: Arc<Self>, digest: String, path: PathBuf, job: Arc<Job>) -> Outcome {
        let made = self.compile(&digest, &path, &job).await;
        // The disk may have room in a moment, and nothing was tried.
        if let Err(error) = &made
            && !matches!(error, PrepareError::NoRoom)
        {
            self.failures.remember(&digest, error);
        }
        made
    }

    /// Compiles the file into the cache when the job's turn has come; anew where it had to give up its place.
    async fn compile(self: &Arc<Self>, digest: &str, path: &Path, job: &Job) -> Result<(), PrepareError> {
        let key = self.key(digest);
        loop {
            let turn = job.turn().await;
            let desk = Desk::new(&self.files, turn.namespace());
            let (file, expected) = (path.to_owned(), digest.to_owned());
            let (disk, own) = (self.disk.clone(), key.clone());
            // Not before, so that what waits takes no memory. Somebody may have had it compiled meanwhile.
            let wasm =
                desk.run(move || if disk.has(&own) { Ok(None) } else { read(&file, &expected).map(Some) });
            let Some(wasm) = wasm.await? else { return Ok(()) };
            let (artifacts, bytes) = (Arc::clone(self), compile::reckoned(wasm.len()));
            desk.run(move || artifacts.disk.make_room(bytes, &artifacts.uses())).await?;
            let scratch = self.disk.scratch(&key, "wasm");
            let (kind, code) = tokio::select! {
                compiled = self.compiler.compile(wasm, scratch, &desk) => compiled?,
                () = turn.is_over() => {
                    tracing::debug!(digest, "a slow compile makes room for others");
                    continue;
                }
            };
            self.compiled.fetch_add(1, Ordering::Relaxed);
            let (artifacts, own, namespace) = (Arc::clone(self), key.clone(), Arc::clone(turn.namespace()));
            return desk
                .run(move || {
                    let uses = artifacts.uses();
                    let bytes = code.metadata().map_or(0, |found| found.len());
                    artifacts.disk.make_room(bytes, &uses)?;
                    artifacts.disk.admit(&own, kind, &namespace, code)?;
                    artifacts.disk.evict(&own, &uses);
                    artifacts.let_go_of_what_is_evicted();
                    Ok(())
                })
                .await;
        }
    }

    /// The name of a component's code in the cache.
    fn key(&self, digest: &str) -> String {
        format!("{digest}-{}", self.compatibility)
    }

    /// When what is in memory was used last, by its code's name in the cache; `None` is now.
    fn uses(&self) -> HashMap<String, Option<SystemTime>> {
        let shelf = self.shelf.lock();
        let uses = shelf.ready.iter().map(|(digest, ready)| (self.key(digest), ready.last_use()));
        uses.collect()
    }

    /// What has no file any more and nobody uses goes from memory too: it would keep the file's room on the disk.
    fn let_go_of_what_is_evicted(&self) {
        let unused: Vec<String> = {
            let shelf = self.shelf.lock();
            shelf
                .ready
                .iter()
                .filter(|(_, ready)| !ready.is_in_use())
                .map(|(digest, _)| digest.clone())
                .collect()
        };
        for digest in unused.into_iter().filter(|digest| !self.disk.has(&self.key(digest))) {
            let ready = &mut self.shelf.lock().ready;
            if ready.get(&digest).is_some_and(|ready| !ready.is_in_use()) {
                ready.remove(&digest);
            }
        }
    }

    /// Loads and links compiled code, in the namespace's turn; `None` where there is none.
    async fn load(
        self: &Arc<Self>,
        digest: &str,
        namespace: &Arc<str>,
    ) -> Result<Option<Arc<Artifact>>, PrepareError> {
        let (artifacts, digest, own) = (Arc::clone(self), digest.to_owned(), Arc::clone(namespace));
        Desk::new(&self.loads, namespace).run(move || artifacts.load_now(digest, &own)).await
    }

    fn load_now(&self, digest: String, namespace: &Arc<str>) -> Result<Option<Arc<Artifact>>, PrepareError> {
        // Others may have waited for it before.
        if let Some(artifact) = self.shelf.lock().take(&digest, namespace)? {
            return Ok(Some(artifact));
        }
        let key = self.key(&digest);
        let bytes = self.disk.code_bytes(&key);
        // Who has his share has nothing read, or compiled, for nothing.
        self.shelf.lock().admit([bytes, 0], namespace)?;
        let Some((kind, component)) = self.disk.load(&key, &self.engines) else {
            return Ok(None);
        };
        // A stranger's types are compared with the host's.
        let pre = self.link(&component, kind).inspect_err(|error| self.failures.remember(&digest, error))?;
        let weight = engine::weight(&component);
        let Kind { entry, engine, structures, loaded, .. } = kind;
        let artifact = Artifact { digest: digest.clone(), entry, engine, weight, structures, loaded, pre };
        self.failures.forget(&digest);
        tracing::debug!(digest, entry = ?kind.entry, "artifact ready");
        self.shelf.lock().put(&digest, namespace, artifact, bytes).map(Some)
    }

    fn link(&self, component: &Component, kind: Kind) -> Result<Pre, PrepareError> {
        let missing = |error: wasmtime::Error| {
            let message = format!("{error:#}; there are {}", linker::offers());
            PrepareError::MissingImport { message }
        };
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

fn unidentified(error: DigestError, path: &Path) -> PrepareError {
    match error {
        DigestError::Io(source) => PrepareError::Io { what: "cannot read", path: path.to_owned(), source },
        DigestError::TooLarge { bytes, limit } => PrepareError::TooLarge { bytes, limit },
        DigestError::NotDone(NotDone::Full) => PrepareError::Busy,
        DigestError::NotDone(NotDone::Lost) => {
            PrepareError::GivenUp { message: "the file could not be read to its end".to_owned() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_changed_since_is_not_compiled_under_its_old_digest() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("guest.wasm");
        std::fs::write(&path, "first").expect("written");
        let digest = hex::encode(Sha256::digest("first"));
        assert_eq!(read(&path, &digest).expect("the same"), b"first");
        std::fs::write(&path, "other").expect("written");
        assert!(matches!(read(&path, &digest), Err(PrepareError::Changed { .. })));
    }
}
