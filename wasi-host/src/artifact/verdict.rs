//! What the compiler's process says of a component: a word and, after it, what is to be told.

use super::PrepareError;
use super::inspect::Kind;

/// Bytes of it that are read.
pub(super) const VERDICT_BYTES_MAX: usize = 4096;

const MADE: &str = "made";
const NOT_WASM: &str = "not-wasm";
const NOT_WASI: &str = "not-wasi";
const NO_COMPONENT: &str = "no-component";
const NO_ENTRY: &str = "no-entry";
const REFUSED: &str = "refused";
const GIVEN_UP: &str = "given-up";

pub(super) fn to_text(outcome: &Result<Kind, PrepareError>) -> String {
    let (word, rest) = match outcome {
        Ok(kind) => (MADE, kind.to_text()),
        Err(PrepareError::NotWasm { fault }) => (NOT_WASM, fault.clone()),
        Err(PrepareError::NotWasi { imports }) => (NOT_WASI, imports.clone()),
        Err(PrepareError::NoComponent) => (NO_COMPONENT, String::new()),
        Err(PrepareError::NoEntry { exports }) => (NO_ENTRY, exports.clone()),
        Err(PrepareError::Compile { message }) => (REFUSED, message.clone()),
        Err(PrepareError::GivenUp { message }) => (GIVEN_UP, message.clone()),
        Err(other) => (GIVEN_UP, other.to_string()),
    };
    format!("{word} {rest}")
}

/// `None` where it is no verdict: the process ended before it could say one.
pub(super) fn from_text(text: &str) -> Option<Result<Kind, PrepareError>> {
    let text = text.trim_end();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.to_owned();
    Some(match word {
        MADE => return Kind::from_text(&rest).map(Ok),
        NOT_WASM => Err(PrepareError::NotWasm { fault: rest }),
        NOT_WASI => Err(PrepareError::NotWasi { imports: rest }),
        NO_COMPONENT => Err(PrepareError::NoComponent),
        NO_ENTRY => Err(PrepareError::NoEntry { exports: rest }),
        REFUSED => Err(PrepareError::Compile { message: rest }),
        GIVEN_UP => Err(PrepareError::GivenUp { message: rest }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::inspect::World;
    use super::*;
    use crate::Entry;
    use crate::engine::WasiVersion;

    #[test]
    fn verdicts_are_read_as_they_are_said() {
        let text = || "some words, \nand more".to_owned();
        let verdicts = [
            Ok(Kind {
                entry: Entry::Command,
                world: World::P1,
                engine: WasiVersion::P3,
                structures: 9,
                loaded: 10,
            }),
            Err(PrepareError::NotWasm { fault: text() }),
            Err(PrepareError::NotWasi { imports: text() }),
            Err(PrepareError::NoComponent),
            Err(PrepareError::NoEntry { exports: text() }),
            Err(PrepareError::Compile { message: text() }),
            Err(PrepareError::GivenUp { message: text() }),
        ];
        for verdict in verdicts {
            let read = from_text(&to_text(&verdict)).expect("a verdict");
            assert_eq!(format!("{read:?}"), format!("{verdict:?}"));
        }
        for wrong in ["", "made", "made x", "thread 'main' has overflowed its stack"] {
            assert!(from_text(wrong).is_none(), "{wrong}");
        }
    }
}
