//! `wasi:config/store`: a container's configuration, which is its environment.
//!
//! What a pod's spec takes into the environment, from ConfigMaps and Secrets among other things, a component reads here by
//! name, whatever its language makes of environments. There is nothing beside that, and nothing that can be changed.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Linker, Lower, WasmStr};

use crate::capability::{Capability, ContainerParts, Env};
use crate::linker;
use crate::sandbox::StartError;

type Store<'a> = StoreContextMut<'a, linker::State>;

/// The interface's `error`. The environment is always at hand, so none is ever told.
#[derive(ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "a part of the interface's types")]
enum Error {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

/// The capability.
pub(crate) struct PodConfig;

impl Capability for PodConfig {
    const NAME: &'static str = "wasi:config/store@0.2.0-rc.1";

    type Grant = Env;
    type State = Env;

    fn add_p2_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        let mut store = linker.instance(Self::NAME)?;
        // What is answered is shared with the container, not copied: nothing waits on the host for the guest to take it.
        store.func_wrap("get", |mut store: Store<'_>, (key,): (WasmStr,)| {
            let env = Arc::clone(&store.data_mut().parts().states.config);
            let value: Result<_, Error> = Ok(value_of(&env, &key.to_str(&store)?));
            Ok((value,))
        })?;
        store.func_wrap("get-all", |mut store: Store<'_>, (): ()| {
            let all: Result<_, Error> = Ok(Arc::clone(&store.data_mut().parts().states.config));
            Ok((all,))
        })
    }

    fn grant(container: &ContainerParts<'_>) -> Result<Env, StartError> {
        Ok(Arc::clone(container.env))
    }

    fn state(env: &Env) -> Env {
        Arc::clone(env)
    }
}

/// The value of that name; the last, where there are several.
fn value_of(env: &Env, name: &str) -> Option<Arc<str>> {
    env.iter().rev().find(|(known, _)| **known == *name).map(|(_, value)| Arc::clone(value))
}
