//! How much a component exports with all that its instances export, in each other: wasmtime writes all of it out as it compiles,
//! and reads it as it loads. A few hundred bytes can say that of millions.

use std::collections::HashMap;

use wasmparser::component_types::{ComponentEntityType, ComponentInstanceTypeId};
use wasmparser::types::{Types, TypesRef};
use wasmparser::{Encoding, Parser, Payload, Result, ValidPayload, Validator, WasmFeatures};

/// The number of exports; an error where it is no valid component. Functions are not looked into.
pub(super) fn exported(component: &[u8]) -> Result<u64> {
    let mut validator = Validator::new_with_features(WasmFeatures::all());
    let (mut depth, mut names, mut types) = (0_u32, Vec::new(), None::<Types>);
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload?;
        match &payload {
            Payload::Version { encoding: Encoding::Module | Encoding::Component, .. } => depth += 1,
            Payload::ComponentExportSection(exports) if depth == 1 => {
                for export in exports.clone() {
                    names.push(export?.name.name);
                }
            }
            _ => {}
        }
        if let ValidPayload::End(of) = validator.payload(&payload)? {
            depth = depth.saturating_sub(1);
            types = Some(of);
        }
    }
    let Some(types) = types else { return Ok(0) };
    let (types, mut known) = (types.as_ref(), HashMap::new());
    let items = names.iter().filter_map(|name| types.component_item_for_export(name));
    let sizes = items.map(|item| 1 + of_entity(item.ty, types, &mut known));
    Ok(sizes.fold(0, u64::saturating_add))
}

/// What is exported below it.
fn of_entity(
    ty: ComponentEntityType,
    types: TypesRef<'_>,
    known: &mut HashMap<ComponentInstanceTypeId, u64>,
) -> u64 {
    let ComponentEntityType::Instance(whole) = ty else { return 0 };
    let mut open = vec![whole];
    // However deep they lie in each other.
    while let Some(id) = open.last().copied() {
        if known.contains_key(&id) {
            open.pop();
            continue;
        }
        let within = || {
            types[id].exports.values().filter_map(|item| match item.ty {
                ComponentEntityType::Instance(within) => Some(within),
                _ => None,
            })
        };
        let first = open.len();
        open.extend(within().filter(|within| !known.contains_key(within)));
        if open.len() == first {
            let own = types[id].exports.len() as u64;
            let sizes = within().map(|within| known[&within]);
            known.insert(id, sizes.fold(own, u64::saturating_add));
            open.pop();
        }
    }
    known[&whole]
}
