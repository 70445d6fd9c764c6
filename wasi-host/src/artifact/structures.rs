//! What a component or module takes of the host beside memories and tables: as it is loaded, names, types and functions of all its
//! modules, instantiated or not; and for each core instance places for functions that may be called from elsewhere, globals,
//! and element segments that it keeps.
//!
//! A small file can ask for gigabytes of it: segments of one byte an element, instantiated again and again, or millions of
//! names of one function. So it is reckoned before the file is compiled, from above: where it is not said here which module or
//! component is instantiated, it is the largest.
//!
//! So are the stacks that calls may wait on in an instance of WASI 0.3. wasmtime lets no call into a component instance in
//! which another one runs or waits, so that there are as many as component instances with functions to be called.

mod exports;
mod sections;

use object::{Object, ObjectSection};
use wasmparser::{
    CanonicalFunction, ComponentAlias, ComponentExport, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentTypeRef, Instance, Parser, Payload, Result,
};

use super::PrepareError;
use super::inspect::malformed;
use crate::engine::{self, P3_STACKS, WasiVersion};

/// Bytes of a component that is loaded, and of one instance's structures. Large programs in languages with runtimes of their
/// own take a few MiB.
const BYTES_MAX: u64 = 64 << 20;

/// Core instances that one component may have; wasmtime's pool admits no more.
const INSTANCES_MAX: u64 = 200;

/// Bytes of the host, from above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Structures {
    /// Of each instance, beside memories and tables.
    pub(super) instance: u64,
    /// Of the component as it is loaded.
    pub(super) loaded: u64,
}

/// The section of compiled code that is read into memory as it is loaded, and what a byte of it takes there: of a function,
/// some 40 of them, two, and of what else is long there no more than this. Exports are reckoned from the component.
const READ_SECTION: &str = ".wasmtime.info";
const READ_BYTES: u64 = 8;

/// Bytes that a component takes as it is loaded, by what was compiled of it; refused where that is more than [`BYTES_MAX`].
pub(super) fn of_code(code: &[u8]) -> std::result::Result<u64, PrepareError> {
    let section =
        object::File::parse(code).ok().and_then(|file| Some(file.section_by_name(READ_SECTION)?.size()));
    // Nothing is known of code without it.
    let loaded = section.unwrap_or(code.len() as u64).saturating_mul(READ_BYTES);
    refuse_beyond(loaded)?;
    Ok(loaded)
}

fn refuse_beyond(bytes: u64) -> std::result::Result<(), PrepareError> {
    if bytes <= BYTES_MAX {
        return Ok(());
    }
    Err(PrepareError::Compile {
        message: format!(
            "loaded, with an instance of it, it would take {} MiB of the host for its names, types, functions, globals \
             and element segments; at most {} are admitted: have it contain and instantiate fewer modules, or smaller ones",
            bytes >> 20,
            BYTES_MAX >> 20
        ),
    })
}

/// What the component and its instances take; refused where that is more than [`BYTES_MAX`] with one of them, or where an
/// instance on the engine of 0.3 could hold more stacks than its seats have.
pub(super) fn of(component: &[u8], engine: WasiVersion) -> std::result::Result<Structures, PrepareError> {
    let mut parts = reckon(component).map_err(malformed)?;
    // What is no valid component the compiler refuses.
    if Parser::is_component(component) {
        parts.load(exports::exported(component).unwrap_or_default().saturating_mul(sections::EXPORT_BYTES));
    }
    refuse_beyond(parts.instance.saturating_add(parts.loaded))?;
    if engine == WasiVersion::P3 && parts.stacks() > parts.stacks_of_seats() {
        return Err(PrepareError::Compile {
            message: format!(
                "calls could wait in {} of the components that it is composed of at once, each on a stack, and with so few \
                 memories and tables an instance of it has {} stacks: compose fewer of them, or such that have memories of \
                 their own",
                parts.callable,
                parts.stacks_of_seats()
            ),
        });
    }
    Ok(Structures { instance: parts.instance, loaded: parts.loaded })
}

/// What instantiating a module or component comes to.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    /// Bytes of each instance.
    instance: u64,
    /// Bytes of what is written down of how to instantiate it.
    loaded: u64,
    /// Memories and tables, at least.
    memories: u64,
    tables: u64,
    /// Functions that are lifted, lowered or built in.
    functions: u64,
    /// Component instances that have functions to be called.
    callable: u64,
    /// Core instances of modules that are not known here.
    unknown: u64,
    /// Component instances of components that are not known here.
    open: u64,
}

