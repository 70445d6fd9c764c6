//! The texts of outgoing requests: the method and the authority, which wasmtime-wasi-http takes in any length.
//!
//! Its functions of the requests are called through these, which refuse what no server would take, and have the rest
//! counted. All other functions of `wasi:http/types` stay as they are.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::{WasiHttpView, p2, p3};

use crate::linker::State;

/// Bytes of a method's name.
const METHOD_BYTES_MAX: usize = 256;

/// Bytes of a host's name with its port.
const AUTHORITY_BYTES_MAX: usize = 1024;

/// The interface as wasmtime-wasi-http's linker names it, for 0.2 and for 0.3.
const TYPES_P2: &str = "wasi:http/types@0.2.12";
const TYPES_P3: &str = "wasi:http/types@0.3.0";

type Told = wasmtime::Result<(Result<(), ()>,)>;

/// Calls a function, and notes that something may be larger than before.
fn told(
    store: &mut StoreContextMut<'_, State>,
    set: impl FnOnce(&mut State) -> wasmtime::Result<Result<(), ()>>,
) -> Told {
    let result = set(store.data_mut());
    store.data_mut().note_http_change();
    Ok((result?,))
}

fn is_short(authority: Option<&String>) -> bool {
    authority.is_none_or(|authority| authority.len() <= AUTHORITY_BYTES_MAX)
}

/// Puts the functions in the place of those of 0.2, which must be there.
pub(crate) fn add_p2_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use p2::bindings::http::types::{HostOutgoingRequest, Method};
    type Request = Resource<p2::types::HostOutgoingRequest>;
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES_P2)?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, State>, (request, method): (Request, Method)| match &method {
            Method::Other(name) if name.len() > METHOD_BYTES_MAX => Ok((Err(()),)),
            _ => told(&mut store, |state| state.http().set_method(request, method)),
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: StoreContextMut<'_, State>, (request, authority): (Request, Option<String>)| {
            if is_short(authority.as_ref()) {
                told(&mut store, |state| state.http().set_authority(request, authority))
            } else {
                Ok((Err(()),))
            }
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |mut store: StoreContextMut<'_, State>, (request, path): (Request, Option<String>)| {
            told(&mut store, |state| state.http().set_path_with_query(request, path))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Puts the functions in the place of those of 0.3, which must be there.
pub(crate) fn add_p3_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use p3::bindings::http::types::{HostRequest, Method};
    type Request = Resource<p3::Request>;
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES_P3)?;
    types.func_wrap(
        "[method]request.set-method",
        |mut store: StoreContextMut<'_, State>, (request, method): (Request, Method)| match &method {
            Method::Other(name) if name.len() > METHOD_BYTES_MAX => Ok((Err(()),)),
            _ => told(&mut store, |state| state.http().set_method(request, method)),
        },
    )?;
    types.func_wrap(
        "[method]request.set-authority",
        |mut store: StoreContextMut<'_, State>, (request, authority): (Request, Option<String>)| {
            if is_short(authority.as_ref()) {
                told(&mut store, |state| state.http().set_authority(request, authority))
            } else {
                Ok((Err(()),))
            }
        },
    )?;
    types.func_wrap(
        "[method]request.set-path-with-query",
        |mut store: StoreContextMut<'_, State>, (request, path): (Request, Option<String>)| {
            told(&mut store, |state| state.http().set_path_with_query(request, path))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{self, WasiVersion};

    #[test]
    fn the_functions_take_the_place_of_others() {
        let engine = engine::compiling(WasiVersion::P3).expect("an engine");
        let mut linker = crate::linker::linker(&engine, WasiVersion::P3).expect("linked");
        for (types, request) in [(TYPES_P2, "outgoing-request"), (TYPES_P3, "request")] {
            let mut types = linker.instance(types).expect("an instance");
            for function in ["set-method", "set-authority", "set-path-with-query", "authority"] {
                let name = match (request, function) {
                    ("request", "authority") => "[method]request.get-authority".to_owned(),
                    _ => format!("[method]{request}.{function}"),
                };
                // The last one is none of ours: it shows that the instance is the one of wasmtime-wasi-http.
                let again = types.func_wrap(&name, |_: StoreContextMut<'_, State>, (): ()| Ok(()));
                assert!(again.is_err(), "{name} was not there");
            }
        }
    }
}
