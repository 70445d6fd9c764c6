//! Manifests as objects of the cluster: one for each tag, and one for each manifest that was pushed by its digest or lost
//! its tag. A manifest is in a repository as long as one of them names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::resume_unwind,
    sync::Arc,
};

use coracle_api::{ProposeError, Storage, Unsettled, WriteError, new_draft, settle};
use coracle_objects::{
    Expect, Object, ObjectKey, Revision, Transaction, View,
    draft::{editable, encode},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::{digest::Digest, manifest};

pub const ARTIFACTS: &str = "artifacts.coracle.dev";

/// The longest name of an object.
const OBJECT_NAME_LENGTH_MAX: usize = 253;

/// `spec` of an artifact object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    pub repository: String,
    /// Empty where the manifest has none.
    pub tag: String,
    /// Of the manifest.
    pub digest: String,
    pub media_type: String,
    /// Of manifest and blobs together, in bytes.
    pub size: u64,
    /// What the manifest names: its blobs, or the manifests of an index.
    pub blobs: Vec<String>,
    /// The manifest that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct ArtifactObject {
    spec: Artifact,
}

/// Of an artifact object what says whose it is: the blobs, of which there may be many, are not read.
#[derive(Deserialize)]
struct Head {
    repository: String,
    tag: String,
    digest: String,
}

#[derive(Deserialize)]
struct HeadObject {
    spec: Head,
}

impl Artifact {
    pub fn is_index(&self) -> bool {
        manifest::is_index(&self.media_type)
    }

    /// Whether it may name manifests. Versions before took an index by any type.
    pub fn may_be_index(&self) -> bool {
        manifest::may_be_index(&self.media_type)
    }

    /// What users call it.
    pub fn name(&self) -> String {
        match self.tag.as_str() {
            "" => format!("{}@{}", self.repository, self.digest),
            tag => format!("{}:{tag}", self.repository),
        }
    }

    fn names(&self, digest: &str) -> bool {
        self.blobs.iter().any(|named| named == digest)
    }

    /// The same manifest under another tag, or none.
    pub fn tagged(&self, tag: &str) -> Self {
        Self { tag: tag.to_owned(), ..self.clone() }
    }

    fn key(&self) -> ObjectKey {
        // No tag has the colon of a digest.
        key(&self.repository, if self.tag.is_empty() { &self.digest } else { &self.tag })
    }
}

/// Why an artifact was not written.
#[derive(Debug, Error)]
pub enum ArtifactError {
    #[error(transparent)]
    NotWritten(#[from] WriteError),
    #[error("the name {name} is taken by {by}")]
    Taken { name: String, by: String },
}

/// Writes artifacts of one manifest, all or none. A manifest whose tag is taken from it stays, without one. Refused where
/// an object's name belongs to another artifact.
pub async fn commit(storage: &impl Storage, artifacts: &[Artifact]) -> Result<(), ArtifactError> {
    let artifacts = artifacts.to_vec();
    carry_out(storage, move |view| plan(view, &artifacts, Timestamp::now())).await?
}

/// Writes what `plan` makes of the present state, or answers why nothing is written. It looks through all artifacts, which
/// may take it long, so that it has a thread of its own.
async fn carry_out<E: Send + 'static>(
    storage: &impl Storage,
    plan: impl Fn(&View) -> Result<Option<Transaction>, E> + Send + Sync + 'static,
) -> Result<Result<(), E>, WriteError> {
    let plan = Arc::new(plan);
    let decide = |view: Arc<View>| {
        let plan = plan.clone();
        let planned = spawn_blocking(move || plan(&view));
        async move {
            let planned = planned.await.unwrap_or_else(|error| resume_unwind(error.into_panic()));
            planned.map(|planned| planned.map(|transaction| (transaction, ())))
        }
    };
    match settle(storage, false, decide).await {
        Ok(_) => Ok(Ok(())),
        Err(Unsettled::Undecided(reason)) => Ok(Err(reason)),
        Err(Unsettled::Unavailable(error)) => Err(error.into()),
        Err(Unsettled::NotProposed(ProposeError::Denied(error))) => Err(WriteError::Denied(error)),
        Err(Unsettled::NotProposed(error)) => Err(error.into()),
        Err(Unsettled::Refused(refusal)) if refusal.depends_on_state() => Err(WriteError::Contended),
        Err(Unsettled::Refused(refusal)) => Err(WriteError::Refused(refusal)),
    }
}

