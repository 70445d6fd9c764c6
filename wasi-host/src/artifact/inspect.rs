//! What a file is: nothing of ours, a module for preview 1, or a component, and how that is entered.

use wasi_preview1_component_adapter_provider as adapter;
use wasmparser::{ExternalKind, KnownCustom, Parser, Payload};
use wit_component::ComponentEncoder;

use super::{Entry, PrepareError, nesting};
use crate::engine::WasiVersion;

/// The first clang whose wasi-libc does not corrupt memory under the adapter.
const CLANG_MIN: [u32; 3] = [15, 0, 7];

/// Names that an error message lists.
const NAMES_MAX: usize = 5;

/// Characters of each.
const NAME_CHARS_MAX: usize = 100;

/// Bytes that an error message shows of a file that is no WebAssembly.
const SHOWN_BYTES_MAX: usize = 16;

/// A file that can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Component(Kind),
    /// A core module that imports WASI preview 1, or carries the types of a component.
    Module {
        /// It has a `_start`.
        command: bool,
        /// The entry that its component types give it, where it has no `_start`.
        entry: Entry,
    },
}

/// What a component is, once it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) entry: Entry,
    /// The WASI of which the entry is.
    pub(super) world: WasiVersion,
    /// The engine that it needs.
    pub(super) engine: WasiVersion,
    /// Bytes of the host that an instance of it takes for its structures; zero before that is reckoned.
    pub(super) structures: u64,
    /// Bytes of the host that it takes as it is loaded; the same.
    pub(super) loaded: u64,
}

impl Form {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Form::Component(kind) => *kind,
            Form::Module { entry, .. } => Kind {
                entry: *entry,
                world: WasiVersion::P2,
                engine: WasiVersion::P2,
                structures: 0,
                loaded: 0,
            },
        }
    }
}

impl Kind {
    const ENTRIES: [(Entry, &str); 3] =
        [(Entry::Command, "command"), (Entry::HttpP2, "http-p2"), (Entry::HttpP3, "http-p3")];

    /// As it is written beside the compiled code, and said by the compiler.
    pub(super) fn to_text(self) -> String {
        let names = Self::ENTRIES.iter().filter(|(entry, _)| *entry == self.entry).map(|(_, name)| *name);
        let parts: Vec<_> = names.chain([self.world.name(), self.engine.name()]).collect();
        format!("{} {} {}", parts.join(" "), self.structures, self.loaded)
    }

    pub(super) fn from_text(text: &str) -> Option<Kind> {
        let mut parts = text.split(' ');
        let name = parts.next()?;
        let (entry, _) = Self::ENTRIES.into_iter().find(|(_, known)| *known == name)?;
        let world = WasiVersion::from_name(parts.next()?)?;
        let engine = WasiVersion::from_name(parts.next()?)?;
        let mut number = || parts.next()?.parse().ok();
        let (structures, loaded) = (number()?, number()?);
        parts.next().is_none().then_some(Kind { entry, world, engine, structures, loaded })
    }
}

/// Decides what the file is. Reads its sections only; whether its code is valid is found when it is compiled.
pub(super) fn inspect(wasm: &[u8]) -> Result<Form, PrepareError> {
    if Parser::is_component(wasm) {
        nesting::check(wasm)?;
        inspect_component(wasm)
    } else if Parser::is_core_wasm(wasm) {
        nesting::check(wasm)?;
        inspect_module(wasm)
    } else {
        Err(PrepareError::NotWasm { begins: readable(wasm) })
    }
}

/// Makes a component of a module by means of the preview 1 adapter.
pub(super) fn componentize(form: Form, module: &[u8]) -> Result<Vec<u8>, PrepareError> {
    let adapter = match form {
        Form::Module { command: true, .. } => adapter::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        _ => adapter::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
    };
    ComponentEncoder::default()
        .module(module)
        .and_then(|encoder| encoder.adapter(adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter))
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(|error| PrepareError::Compile {
            message: format!("no component can be made of it: {error:#}"),
        })
}

fn inspect_component(wasm: &[u8]) -> Result<Form, PrepareError> {
    let mut depth = 0_u32;
    let mut p3 = false;
    let mut entry = None;
    let mut exports = Names::default();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    p3 |= is_p3(import.map_err(malformed)?.name.name);
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let name = export.map_err(malformed)?.name.name;
                    p3 |= is_p3(name);
                    entry = entry.max(rank(name));
                    exports.push(&[name]);
                }
            }
            _ => {}
        }
    }
    let Some((_, entry, p3_entry)) = entry else {
        return Err(PrepareError::NoEntry { exports: exports.listed() });
    };
    let version = |p3| if p3 { WasiVersion::P3 } else { WasiVersion::P2 };
    let (world, engine) = (version(p3_entry), version(p3));
    Ok(Form::Component(Kind { entry: entry.entry(), world, engine, structures: 0, loaded: 0 }))
}

/// Entries, the one to prefer last: a server may well export an empty `run` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ranked {
    Command,
    HttpP2,
    HttpP3,
}

impl Ranked {
    fn entry(self) -> Entry {
        match self {
            Ranked::Command => Entry::Command,
            Ranked::HttpP2 => Entry::HttpP2,
            Ranked::HttpP3 => Entry::HttpP3,
        }
    }
}

