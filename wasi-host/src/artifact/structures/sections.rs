//! What the sections of a component take of the host, each from above.
//!
//! Two things are told apart: what is there once as the component is loaded, whether anything of it is instantiated or not
//! (wasmtime reads all names, types and tables of functions; the code itself is a mapped file), and what each instance takes.

use wasmparser::{
    ComponentDefinedType, ComponentType, ComponentTypeDeclaration, CoreType, ElementItems, ElementKind,
    InstanceTypeDeclaration, KnownCustom, Name, Payload, Result,
};

use crate::limits::TABLE_ELEMENTS_MAX;

/// Bytes of an instance's function that may be called from elsewhere, of an element that is kept, of a global, of a memory or
/// table, and of what stands for an import.
const FUNCTION_BYTES: u64 = 32;
const ELEMENT_BYTES: u64 = 16;
const GLOBAL_BYTES: u64 = 16;
const TABLE_BYTES: u64 = 48;
const ARGUMENT_BYTES: u64 = 48;

/// Bytes of an import or export of a module as it is loaded, beside its names.
const NAME_BYTES: u64 = 128;

/// Bytes of a module's type, and of each byte that describes it: a parameter is one.
const TYPE_BYTES: u64 = 128;
const TYPE_PER_BYTE: u64 = 32;

/// Bytes of a function: its type, its place in the code, and where its name is.
const LOADED_FUNCTION_BYTES: u64 = 40;

/// Bytes of a global with what it begins with, of a memory or table, of an element that a table begins with, and of a segment.
const LOADED_GLOBAL_BYTES: u64 = 96;
const LOADED_TABLE_BYTES: u64 = 128;
const LOADED_ELEMENT_BYTES: u64 = 8;
const LOADED_SEGMENT_BYTES: u64 = 64;

/// Bytes of a component's type, and of each of its fields, cases, parameters and declarations beside their names.
const COMPONENT_TYPE_BYTES: u64 = 96;
const LABEL_BYTES: u64 = 80;

/// Bytes of a function that is lifted, lowered or built in; and where components call each other, with an adapter.
pub(super) const CANONICAL_BYTES: u64 = 512;
pub(super) const ADAPTED_BYTES: u64 = 2 << 10;

/// Bytes of what a component exports, and of what the instances export that it exports.
pub(super) const EXPORT_BYTES: u64 = 512;

/// Bytes of what instantiates something.
const INSTANCE_BYTES: u64 = 128;

/// Bytes that instantiating takes with so many arguments, or exports where they are all that the instance is.
pub(super) fn of_instantiation(arguments: usize) -> u64 {
    INSTANCE_BYTES + arguments as u64 * ARGUMENT_BYTES
}

/// Bytes of an import or export of a component, with so many items where it is an instance.
pub(super) fn of_name(name: &str, items: u64) -> u64 {
    NAME_BYTES + items.saturating_mul(NAME_BYTES) + 2 * name.len() as u64
}

