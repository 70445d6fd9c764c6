//! Tags: objects that name a manifest.

use coracle_api::{Storage, WriteError, write};
use coracle_leader::drafts::{editable, encode, new_draft};
use coracle_objects::{Object, ObjectKey, Transaction, View};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use thiserror::Error;

const ARTIFACTS: &str = "artifacts.coracle.dev";

/// The longest name of an object.
const OBJECT_NAME_LENGTH_MAX: usize = 253;

/// `spec` of an artifact object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tag {
    pub repository: String,
    pub tag: String,
    /// Of the manifest.
    pub digest: String,
    pub media_type: String,
    /// Of manifest and blobs together, in bytes.
    pub size: u64,
    pub blobs: Vec<String>,
}

#[derive(Deserialize)]
struct Artifact {
    spec: Tag,
}

/// Why a tag was not set.
#[derive(Debug, Error)]
pub enum TagError {
    #[error(transparent)]
    NotWritten(#[from] WriteError),
    #[error("the name {name} is taken by {by}")]
    Taken { name: String, by: String },
}

/// Sets or moves a tag. Refused where its object's name belongs to another tag.
pub async fn commit(storage: &impl Storage, tag: &Tag) -> Result<(), TagError> {
    let key = key(&tag.repository, &tag.tag);
    let spec = json!(tag);
    let mut taken = None;
    let uid = uuid::Uuid::new_v4().to_string();
    let written = write(storage, |view| match view.get(&key) {
        None => {
            let body = json!({ "spec": spec });
            let draft = new_draft("coracle.dev/v1", "Artifact", &key, body, &uid, Timestamp::now());
            Some(Transaction::create(key.clone(), draft))
        }
        Some(object) => {
            taken = owned_by_another(object, tag);
            if taken.is_some() {
                return None;
            }
            let mut draft = editable(object);
            if draft["spec"] == spec {
                return None;
            }
            draft["spec"] = spec.clone();
            Some(Transaction::update(key.clone(), encode(&draft), object.revision))
        }
    })
    .await;
    match taken {
        Some(by) => Err(TagError::Taken { name: key.name.name.to_string(), by }),
        None => Ok(written.map(|_| ())?),
    }
}

/// The tag that an object belongs to, where it is not this one.
fn owned_by_another(object: &Object, tag: &Tag) -> Option<String> {
    match object.parse::<Artifact>() {
        Ok(Artifact { spec }) if spec.repository == tag.repository && spec.tag == tag.tag => None,
        Ok(Artifact { spec }) => Some(format!("{}:{}", spec.repository, spec.tag)),
        Err(_) => Some("an object that cannot be read".into()),
    }
}

pub fn find(view: &View, repository: &str, tag: &str) -> Option<Tag> {
    let found = view.get(&key(repository, tag))?.parse::<Artifact>().ok()?.spec;
    (found.repository == repository && found.tag == tag).then_some(found)
}

/// The tags of a repository, in order.
pub fn of_repository(view: &View, repository: &str) -> Vec<String> {
    let artifacts = view.list(ARTIFACTS, None).filter_map(|object| object.parse::<Artifact>().ok());
    let mut tags: Vec<String> = artifacts
        .filter(|artifact| artifact.spec.repository == repository)
        .map(|artifact| artifact.spec.tag)
        .collect();
    tags.sort_unstable();
    tags
}

/// `app` and `1.0` become `app.1.0`. Where that would lose something, as `/` in `team/app`, a hash keeps names apart.
fn key(repository: &str, tag: &str) -> ObjectKey {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let part = |text: &str| text.chars().all(plain) && !text.ends_with('-');
    let tag_ok = tag.split('.').all(|label| !label.is_empty() && part(label) && !label.starts_with('-'));
    let name = format!("{repository}.{tag}");
    if part(repository) && tag_ok && name.len() <= OBJECT_NAME_LENGTH_MAX {
        return ObjectKey::new(ARTIFACTS, "", &name);
    }
    let hash = hex::encode(&Sha256::digest(format!("{repository}:{tag}"))[..8]);
    let safe = |c: char| if plain(c.to_ascii_lowercase()) { c.to_ascii_lowercase() } else { '-' };
    let readable: String = name.chars().map(safe).take(OBJECT_NAME_LENGTH_MAX - 20).collect();
    ObjectKey::new(ARTIFACTS, "", &format!("{}-{hash}", readable.trim_matches('-')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_apart() {
        let name = |repository: &str, tag: &str| key(repository, tag).name.name.to_string();
        assert_eq!(name("hello", "1.0"), "hello.1.0");
        assert!(name("team/app", "latest").starts_with("team-app-latest-"));
        assert_ne!(name("team/app", "v1"), name("team", "app.v1"));
        let odd = [name("a_b", "1"), name("a-b", "1"), name("a.b", "1"), name("a/b", "1"), name("a-b", "V1")];
        let distinct: std::collections::BTreeSet<_> = odd.iter().collect();
        assert_eq!(distinct.len(), odd.len(), "{odd:?}");
    }

    #[test]
    fn an_object_of_another_tag_is_not_taken_over() {
        let tag = |repository: &str| Tag {
            repository: repository.into(),
            tag: "1".into(),
            digest: "d".into(),
            media_type: "m".into(),
            size: 1,
            blobs: vec![],
        };
        let key = key("a", "1");
        let draft =
            new_draft("coracle.dev/v1", "Artifact", &key, json!({ "spec": tag("a") }), "u", Timestamp::MIN);
        let object = Object::from_draft(key, &draft, 1).unwrap();
        assert_eq!(owned_by_another(&object, &tag("a")), None);
        assert_eq!(owned_by_another(&object, &tag("b")).as_deref(), Some("a:1"));
    }
}
