//! Whether the slots of the instance pools hold what a component's modules define. It is looked at before anything is
//! compiled: what no slot holds is compiled in vain.

use wasmparser::{Parser, Payload};

use super::PrepareError;
use super::inspect::malformed;
use crate::engine::{MEMORIES_MAX, TABLES_MAX};
use crate::limits::TABLE_ELEMENTS_MAX;

/// Refuses a component whose modules define more together, or a larger table, than a slot has.
pub(super) fn check(component: &[u8]) -> Result<(), PrepareError> {
    let (mut all_tables, mut all_memories) = (0, 0);
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::TableSection(tables) => {
                all_tables = count("tables", all_tables, tables.count(), TABLES_MAX)?;
                for table in tables {
                    let elements = table.map_err(malformed)?.ty.initial;
                    if elements > TABLE_ELEMENTS_MAX as u64 {
                        return Err(refused(&format!(
                            "one of its modules begins with a table of {elements} elements; a table has \
                             {TABLE_ELEMENTS_MAX} at most"
                        )));
                    }
                }
            }
            Payload::MemorySection(memories) => {
                all_memories = count("memories", all_memories, memories.count(), MEMORIES_MAX)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// So many more, if they are admitted.
fn count(what: &str, before: u32, more: u32, max: u32) -> Result<u32, PrepareError> {
    let all = before.saturating_add(more);
    if all <= max {
        return Ok(all);
    }
    Err(refused(&format!(
        "its modules define {all} {what} or more together, those of adapters among them; {max} are admitted"
    )))
}

fn refused(message: &str) -> PrepareError {
    PrepareError::Compile { message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(module: &str) -> Result<(), String> {
        let text = format!("(component (core module $m {module}) (core instance (instantiate $m)))");
        check(&wat::parse_str(text).expect("valid")).map_err(|refused| refused.to_string())
    }

    #[test]
    fn what_no_slot_holds_is_refused_before_it_is_compiled() {
        assert_eq!(of("(table 100000 funcref) (table 1 funcref) (memory 1) (memory 1)"), Ok(()));
        let refused = of("(table 100001 funcref)").expect_err("too large");
        assert!(refused.contains("a table of 100001 elements; a table has 100000 at most"), "{refused}");
        let refused = of(&"(table 1 funcref)".repeat(65)).expect_err("too many");
        assert!(refused.contains("define 65 tables or more together"), "{refused}");
        let two = "(component (core module $m (table 1 funcref)) (core module $n TABLES))";
        let two = wat::parse_str(two.replace("TABLES", &"(table 1 funcref)".repeat(64))).expect("valid");
        assert!(check(&two).is_err());
        assert!(of(&"(memory 1)".repeat(33)).expect_err("too many").contains("33 memories"));
    }
}
