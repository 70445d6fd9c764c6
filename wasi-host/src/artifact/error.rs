//! Why a file cannot be run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::room::Scarce;

/// Why a file cannot be run. The texts are shown to users.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PrepareError {
    /// Neither a component nor a module.
    #[error("not WebAssembly: {fault}; build it with a target such as wasm32-wasip2")]
    NotWasm {
        /// What it is not. Nothing of what is in it: it may be anybody's file.
        fault: String,
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
    /// A core module of which a component was to be made.
    #[error(
        "it is a core module with the types of a component, which it has not been made yet: use `wasm-tools component new`, \
         or build it for wasm32-wasip2"
    )]
    NoComponent,
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
        source: Arc<std::io::Error>,
    },
    /// Compiling it took more time, memory or room than it may, or was ended from outside.
    #[error("compiling it was given up: {message}")]
    GivenUp {
        /// What was too much.
        message: String,
    },
    /// Code is not written where that would take of the part of the disk that is left to the node.
    #[error("the disk has no room for compiled code; free some, or remove pods and images")]
    NoRoom,
    /// What containers use of the disk and of the memory for components has a part of it, and each namespace a share of that.
    #[error(
        "the namespace's containers use {used} bytes of {of}, this needs {bytes} more, and {free} bytes are left for all; \
         remove pods of the namespace, or give the node {}", .of.mend()
    )]
    NoShare {
        /// What is used up.
        of: Scarce,
        /// The component's bytes, as far as they are known.
        bytes: u64,
        /// Bytes that the namespace's containers use.
        used: u64,
        /// Bytes that are left for all.
        free: u64,
    },
    /// The file is not what it was when it was asked for.
    #[error("{path} has changed while it waited to be compiled")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Too many wait for the compiler already.
    #[error("too many containers of the namespace wait for the compiler; this one is started later")]
    Busy,
}

impl PrepareError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PrepareError {
        let path = path.to_owned();
        move |source| PrepareError::Io { what, path, source: Arc::new(source) }
    }

    /// The same bytes may fare better another time.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            PrepareError::Io { .. }
                | PrepareError::GivenUp { .. }
                | PrepareError::Changed { .. }
                | PrepareError::Busy
                | PrepareError::NoRoom
                | PrepareError::NoShare { .. }
        )
    }
}
