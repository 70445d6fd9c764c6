//! What is made of each field that the author of a manifest may set: it is served, taken with a warning, or refused, and
//! never ignored without a word.
//!
//! There is one source, the tables of this folder. Admission refuses and warns by them, `docs/fields.md` shows them, a test
//! holds them against the schemas so that no field is left out, and others walk their examples, on a live cluster too.

mod container;
mod document;
mod examples;
mod network;
mod pod;
mod volume;
mod workload;

use serde_json::Value;

pub use self::{
    container::CONTAINER,
    document::document,
    examples::{Example, examples},
    network::{INGRESS, SERVICE},
    pod::POD_SPEC,
    workload::{DEPLOYMENT, REPLICA_SET},
};
use crate::{FieldError, FieldPath, field_error::FIELD_ERRORS_MAX};

/// Warnings of one object: more of them do not fit into an answer.
const WARNINGS_MAX: usize = 64;

/// The fields of one struct, and of those within it.
#[derive(Debug)]
pub struct Table {
    /// Heads its part of the document.
    pub title: &'static str,
    /// The struct's name in OpenAPI.
    pub schema: &'static str,
    /// One that is as it should be, as JSON.
    pub base: &'static str,
    pub rules: &'static [Rule],
    /// Structs in it that have tables of their own.
    pub parts: &'static [Part],
}

/// A struct within another, where it has its table.
#[derive(Debug)]
pub struct Part {
    pub path: &'static str,
    pub table: &'static Table,
    /// Examples are made of it here, and not at another of its places.
    pub has_examples: bool,
}

/// What is made of one field.
#[derive(Debug)]
pub struct Rule {
    /// From the table's struct on: `ports[].hostPort`. It stands for all that is below it, but for what has a rule of its own.
    pub path: &'static str,
    pub support: Support,
    pub values: Values,
    /// Why, and the mend; of what is served, what its author should know.
    pub note: &'static str,
    /// A value of the field, as JSON; or behind `^` what is merged into the table's base to set it. Empty where it cannot be
    /// set at the place of which there are examples.
    pub example: &'static str,
}

/// What comes of a field that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does what Kubernetes says it does.
    Served,
    /// It is taken and has no effect, of which its author is warned.
    Warned,
    Refused,
}

/// The values for which a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// All but those that say the same as no value: false, an empty text or list.
    Any,
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

const fn served(path: &'static str, example: &'static str) -> Rule {
    Rule { path, support: Support::Served, values: Values::Any, note: "", example }
}

const fn warned(path: &'static str, example: &'static str, note: &'static str) -> Rule {
    Rule { path, support: Support::Warned, values: Values::Any, note, example }
}

const fn refused(path: &'static str, example: &'static str, note: &'static str) -> Rule {
    Rule { path, support: Support::Refused, values: Values::Any, note, example }
}

impl Rule {
    const fn only(self, values: &'static [&'static str]) -> Rule {
        Rule { values: Values::Only(values), ..self }
    }

    const fn all_but(self, values: &'static [&'static str]) -> Rule {
        Rule { values: Values::AllBut(values), ..self }
    }

    const fn note(self, note: &'static str) -> Rule {
        Rule { note, ..self }
    }

    /// Of a struct without a field there is nothing to warn of; but a volume of nothing but its kind is of that kind.
    fn concerns(&self, value: &Value) -> bool {
        let is_empty = value.as_object().is_some_and(|fields| fields.is_empty());
        self.values.has(value) && !(is_empty && self.support == Support::Warned)
    }
}

impl Values {
    fn has(self, value: &Value) -> bool {
        let is_one = |of: &[&str]| match value {
            Value::String(text) => of.contains(&text.as_str()),
            other => of.contains(&other.to_string().as_str()),
        };
        match self {
            Values::Only(values) => is_one(values),
            Values::AllBut(values) => is_set(value) && !is_one(values),
            Values::Any => is_set(value),
        }
    }
}

/// Whether a value says something else than none would.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

/// Refuses what of a struct is not served; `field` is where it stands.
pub fn refuse(table: &Table, value: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let at = FieldPath::Field(&FieldPath::Root, field);
    table.visit(Support::Refused, value, &at, &mut |at, rule| {
        if errors.len() < FIELD_ERRORS_MAX {
            errors.push(FieldError::forbidden(at.shown(), rule.note));
        }
    });
}

/// What of a struct has no effect, in words for its author.
pub fn warnings(table: &Table, value: &Value, field: &str) -> Vec<String> {
    let at = FieldPath::Field(&FieldPath::Root, field);
    let mut warnings = Vec::new();
    table.visit(Support::Warned, value, &at, &mut |at, rule| {
        if warnings.len() < WARNINGS_MAX {
            warnings.push(format!("{}: {}", at.shown(), rule.note));
        }
    });
    warnings
}

impl Table {
    /// Finds the fields that are set and for which there are such rules.
    fn visit(
        &self,
        support: Support,
        value: &Value,
        at: &FieldPath<'_>,
        found: &mut dyn FnMut(&FieldPath<'_>, &Rule),
    ) {
        for rule in self.rules.iter().filter(|rule| rule.support == support) {
            visit(value, rule.path, at, &mut |at, value| {
                if rule.concerns(value) {
                    found(at, rule);
                }
            });
        }
        for part in self.parts {
            visit(value, part.path, at, &mut |at, value| part.table.visit(support, value, at, found));
        }
    }
}

/// Finds the values at a path: several where a list is on the way.
fn visit(value: &Value, path: &str, at: &FieldPath<'_>, found: &mut dyn FnMut(&FieldPath<'_>, &Value)) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let (name, is_list) = first.strip_suffix("[]").map_or((first, false), |name| (name, true));
    let Some(value) = value.get(name) else { return };
    let at = FieldPath::Field(at, name);
    let mut go_on = |value: &Value, at: &FieldPath<'_>| match rest {
        Some(rest) => visit(value, rest, at, found),
        None => found(at, value),
    };
    if is_list {
        for (index, element) in value.as_array().into_iter().flatten().enumerate() {
            go_on(element, &FieldPath::Index(&at, index));
        }
    } else {
        go_on(value, &at);
    }
}

#[cfg(test)]
mod tests;
