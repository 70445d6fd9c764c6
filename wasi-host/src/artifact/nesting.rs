//! How deep the types of a component are nested in each other, found without descending.
//!
//! The parser of the compiler's libraries calls itself for each level, so that a small file could overflow the stack
//! of whoever reads its types: what is deeper than any program needs is refused before it is read.

use wasmparser::{
    BinaryReader, ComponentAlias, ComponentExternName, ComponentImport, ComponentType, ComponentTypeRef,
    CoreType, Parser, Payload, Result,
};

use super::PrepareError;

/// Levels of component and instance types in each other, and of components in components. Tools write fewer than ten.
pub(super) const NESTING_MAX: usize = 100;

/// The custom sections in which a module carries the types of its component.
const TYPES_OF_A_MODULE: &str = "component-type";

/// Refuses a component, or a module with the types of one, that is nested too deep.
pub(super) fn check(wasm: &[u8]) -> std::result::Result<(), PrepareError> {
    match is_flat(wasm, true) {
        Ok(true) => Ok(()),
        Ok(false) => Err(PrepareError::Compile {
            message: format!("its components or types are nested more than {NESTING_MAX} levels deep"),
        }),
        Err(error) => {
            Err(PrepareError::Compile { message: format!("the file is damaged or cut short: {error}") })
        }
    }
}

fn is_flat(wasm: &[u8], outermost: bool) -> Result<bool> {
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentTypeSection(section) => {
                let bytes = &wasm[section.range()];
                if !types_are_flat(&mut BinaryReader::new(bytes, section.range().start))? {
                    return Ok(false);
                }
            }
            // One that is no component is refused by whoever wants to read it.
            Payload::CustomSection(section)
                if outermost
                    && section.name().starts_with(TYPES_OF_A_MODULE)
                    && !is_flat(section.data(), false).unwrap_or(true) =>
            {
                return Ok(false);
            }
            _ => {}
        }
        if depth > NESTING_MAX {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Walks over a section of types; each level that is open has the number of declarations that it still has.
fn types_are_flat(reader: &mut BinaryReader<'_>) -> Result<bool> {
    let mut open = vec![reader.read_var_u32()?];
    while let Some(left) = open.last_mut() {
        if *left == 0 {
            open.pop();
            continue;
        }
        *left -= 1;
        // The section itself has types only.
        let declaration = if open.len() == 1 { TYPE } else { reader.read_u8()? };
        match declaration {
            0x00 => {
                reader.read::<CoreType<'_>>()?;
            }
            // A component type and an instance type: their declarations follow.
            TYPE if matches!(reader.clone().read_u8()?, 0x41 | 0x42) => {
                reader.read_u8()?;
                open.push(reader.read_var_u32()?);
            }
            TYPE => {
                reader.read::<ComponentType<'_>>()?;
            }
            0x02 => {
                reader.read::<ComponentAlias<'_>>()?;
            }
            0x03 => {
                reader.read::<ComponentImport<'_>>()?;
            }
            0x04 => {
                reader.read::<ComponentExternName<'_>>()?;
                reader.read::<ComponentTypeRef>()?;
            }
            // Whoever reads it refuses it, no deeper than this.
            _ => return Ok(true),
        }
        if open.len() > NESTING_MAX {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The declaration of a type.
const TYPE: u8 = 0x01;

#[cfg(test)]
mod tests {
    use super::super::inspect;
    use super::*;

    /// A component with one type of so many levels.
    fn nested_types(levels: usize) -> Vec<u8> {
        let mut types = vec![0x01];
        types.extend([0x41, 0x01, 0x01].repeat(levels));
        types.push(0x7f);
        component(7, &types)
    }

    fn component(section: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        bytes.push(section);
        leb(content.len(), &mut bytes);
        bytes.extend_from_slice(content);
        bytes
    }

    fn leb(mut value: usize, out: &mut Vec<u8>) {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            out.push(if value == 0 { low } else { low | 0x80 });
            if value == 0 {
                return;
            }
        }
    }

    fn module_with_types(types: &[u8]) -> Vec<u8> {
        let name = b"component-type:x";
        let mut custom = vec![name.len() as u8];
        custom.extend_from_slice(name);
        custom.extend_from_slice(types);
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        module.push(0);
        leb(custom.len(), &mut module);
        module.extend(custom);
        module
    }

    fn refused(wasm: &[u8]) -> bool {
        matches!(inspect::inspect(wasm), Err(PrepareError::Compile { message }) if message.contains("levels deep"))
    }

    #[test]
    fn a_file_that_would_overflow_a_stack_is_refused() {
        for levels in [NESTING_MAX, 1_000_000] {
            assert!(refused(&nested_types(levels)), "{levels}");
            assert!(refused(&module_with_types(&nested_types(levels))), "{levels}");
        }
        let mut nested = component(0, &[0]);
        for _ in 0..=NESTING_MAX {
            nested = component(4, &nested);
        }
        assert!(refused(&nested));
    }

    #[test]
    fn what_tools_write_is_let_through() {
        assert!(check(&nested_types(NESTING_MAX - 1)).is_ok());
        let wat = r#"(component
            (core type (module (import "a" "b" (func)) (export "c" (func))))
            (type (component
                (import "i" (instance
                    (type (list string))
                    (export "f" (func (param "x" string) (result u32)))))
                (type (variant (case "a" u8) (case "b")))
                (export "e" (instance))))
            (type (list (tuple u8 string)))
            (component (type (instance (export "x" (type (sub resource)))))))"#;
        match wat::parse_str(wat) {
            Ok(wasm) => check(&wasm).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
}