impl Parts {
    fn add(&mut self, other: Parts) {
        self.instance = self.instance.saturating_add(other.instance);
        self.load(other.loaded);
        self.memories = self.memories.saturating_add(other.memories);
        self.tables = self.tables.saturating_add(other.tables);
        self.functions = self.functions.saturating_add(other.functions);
        self.callable = self.callable.saturating_add(other.callable);
        self.unknown = self.unknown.saturating_add(other.unknown);
        self.open = self.open.saturating_add(other.open);
    }

    fn load(&mut self, bytes: u64) {
        self.loaded = self.loaded.saturating_add(bytes);
    }

    /// The same with the largest component in each place of one that is not known.
    fn with_open(mut self, largest: Parts) -> Parts {
        self.instance = self.instance.saturating_add(self.open.saturating_mul(largest.instance));
        self.load(self.open.saturating_mul(largest.loaded));
        self.functions = self.functions.saturating_add(self.open.saturating_mul(largest.functions));
        self.callable = self.callable.saturating_add(self.open.saturating_mul(largest.callable));
        self.open = 0;
        self
    }

    /// What is more of either.
    fn max(self, other: Parts) -> Parts {
        Parts {
            instance: self.instance.max(other.instance),
            loaded: self.loaded.max(other.loaded),
            functions: self.functions.max(other.functions),
            callable: self.callable.max(other.callable),
            ..Parts::default()
        }
    }

    /// Stacks that an instance may hold: of calls that wait, and of what runs meanwhile.
    fn stacks(&self) -> u64 {
        self.callable.saturating_add(1)
    }

    fn stacks_of_seats(&self) -> u64 {
        let number = |of: u64| u32::try_from(of).unwrap_or(u32::MAX);
        u64::from(engine::seats(number(self.memories), number(self.tables))) * u64::from(P3_STACKS)
    }
}

/// Something with an index, of which it may not be known what it is.
type Known = Option<Parts>;

/// What is open: a module, or a component.
enum Open {
    Module(Parts),
    Component(Within),
}

/// A component with what its indices stand for.
#[derive(Default)]
struct Within {
    modules: Vec<Known>,
    components: Vec<Known>,
    parts: Parts,
    lifts: bool,
}

/// What was found in the whole file so far.
#[derive(Default)]
struct Found {
    /// Bytes that are there once.
    loaded: u64,
    largest_module: Parts,
    largest_component: Parts,
    /// Items of the instance that has the most.
    items: u64,
}

impl Found {
    fn load(&mut self, bytes: u64) {
        self.loaded = self.loaded.saturating_add(bytes);
    }
}

fn reckon(component: &[u8]) -> Result<Parts> {
    let mut open: Vec<Open> = Vec::new();
    let mut found = Found::default();
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::Version { encoding, .. } => open.push(match encoding {
                wasmparser::Encoding::Module => Open::Module(Parts::default()),
                wasmparser::Encoding::Component => Open::Component(Within::default()),
            }),
            Payload::End(_) => {
                let Some(ended) = open.pop() else { break };
                if let (Open::Module(parts), true) = (&ended, open.is_empty()) {
                    return Ok(whole(*parts, &found));
                }
                let within = match open.last_mut() {
                    Some(Open::Component(within)) => Some(within),
                    _ => None,
                };
                match ended {
                    Open::Module(parts) => {
                        found.largest_module = found.largest_module.max(parts);
                        within.into_iter().for_each(|within| within.modules.push(Some(parts)));
                    }
                    Open::Component(Within { mut parts, lifts, .. }) => {
                        parts.callable = parts.callable.saturating_add(u64::from(lifts));
                        let Some(within) = within else { return Ok(whole(parts, &found)) };
                        found.largest_component = found.largest_component.max(parts);
                        within.components.push(Some(parts));
                    }
                }
            }
            payload => match open.last_mut() {
                Some(Open::Module(parts)) => {
                    found.load(sections::of_loaded_module(&payload)?);
                    of_module(&payload, parts)?;
                }
                Some(Open::Component(within)) => of_component(payload, within, &mut found)?,
                None => {}
            },
        }
    }
    Ok(Parts::default())
}

/// All that the outermost component comes to.
fn whole(parts: Parts, found: &Found) -> Parts {
    let mut whole = parts.with_open(found.largest_component);
    let unknown = whole.unknown.min(INSTANCES_MAX).saturating_mul(found.largest_module.instance);
    whole.instance = whole.instance.saturating_add(unknown);
    let each = if whole.callable > 1 { sections::ADAPTED_BYTES } else { sections::CANONICAL_BYTES };
    whole.load(whole.functions.saturating_mul(each));
    whole.load(found.loaded);
    whole
}

