//! What can be said of a file before any node has it: for a command that would else find out by waiting.

use std::collections::BTreeSet;

use wasmparser::{Parser, Payload};

use super::check::WASM_BYTES_MAX;
use super::inspect::{self, malformed};
use super::{Entry, PrepareError};
use crate::linker;

/// What a file is, by what it says of itself. Its code is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Examined {
    /// How it is run.
    pub entry: Entry,
    /// Whether it can serve anything: it handles HTTP, or imports sockets.
    pub serves: bool,
}

/// Imports that are told of at most.
const NAMES_MAX: usize = 5;

/// Characters of each.
const NAME_CHARS_MAX: usize = 100;

/// Examines a file; the errors are those that a node would give. Whether it has each function that it imports of what there
/// is, and whether its code is valid, only a node finds out.
pub fn examine(wasm: &[u8]) -> Result<Examined, PrepareError> {
    if wasm.len() as u64 > WASM_BYTES_MAX {
        return Err(PrepareError::TooLarge { bytes: wasm.len() as u64, limit: WASM_BYTES_MAX });
    }
    let entry = inspect::inspect(wasm)?.entry;
    let mut foreign = BTreeSet::new();
    let mut sockets = false;
    for name in imports(wasm)? {
        sockets |= name.starts_with("wasi:sockets/") || name.starts_with("sock_");
        if Parser::is_component(wasm) && !is_offered(&name) && foreign.len() <= NAMES_MAX {
            foreign.insert(name.chars().take(NAME_CHARS_MAX).collect::<String>());
        }
    }
    if !foreign.is_empty() {
        let more = if foreign.len() > NAMES_MAX { " and more" } else { "" };
        let names = foreign.into_iter().take(NAMES_MAX).collect::<Vec<_>>().join(", ");
        let message = format!("it imports {names}{more}; there are {}", linker::offers());
        return Err(PrepareError::MissingImport { message });
    }
    Ok(Examined { entry, serves: sockets || entry != Entry::Command })
}

/// Whether a component may import something of this package, in this version.
fn is_offered(name: &str) -> bool {
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    linker::names().any(|offer| match offer.split_once('@') {
        // What is not stable yet is offered in one version of one interface.
        Some((whole, of)) => interface == whole && version == of,
        None => {
            let package = interface.split('/').next().unwrap_or(interface);
            package == offer && (version.starts_with("0.2.") || version.starts_with("0.3."))
        }
    })
}

/// The names of all imports: of a component those of the outermost, of a module each function's.
fn imports(wasm: &[u8]) -> Result<Vec<String>, PrepareError> {
    let (mut depth, mut names) = (0_u32, Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import.map_err(malformed)?;
                    // Types and functions of the world itself are no interfaces, and are found missing by their name.
                    names.push(import.name.name.to_owned());
                }
            }
            Payload::ImportSection(section) if depth == 0 => {
                for import in section.into_imports() {
                    let import = import.map_err(malformed)?;
                    let own = import.module.contains(':');
                    names.push(if own { import.module } else { import.name }.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examined(wat: &str) -> Result<Examined, String> {
        examine(&wat::parse_str(wat).expect("the text is well-formed")).map_err(|error| error.to_string())
    }

    fn component(imports: &[&str], export: &str) -> String {
        let imports: String = imports.iter().map(|name| format!("(import {name:?} (instance))\n")).collect();
        format!("(component {imports} (instance $e) (export {export:?} (instance $e)))")
    }

    #[test]
    fn what_serves_is_told_from_what_computes_and_ends() {
        let of =
            |imports: &[&str], export| examined(&component(imports, export)).map(|it| (it.entry, it.serves));
        assert_eq!(of(&["wasi:cli/stdout@0.2.6"], "wasi:cli/run@0.2.6"), Ok((Entry::Command, false)));
        assert_eq!(of(&["wasi:sockets/tcp@0.2.0"], "wasi:cli/run@0.2.6"), Ok((Entry::Command, true)));
        assert_eq!(of(&[], "wasi:http/incoming-handler@0.2.3"), Ok((Entry::HttpP2, true)));
        assert_eq!(of(&["wasi:sockets/types@0.3.0"], "wasi:cli/run@0.3.0"), Ok((Entry::Command, true)));
        let module = |import| {
            format!(
                "(module (import \"wasi_snapshot_preview1\" {import:?} (func)) (func (export \"_start\")))"
            )
        };
        assert_eq!(examined(&module("proc_exit")).map(|it| it.serves), Ok(false));
        assert_eq!(examined(&module("sock_accept")).map(|it| it.serves), Ok(true));
    }

    #[test]
    fn what_is_not_served_is_named() {
        let said = |imports: &[&str], export| examined(&component(imports, export)).unwrap_err();
        for import in [
            "wasi:keyvalue/store@0.2.0-draft2",
            "wasi:io/streams@0.1.0",
            "acme:db/rows",
            "wasi:config/store@0.2.0",
        ] {
            let text = said(&[import, "wasi:io/poll@0.2.0"], "wasi:cli/run@0.2.0");
            assert!(text.contains(&format!("it imports {import}; there are wasi:cli")), "{text}");
        }
        assert!(said(&[], "acme:app/start").contains("nothing to run: it exports acme:app/start"));
        assert!(examined(&component(&["wasi:config/store@0.2.0-rc.1"], "wasi:cli/run@0.2.0")).is_ok());
        assert!(examine(b"#!/bin/sh").unwrap_err().to_string().starts_with("not WebAssembly"));
        assert!(examine(b"\0asm").is_err(), "cut short");
        let many: Vec<String> = (0..9).map(|at| format!("acme:db/rows{at}")).collect();
        let text = said(&many.iter().map(String::as_str).collect::<Vec<_>>(), "wasi:cli/run@0.2.0");
        assert!(text.contains("acme:db/rows4 and more;") && !text.contains("rows5"), "{text}");
    }
}
