//! Artifacts: from the bytes of a `.wasm` file to something that can be instantiated.
//!
//! The way is a [`pipeline`]: what is wrong with a file ([`check`]), its native code ([`compile`]) and whether that is to be
//! believed ([`seal`]), and what containers start from ([`load`]). Code is kept in a [`code_store`], and what is loaded on a
//! [`shelf`]. Whose turn it is to be compiled is in [`turns`], what became of it in [`tally`], what cannot be made in [`failures`], and how much code
//! containers may use in [`room`]. Everything that a user can do wrong here ends as a [`PrepareError`] with the mend in it.

mod pipeline;

mod check;
mod examine;
mod inspect;
mod nesting;
mod slots;
mod structures;

mod child;
mod compile;
mod confine;
mod making;
mod seal;
mod tally;
mod turns;
mod verdict;

mod cache_dir;
pub(crate) mod code_store;
mod load;
mod room;
mod shelf;

mod desk;
mod error;
mod failures;

use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::engine::WasiVersion;
use crate::linker::State;

use code_store::Pin;
use inspect::Kind;

pub(crate) use cache_dir::CacheDir;
pub use child::compile_child_main;
pub(crate) use code_store::{CodeStore, LocalStore};
pub use confine::Confinement;
pub use error::PrepareError;
pub use examine::{Examined, examine};
pub(crate) use pipeline::Pipeline;
pub use room::Scarce;
pub use tally::Compiles;

/// How a component is run, decided by what it exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// `wasi:cli/run`, or `_start` of a core module: a server or a job.
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
    /// Keeps its code in the store for containers.
    _pin: Option<Pin>,
}

/// The prepared component by the world that it is called through. Clones are the same.
#[derive(Clone)]
pub(crate) enum Pre {
    CommandP1(wasmtime::InstancePre<State>),
    CommandP2(wasmtime_wasi::p2::bindings::CommandPre<State>),
    CommandP3(wasmtime_wasi::p3::bindings::CommandPre<State>),
    HttpP2(ProxyPre<State>),
    HttpP3(ServicePre<State>),
}

impl Artifact {
    /// One that pins no code.
    fn new(digest: &str, kind: Kind, weight: u32, pre: Pre) -> Artifact {
        let Kind { entry, engine, structures, loaded, .. } = kind;
        Artifact { digest: digest.to_owned(), entry, engine, weight, structures, loaded, pre, _pin: None }
    }

    /// The same for the containers of a namespace.
    fn pinned(&self, pin: Pin) -> Artifact {
        let Artifact { ref digest, entry, engine, weight, structures, loaded, ref pre, _pin: _ } = *self;
        let (digest, pre) = (digest.clone(), pre.clone());
        Artifact { digest, entry, engine, weight, structures, loaded, pre, _pin: Some(pin) }
    }

    /// How it is run.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// SHA-256 of the `.wasm` file, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
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
