//! Lists in strategic merge: elements told apart by a key (or by themselves, where scalars), and their order.

use std::cmp::Ordering;

use serde_json::Value;

use super::{DIRECTIVE, merge_object};
use crate::patch::PatchError;

/// How a list's elements are told apart and merged.
pub(super) struct Elements<'a> {
    /// Empty for lists of scalars.
    pub key: &'a str,
    /// The elements' schema.
    pub child: Option<&'a str>,
    pub path: &'a str,
}

impl Elements<'_> {
    /// Whether two elements are the same one.
    fn same(&self, one: &Value, other: &Value) -> bool {
        match (one.get(self.key), other.get(self.key)) {
            (Some(one), Some(other)) if !self.key.is_empty() => one == other,
            _ => one == other,
        }
    }

    fn position(&self, list: &[Value], element: &Value) -> Option<usize> {
        list.iter().position(|other| self.same(other, element))
    }

    fn need_key(&self, element: &Value) -> Result<(), PatchError> {
        if element.get(self.key).is_some_and(|key| !key.is_null()) {
            return Ok(());
        }
        Err(PatchError::NoMergeKey {
            path: self.path.to_owned(),
            key: self.key.to_owned(),
            item: element.to_string(),
        })
    }

    fn bad(&self, detail: &str) -> PatchError {
        PatchError::BadDirective { path: self.path.to_owned(), detail: detail.to_owned() }
    }

    /// The merged list: patched elements in the patch's order, the others where they stood among them.
    pub fn merge(&self, original: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, PatchError> {
        if self.key.is_empty() {
            let mut all: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
            for element in original.iter().chain(patch) {
                if element.is_object() || element.is_array() {
                    return Err(self.bad("the list has no merge key, and may hold scalars only"));
                }
                if !all.contains(element) {
                    all.push(element.clone());
                }
            }
            return Ok(self.arrange(all, patch, &original));
        }
        let mut merged = original.clone();
        let mut patched = Vec::with_capacity(patch.len());
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
                    merged.retain(|other| !self.same(other, element));
                }
                // An element that is nothing but the directive speaks of the whole list.
                Some("replace") => replace = true,
                Some("merge") => return Err(self.bad("merging lists cannot yet be specified in the patch")),
                Some(other) => {
                    let directive = other.to_owned();
                    return Err(PatchError::UnknownDirective { path: self.path.to_owned(), directive });
                }
            }
        }
        if replace {
            merged.clear();
        }
        for element in patched {
            let Value::Object(fields) = element else { continue };
            match self.position(&merged, element) {
                Some(at) => {
                    let Value::Object(before) = &mut merged[at] else { continue };
                    let before = std::mem::take(before);
                    merged[at] = Value::Object(merge_object(before, fields, self.child, self.path)?);
                }
                None => {
                    merged.push(Value::Object(merge_object(
                        Default::default(),
                        fields,
                        self.child,
                        self.path,
                    )?));
                }
            }
        }
        Ok(self.arrange(merged, patch, &original))
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
        let (mut named, mut others): (Vec<Value>, Vec<Value>) =
            list.into_iter().partition(|element| self.position(order, element).is_some());
        let by = |sequence: &[Value], one: &Value, other: &Value| match (
            self.position(sequence, one),
            self.position(sequence, other),
        ) {
            (Some(one), Some(other)) => one.cmp(&other),
            _ => Ordering::Equal,
        };
        named.sort_by_cached_key(|element| self.position(order, element));
        others.sort_by_cached_key(|element| self.position(original, element));
        let mut arranged = Vec::with_capacity(named.len() + others.len());
        let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
        while let (Some(one), Some(other)) = (named.peek(), others.peek()) {
            let other_first = by(original, other, one) == Ordering::Less;
            arranged.extend(if other_first { others.next() } else { named.next() });
        }
        arranged.extend(named);
        arranged.extend(others);
        arranged
    }
}