fn plan(view: &View, artifacts: &[Artifact], now: Timestamp) -> Result<Option<Transaction>, ArtifactError> {
    let (mut transaction, mut lost) = (Transaction::default(), vec![]);
    // They are of one manifest.
    let Some(first) = artifacts.first() else { return Ok(None) };
    let known = of_digest(view, &first.repository, &first.digest);
    let untagged = known.iter().find(|(_, known)| known.tag.is_empty());
    for artifact in artifacts {
        if artifact.tag.is_empty() && known.len() > usize::from(untagged.is_some()) {
            // A tag keeps it already.
            continue;
        }
        let key = artifact.key();
        let Some(object) = view.get(&key) else {
            transaction.join(create(artifact, now));
            continue;
        };
        let before = owned(object, artifact)?;
        if before == *artifact {
            continue;
        }
        let mut draft = editable(object);
        draft["spec"] = json!(artifact);
        transaction.join(Transaction::update(key, encode(&draft), object.revision));
        if before.digest != artifact.digest {
            lost.push(before);
        }
    }
    transaction.join(keep(view, &lost, now));
    // The end of what kept it without a tag, where it has one now.
    if let Some((untagged, _)) = untagged.filter(|_| artifacts.iter().any(|made| !made.tag.is_empty())) {
        transaction.join(Transaction::delete(untagged.key.clone(), untagged.revision));
    }
    Ok((!transaction.writes.is_empty()).then_some(transaction))
}

fn create(artifact: &Artifact, now: Timestamp) -> Transaction {
    let key = artifact.key();
    let draft = new_draft("coracle.dev/v1", "Artifact", &key, json!({ "spec": artifact }), now);
    Transaction::create(key, draft)
}

/// What keeps manifests of a repository in it that lose these tags, if nothing else does.
fn keep(view: &View, lost: &[Artifact], now: Timestamp) -> Transaction {
    let Some(first) = lost.first() else { return Transaction::default() };
    let tags: BTreeSet<&str> = lost.iter().map(|lost| lost.tag.as_str()).collect();
    let mut others = BTreeMap::<String, &Object>::new();
    let all = mentioning::<HeadObject>(view, &first.repository);
    for (object, HeadObject { spec: other }) in all {
        if other.repository == first.repository && !tags.contains(other.tag.as_str()) {
            others.entry(other.digest).or_insert(object);
        }
    }
    let (mut transaction, mut seen) = (Transaction::default(), BTreeSet::new());
    for artifact in lost.iter().filter(|artifact| seen.insert(artifact.digest.as_str())) {
        transaction = match others.get(&artifact.digest) {
            // That may be about to go as well.
            Some(other) => transaction.expecting(other.key.clone(), Expect::Revision(other.revision)),
            None => {
                transaction.join(create(&artifact.tagged(""), now));
                transaction
            }
        };
    }
    transaction
}

/// What an object says, where it is of this artifact.
fn owned(object: &Object, artifact: &Artifact) -> Result<Artifact, ArtifactError> {
    let by = match object.parse::<ArtifactObject>() {
        Ok(ArtifactObject { spec })
            if spec.repository == artifact.repository
                && spec.tag == artifact.tag
                && (!spec.tag.is_empty() || spec.digest == artifact.digest) =>
        {
            return Ok(spec);
        }
        Ok(ArtifactObject { spec }) => spec.name(),
        Err(_) => "an object that cannot be read".into(),
    };
    Err(ArtifactError::Taken { name: object.key.name.name.to_string(), by })
}

/// Takes a tag away; whether there was one. The manifest stays.
pub async fn delete_tag(storage: &impl Storage, repository: &str, tag: &str) -> Result<bool, WriteError> {
    let (repository, tag) = (repository.to_owned(), tag.to_owned());
    let deleted = carry_out(storage, move |view| {
        plan_deletion_of_tag(view, &repository, &tag).map(Some).ok_or(Deleted::Nothing)
    });
    Ok(deleted.await?.is_ok())
}

fn plan_deletion_of_tag(view: &View, repository: &str, tag: &str) -> Option<Transaction> {
    let lost = find(view, repository, tag)?;
    let key = lost.key();
    let mut transaction = Transaction::delete(key.clone(), view.get(&key)?.revision);
    transaction.join(keep(view, &[lost], Timestamp::now()));
    Some(transaction)
}

/// What became of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    Done,
    /// It was not there.
    Nothing,
    /// A part of this artifact, which has a tag.
    PartOf(String),
}

/// Takes a manifest out of a repository, with its tags.
pub async fn delete(
    storage: &impl Storage,
    repository: &str,
    digest: &Digest,
) -> Result<Deleted, WriteError> {
    let (repository, digest) = (repository.to_owned(), digest.to_string());
    let deleted = carry_out(storage, move |view| plan_deletion(view, &repository, &digest).map(Some)).await?;
    Ok(deleted.err().unwrap_or(Deleted::Done))
}

/// The deletion of a manifest, or why there is none.
fn plan_deletion(view: &View, repository: &str, digest: &str) -> Result<Transaction, Deleted> {
    if let Some(index) = tagged_index_of(view, repository, digest) {
        return Err(Deleted::PartOf(index));
    }
    let found = of_digest(view, repository, digest);
    if found.is_empty() {
        return Err(Deleted::Nothing);
    }
    let mut transaction = Transaction::default();
    for (object, _) in found {
        transaction.join(Transaction::delete(object.key.clone(), object.revision));
    }
    Ok(transaction)
}

/// The artifact of a tag.
pub fn find(view: &View, repository: &str, tag: &str) -> Option<Artifact> {
    let found = view.get(&key(repository, tag))?.parse::<ArtifactObject>().ok()?.spec;
    (found.repository == repository && found.tag == tag).then_some(found)
}

