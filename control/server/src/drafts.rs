//! Objects that the control plane itself makes, and how it writes them.

use std::{convert::Infallible, future::ready, sync::Arc};

use bytes::Bytes;
use coracle_api::{ApiError, ProposeError, Settled, Storage, Unavailable, Unsettled, settle};
use coracle_objects::{Applied, ObjectKey, Refusal, Transaction, View};
use jiff::Timestamp;
use serde_json::Value;
use thiserror::Error;

pub use coracle_leader::drafts::{editable, encode, rfc3339};

/// Why a write of the control plane's own did not take place.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("the write was refused: {0:?}")]
    Refused(Refusal),
    #[error("the write is not admitted: {0}")]
    Denied(Box<ApiError>),
    #[error("the name {name} is taken by {by}")]
    Taken { name: String, by: String },
    #[error("the object kept changing")]
    Contended,
}

/// The draft of a new object with a fresh uid: see [`coracle_leader::drafts::new_draft`].
pub fn new_draft(api_version: &str, kind: &str, key: &ObjectKey, body: Value, now: Timestamp) -> Bytes {
    coracle_leader::drafts::new_draft(api_version, kind, key, body, &fresh_uid(), now)
}

/// A uid that no object has had.
pub fn fresh_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Writes what `plan` makes of the present state, planning again where the state has moved on: see [`settle`]. `plan`
/// gives `None` where nothing is to be done. `None` where nothing was written, also because all of it is there already.
pub async fn write<S, P>(storage: &S, mut plan: P) -> Result<Option<Applied>, WriteError>
where
    S: Storage,
    P: FnMut(&View) -> Option<Transaction> + Send,
{
    let decide =
        |view: Arc<View>| ready(Ok::<_, Infallible>(plan(&view).map(|transaction| (transaction, ()))));
    match settle(storage, false, decide).await {
        Ok(Settled::Applied((), applied)) => Ok(Some(applied)),
        Ok(Settled::Unchanged(()) | Settled::Nothing) => Ok(None),
        Err(Unsettled::Undecided(never)) => match never {},
        Err(Unsettled::Unavailable(error)) => Err(error.into()),
        Err(Unsettled::NotProposed(ProposeError::Denied(error))) => Err(WriteError::Denied(error)),
        Err(Unsettled::NotProposed(error)) => Err(error.into()),
        Err(Unsettled::Refused(refusal)) if refusal.depends_on_state() => Err(WriteError::Contended),
        Err(Unsettled::Refused(refusal)) => Err(WriteError::Refused(refusal)),
    }
}
