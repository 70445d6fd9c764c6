//! Objects that the control plane itself makes, and how it writes them.

use bytes::Bytes;
use coracle_objects::ObjectKey;
use jiff::Timestamp;
use serde_json::Value;

pub use coracle_api::{WriteError, write};
pub use coracle_leader::drafts::{editable, encode, rfc3339};

/// The draft of a new object with a fresh uid: see [`coracle_leader::drafts::new_draft`].
pub fn new_draft(api_version: &str, kind: &str, key: &ObjectKey, body: Value, now: Timestamp) -> Bytes {
    coracle_leader::drafts::new_draft(api_version, kind, key, body, &fresh_uid(), now)
}

/// A uid that no object has had.
pub fn fresh_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}
