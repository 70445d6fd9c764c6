//! The store as a plain map, written from what it promises and not from how it is made.

use std::collections::BTreeMap;

use bytes::Bytes;
use coracle_objects::transaction::Found;
use coracle_objects::{Expect, Precondition, Refusal, Revision, Transaction, Write};

use super::keys::{KeyId, Keys};

/// What a client wants written. Its `draft` is like no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub uid: String,
    pub deleting: bool,
    pub draft: Bytes,
}

/// A write as its client means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub preconditions: Vec<(KeyId, Expect)>,
    /// Each object once; None deletes.
    pub changes: Vec<(KeyId, Option<Value>)>,
}

impl Spec {
    /// As it is proposed.
    pub fn transaction(&self, keys: &Keys) -> Transaction {
        let preconditions = self.preconditions.iter();
        let writes = self.changes.iter();
        Transaction {
            preconditions: preconditions
                .map(|(id, expect)| Precondition { key: keys.key(*id).clone(), expect: expect.clone() })
                .collect(),
            writes: writes
                .map(|(id, value)| match value {
                    Some(value) => Write::Put { key: keys.key(*id).clone(), draft: value.draft.clone() },
                    None => Write::Delete { key: keys.key(*id).clone() },
                })
                .collect(),
        }
    }

    pub fn only_deletes(&self) -> bool {
        self.changes.iter().all(|(_, value)| value.is_none())
    }

    /// What the store must say to it when the objects are as `at` says.
    pub fn judge<'a>(&self, keys: &Keys, at: impl Fn(KeyId) -> Option<&'a Stored>) -> Result<(), Refusal> {
        for (index, (id, expect)) in self.preconditions.iter().enumerate() {
            let found = at(*id);
            let holds = match expect {
                Expect::Absent => found.is_none(),
                Expect::Exists => found.is_some(),
                Expect::Revision(revision) => found.is_some_and(|stored| stored.revision == *revision),
                Expect::Uid(uid) => found.is_some_and(|stored| stored.value.uid == *uid),
                Expect::NotDeleting => found.is_some_and(|stored| !stored.value.deleting),
            };
            if !holds {
                let found = match found {
                    None => Found::Nothing,
                    Some(stored) => Found::Object {
                        revision: stored.revision,
                        uid: stored.value.uid.clone(),
                        deleting: stored.value.deleting,
                    },
                };
                let key = keys.key(*id).clone();
                return Err(Refusal::Precondition {
                    index: index as u32,
                    key,
                    expected: expect.clone(),
                    found,
                });
            }
        }
        for (id, value) in &self.changes {
            if value.is_none() && at(*id).is_none() {
                return Err(Refusal::NotFound { key: keys.key(*id).clone() });
            }
        }
        Ok(())
    }
}

/// An object at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub revision: Revision,
    pub value: Value,
}

/// Every state there ever was.
#[derive(Debug)]
pub struct Timeline {
    objects: Vec<BTreeMap<Revision, Option<Stored>>>,
}

impl Timeline {
    pub fn new(keys: &Keys) -> Timeline {
        Timeline { objects: vec![BTreeMap::new(); keys.count()] }
    }

    /// From this revision on the object is so.
    pub fn set(&mut self, id: KeyId, revision: Revision, value: Option<Value>) {
        self.objects[id].insert(revision, value.map(|value| Stored { revision, value }));
    }

    /// The object as it was right after a revision.
    pub fn at(&self, id: KeyId, revision: Revision) -> Option<&Stored> {
        self.objects[id].range(..=revision).next_back().and_then(|(_, stored)| stored.as_ref())
    }
}
