//! Objects that the control plane itself makes, each with a uid of its own.

use bytes::Bytes;
use coracle_objects::{ObjectKey, draft};
use jiff::Timestamp;
use serde_json::Value;

/// The draft of a new object with a fresh uid: see [`draft::new_draft`].
pub fn new_draft(api_version: &str, kind: &str, key: &ObjectKey, body: Value, now: Timestamp) -> Bytes {
    draft::new_draft(api_version, kind, key, body, &fresh_uid(), now)
}

/// A uid that no object has had.
pub fn fresh_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}