/// What a section of a module adds to each of its instances.
fn of_module(payload: &Payload<'_>, parts: &mut Parts) -> Result<()> {
    parts.instance = parts.instance.saturating_add(sections::of_instance(payload)?);
    match payload {
        Payload::MemorySection(memories) => parts.memories += u64::from(memories.count()),
        Payload::TableSection(tables) => parts.tables += u64::from(tables.count()),
        _ => {}
    }
    Ok(())
}

/// What a section of a component instantiates, and what it gives indices to.
fn of_component(payload: Payload<'_>, within: &mut Within, found: &mut Found) -> Result<()> {
    let Within { modules, components, parts, lifts } = within;
    match payload {
        Payload::CoreTypeSection(types) => {
            for ty in types {
                found.load(sections::of_core_type(&ty?));
            }
        }
        Payload::ComponentTypeSection(types) => {
            for ty in types {
                let bytes = sections::of_type(&ty?, &mut found.items);
                found.load(bytes);
            }
        }
        Payload::ComponentCanonicalSection(functions) => {
            for function in functions {
                *lifts |= matches!(function?, CanonicalFunction::Lift { .. });
                parts.functions = parts.functions.saturating_add(1);
            }
        }
        Payload::InstanceSection(instances) => {
            for instance in instances {
                match instance? {
                    Instance::Instantiate { module_index, args } => {
                        parts.load(sections::of_instantiation(args.len()));
                        let known = modules.get(module_index as usize).copied().flatten();
                        parts.add(known.unwrap_or(Parts { unknown: 1, ..Parts::default() }));
                    }
                    Instance::FromExports(exports) => parts.load(sections::of_instantiation(exports.len())),
                }
            }
        }
        Payload::ComponentInstanceSection(instances) => {
            for instance in instances {
                match instance? {
                    ComponentInstance::Instantiate { component_index, args } => {
                        parts.load(sections::of_instantiation(args.len()));
                        let known = components.get(component_index as usize).copied().flatten();
                        let unknown = Parts { unknown: INSTANCES_MAX, open: 1, ..Parts::default() };
                        parts.add(known.unwrap_or(unknown).with_open(found.largest_component));
                    }
                    ComponentInstance::FromExports(exports) => {
                        found.items = found.items.max(exports.len() as u64);
                        for export in exports.iter() {
                            parts.load(of_export(export, found));
                        }
                    }
                }
            }
        }
        Payload::ComponentAliasSection(aliases) => {
            for alias in aliases {
                match alias? {
                    ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. }
                    | ComponentAlias::Outer { kind: ComponentOuterAliasKind::CoreModule, .. } => {
                        modules.push(None)
                    }
                    ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. }
                    | ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, .. } => {
                        components.push(None);
                    }
                    _ => {}
                }
            }
        }
        Payload::ComponentImportSection(imports) => {
            for import in imports {
                let import = import?;
                parts.load(sections::of_name(import.name.name, 0));
                match import.ty {
                    ComponentTypeRef::Module(_) => modules.push(None),
                    ComponentTypeRef::Component(_) => components.push(None),
                    _ => {}
                }
            }
        }
        Payload::ComponentExportSection(exports) => {
            for export in exports {
                let export = export?;
                parts.load(of_export(&export, found));
                match export.kind {
                    ComponentExternalKind::Module => modules.push(None),
                    ComponentExternalKind::Component => components.push(None),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// What an export takes: of an instance with its items, of a module with its type, which names all of its exports.
fn of_export(export: &ComponentExport<'_>, found: &Found) -> u64 {
    let items = if export.kind == ComponentExternalKind::Instance { found.items } else { 0 };
    let ty = if export.kind == ComponentExternalKind::Module { found.loaded } else { 0 };
    sections::of_name(export.name.name, items).saturating_add(ty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> std::result::Result<u64, PrepareError> {
        let Structures { instance, loaded } = parts_of(text)?;
        Ok(instance + loaded)
    }

    fn parts_of(text: &str) -> std::result::Result<Structures, PrepareError> {
        super::of(&wat::parse_str(text).expect("valid"), WasiVersion::P2)
    }

    /// A module whose instances keep so many elements.
    fn module(elements: usize) -> String {
        format!("(core module $m (func $f) (elem func {}))", "$f ".repeat(elements))
    }

    #[test]
    fn each_core_instance_counts_with_what_it_keeps() {
        let with = |instances: usize| {
            let instances = "(core instance (instantiate $m))".repeat(instances);
            of(&format!("(component {} {instances})", module(1000))).expect("small")
        };
        let once = with(1) - with(0);
        assert!((48_000..49_000).contains(&once), "{once}");
        assert_eq!(with(10), with(0) + 10 * once);
        // Nested, and by an alias of which it is not said here what it is.
        let nested = format!(
            "(component {} (component $c (core instance (instantiate $m)) (core instance (instantiate $m)))
               (instance (instantiate $c)) (instance (instantiate $c)))",
            module(1000)
        );
        let nested = of(&nested).expect("small") - with(0);
        assert!((4 * 48_000..4 * 49_000).contains(&nested), "{nested}");
        assert_eq!(of("(component)").expect("nothing"), 0);
    }

    #[test]
    fn a_small_file_that_takes_gigabytes_is_refused() {
        let many = "(core instance (instantiate $m))".repeat(200);
        let refused = of(&format!("(component {} {many})", module(100_000))).expect_err("too much");
        assert!(refused.to_string().contains("would take 915 MiB of the host"), "{refused}");
        let globals = "(global i32 (i32.const 0))".repeat(100_000);
        assert!(of(&format!("(component (core module $m {globals}) {many})")).is_err());
        let of_functions = "(global funcref (ref.func $f))".repeat(1000);
        let module = format!("(core module $m (func $f) {of_functions})");
        let once = of(&format!("(component {module} (core instance (instantiate $m)))")).expect("small");
        assert!(once >= 48_000, "each may be another function: {once}");
    }

    #[test]
    fn what_nobody_instantiates_counts_as_it_is_loaded() {
        let names = |from: usize, to: usize| {
            let exports: String = (from..to).map(|at| format!(r#"(export "{at:x}" (func $f))"#)).collect();
            format!("(core module (func $f) {exports})")
        };
        let few = parts_of(&format!("(component {})", names(0, 10_000))).expect("small");
        assert_eq!(few.instance, 0);
        let few = few.loaded;
        assert!((1_280_000..1_500_000).contains(&few), "{few}");
        // All modules count together.
        let many: String = (0..6).map(|at| names(at * 100_000, (at + 1) * 100_000)).collect();
        let refused = of(&format!("(component {many})")).expect_err("too much");
        assert!(refused.to_string().contains("MiB of the host for its names"), "{refused}");
        let cases: String = (0..1_000).map(|at| format!(r#" "c{at}""#)).collect();
        let cases = of(&format!("(component (type (enum{cases})))")).expect("small");
        assert!(cases >= 80_000, "{cases}");
        let table = of("(component (core module (table 100000 funcref)))").expect("small");
        assert!(table >= 800_000, "what it begins with: {table}");
    }

    #[test]
    fn components_that_double_in_each_other_are_refused() {
        let mut text = "(component $c (component $d) (instance (instantiate $d)))".to_owned();
        for _ in 0..30 {
            text = format!("(component $c {text} (instance (instantiate $c)) (instance (instantiate $c)))");
        }
        assert!(of(&text).is_err());
        // The same by aliases.
        let mut text = "(component $c0 (component $d) (instance (instantiate $d)))".to_owned();
        for at in 1..30 {
            let (alias, before) = (format!("(alias outer 1 $c{0} (component $c))", at - 1), text);
            let twice = "(instance (instantiate $c)) (instance (instantiate $c))";
            text = format!("{before} (component $c{at} {alias} {twice})");
        }
        assert!(of(&format!("(component {text} (instance (instantiate $c29)))")).is_err());
    }

    /// A component that calls so many others, each with functions to be called, and so many memories together.
    fn composed(of: usize, memories: usize) -> Vec<u8> {
        let part = r#"(component $part (core module $m (func (export "f"))) (core instance $i (instantiate $m))
            (func (export "f") (canon lift (core func $i "f"))))"#;
        let parts = "(instance (instantiate $part))".repeat(of);
        let memory = "(core module $memory (memory 1))".to_owned();
        let memories = "(core instance (instantiate $memory))".repeat(memories);
        let text = format!(
            r#"(component {part} {parts} {memory} {memories}
                (core module $m (func (export "run"))) (core instance $i (instantiate $m))
                (func (export "run") (canon lift (core func $i "run"))))"#
        );
        wat::parse_str(text).expect("valid")
    }

    #[test]
    fn a_composition_has_as_many_seats_as_its_calls_have_stacks() {
        let on_p3 = |of, memories| super::of(&composed(of, memories), WasiVersion::P3);
        on_p3(0, 0).expect("one component, one seat");
        on_p3(0, 1).expect("the same with a memory");
        on_p3(5, 6).expect("as many memories as components");
        let refused = on_p3(100, 1).expect_err("a hundred stacks in a seat").to_string();
        assert!(refused.contains("calls could wait in 101 of the components"), "{refused}");
        super::of(&composed(100, 1), WasiVersion::P2).expect("calls on this engine have one stack");
    }
}
