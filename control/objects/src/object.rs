//! The generic object: its JSON as bytes, and the metadata that the control plane itself looks at.
//!
//! An object travels as a *draft* (JSON without `metadata.resourceVersion`) until the store applies it; the store
//! then splices the revision in, once, and every reader and watcher shares those bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::name::{ObjectKey, Revision};

/// What the control plane reads of `metadata`, whatever the kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub uid: String,
    pub generation: i64,
    /// RFC 3339, as in the JSON.
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
    /// Seconds.
    pub deletion_grace_period_seconds: Option<i64>,
    pub labels: BTreeMap<String, String>,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
}

/// `metadata.ownerReferences[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: Option<bool>,
    pub block_owner_deletion: Option<bool>,
}

/// One object at one revision. Immutable; shared as `Arc<Object>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub key: ObjectKey,
    pub meta: Meta,
    /// The revision of the last transaction that changed it (for a deleted object: that deleted it).
    pub revision: Revision,
    /// The whole JSON with `metadata.resourceVersion` = `revision`.
    pub json: Bytes,
    /// Where the draft's metadata continues behind the spliced resourceVersion: (start, end) of the splice in `json`.
    splice: (u32, u32),
}

/// Why bytes are not an object.
#[derive(Debug, Error)]
pub enum ObjectError {
    #[error("the object is not valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("the object has no metadata")]
    NoMetadata,
    #[error("the draft carries metadata.resourceVersion, which only the store gives")]
    HasRevision,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DraftMeta {
    resource_version: Option<serde::de::IgnoredAny>,
    #[serde(flatten)]
    meta: Meta,
}

impl Object {
    /// Makes an object of a draft at `revision`: parses its metadata and splices the revision in.
    pub fn from_draft(key: ObjectKey, draft: &[u8], revision: Revision) -> Result<Self, ObjectError> {
        let envelope: Envelope<'_> = serde_json::from_slice(draft).map_err(ObjectError::Json)?;
        let metadata = envelope.metadata.ok_or(ObjectError::NoMetadata)?.get();
        if !metadata.starts_with('{') {
            return Err(ObjectError::NoMetadata);
        }
        let parsed: DraftMeta = serde_json::from_str(metadata).map_err(ObjectError::Json)?;
        if parsed.resource_version.is_some() {
            return Err(ObjectError::HasRevision);
        }
        let splice_at = metadata.as_ptr() as usize - draft.as_ptr() as usize + 1;
        let comma = !metadata[1..].trim_start().starts_with('}');
        let (json, splice) = splice(&draft[..splice_at], &draft[splice_at..], comma, revision);
        Ok(Self { key, meta: parsed.meta, revision, json, splice })
    }

    /// The same object with another revision: what a DELETED event carries.
    pub fn at_revision(&self, revision: Revision) -> Self {
        let (start, end) = (self.splice.0 as usize, self.splice.1 as usize);
        let comma = self.json[end - 1] == b',';
        let (json, splice) = splice(&self.json[..start], &self.json[end..], comma, revision);
        Self { key: self.key.clone(), meta: self.meta.clone(), revision, json, splice }
    }

    /// The JSON without `metadata.resourceVersion`, as it was proposed.
    pub fn draft(&self) -> Bytes {
        let (start, end) = (self.splice.0 as usize, self.splice.1 as usize);
        let mut draft = Vec::with_capacity(self.json.len() - (end - start));
        draft.extend_from_slice(&self.json[..start]);
        draft.extend_from_slice(&self.json[end..]);
        draft.into()
    }

    /// Whether [`Object::draft`] is this, without making it.
    pub fn has_draft(&self, draft: &[u8]) -> bool {
        let (start, end) = (self.splice.0 as usize, self.splice.1 as usize);
        let (head, tail) = (&self.json[..start], &self.json[end..]);
        draft.len() == head.len() + tail.len() && draft.starts_with(head) && draft.ends_with(tail)
    }

    /// Parses the JSON into a typed object (of k8s-openapi, or a narrower struct that skips what it does not need).
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ObjectError> {
        serde_json::from_slice(&self.json).map_err(ObjectError::Json)
    }

    pub fn namespace(&self) -> &str {
        &self.key.name.namespace
    }

    pub fn name(&self) -> &str {
        &self.key.name.name
    }

    /// The owner that controls this object, if any.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.meta.owner_references.iter().find(|owner| owner.controller == Some(true))
    }
}

fn splice(before: &[u8], after: &[u8], comma: bool, revision: Revision) -> (Bytes, (u32, u32)) {
    let text = format!("\"resourceVersion\":\"{revision}\"{}", if comma { "," } else { "" });
    let mut json = Vec::with_capacity(before.len() + text.len() + after.len());
    json.extend_from_slice(before);
    json.extend_from_slice(text.as_bytes());
    json.extend_from_slice(after);
    (json.into(), (before.len() as u32, (before.len() + text.len()) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectKey {
        ObjectKey::new("configmaps", "default", "a")
    }

    #[test]
    fn the_revision_is_spliced_in_and_out() {
        let draft = br#"{"kind":"ConfigMap","metadata":{"name":"a","labels":{"x":"y"}},"data":{}}"#;
        let object = Object::from_draft(key(), draft, 7).unwrap();
        let value: serde_json::Value = object.parse().unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "7");
        assert_eq!(object.meta.labels["x"], "y");
        assert_eq!(object.draft(), draft.as_slice());
        assert!(object.has_draft(draft) && !object.has_draft(&object.json) && !object.has_draft(b"{}"));
        let deleted = object.at_revision(1234);
        let value: serde_json::Value = deleted.parse().unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "1234");
        assert_eq!(deleted.draft(), draft.as_slice());
    }

    #[test]
    fn a_nested_field_named_metadata_does_not_mislead() {
        let draft = br#"{"spec":{"template":{"metadata":{"name":"inner"}}},"metadata":{}}"#;
        let object = Object::from_draft(key(), draft, 3).unwrap();
        let value: serde_json::Value = object.parse().unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "3");
        assert!(value["spec"]["template"]["metadata"].get("resourceVersion").is_none());
    }

    #[test]
    fn a_draft_with_a_revision_or_without_metadata_is_refused() {
        let stale = br#"{"metadata":{"resourceVersion":"5"}}"#;
        assert!(matches!(Object::from_draft(key(), stale, 1), Err(ObjectError::HasRevision)));
        assert!(matches!(Object::from_draft(key(), b"{}", 1), Err(ObjectError::NoMetadata)));
        assert!(matches!(Object::from_draft(key(), b"nonsense", 1), Err(ObjectError::Json(_))));
    }
}
