//! From compiled code to what can be instantiated: authenticated, mapped, linked.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Engine, Module};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::code_store::{CodeKey, Kept};
use super::inspect::{Kind, World};
use super::seal::Seal;
use super::{Entry, Pre, PrepareError};
use crate::HostError;
use crate::engine::{self, Engines, WasiVersion};
use crate::linker::{self, State};
use crate::preview1;

/// Loads and links for the engines of a host.
pub(super) struct Loader {
    engines: Arc<Engines>,
    linker_p2: Linker<State>,
    linker_p3: Linker<State>,
    /// For core modules.
    linker_p1: wasmtime::Linker<State>,
}

/// What was compiled.
pub(super) enum Code {
    Module(Module),
    Component(Component),
}

impl Code {
    /// Seats that one instance takes.
    pub(super) fn weight(&self) -> u32 {
        match self {
            Code::Module(module) => {
                let needs = module.resources_required();
                engine::seats(needs.num_memories, needs.num_tables)
            }
            Code::Component(component) => engine::weight(component),
        }
    }
}

/// Code is not what the store was given: there is none to be loaded.
pub(super) struct Unusable;

impl Loader {
    pub(super) fn new(engines: Arc<Engines>) -> Result<Loader, HostError> {
        let wrong = |error: wasmtime::Error| HostError::Engine { message: format!("{error:#}") };
        let mut linker_p1 = wasmtime::Linker::new(&engines.p2);
        preview1::add_to_linker(&mut linker_p1).map_err(wrong)?;
        Ok(Loader {
            linker_p2: linker::linker(&engines.p2, WasiVersion::P2).map_err(wrong)?,
            linker_p3: linker::linker(&engines.p3, WasiVersion::P3).map_err(wrong)?,
            linker_p1,
            engines,
        })
    }

    /// Maps code that `seal` vouches for; none where it is not there any more.
    pub(super) fn load(
        &self,
        seal: &Seal,
        key: &CodeKey,
        kept: &Kept,
    ) -> Result<Option<(Kind, Code)>, Unusable> {
        let Kept { path, voucher } = kept;
        let Ok(code) = File::open(path) else { return Ok(None) };
        let Some(kind) = seal.check(key, voucher, &code) else {
            tracing::warn!(path = %path.display(), "compiled code is not authentic, compiling anew");
            return Err(Unusable);
        };
        match deserialize(self.engines.of(kind.engine), kind.world, &code) {
            Ok(code) => Ok(Some((kind, code))),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code cannot be loaded, compiling anew");
                Err(Unusable)
            }
        }
    }

    /// Gives it what it imports, or says what there is instead. A stranger's types are compared with the host's.
    pub(super) fn link(&self, code: &Code, kind: Kind) -> Result<Pre, PrepareError> {
        match code {
            Code::Module(module) => self.link_module(module),
            Code::Component(component) => self.link_component(component, kind),
        }
    }

    fn link_module(&self, module: &Module) -> Result<Pre, PrepareError> {
        let missing = |error: wasmtime::Error| {
            let message = format!("{error:#}; there is WASI preview 1");
            PrepareError::MissingImport { message }
        };
        let start = module.get_export("_start").and_then(|start| start.func().cloned());
        if start.is_none_or(|start| start.params().len() + start.results().len() > 0) {
            let message = "its `_start` is no function without parameters and results".to_owned();
            return Err(PrepareError::Compile { message });
        }
        self.linker_p1.instantiate_pre(module).map(Pre::CommandP1).map_err(missing)
    }

    fn link_component(&self, component: &Component, kind: Kind) -> Result<Pre, PrepareError> {
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
            (Entry::Command, World::P1 | World::P2) => Pre::CommandP2(
                wasmtime_wasi::p2::bindings::CommandPre::new(instance(linker)?).map_err(missing)?,
            ),
            (Entry::Command, World::P3) => Pre::CommandP3(
                wasmtime_wasi::p3::bindings::CommandPre::new(instance(linker)?).map_err(missing)?,
            ),
            (Entry::HttpP2, _) => Pre::HttpP2(ProxyPre::new(instance(linker)?).map_err(missing)?),
            (Entry::HttpP3, _) => Pre::HttpP3(ServicePre::new(instance(linker)?).map_err(missing)?),
        })
    }
}

#[allow(unsafe_code, reason = "loading compiled code is inherently unsafe; it is authenticated before")]
fn deserialize(engine: &Engine, world: World, code: &File) -> wasmtime::Result<Code> {
    // The file that was authenticated, whatever has its name by now.
    let path = format!("/proc/self/fd/{}", code.as_raw_fd());
    // SAFETY: the file was written by this host's compiler (which is to be trusted as far as it is sound: see
    // `child.rs`) and has just been authenticated, with its key, by a key that only this host's user can read. A store
    // gives files that only this user can write, and that nobody writes to any more (`code_store.rs`). Whoever could change
    // it between the check and the mapping, or later under the mapping, is this user and needs no such detour. That it
    // fits the engine is in its key, and wasmtime checks it again.
    unsafe {
        Ok(match world {
            World::P1 => Code::Module(Module::deserialize_file(engine, path)?),
            World::P2 | World::P3 => Code::Component(Component::deserialize_file(engine, path)?),
        })
    }
}
