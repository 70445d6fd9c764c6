//! Lists in strategic merge: elements told apart by a key (or by themselves, where scalars), and their order.

use serde_json::Value;

use super::{DIRECTIVE, merge_object};
use crate::{
    field_path::{FieldPath, shown},
    patch::PatchError,
    value_set::ValueSet,
};

/// How a list's elements are told apart and merged.
pub(super) struct Elements<'a> {
    /// Empty for lists of scalars.
    pub key: &'a str,
    /// The elements' schema.
    pub child: Option<&'a str>,
    pub path: &'a FieldPath<'a>,
}

/// Where each element of a list stands, found without a scan.
struct Places<'a> {
    key: &'a str,
    /// By key, of the elements that have it.
    keyed: ValueSet,
    /// The elements without, by themselves.
    whole: ValueSet,
}

impl<'a> Places<'a> {
    fn of(key: &'a str, list: &[Value]) -> Self {
        let mut places = Self { key, keyed: ValueSet::default(), whole: ValueSet::default() };
        for (position, element) in list.iter().enumerate() {
            places.add(element, position);
        }
        places
    }

    /// Whether the element is new.
    fn add(&mut self, element: &Value, position: usize) -> bool {
        match identity(self.key, element) {
            Some(key) => self.keyed.add(key, position),
            None => self.whole.add(element, position),
        }
    }

    fn get(&self, element: &Value) -> Option<usize> {
        match identity(self.key, element) {
            Some(key) => self.keyed.position(key),
            None => self.whole.position(element),
        }
    }
}

/// What tells an element with the key apart.
fn identity<'v>(key: &str, element: &'v Value) -> Option<&'v Value> {
    element.get(key).filter(|_| !key.is_empty())
}

impl Elements<'_> {
    /// Whether two elements are the same one.
    fn same(&self, one: &Value, other: &Value) -> bool {
        match (identity(self.key, one), identity(self.key, other)) {
            (Some(one), Some(other)) => one == other,
            _ => one == other,
        }
    }

    fn need_key(&self, element: &Value) -> Result<(), PatchError> {
        if element.get(self.key).is_some_and(|key| !key.is_null()) {
            return Ok(());
        }
        Err(PatchError::NoMergeKey {
            path: self.path.shown(),
            key: self.key.to_owned(),
            item: shown(&element.to_string()),
        })
    }

    fn bad(&self, detail: &str) -> PatchError {
        PatchError::BadDirective { path: self.path.shown(), detail: detail.to_owned() }
    }

    /// The merged list: patched elements in the patch's order, the others where they stood among them.
    pub fn merge(&self, original: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, PatchError> {
        let merged = if self.key.is_empty() {
            self.merge_scalars(&original, patch)?
        } else {
            self.merge_objects(original.clone(), patch)?
        };
        Ok(self.arrange(merged, patch, &original))
    }

    fn merge_scalars(&self, original: &[Value], patch: &[Value]) -> Result<Vec<Value>, PatchError> {
        let mut all: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        let mut seen = ValueSet::default();
        for element in original.iter().chain(patch) {
            if element.is_object() || element.is_array() {
                return Err(self.bad("the list has no merge key, and may hold scalars only"));
            }
            if seen.add(element, all.len()) {
                all.push(element.clone());
            }
        }
        Ok(all)
    }

    fn merge_objects(&self, mut merged: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, PatchError> {
        let mut patched = Vec::with_capacity(patch.len());
        let mut deleted = Places::of(self.key, &[]);
        let mut deletes = false;
        let mut replace = false;
        for element in patch {
            if !element.is_object() {
                return Err(self.bad("the elements of a list with a merge key must be objects"));
            }
            match element.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or("")) {
                None => {
                    self.need_key(element)?;
                    patched.push(element);
                }
                Some("delete") => {
                    self.need_key(element)?;
                    deletes |= deleted.add(element, 0);
                }
                // An element that is nothing but the directive speaks of the whole list.
                Some("replace") => replace = true,
                Some("merge") => return Err(self.bad("merging lists cannot yet be specified in the patch")),
                Some(other) => {
                    let directive = shown(other);
                    return Err(PatchError::UnknownDirective { path: self.path.shown(), directive });
                }
            }
        }
        if replace {
            merged.clear();
        } else if deletes {
            merged.retain(|other| deleted.get(other).is_none());
        }
        let mut places = Places::of(self.key, &merged);
        for element in patched {
            let Value::Object(fields) = element else { continue };
            let Some(at) = places.get(element) else {
                let new = Value::Object(merge_object(Default::default(), fields, self.child, self.path)?);
                places.add(&new, merged.len());
                merged.push(new);
                continue;
            };
            if let Value::Object(before) = &mut merged[at] {
                let before = std::mem::take(before);
                merged[at] = Value::Object(merge_object(before, fields, self.child, self.path)?);
            }
        }
        Ok(merged)
    }

    /// A patch may not contradict the order that it demands: its elements stand in it, in the same sequence.
    pub fn check_order(&self, patch: &[Value], order: &[Value]) -> Result<(), PatchError> {
        let mut rest = order.iter();
        for element in patch.iter().filter(|element| element.get(DIRECTIVE).is_none()) {
            if !self.key.is_empty() {
                self.need_key(element)?;
            }
            if !rest.any(|other| self.same(other, element)) {
                return Err(
                    self.bad("the order of the patch's list does not match its $setElementOrder list")
                );
            }
        }
        Ok(())
    }

    /// Brings the elements that `order` names into its sequence. The others keep the sequence of `original`, and stand
    /// before a named one where they stood before it.
    pub fn arrange(&self, list: Vec<Value>, order: &[Value], original: &[Value]) -> Vec<Value> {
        let (order, original) = (Places::of(self.key, order), Places::of(self.key, original));
        let mut named = Vec::with_capacity(list.len());
        let mut others = Vec::new();
        for element in list {
            let before = original.get(&element);
            match order.get(&element) {
                Some(wanted) => named.push((wanted, before, element)),
                None => others.push((before, element)),
            }
        }
        named.sort_by_key(|(wanted, ..)| *wanted);
        others.sort_by_key(|(before, _)| *before);
        let mut arranged = Vec::with_capacity(named.len() + others.len());
        let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
        while let (Some((_, one, _)), Some((other, _))) = (named.peek(), others.peek()) {
            let other_first = matches!((other, one), (Some(other), Some(one)) if other < one);
            if other_first {
                arranged.extend(others.next().map(|(_, element)| element));
            } else {
                arranged.extend(named.next().map(|(.., element)| element));
            }
        }
        arranged.extend(named.map(|(.., element)| element));
        arranged.extend(others.map(|(_, element)| element));
        arranged
    }
}
