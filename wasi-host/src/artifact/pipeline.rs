//! The way of an artifact, stage by stage. Each hands plain data to the next, and ends what goes wrong as a [`PrepareError`].
//!
//! | stage | from | to | is in | ends as |
//! |---|---|---|---|---|
//! | Pull | an image's name, a pull policy | a file, whole by its digest | the agent, `artifacts.rs` | its `PullError` |
//! | Check | the file | its digest: a [`Source`] | `check.rs` | `Io`, `TooLarge`, `Busy` |
//! | | its bytes | what it is and takes | `check.rs`, in the compiler's process | `Changed`, `NotWasm`, `NotWasi`, `NoComponent`, `NoEntry`, `Compile` |
//! | Compile | the component or module | native code, and a voucher for it | `compile.rs`, `seal.rs` | `Compile`, `GivenUp`, `NoRoom`, `Io`, `Busy` |
//! | Load | code of a [`CodeKey`] from the [`CodeStore`] | an [`Artifact`] | `load.rs` | `MissingImport`, `NoShare`, `GivenUp` |
//! | Start | the artifact, a container's spec | a container that runs | `sandbox.rs` | its `StartError` |
//!
//! Most pods take a shorter way, since something of the same bytes is on the shelf, in the store, or known to fail
//! ([`Pipeline::prepare`]). What was compiled goes through the store, even where it is loaded at once.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::cache_dir::CacheDir;
use super::check::{self, Source, WASM_BYTES_MAX};
use super::code_store::{CodeKey, CodeStore};
use super::compile::{self, Compiler};
use super::desk::Desk;
use super::failures::Failures;
use super::inspect::Kind;
use super::load::{Loader, Unusable};
use super::making::Waiter;
use super::room::Room;
use super::seal::Seal;
use super::shelf::Shelf;
use super::tally::Tally;
use super::turns::{Job, Turn, Turns};
use super::{Artifact, Compiles, PrepareError};
use crate::HostError;
use crate::digests::Digests;
use crate::engine::{Engines, compatibility};
use crate::pool::Pool;

/// What is reckoned of a component as it is compiled. What was compiled by a host that reckoned otherwise is compiled anew:
/// count this up with each change.
const RECKONING: u32 = 6;

/// Files that are hashed, and components that are loaded and linked, at once: they are read whole. A namespace has at
/// most half of them.
const LOADS_MAX: usize = 4;

/// Files that are read and written for compiles at once. There are no more compiles than
/// [`super::turns`] lets run; what else is here was given up and ends by itself.
const COMPILE_FILES_MAX: usize = 8;

/// How long the store may take to bring code from elsewhere, in the turn of the compile that it spares.
pub(super) const BRING_MAX: Duration = Duration::from_secs(10);

/// All artifacts of a host on their way: at most one compile of the same bytes at a time, in memory as long as they are used.
pub(crate) struct Pipeline {
    /// What compiled code depends on beside the component.
    target: Arc<str>,
    digests: Arc<Digests>,
    pub(super) failures: Failures,
    /// What is ready in memory, or being compiled.
    pub(super) shelf: Mutex<Shelf>,
    pub(super) turns: Arc<Turns>,
    compiler: Compiler,
    seal: Seal,
    store: Arc<dyn CodeStore>,
    loader: Loader,
    /// Where components are loaded and linked.
    loads: Arc<Pool>,
    /// Where a compile's files are read and written. Not in the line for the former: others wait for its turn.
    files: Arc<Pool>,
    tally: Tally,
}

impl Pipeline {
    /// `compiler` is a binary with the subcommand `compile-component`, or none to compile in this process; `dir` has the key
    /// that vouches for code, wherever `store` keeps it.
    pub(crate) fn new(
        engines: Arc<Engines>,
        dir: &CacheDir,
        store: Arc<dyn CodeStore>,
        compiler: Option<PathBuf>,
    ) -> Result<Pipeline, HostError> {
        let compiling = [engines.p2.clone(), engines.p3.clone()];
        let target = format!("{}-{}-{RECKONING}", compatibility(&engines.p2), compatibility(&engines.p3));
        let loads = Pool::new("component-loads", LOADS_MAX, 0);
        Ok(Pipeline {
            target: target.into(),
            digests: Digests::new(Arc::clone(&loads), WASM_BYTES_MAX),
            failures: Failures::default(),
            shelf: Mutex::new(Shelf::new([Room::for_code(dir.path()), Room::for_loaded()])),
            turns: Arc::default(),
            compiler: Compiler::new(compiler, compiling, dir.clone()).map_err(HostError::Threads)?,
            seal: Seal::open(dir)?,
            store,
            loader: Loader::new(engines)?,
            loads,
            files: Pool::new("compile-files", COMPILE_FILES_MAX, 0),
            tally: Tally::default(),
        })
    }