/// An artifact of a manifest in a repository.
pub fn find_digest(view: &View, repository: &str, digest: &Digest) -> Option<Artifact> {
    let digest = digest.to_string();
    let of_its_own =
        view.get(&key(repository, &digest)).and_then(|object| object.parse::<ArtifactObject>().ok());
    match of_its_own.map(|object| object.spec) {
        Some(found) if found.repository == repository && found.digest == digest => Some(found),
        _ => {
            let (object, _) = of_digest(view, repository, &digest).into_iter().next()?;
            object.parse::<ArtifactObject>().ok().map(|object| object.spec)
        }
    }
}

/// All artifacts of a manifest in a repository.
fn of_digest<'a>(view: &'a View, repository: &str, digest: &str) -> Vec<(&'a Object, Head)> {
    let found = mentioning::<HeadObject>(view, digest).map(|(object, found)| (object, found.spec));
    found.filter(|(_, found)| found.repository == repository && found.digest == digest).collect()
}

/// Whether a manifest has an artifact in any repository.
pub fn is_anywhere(view: &View, digest: &Digest) -> bool {
    let digest = digest.to_string();
    mentioning::<HeadObject>(view, &digest).any(|(_, found)| found.spec.digest == digest)
}

/// All artifacts of a repository.
pub fn of_repository(view: &View, repository: &str) -> impl Iterator<Item = Artifact> {
    let artifacts = mentioning::<ArtifactObject>(view, repository).map(|(_, artifact)| artifact.spec);
    artifacts.filter(move |artifact| artifact.repository == repository)
}

/// An artifact of a repository whose manifest names this blob or manifest.
pub fn naming(view: &View, repository: &str, digest: &Digest) -> Option<Artifact> {
    let digest = digest.to_string();
    let found = mentioning::<ArtifactObject>(view, &digest).map(|(_, artifact)| artifact.spec);
    found.filter(|artifact| artifact.repository == repository).find(|artifact| artifact.names(&digest))
}

/// The artifacts of a repository that are about a manifest, once each.
pub fn referring(view: &View, repository: &str, subject: &Digest) -> BTreeMap<Digest, Artifact> {
    let subject = subject.to_string();
    let found = mentioning::<ArtifactObject>(view, &subject).map(|(_, artifact)| artifact.spec);
    let found = found.filter(|artifact| {
        artifact.repository == repository && artifact.subject.as_deref() == Some(subject.as_str())
    });
    found.filter_map(|artifact| Some((Digest::parse(&artifact.digest)?, artifact))).collect()
}

/// The artifacts in which a text stands, read as `T`: the others are not parsed.
fn mentioning<'a, T: DeserializeOwned>(
    view: &'a View,
    text: &str,
) -> impl Iterator<Item = (&'a Object, T)> + use<'a, T> {
    let objects = view.list(ARTIFACTS, None);
    let text = text.to_owned();
    let mentioning = objects.filter(move |object| {
        std::str::from_utf8(&object.json).is_ok_and(|json| json.contains(text.as_str()))
    });
    mentioning.filter_map(|object| Some((&**object, object.parse::<T>().ok()?)))
}

/// An artifact, and its object.
pub struct Found {
    pub key: ObjectKey,
    pub revision: Revision,
    /// `None` where the object does not say.
    pub created: Option<Timestamp>,
    pub artifact: Artifact,
}

/// All artifacts.
pub fn all(view: &View) -> Vec<Found> {
    let found = mentioning::<ArtifactObject>(view, "").map(|(object, artifact)| Found {
        key: object.key.clone(),
        revision: object.revision,
        created: object.meta.creation_timestamp.as_ref().and_then(|at| at.parse().ok()),
        artifact: artifact.spec,
    });
    found.collect()
}

/// The tagged index that a manifest is in, at whatever depth.
fn tagged_index_of(view: &View, repository: &str, digest: &str) -> Option<String> {
    let indexes: Vec<Artifact> = of_repository(view, repository).filter(Artifact::may_be_index).collect();
    let mut naming = BTreeMap::<&str, Vec<&Artifact>>::new();
    for index in &indexes {
        index.blobs.iter().for_each(|part| naming.entry(part).or_default().push(index));
    }
    let (mut wanted, mut seen) = (vec![digest], BTreeSet::from([digest]));
    while let Some(part) = wanted.pop() {
        for index in naming.get(part).into_iter().flatten() {
            if !index.tag.is_empty() {
                return Some(index.name());
            }
            if seen.insert(&index.digest) {
                wanted.push(&index.digest);
            }
        }
    }
    None
}

/// The tags of a repository, in order; `None` where there is no such repository.
pub fn tags(view: &View, repository: &str) -> Option<Vec<String>> {
    let artifacts = mentioning::<HeadObject>(view, repository).map(|(_, artifact)| artifact.spec);
    let mut found = artifacts.filter(|artifact| artifact.repository == repository).peekable();
    found.peek()?;
    let mut tags: Vec<String> = found.map(|artifact| artifact.tag).filter(|tag| !tag.is_empty()).collect();
    tags.sort_unstable();
    Some(tags)
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
mod tests;
