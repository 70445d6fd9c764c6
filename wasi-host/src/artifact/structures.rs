//! What an instance of a component takes of the host beside its memories and tables: for each of its core instances places
//! for functions that may be called from elsewhere, globals, and element segments that it keeps.
//!
//! A small file can ask for gigabytes of it: segments of one byte an element, instantiated again and again. So it is reckoned
//! before the file is compiled, from above: where it is not said here which module is instantiated, it is the largest.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef,
    ElementItems, ElementKind, Instance, Parser, Payload, Result,
};

use super::PrepareError;

/// Bytes of one instance's structures. Large programs in languages with runtimes of their own take a few MiB.
const BYTES_MAX: u64 = 64 << 20;

/// Core instances that one component may have; wasmtime's pool admits no more.
const INSTANCES_MAX: u64 = 200;

/// Bytes of a function that may be called from elsewhere, of an element that is kept, of a global, and of a memory or table.
const FUNCTION_BYTES: u64 = 32;
const ELEMENT_BYTES: u64 = 16;
const GLOBAL_BYTES: u64 = 16;
const TABLE_BYTES: u64 = 48;

/// Bytes that one instance of the component takes; refused where that is more than [`BYTES_MAX`].
pub(super) fn bytes(component: &[u8]) -> std::result::Result<u64, PrepareError> {
    let bytes = reckon(component).map_err(|error| PrepareError::Compile {
        message: format!("the file is damaged or cut short: {error}"),
    })?;
    if bytes > BYTES_MAX {
        return Err(PrepareError::Compile {
            message: format!(
                "an instance of it would take {} MiB of the host for its functions, globals and element segments; \
                 at most {} are admitted: have it instantiate fewer modules, or smaller ones",
                bytes >> 20,
                BYTES_MAX >> 20
            ),
        });
    }
    Ok(bytes)
}

/// What is instantiated by instantiating something.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    bytes: u64,
    /// Core instances of modules that are not known here.
    unknown: u64,
}

impl Parts {
    fn add(&mut self, other: Parts) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.unknown = self.unknown.saturating_add(other.unknown);
    }
}

/// Something with an index, of which it may not be known what it is.
type Known<T> = Option<T>;

/// What is open: a module, or a component with what its indices stand for.
enum Open {
    Module(u64),
    Component { modules: Vec<Known<u64>>, components: Vec<Known<Parts>>, parts: Parts },
}

impl Open {
    fn component() -> Open {
        Open::Component { modules: Vec::new(), components: Vec::new(), parts: Parts::default() }
    }
}

fn reckon(component: &[u8]) -> Result<u64> {
    let mut open: Vec<Open> = Vec::new();
    let mut largest = 0_u64;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::Version { encoding, .. } => open.push(match encoding {
                wasmparser::Encoding::Module => Open::Module(0),
                wasmparser::Encoding::Component => Open::component(),
            }),
            Payload::End(_) => {
                let Some(ended) = open.pop() else { break };
                match (ended, open.last_mut()) {
                    (Open::Module(bytes), within) => {
                        largest = largest.max(bytes);
                        if let Some(Open::Component { modules, .. }) = within {
                            modules.push(Some(bytes));
                        }
                    }
                    (Open::Component { parts, .. }, Some(Open::Component { components, .. })) => {
                        components.push(Some(parts));
                    }
                    (Open::Component { parts, .. }, _) => {
                        let unknown = parts.unknown.min(INSTANCES_MAX).saturating_mul(largest);
                        return Ok(parts.bytes.saturating_add(unknown));
                    }
                }
            }
            payload => match open.last_mut() {
                Some(Open::Module(bytes)) => *bytes = bytes.saturating_add(of_module(&payload)?),
                Some(Open::Component { modules, components, parts }) => {
                    of_component(payload, modules, components, parts)?;
                }
                None => {}
            },
        }
    }
    Ok(0)
}

/// What a section of a module adds to each of its instances.
fn of_module(payload: &Payload<'_>) -> Result<u64> {
    Ok(match payload {
        Payload::ImportSection(imports) => u64::from(imports.count()) * FUNCTION_BYTES,
        Payload::ExportSection(exports) => u64::from(exports.count()) * FUNCTION_BYTES,
        // Each may begin as another function, which may be called from elsewhere then.
        Payload::GlobalSection(globals) => u64::from(globals.count()) * (GLOBAL_BYTES + FUNCTION_BYTES),
        Payload::TableSection(tables) => u64::from(tables.count()) * TABLE_BYTES,
        Payload::MemorySection(memories) => u64::from(memories.count()) * TABLE_BYTES,
        Payload::ElementSection(segments) => {
            let mut bytes = 0_u64;
            for segment in segments.clone() {
                let segment = segment?;
                let count = match segment.items {
                    ElementItems::Functions(functions) => functions.count(),
                    ElementItems::Expressions(_, expressions) => expressions.count(),
                };
                let each = match segment.kind {
                    ElementKind::Active { .. } => FUNCTION_BYTES,
                    ElementKind::Passive | ElementKind::Declared => FUNCTION_BYTES + ELEMENT_BYTES,
                };
                bytes = bytes.saturating_add(u64::from(count) * each + TABLE_BYTES);
            }
            bytes
        }
        _ => 0,
    })
}

/// What a section of a component instantiates, and what it gives indices to.
fn of_component(
    payload: Payload<'_>,
    modules: &mut Vec<Known<u64>>,
    components: &mut Vec<Known<Parts>>,
    parts: &mut Parts,
) -> Result<()> {
    match payload {
        Payload::InstanceSection(instances) => {
            for instance in instances {
                if let Instance::Instantiate { module_index, .. } = instance? {
                    parts.add(match modules.get(module_index as usize) {
                        Some(Some(bytes)) => Parts { bytes: *bytes, unknown: 0 },
                        _ => Parts { bytes: 0, unknown: 1 },
                    });
                }
            }
        }
        Payload::ComponentInstanceSection(instances) => {
            for instance in instances {
                if let ComponentInstance::Instantiate { component_index, .. } = instance? {
                    let known = components.get(component_index as usize).copied().flatten();
                    parts.add(known.unwrap_or(Parts { bytes: 0, unknown: INSTANCES_MAX }));
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
                match import?.ty {
                    ComponentTypeRef::Module(_) => modules.push(None),
                    ComponentTypeRef::Component(_) => components.push(None),
                    _ => {}
                }
            }
        }
        Payload::ComponentExportSection(exports) => {
            for export in exports {
                match export?.kind {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> std::result::Result<u64, PrepareError> {
        bytes(&wat::parse_str(text).expect("valid"))
    }

    /// A module whose instances keep so many elements.
    fn module(elements: usize) -> String {
        format!("(core module $m (func $f) (elem func {}))", "$f ".repeat(elements))
    }

    #[test]
    fn each_core_instance_counts_with_what_it_keeps() {
        let once =
            of(&format!("(component {} (core instance (instantiate $m)))", module(1000))).expect("small");
        assert!((48_000..49_000).contains(&once), "{once}");
        let ten = "(core instance (instantiate $m))".repeat(10);
        assert_eq!(of(&format!("(component {} {ten})", module(1000))).expect("small"), 10 * once);
        // Nested, and by an alias of which it is not said here what it is.
        let nested = format!(
            "(component {} (component $c (core instance (instantiate $m)) (core instance (instantiate $m)))
               (instance (instantiate $c)) (instance (instantiate $c)))",
            module(1000)
        );
        assert_eq!(of(&nested).expect("small"), 4 * once);
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
}