    /// See [`crate::Host::prepare`].
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        path: &Path,
        namespace: &str,
    ) -> Result<Arc<Artifact>, PrepareError> {
        let namespace: Arc<str> = namespace.into();
        let source = check::identify(&self.digests, path, &namespace).await?;
        if let Some(artifact) = self.shelf.lock().take(&source.digest, &namespace)? {
            return Ok(artifact);
        }
        self.failures.check(&source.digest)?;
        if let Some(artifact) = self.load(&source, &namespace).await? {
            self.tally.spare();
            return Ok(artifact);
        }
        // It may have been compiled in vain meanwhile.
        self.failures.check(&source.digest)?;
        Waiter::join(self, source.clone(), &namespace)?.outcome().await?;
        self.load(&source, &namespace).await?.ok_or_else(|| {
            let message = "the compiled code could not be loaded; the node's log says why".to_owned();
            let error = PrepareError::GivenUp { message };
            // Compiled again at once it would come to the same.
            self.failures.remember(&source.digest, &error);
            error
        })
    }

    /// **Compile.** Has the file compiled into the store when the job's turn has come; anew where it had to give up its place.
    pub(super) async fn compile(self: &Arc<Self>, source: &Source, job: &Job) -> Result<(), PrepareError> {
        let key = self.key(&source.digest);
        loop {
            let turn = job.turn().await;
            let desk = Desk::new(&self.files, turn.namespace());
            // Somebody may have had it compiled meanwhile.
            if self.bring(&key, &desk).await {
                self.tally.spare();
                return Ok(());
            }
            // Not before, so that what waits takes no memory.
            let file = source.clone();
            let wasm = desk.run(move || check::read(&file)).await?;
            let (store, bytes) = (Arc::clone(&self.store), compile::reckoned(wasm.len()));
            desk.run(move || store.make_room(bytes)).await?;
            let under_way = self.tally.begin();
            let (kind, code) = tokio::select! {
                compiled = self.compiler.compile(wasm, &key, &desk) => under_way.ends(compiled)?,
                () = turn.is_over() => {
                    tracing::debug!(digest = source.digest, "a slow compile makes room for others");
                    continue;
                }
            };
            return self.keep(source, key, (kind, code), (&turn, &desk)).await;
        }
    }

    async fn bring(&self, key: &CodeKey, desk: &Desk) -> bool {
        let brought = tokio::time::timeout(BRING_MAX, self.store.bring(key, desk)).await;
        brought.unwrap_or_else(|_| {
            tracing::warn!(%key, "the store of compiled code does not answer, compiling");
            false
        })
    }

    /// Puts code into the store, with what vouches for it.
    async fn keep(
        self: &Arc<Self>,
        source: &Source,
        key: CodeKey,
        (kind, code): (Kind, File),
        (turn, desk): (&Turn<'_>, &Desk),
    ) -> Result<(), PrepareError> {
        let (pipeline, namespace, path) =
            (Arc::clone(self), Arc::clone(turn.namespace()), source.path.clone());
        desk.run(move || {
            let voucher = pipeline.seal.vouch(&key, kind, &namespace, &code);
            let voucher = voucher.map_err(PrepareError::io("cannot read the compiled code of", &path))?;
            pipeline.store.put(&key, code, &voucher)?;
            pipeline.let_go_of_what_is_evicted();
            Ok(())
        })
        .await
    }

    /// **Load.** Loads and links compiled code, in the namespace's turn; `None` where the store has none.
    async fn load(
        self: &Arc<Self>,
        source: &Source,
        namespace: &Arc<str>,
    ) -> Result<Option<Arc<Artifact>>, PrepareError> {
        let (pipeline, key, own) = (Arc::clone(self), self.key(&source.digest), Arc::clone(namespace));
        Desk::new(&self.loads, namespace).run(move || pipeline.load_now(&key, &own)).await
    }

    fn load_now(&self, key: &CodeKey, namespace: &Arc<str>) -> Result<Option<Arc<Artifact>>, PrepareError> {
        let digest = &key.digest;
        // Others may have waited for it before.
        if let Some(artifact) = self.shelf.lock().take(digest, namespace)? {
            return Ok(Some(artifact));
        }
        let bytes = self.store.size(key).unwrap_or(0);
        // Who has his share has nothing read, or compiled, for nothing.
        self.shelf.lock().admit([bytes, 0], namespace)?;
        let kept = self.store.get(key).unwrap_or_else(|error| {
            tracing::warn!(%key, %error, "the store of compiled code fails, compiling anew");
            None
        });
        let Some(kept) = kept else { return Ok(None) };
        let (kind, code) = match self.loader.load(&self.seal, key, &kept) {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return Ok(None),
            Err(Unusable) => {
                self.store.remove(key);
                return Ok(None);
            }
        };
        let linked = self.loader.link(&code, kind);
        let pre = linked.inspect_err(|error| self.failures.remember(digest, error))?;
        let artifact = Artifact::new(digest, kind, code.weight(), pre);
        self.failures.forget(digest);
        tracing::debug!(digest, entry = ?kind.entry, "artifact ready");
        let pins = self.store.pins(key);
        self.shelf.lock().put(digest, namespace, artifact, bytes, pins).map(Some)
    }

    fn key(&self, digest: &str) -> CodeKey {
        CodeKey { digest: digest.to_owned(), target: Arc::clone(&self.target) }
    }

    /// What the store has no more and nobody uses goes from memory too: it would keep its room in the store.
    fn let_go_of_what_is_evicted(&self) {
        let unused = self.shelf.lock().unused();
        for digest in unused.into_iter().filter(|digest| self.store.size(&self.key(digest)).is_none()) {
            self.shelf.lock().let_go(&digest);
        }
    }

    /// What has become of compiles since the start.
    pub(crate) fn compiles(&self) -> Compiles {
        self.tally.read()
    }

    /// Containers that wait for a compile.
    pub(crate) fn waiting(&self) -> usize {
        self.turns.waiting()
    }

    /// What is remembered; of artifacts those in the making as well.
    pub(crate) fn held(&self) -> [(&'static str, usize); 3] {
        [
            ("artifacts in memory", self.shelf.lock().held()),
            ("known files", self.digests.held()),
            ("failures of compiles", self.failures.held()),
        ]
    }
}