/// What a section of a module adds to each of its instances.
pub(super) fn of_instance(payload: &Payload<'_>) -> Result<u64> {
    Ok(match payload {
        Payload::ImportSection(imports) => {
            imports.clone().into_imports().count() as u64 * (FUNCTION_BYTES + ARGUMENT_BYTES)
        }
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

/// What a section of a module takes as it is loaded.
pub(super) fn of_loaded_module(payload: &Payload<'_>) -> Result<u64> {
    Ok(match payload {
        Payload::TypeSection(types) => {
            u64::from(types.count()) * TYPE_BYTES + types.range().len() as u64 * TYPE_PER_BYTE
        }
        Payload::ImportSection(imports) => {
            imports.clone().into_imports().count() as u64 * NAME_BYTES + imports.range().len() as u64
        }
        Payload::ExportSection(exports) => {
            u64::from(exports.count()) * NAME_BYTES + exports.range().len() as u64
        }
        Payload::FunctionSection(functions) => u64::from(functions.count()) * LOADED_FUNCTION_BYTES,
        Payload::GlobalSection(globals) => u64::from(globals.count()) * LOADED_GLOBAL_BYTES,
        Payload::TagSection(tags) => u64::from(tags.count()) * LOADED_FUNCTION_BYTES,
        Payload::MemorySection(memories) => u64::from(memories.count()) * LOADED_TABLE_BYTES,
        Payload::TableSection(tables) => {
            let mut bytes = 0;
            for table in tables.clone() {
                let elements = table?.ty.initial.min(TABLE_ELEMENTS_MAX as u64);
                bytes += LOADED_TABLE_BYTES + elements * LOADED_ELEMENT_BYTES;
            }
            bytes
        }
        Payload::ElementSection(segments) => u64::from(segments.count()) * LOADED_SEGMENT_BYTES,
        Payload::DataSection(segments) => u64::from(segments.count()) * LOADED_SEGMENT_BYTES,
        // The names of its functions are read where they are; its own is copied.
        Payload::CustomSection(section) => match section.as_known() {
            KnownCustom::Name(names) => names
                .map_while(Result::ok)
                .map(|name| match name {
                    Name::Module { name, .. } => name.len() as u64,
                    _ => 0,
                })
                .sum::<u64>(),
            _ => 0,
        },
        _ => 0,
    })
}

/// What a type of a component takes, with all that is declared in it. `items` becomes the number of declarations of the
/// largest instance or component, where this has a larger one.
pub(super) fn of_type(ty: &ComponentType<'_>, items: &mut u64) -> u64 {
    let own = match ty {
        ComponentType::Defined(defined) => of_defined(defined),
        ComponentType::Func(function) => labels(function.params.iter().map(|(name, _)| *name)),
        ComponentType::Component(declarations) => {
            *items = (*items).max(declarations.len() as u64);
            let each = declarations.iter().map(|declaration| match declaration {
                ComponentTypeDeclaration::Type(ty) => of_type(ty, items),
                ComponentTypeDeclaration::Export { name, .. } => labels([name.name]),
                ComponentTypeDeclaration::Import(import) => labels([import.name.name]),
                ComponentTypeDeclaration::CoreType(ty) => of_core_type(ty),
                ComponentTypeDeclaration::Alias(_) => COMPONENT_TYPE_BYTES,
            });
            each.sum::<u64>()
        }
        ComponentType::Instance(declarations) => {
            *items = (*items).max(declarations.len() as u64);
            let each = declarations.iter().map(|declaration| match declaration {
                InstanceTypeDeclaration::Type(ty) => of_type(ty, items),
                InstanceTypeDeclaration::Export { name, .. } => labels([name.name]),
                InstanceTypeDeclaration::CoreType(ty) => of_core_type(ty),
                InstanceTypeDeclaration::Alias(_) => COMPONENT_TYPE_BYTES,
            });
            each.sum::<u64>()
        }
        ComponentType::Resource { .. } => 0,
    };
    COMPONENT_TYPE_BYTES + own
}

/// The same of a core type: of a function, or of a module with its imports and exports.
pub(super) fn of_core_type(ty: &CoreType<'_>) -> u64 {
    match ty {
        CoreType::Rec(group) => group.types().len() as u64 * TYPE_BYTES,
        CoreType::Module(declarations) => declarations.len() as u64 * (TYPE_BYTES + NAME_BYTES),
    }
}

fn of_defined(defined: &ComponentDefinedType<'_>) -> u64 {
    match defined {
        ComponentDefinedType::Record(fields) => labels(fields.iter().map(|(name, _)| *name)),
        ComponentDefinedType::Variant(cases) => labels(cases.iter().map(|case| case.name)),
        ComponentDefinedType::Tuple(types) => types.len() as u64 * LABEL_BYTES,
        ComponentDefinedType::Flags(names) | ComponentDefinedType::Enum(names) => {
            labels(names.iter().copied())
        }
        _ => 0,
    }
}

fn labels<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    names.into_iter().map(|name| LABEL_BYTES + name.len() as u64).sum()
}
