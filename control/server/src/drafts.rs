//! Objects that the control plane itself makes, and how it writes them.

use std::convert::Infallible;

use bytes::Bytes;
use coracle_api::{ProposeError, Settled, Storage, Unavailable, Unsettled, settle};
use coracle_objects::{Applied, Object, ObjectKey, Refusal, Transaction, View};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// Why a write of the control plane's own did not take place.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("the write was refused: {0:?}")]
    Refused(Refusal),
    #[error("the name {name} is taken by {by}")]
    Taken { name: String, by: String },
    #[error("the object kept changing")]
    Contended,
}

/// Kubernetes' form of a moment: RFC 3339 in whole seconds.
pub fn rfc3339(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The draft of a new object. `body` has the fields beside `apiVersion`, `kind` and `metadata`; what it has under
/// `metadata` is added to the new metadata.
pub fn new_draft(api_version: &str, kind: &str, key: &ObjectKey, body: Value, now: Timestamp) -> Bytes {
    let mut metadata = Map::new();
    metadata.insert("name".into(), key.name.name.as_ref().into());
    if !key.name.namespace.is_empty() {
        metadata.insert("namespace".into(), key.name.namespace.as_ref().into());
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), rfc3339(now).into());
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    object.insert("metadata".into(), Value::Null);
    if let Value::Object(body) = body {
        for (field, value) in body {
            match (field.as_str(), value) {
                ("metadata", Value::Object(more)) => metadata.extend(more),
                (_, value) => {
                    object.insert(field, value);
                }
            }
        }
    }
    object.insert("metadata".into(), metadata.into());
    encode(&object.into())
}

/// An object's draft, to be changed and written back.
pub fn editable(object: &Object) -> Value {
    // What is stored was parsed when it was applied.
    serde_json::from_slice(&object.draft()).unwrap_or_else(|_| json!({}))
}

pub fn encode(draft: &Value) -> Bytes {
    serde_json::to_vec(draft).expect("a JSON value encodes into memory").into()
}

/// Writes what `plan` makes of the present state, planning again where the state has moved on: see [`settle`]. `plan`
/// gives `None` where nothing is to be done. `None` where nothing was written, also because all of it is there already.
pub async fn write<S, P>(storage: &S, mut plan: P) -> Result<Option<Applied>, WriteError>
where
    S: Storage,
    P: FnMut(&View) -> Option<Transaction> + Send,
{
    let decide = |view: &View| Ok::<_, Infallible>(plan(view).map(|transaction| (transaction, ())));
    match settle(storage, false, decide).await {
        Ok(Settled::Applied((), applied)) => Ok(Some(applied)),
        Ok(Settled::Unchanged(()) | Settled::Nothing) => Ok(None),
        Err(Unsettled::Undecided(never)) => match never {},
        Err(Unsettled::Unavailable(error)) => Err(error.into()),
        Err(Unsettled::NotProposed(error)) => Err(error.into()),
        Err(Unsettled::Refused(refusal)) if refusal.depends_on_state() => Err(WriteError::Contended),
        Err(Unsettled::Refused(refusal)) => Err(WriteError::Refused(refusal)),
    }
}
