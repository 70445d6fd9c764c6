//! What a file is: nothing of ours, a module for preview 1, or a component, and how that is entered.

use wasmparser::{ExternalKind, Parser, Payload};

use super::{Entry, PrepareError, nesting};
use crate::engine::WasiVersion;
use crate::preview1;

/// Names that an error message lists.
const NAMES_MAX: usize = 5;

/// Characters of each.
const NAME_CHARS_MAX: usize = 100;

/// What can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) entry: Entry,
    /// The WASI of which the entry is.
    pub(super) world: World,
    /// The engine that it needs.
    pub(super) engine: WasiVersion,
    /// Bytes of the host that an instance of it takes for its structures; zero before that is reckoned.
    pub(super) structures: u64,
    /// Bytes of the host that it takes as it is loaded; the same.
    pub(super) loaded: u64,
}

/// The WASI that something is entered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum World {
    /// Preview 1, of core modules. All others are of components.
    P1,
    P2,
    P3,
}

impl World {
    const NAMES: [(World, &str); 3] = [(World::P1, "p1"), (World::P2, "p2"), (World::P3, "p3")];

    fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(world, _)| *world == self).map_or("", |(_, name)| name)
    }

    fn from_name(name: &str) -> Option<World> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(world, _)| world)
    }
}

impl Kind {
    /// One of which nothing is reckoned yet.
    fn new(entry: Entry, world: World, engine: WasiVersion) -> Kind {
        Kind { entry, world, engine, structures: 0, loaded: 0 }
    }

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
        let world = World::from_name(parts.next()?)?;
        let engine = WasiVersion::from_name(parts.next()?)?;
        let mut number = || parts.next()?.parse().ok();
        let (structures, loaded) = (number()?, number()?);
        parts.next().is_none().then_some(Kind { entry, world, engine, structures, loaded })
    }
}

/// Decides what the file is. Reads its sections only; whether its code is valid is found when it is compiled.
pub(super) fn inspect(wasm: &[u8]) -> Result<Kind, PrepareError> {
    if Parser::is_component(wasm) {
        nesting::check(wasm)?;
        inspect_component(wasm)
    } else if Parser::is_core_wasm(wasm) {
        nesting::check(wasm)?;
        inspect_module(wasm)
    } else {
        Err(PrepareError::NotWasm { fault: fault(wasm) })
    }
}

fn inspect_component(wasm: &[u8]) -> Result<Kind, PrepareError> {
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
    let world = if p3_entry { World::P3 } else { World::P2 };
    let engine = if p3 { WasiVersion::P3 } else { WasiVersion::P2 };
    Ok(Kind::new(entry.entry(), world, engine))
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

fn inspect_module(wasm: &[u8]) -> Result<Kind, PrepareError> {
    let mut foreign = Names::default();
    let mut exports = Names::default();
    let mut command = false;
    let mut typed = false;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(malformed)?;
                    if import.module != preview1::MODULE {
                        foreign.push(&[import.module, ".", import.name]);
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(malformed)?;
                    command |= export.name == "_start" && export.kind == ExternalKind::Func;
                    exports.push(&[export.name]);
                }
            }
            Payload::CustomSection(section) => typed |= section.name().starts_with("component-type"),
            _ => {}
        }
    }
    if command && foreign.count == 0 {
        return Ok(Kind::new(Entry::Command, World::P1, WasiVersion::P2));
    }
    Err(match (typed, foreign.count) {
        (true, _) => PrepareError::NoComponent,
        (false, 0) => PrepareError::NoEntry { exports: exports.listed() },
        (false, _) => PrepareError::NotWasi { imports: foreign.listed() },
    })
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

fn fault(bytes: &[u8]) -> String {
    let fault =
        if bytes.is_empty() { "the file is empty" } else { "the file does not begin with the bytes \\0asm" };
    fault.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for (entry, _) in Kind::ENTRIES {
            for (world, engine) in
                [(World::P1, WasiVersion::P2), (World::P2, WasiVersion::P3), (World::P3, WasiVersion::P3)]
            {
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
