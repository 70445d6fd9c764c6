//! From a transaction as it is thought of to the one that is proposed: its Secrets sealed.

use bytes::Bytes;
use coracle_objects::{
    Expect, OBJECT_BYTES_MAX, Object, ObjectKey, Precondition, Refusal, Transaction, Write,
    is_sealed_resource,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{Published, SecretBox, key::Key, state::KeyRingState};

/// Why a transaction cannot be proposed.
#[derive(Debug, Error)]
pub enum NotSealed {
    /// As the store would refuse it.
    #[error("a draft was refused")]
    Refused(Refusal),
    #[error(
        "Secrets are written with key {0}, which this control node does not hold; it asks the other control nodes for \
         it: where none has it, restore the key ring file from a backup and start again"
    )]
    NoKey(String),
}

/// What stays in clear of an object's metadata: what the store and the garbage collector look at.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClearMeta<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    name: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    uid: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    generation: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    creation_timestamp: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    deletion_timestamp: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    deletion_grace_period_seconds: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    labels: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    owner_references: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    finalizers: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Draft<'a> {
    #[serde(borrow)]
    metadata: ClearMeta<'a>,
}

#[derive(Serialize)]
struct SealedDraft<'a> {
    sealed: SealedText<'a>,
    metadata: ClearMeta<'a>,
}

#[derive(Serialize)]
struct SealedText<'a> {
    key: &'a str,
    text: &'a str,
}

impl SecretBox {
    /// Seals what has to be, with the key that `state` says is written with. A draft that is what `state` has already
    /// becomes that very ciphertext, so that the store sees that nothing changes.
    ///
    /// A last precondition says that the keys are still as they were: see [`refused_for_its_keys`].
    pub(crate) fn seal_transaction(
        &self,
        transaction: &Transaction,
        state: &Published,
    ) -> Result<Transaction, NotSealed> {
        let agreed = KeyRingState::read(&state.sealed);
        let ring = self.ring();
        let (expect, writing) = match agreed {
            Some((revision, agreed)) => (Expect::Revision(revision), agreed.writing),
            None => (Expect::Absent, ring.writing.clone()),
        };
        let mut sealed = transaction.clone();
        for write in sealed.writes.iter_mut().filter(|write| is_sealed(write)) {
            let Write::Put { key: place, draft } = write else { continue };
            check(place, draft)?;
            let Some(id) = &writing else { continue };
            if let Some(same) = same_as_stored(place, draft, state) {
                *draft = same;
                continue;
            }
            let key = ring.get(id.as_str()).ok_or_else(|| NotSealed::NoKey(id.to_string()))?;
            *draft = seal(key, place, draft)?;
        }
        sealed.preconditions.push(Precondition { key: KeyRingState::key(), expect });
        Ok(sealed)
    }
}

/// Whether a transaction writes something that is to be sealed.
pub fn concerns(transaction: &Transaction) -> bool {
    transaction.writes.iter().any(is_sealed)
}

/// Whether a sealed transaction was refused because the keys have changed meanwhile: it is to be sealed anew.
pub fn refused_for_its_keys(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Precondition { key, .. } if *key == KeyRingState::key())
}

fn is_sealed(write: &Write) -> bool {
    matches!(write, Write::Put { key, .. } if is_sealed_resource(key.resource.as_str()))
}

/// The draft that is stored for a place of what was in clear.
pub fn seal(key: &Key, place: &ObjectKey, draft: &[u8]) -> Result<Bytes, NotSealed> {
    let bad = |reason: String| NotSealed::Refused(Refusal::BadDraft { key: place.clone(), reason });
    let parsed: Draft<'_> = serde_json::from_slice(draft).map_err(|error| bad(error.to_string()))?;
    let text = key.seal(place, draft);
    let sealed =
        SealedDraft { sealed: SealedText { key: key.id.as_str(), text: &text }, metadata: parsed.metadata };
    Ok(serde_json::to_vec(&sealed).expect("a plain value encodes into memory").into())
}

/// The store sees ciphertext only: what it would refuse of a draft is refused here.
fn check(place: &ObjectKey, draft: &Bytes) -> Result<(), NotSealed> {
    let limit = OBJECT_BYTES_MAX as u64;
    if draft.len() as u64 > limit {
        let size = draft.len() as u64;
        return Err(NotSealed::Refused(Refusal::TooLarge { key: place.clone(), size, limit }));
    }
    let bad = |error: coracle_objects::ObjectError| {
        NotSealed::Refused(Refusal::BadDraft { key: place.clone(), reason: error.to_string() })
    };
    Object::from_draft(place.clone(), draft, 0).map(drop).map_err(bad)
}

fn same_as_stored(place: &ObjectKey, draft: &Bytes, state: &Published) -> Option<Bytes> {
    let stored = state.sealed.get(place).filter(|object| object.sealed().is_some())?;
    let clear = state.clear.get(place).filter(|clear| clear.sealed().is_none())?;
    (clear.revision == stored.revision && clear.draft() == *draft).then(|| stored.draft())
}
