//! Selectors, found by one of the labels that each of them requires: what an object's labels concern is found without
//! asking every selector of its namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{LabelSelector, ObjectName, selector::Operator};

/// A selector with more requirements is not asked while changes are taken in: whom it may concern looks for itself, in
/// its turn.
const ASKED_REQUIREMENTS_MAX: usize = 32;

/// The selectors of the objects of one kind. Bounded by these.
#[derive(Debug, Default)]
pub struct Selectors {
    by_label: BTreeMap<(Arc<str>, String, String), BTreeSet<ObjectName>>,
    /// Those that require no label of a certain value, by namespace.
    others: BTreeMap<Arc<str>, BTreeSet<ObjectName>>,
}

impl Selectors {
    pub fn insert(&mut self, name: &ObjectName, selector: &LabelSelector) {
        let namespace = name.namespace.clone();
        match required(selector) {
            _ if selector.nothing => {}
            Some((key, value)) => {
                self.by_label.entry((namespace, key, value)).or_default().insert(name.clone());
            }
            None => {
                self.others.entry(namespace).or_default().insert(name.clone());
            }
        }
    }

    pub fn remove(&mut self, name: &ObjectName, selector: &LabelSelector) {
        let namespace = name.namespace.clone();
        match required(selector) {
            Some((key, value)) => unlink(&mut self.by_label, &(namespace, key, value), name),
            None => unlink(&mut self.others, &namespace, name),
        }
    }

    /// Whose selectors an object with these labels may match.
    pub fn candidates<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a ObjectName> + use<'a> {
        let labelled = labels.iter().filter_map(move |(key, value)| {
            self.by_label.get(&(namespace.clone(), key.clone(), value.clone()))
        });
        labelled.chain(self.others.get(namespace)).flatten()
    }
}

/// Whether an object with these labels matches; also true where that would take long to find out.
pub fn may_match(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.requirements.len() > ASKED_REQUIREMENTS_MAX || selector.matches(labels)
}

fn required(selector: &LabelSelector) -> Option<(String, String)> {
    let equal = selector.requirements.iter().find(|requirement| requirement.operator == Operator::Equals)?;
    Some((equal.key.clone(), equal.values.first()?.clone()))
}

/// Takes a value from those of a key, and the key with the last of them.
pub fn unlink<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}