/// The entry that an exported interface is, with how much it is preferred, and whether it is one of 0.3.
fn rank(export: &str) -> Option<(u8, Ranked, bool)> {
    let (interface, version) = export.split_once('@').unwrap_or((export, "0.2"));
    let p3 = version.starts_with("0.3");
    match (interface, p3) {
        ("wasi:cli/run", _) => Some((u8::from(p3), Ranked::Command, p3)),
        ("wasi:http/incoming-handler", false) => Some((2, Ranked::HttpP2, false)),
        ("wasi:http/handler", true) => Some((3, Ranked::HttpP3, true)),
        _ => None,
    }
}

fn is_p3(name: &str) -> bool {
    name.starts_with("wasi:") && name.split_once('@').is_some_and(|(_, version)| version.starts_with("0.3"))
}

fn inspect_module(wasm: &[u8]) -> Result<Form, PrepareError> {
    let mut foreign = Names::default();
    let mut exports = Names::default();
    let mut command = false;
    let mut typed = false;
    let mut http = false;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(malformed)?;
                    if import.module != adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME {
                        foreign.push(&[import.module, ".", import.name]);
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(malformed)?;
                    command |= export.name == "_start" && export.kind == ExternalKind::Func;
                    http |= export.name.contains("wasi:http/incoming-handler@0.2");
                    exports.push(&[export.name]);
                }
            }
            Payload::CustomSection(section) => {
                typed |= section.name().starts_with("component-type");
                if let KnownCustom::Producers(producers) = section.as_known() {
                    refuse_old_clang(producers)?;
                }
            }
            _ => {}
        }
    }
    if !typed && foreign.count > 0 {
        return Err(PrepareError::NotWasi { imports: foreign.listed() });
    }
    if command {
        return Ok(Form::Module { command, entry: Entry::Command });
    }
    if typed && http {
        return Ok(Form::Module { command, entry: Entry::HttpP2 });
    }
    Err(PrepareError::NoEntry { exports: exports.listed() })
}

/// A producers section that cannot be read says nothing, and is ignored as custom sections are.
fn refuse_old_clang(producers: wasmparser::ProducersSectionReader<'_>) -> Result<(), PrepareError> {
    for field in producers.into_iter().flatten() {
        for value in field.values.into_iter().flatten() {
            if value.name == "clang"
                && clang_version(value.version).is_some_and(|version| version < CLANG_MIN)
            {
                return Err(PrepareError::OldClang { version: value.version.to_owned() });
            }
        }
    }
    Ok(())
}

/// `14.0.6` of `14.0.6 (https://...)` or of `Debian clang version 14.0.6`.
fn clang_version(text: &str) -> Option<[u32; 3]> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut parts = text[start..].split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    Some([parts.next()?, parts.next().unwrap_or(0), parts.next().unwrap_or(0)])
}

pub(super) fn malformed(error: wasmparser::BinaryReaderError) -> PrepareError {
    PrepareError::Compile { message: format!("the file is damaged or cut short: {error}") }
}

/// The first of many names: a file may have millions.
#[derive(Default)]
struct Names {
    first: Vec<String>,
    count: usize,
}

impl Names {
    fn push(&mut self, parts: &[&str]) {
        self.count += 1;
        if self.first.len() < NAMES_MAX {
            let name: String = parts.concat().chars().take(NAME_CHARS_MAX).collect();
            self.first.push(name);
        }
    }

    fn listed(&self) -> String {
        if self.count == 0 {
            return "nothing".to_owned();
        }
        let mut text = self.first.join(", ");
        if self.count > NAMES_MAX {
            text.push_str(&format!(" and {} more", self.count - NAMES_MAX));
        }
        text
    }
}

fn readable(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing (it is empty)".to_owned();
    }
    format!("\"{}\"", bytes[..bytes.len().min(SHOWN_BYTES_MAX)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clang_versions_are_found_in_what_vendors_write() {
        assert_eq!(clang_version("14.0.6 (https://github.com/llvm)"), Some([14, 0, 6]));
        assert_eq!(clang_version("Debian clang version 15.0.7"), Some([15, 0, 7]));
        assert_eq!(clang_version("trunk"), None);
    }

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for (entry, _) in Kind::ENTRIES {
            for (world, engine) in [(WasiVersion::P2, WasiVersion::P3), (WasiVersion::P3, WasiVersion::P3)] {
                let kind = Kind { entry, world, engine, structures: 7, loaded: 8 };
                assert_eq!(Kind::from_text(&kind.to_text()), Some(kind));
            }
        }
        for wrong in [
            "",
            "command",
            "command p2",
            "command p2 p4 7 8",
            "command p2 p2 7",
            "command p2 p2",
            "command p2 p2 p2",
            "x p2 p2 7 8",
        ] {
            assert_eq!(Kind::from_text(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_handler_is_preferred_to_an_empty_run() {
        let run = rank("wasi:cli/run@0.2.6");
        assert!(rank("wasi:http/incoming-handler@0.2.0") > run && run > None);
        assert!(rank("wasi:http/handler@0.3.0").is_some_and(|(_, entry, p3)| p3 && entry == Ranked::HttpP3));
    }
}
