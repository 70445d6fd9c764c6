//! Where in a document we are: a chain of names that are borrowed, turned into text only where something is wrong. A path
//! that is text costs each field of an object the whole name of the object, which its author chose.

use std::fmt::{self, Write};

/// So much of a path is shown, in bytes: no author of a document names a field so that its refusal is large.
pub const SHOWN_BYTES_MAX: usize = 256;

/// The way from the root of a document to one of its values.
#[derive(Clone, Copy, Debug)]
pub enum FieldPath<'a> {
    Root,
    Field(&'a FieldPath<'a>, &'a str),
    Index(&'a FieldPath<'a>, usize),
}

impl FieldPath<'_> {
    /// The path as text, its end left out where it is very long.
    pub fn shown(&self) -> String {
        cut(|text| write!(text, "{self}"))
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldPath::Root => Ok(()),
            FieldPath::Field(FieldPath::Root, field) => f.write_str(field),
            FieldPath::Field(parent, field) => write!(f, "{parent}.{field}"),
            FieldPath::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A text that somebody chose, its end left out where it is very long.
pub fn shown(text: &str) -> String {
    cut(|shown| shown.write_str(text))
}

fn cut(write: impl FnOnce(&mut Shown) -> fmt::Result) -> String {
    let mut shown = Shown(String::new());
    if write(&mut shown).is_err() {
        shown.0.push_str("...");
    }
    shown.0
}

/// The beginning of what is written; what does not fit any more is refused.
struct Shown(String);

impl Write for Shown {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = SHOWN_BYTES_MAX - self.0.len();
        let fits = part.floor_char_boundary(room);
        self.0.push_str(&part[..fits]);
        if fits == part.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_those_of_kubernetes_and_are_cut() {
        let spec = FieldPath::Field(&FieldPath::Root, "spec");
        let containers = FieldPath::Field(&spec, "containers");
        let third = FieldPath::Index(&containers, 2);
        assert_eq!(FieldPath::Field(&third, "name").shown(), "spec.containers[2].name");
        assert_eq!(FieldPath::Root.shown(), "");
        let long = "\u{e9}".repeat(1_000_000);
        let shown = FieldPath::Field(&spec, &long).shown();
        assert!(
            shown.len() <= SHOWN_BYTES_MAX + 3 && shown.starts_with("spec.\u{e9}") && shown.ends_with("...")
        );
    }
}
