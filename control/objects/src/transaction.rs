//! The one way to change state: a transaction of writes under preconditions, evaluated when it is applied.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    name::{ObjectKey, Revision},
    view::View,
};

/// The largest draft that a store takes, in bytes. It decides outcomes, and must be equal on all members.
pub const OBJECT_BYTES_MAX: usize = 1536 * 1024;

/// Writes that happen together or not at all, and what must hold when they do.
///
/// The same type is proposed by the API server, by controllers, by the scheduler and on behalf of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub preconditions: Vec<Precondition>,
    pub writes: Vec<Write>,
}

/// What must hold of one object at the moment of apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precondition {
    pub key: ObjectKey,
    pub expect: Expect,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// No such object.
    Absent,
    /// The object exists, whatever its revision.
    Exists,
    /// The object exists and was last changed at this revision.
    Revision(Revision),
    /// The object exists with this `metadata.uid`.
    Uid(String),
    /// The object exists and has no `metadata.deletionTimestamp` (a namespace that takes new objects).
    NotDeleting,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Creates or replaces the object. `draft` is its JSON without `metadata.resourceVersion`. A draft equal to what
    /// is stored changes nothing, and the object keeps its revision.
    Put { key: ObjectKey, draft: Bytes },
    /// Removes the object. Removing what is not there is a refusal unless a precondition already says so.
    Delete { key: ObjectKey },
}

impl Write {
    pub fn key(&self) -> &ObjectKey {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }

    /// The length of the draft.
    pub fn bytes(&self) -> usize {
        match self {
            Write::Put { draft, .. } => draft.len(),
            Write::Delete { .. } => 0,
        }
    }
}

/// A transaction that took place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The store's revision after it. All its writes carry this revision, but for no-op puts, which keep theirs.
    pub revision: Revision,
    /// For each write, the revision that its object now has.
    pub revisions: Vec<Revision>,
}

/// Why a transaction did not take place. Nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The precondition at this index in `Transaction::preconditions` did not hold.
    Precondition { index: u32, key: ObjectKey, expected: Expect, found: Found },
    /// A delete of what is not there.
    NotFound { key: ObjectKey },
    /// The draft is not an object: a fault of the proposer.
    BadDraft { key: ObjectKey, reason: String },
    /// The draft is larger than the store takes. Sizes in bytes.
    TooLarge { key: ObjectKey, size: u64, limit: u64 },
}

/// What stood in the way of a precondition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    Nothing,
    Object { revision: Revision, uid: String, deleting: bool },
}

impl Transaction {
    /// A new object: refused where one of that name exists.
    pub fn create(key: ObjectKey, draft: Bytes) -> Self {
        Self {
            preconditions: vec![Precondition { key: key.clone(), expect: Expect::Absent }],
            writes: vec![Write::Put { key, draft }],
        }
    }

    /// A replacement of the object as it was at `revision`.
    pub fn update(key: ObjectKey, draft: Bytes, revision: Revision) -> Self {
        Self {
            preconditions: vec![Precondition { key: key.clone(), expect: Expect::Revision(revision) }],
            writes: vec![Write::Put { key, draft }],
        }
    }

    /// A removal of the object as it was at `revision`.
    pub fn delete(key: ObjectKey, revision: Revision) -> Self {
        Self {
            preconditions: vec![Precondition { key: key.clone(), expect: Expect::Revision(revision) }],
            writes: vec![Write::Delete { key }],
        }
    }

    /// Adds what another one expects and writes.
    pub fn join(&mut self, other: Transaction) {
        self.preconditions.extend(other.preconditions);
        self.writes.extend(other.writes);
    }

    /// Adds a precondition.
    pub fn expecting(mut self, key: ObjectKey, expect: Expect) -> Self {
        self.preconditions.push(Precondition { key, expect });
        self
    }
}

impl Transaction {
    /// Whether the preconditions hold in a state.
    pub fn check(&self, view: &View) -> Result<(), Refusal> {
        for (index, precondition) in self.preconditions.iter().enumerate() {
            let object = view.get(&precondition.key);
            let holds = match (&precondition.expect, object) {
                (Expect::Absent, found) => found.is_none(),
                (_, None) => false,
                (Expect::Exists, Some(_)) => true,
                (Expect::Revision(revision), Some(object)) => object.revision == *revision,
                (Expect::Uid(uid), Some(object)) => object.meta.uid == *uid,
                (Expect::NotDeleting, Some(object)) => object.meta.deletion_timestamp.is_none(),
            };
            if !holds {
                return Err(Refusal::Precondition {
                    index: index as u32,
                    key: precondition.key.clone(),
                    expected: precondition.expect.clone(),
                    found: object.map_or(Found::Nothing, |object| Found::Object {
                        revision: object.revision,
                        uid: object.meta.uid.clone(),
                        deleting: object.meta.deletion_timestamp.is_some(),
                    }),
                });
            }
        }
        Ok(())
    }

    /// What preconditions say is absent: to delete it is no refusal.
    pub fn expected_absent(&self) -> BTreeSet<&ObjectKey> {
        let absent = self.preconditions.iter().filter(|precondition| precondition.expect == Expect::Absent);
        absent.map(|precondition| &precondition.key).collect()
    }

    /// The refusal of a draft of more bytes than a store takes, told before it is sent anywhere.
    pub fn too_large(&self, bytes_max: usize) -> Option<Refusal> {
        let large = self.writes.iter().find(|write| write.bytes() > bytes_max)?;
        let (size, limit) = (large.bytes() as u64, bytes_max as u64);
        Some(Refusal::TooLarge { key: large.key().clone(), size, limit })
    }

    /// Why a store in this state would refuse it, as far as that is seen without reading the drafts. Linear.
    pub fn refused_by(&self, view: &View) -> Option<Refusal> {
        if let Err(refusal) = self.check(view) {
            return Some(refusal);
        }
        let mut written = BTreeMap::new();
        let absent = self.expected_absent();
        for write in &self.writes {
            let (key, stays) = match write {
                Write::Put { key, draft } if draft.len() > OBJECT_BYTES_MAX => {
                    let (size, limit) = (draft.len() as u64, OBJECT_BYTES_MAX as u64);
                    return Some(Refusal::TooLarge { key: key.clone(), size, limit });
                }
                Write::Put { key, .. } => (key, true),
                Write::Delete { key } => (key, false),
            };
            let is_there = written.insert(key, stays).unwrap_or_else(|| view.get(key).is_some());
            if !stays && !is_there && !absent.contains(key) {
                return Some(Refusal::NotFound { key: key.clone() });
            }
        }
        None
    }

    /// Whether it would leave a state as it is: everything that it writes is there already.
    pub fn is_idle(&self, view: &View) -> bool {
        self.writes.iter().all(|write| match write {
            Write::Put { key, draft } => view.get(key).is_some_and(|object| object.has_draft(draft)),
            Write::Delete { key } => view.get(key).is_none(),
        })
    }
}

impl Refusal {
    /// Whether the same transaction may be taken in another state.
    pub fn depends_on_state(&self) -> bool {
        matches!(self, Refusal::Precondition { .. } | Refusal::NotFound { .. })
    }
}
