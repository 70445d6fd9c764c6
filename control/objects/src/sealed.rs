//! The form of an object whose content is encrypted: what the store needs of its metadata in clear, the rest sealed.
//!
//! ```json
//! {"sealed":{"key":"<key id>","text":"<base64>"},"metadata":{"name":"...","uid":"..."}}
//! ```
//!
//! Who seals and opens holds the keys; this says only how such an object is told from others.

use serde::{Deserialize, Serialize};

use crate::object::Object;

/// In front of the JSON of every sealed object. No object of a client begins so: those begin with a field that
/// Kubernetes knows.
const BEGINNING: &[u8] = br#"{"sealed":{"key":""#;

/// The resources whose objects are sealed before they are proposed.
pub const SEALED_RESOURCES: &[&str] = &["secrets", "authorities.coracle.dev"];

/// `sealed` of a sealed object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedText<'a> {
    /// Names the key that opens it.
    pub key: &'a str,
    /// Nonce, ciphertext and tag, in base64.
    pub text: &'a str,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    sealed: SealedText<'a>,
}

/// Whether the objects of a resource are sealed before they are proposed.
pub fn is_sealed_resource(resource: &str) -> bool {
    SEALED_RESOURCES.contains(&resource)
}

impl Object {
    /// What is sealed of the object; `None` where the object is in clear.
    pub fn sealed(&self) -> Option<SealedText<'_>> {
        if !self.json.starts_with(BEGINNING) {
            return None;
        }
        serde_json::from_slice::<Envelope<'_>>(&self.json).ok().map(|envelope| envelope.sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ObjectKey;

    #[test]
    fn a_sealed_object_is_told_from_one_in_clear() {
        let object =
            |draft: &[u8]| Object::from_draft(ObjectKey::new("secrets", "d", "a"), draft, 7).unwrap();
        let sealed = object(br#"{"sealed":{"key":"k","text":"dA=="},"metadata":{"name":"a"}}"#);
        assert_eq!(sealed.sealed(), Some(SealedText { key: "k", text: "dA==" }));
        assert_eq!(sealed.at_revision(9).sealed(), sealed.sealed());
        assert_eq!(object(br#"{"kind":"Secret","metadata":{},"sealed":{"key":"k"}}"#).sealed(), None);
        assert_eq!(object(br#"{"sealed":{"key":"k"},"metadata":{}}"#).sealed(), None, "without a text");
    }
}
