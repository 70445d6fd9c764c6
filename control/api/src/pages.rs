//! Lists in pages, all of one revision.
//!
//! A token says all that is needed to go on, at whatever member: the revision and the last object. Nothing is kept for it:
//! the storage makes the state of that revision anew, as far as it reaches back.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coracle_objects::{ObjectName, Revision};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Where a list goes on. Opaque to clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continue {
    /// The revision of the first page; 0 goes on at whatever revision is present then.
    #[serde(rename = "rv")]
    pub revision: Revision,
    /// The last object that was given.
    #[serde(rename = "ns")]
    pub namespace: String,
    #[serde(rename = "n")]
    pub name: String,
}

impl Continue {
    pub fn after(revision: Revision, name: &ObjectName) -> Self {
        Self { revision, namespace: name.namespace.to_string(), name: name.name.to_string() }
    }

    pub fn parse(token: &str) -> Result<Self, ApiError> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| ApiError::BadRequest("continue key is not valid".to_owned()))
    }

    pub fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::json!(self).to_string())
    }

    pub fn object(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }

    /// The refusal of a token whose revision is gone, with one that goes on inconsistently.
    pub fn expired(&self) -> ApiError {
        let inconsistent = Self { revision: 0, ..self.clone() };
        ApiError::Expired {
            message: "The provided continue parameter is too old to display a consistent list result. You can start \
                      a new list without the continue parameter, or use the continue token in this response to \
                      retrieve the remainder of the results. Continuing with the provided token results in an \
                      inconsistent list - objects that were created, modified, or deleted between the time the \
                      first chunk was returned and now may show up in the list."
                .to_owned(),
            continuation: Some(inconsistent.token()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_round_trip() {
        let token = Continue::after(7, &ObjectName::new("default", "a")).token();
        let parsed = Continue::parse(&token).unwrap();
        assert_eq!((parsed.revision, parsed.object()), (7, ObjectName::new("default", "a")));
        assert!(Continue::parse("nonsense").is_err());
        let ApiError::Expired { continuation: Some(token), .. } = parsed.expired() else {
            panic!("not expired")
        };
        assert_eq!(Continue::parse(&token).unwrap().revision, 0);
    }
}
