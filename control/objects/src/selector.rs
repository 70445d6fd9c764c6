//! Selectors: which objects a list, watch or controller means.

mod field;
mod label;

use thiserror::Error;

pub use field::FieldSelector;
pub use label::{LabelSelector, Operator, REQUIREMENTS_MAX, Requirement};

/// Why a selector cannot be understood. The messages go to the client.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Syntax(String),
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    #[error("invalid selector: {0:?}; can't understand {1:?}")]
    Field(String, String),
    #[error("field label not supported: {0}")]
    FieldNotSupported(String),
    #[error("a selector may have at most {0} requirements")]
    TooMany(usize),
    #[error("{0:?} is not a valid label selector operator")]
    Operator(String),
}
