//! Functions of `wasi:http/types` that make something larger: fields, and the texts of outgoing requests.
//!
//! wasmtime-wasi-http's own are called through these, which refuse what the host has no room for, and what no server would
//! take. All other functions of the interface stay as they are.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::{FieldMap, WasiHttpView, p2, p3};

use crate::linker::State;

/// Bytes of a method's name.
const METHOD_BYTES_MAX: usize = 256;

/// Bytes of a host's name with its port.
const AUTHORITY_BYTES_MAX: usize = 1024;

/// The interface as wasmtime-wasi-http's linker names it, for 0.2 and for 0.3.
const TYPES_P2: &str = "wasi:http/types@0.2.12";
const TYPES_P3: &str = "wasi:http/types@0.3.0";

type Store<'a> = StoreContextMut<'a, State>;
type Fields = Resource<FieldMap>;
type Entries = Vec<(String, Vec<u8>)>;

/// Both versions have the same functions, of types that are generated for each.
macro_rules! fields {
    ($linker:ident, $interface:ident, $version:ident, $refused:ident) => {{
        use $version::bindings::http::types::{HeaderError, Host as _, HostFields as _};
        let mut types = $linker.instance($interface)?;
        types.func_wrap(
            "[method]fields.append",
            |mut store: Store<'_>, (fields, name, value): (Fields, String, Vec<u8>)| {
                let state = store.data_mut();
                if !state.may_grow() {
                    return Ok((Err($refused),));
                }
                let appended = state.http().append(fields, name, value);
                let told: Result<(), HeaderError> = match appended {
                    Ok(()) => Ok(()),
                    Err(error) => Err(state.http().convert_header_error(error)?),
                };
                Ok((told,))
            },
        )?;
        types.func_wrap(
            "[method]fields.set",
            |mut store: Store<'_>, (fields, name, values): (Fields, String, Vec<Vec<u8>>)| {
                let state = store.data_mut();
                if !state.may_grow() {
                    return Ok((Err($refused),));
                }
                let set = state.http().set(fields, name, values);
                let told: Result<(), HeaderError> = match set {
                    Ok(()) => Ok(()),
                    Err(error) => Err(state.http().convert_header_error(error)?),
                };
                Ok((told,))
            },
        )?;
        types.func_wrap("[static]fields.from-list", |mut store: Store<'_>, (entries,): (Entries,)| {
            let state = store.data_mut();
            if !state.may_grow() {
                return Ok((Err($refused),));
            }
            let made = state.http().from_list(entries);
            let told: Result<Fields, HeaderError> = match made {
                Ok(fields) => Ok(fields),
                Err(error) => Err(state.http().convert_header_error(error)?),
            };
            Ok((told,))
        })?;
    }};
}

/// The same for requests.
macro_rules! requests {
    ($linker:ident, $interface:ident, $version:ident, $host:ident, $request:ty, $name:literal) => {{
        use $version::bindings::http::types::{$host as _, Method};
        type Request = Resource<$request>;
        let mut types = $linker.instance($interface)?;
        types.func_wrap(
            concat!("[method]", $name, ".set-method"),
            |mut store: Store<'_>, (request, method): (Request, Method)| {
                let is_short = !matches!(&method, Method::Other(name) if name.len() > METHOD_BYTES_MAX);
                changed(&mut store, is_short, |state| state.http().set_method(request, method))
            },
        )?;
        types.func_wrap(
            concat!("[method]", $name, ".set-authority"),
            |mut store: Store<'_>, (request, authority): (Request, Option<String>)| {
                let is_short = authority.as_ref().is_none_or(|name| name.len() <= AUTHORITY_BYTES_MAX);
                changed(&mut store, is_short, |state| state.http().set_authority(request, authority))
            },
        )?;
        types.func_wrap(
            concat!("[method]", $name, ".set-path-with-query"),
            |mut store: Store<'_>, (request, path): (Request, Option<String>)| {
                changed(&mut store, true, |state| state.http().set_path_with_query(request, path))
            },
        )?;
    }};
}

/// Puts the functions in the place of those of 0.2, which must be there.
pub(crate) fn add_p2_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    /// 0.2 has no error for fields that are too large.
    const REFUSED: p2::bindings::http::types::HeaderError = p2::bindings::http::types::HeaderError::Forbidden;
    linker.allow_shadowing(true);
    fields!(linker, TYPES_P2, p2, REFUSED);
    requests!(linker, TYPES_P2, p2, HostOutgoingRequest, p2::types::HostOutgoingRequest, "outgoing-request");
    linker.allow_shadowing(false);
    Ok(())
}

/// Puts the functions in the place of those of 0.3, which must be there.
pub(crate) fn add_p3_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    const REFUSED: p3::bindings::http::types::HeaderError =
        p3::bindings::http::types::HeaderError::SizeExceeded;
    linker.allow_shadowing(true);
    fields!(linker, TYPES_P3, p3, REFUSED);
    requests!(linker, TYPES_P3, p3, HostRequest, p3::Request, "request");
    linker.allow_shadowing(false);
    Ok(())
}

/// Sets something that is short enough, and notes that more may be held than before.
fn changed(
    store: &mut Store<'_>,
    is_short: bool,
    set: impl FnOnce(&mut State) -> wasmtime::Result<Result<(), ()>>,
) -> wasmtime::Result<(Result<(), ()>,)> {
    let state = store.data_mut();
    if !is_short || !state.may_grow() {
        return Ok((Err(()),));
    }
    let told = set(state)?;
    state.note_http_change();
    Ok((told,))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{self, WasiVersion};

    #[test]
    fn the_functions_take_the_place_of_others() {
        let engine = engine::compiling(WasiVersion::P3).expect("an engine");
        let mut linker = crate::linker::linker(&engine, WasiVersion::P3).expect("linked");
        let of_fields = ["[method]fields.append", "[method]fields.set", "[static]fields.from-list"];
        for (types, request) in [(TYPES_P2, "outgoing-request"), (TYPES_P3, "request")] {
            let mut types = linker.instance(types).expect("an instance");
            let of_requests = ["method", "authority", "path-with-query"]
                .map(|text| format!("[method]{request}.set-{text}"));
            // The last one is none of ours: it shows that the instance is the one of wasmtime-wasi-http.
            let all =
                of_requests.iter().map(String::as_str).chain(of_fields).chain(["[method]fields.delete"]);
            for name in all {
                let again = types.func_wrap(name, |_: Store<'_>, (): ()| Ok(()));
                assert!(again.is_err(), "{name} was not there");
            }
        }
    }
}
