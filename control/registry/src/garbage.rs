//! What nothing needs any more, and when it goes: manifests that no tag reaches, and files that no manifest names.
//!
//! A tag reaches its manifest, what that names, and what is about it, as signatures are. A digest that stands in another
//! object of the cluster, as in the image of a pod, counts as a tag. Each member looks through its own files.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use coracle_api::{Admission, Storage, UserInfo};
use coracle_objects::{ObjectKey, Revision, Transaction, View};
use jiff::Timestamp;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    artifacts::{self, Artifact, Found},
    blobs::{BlobError, Blobs},
    digest::Digest,
    manifest::{MANIFEST_BYTES_MAX, Manifest},
};

/// Between two looks, and where the disk has no room.
const PERIOD: Duration = Duration::from_secs(600);
const PERIOD_WITHOUT_ROOM: Duration = Duration::from_secs(60);

/// How long what nothing reaches stays.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// A manifest without a tag, from when it came or lost its tag.
    untagged: Duration,
    /// A file, from when it came or was last asked for: longer than a push takes.
    file: Duration,
}

const PATIENCE: Patience =
    Patience { untagged: Duration::from_secs(24 * 3600), file: Duration::from_secs(3600) };
const PATIENCE_WITHOUT_ROOM: Patience =
    Patience { untagged: Duration::from_secs(3600), file: Duration::from_secs(600) };

/// Artifacts that are deleted in one transaction.
const DELETED_AT_ONCE: usize = 100;

/// Digests of old manifests that are read for what they name.
const READ_MAX: usize = 10_000;

/// Takes garbage away for as long as it is polled.
pub async fn collect<S: Storage>(storage: S, admission: Admission, blobs: Arc<Blobs>) {
    let own = admission.storage_of(storage, UserInfo::api_server());
    loop {
        sleep(if blobs.have_room() { PERIOD } else { PERIOD_WITHOUT_ROOM }).await;
        let patience = if blobs.have_room() { PATIENCE } else { PATIENCE_WITHOUT_ROOM };
        if let Err(error) = pass(&own, &blobs, patience).await {
            tracing::debug!(error, "garbage of the registry not collected");
        }
    }
}

async fn pass<S: Storage>(storage: &S, blobs: &Arc<Blobs>, patience: Patience) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let view = storage.linearizable().await.map_err(|error| told(&error))?;
    let since = Timestamp::now().checked_sub(patience.untagged).map_err(|error| told(&error))?;
    let unreached = spawn_blocking(move || unreached(&view, since)).await.map_err(|error| told(&error))?;
    for some in unreached.chunks(DELETED_AT_ONCE) {
        let mut transaction = Transaction::default();
        for (key, revision) in some {
            transaction.join(Transaction::delete(key.clone(), *revision));
        }
        // What has changed meanwhile is looked at again the next time.
        let deleted = storage.propose(transaction).await.map_err(|error| told(&error))?;
        tracing::info!(count = some.len(), done = deleted.is_ok(), "manifests that no tag reaches deleted");
    }
    let view = storage.linearizable().await.map_err(|error| told(&error))?;
    let named = spawn_blocking(move || named(&view)).await.map_err(|error| told(&error))?;
    let needed = with_content(blobs, named).await.map_err(|error| told(&error))?;
    let before = SystemTime::now() - patience.file;
    let removed = blobs.remove_others(needed, before).await.map_err(|error| told(&error))?;
    if removed.files > 0 {
        tracing::info!(files = removed.files, bytes = removed.bytes, "blobs that nothing needs removed");
    }
    Ok(())
}

/// The artifacts without a tag that nothing reaches, and that have been so since before this time.
fn unreached(view: &View, since: Timestamp) -> Vec<(ObjectKey, Revision)> {
    /// A repository and a digest.
    type Place<'a> = (&'a str, &'a str);
    let all = artifacts::all(view);
    let mentioned = mentioned(view);
    let mut by_subject = BTreeMap::<Place, Vec<&Artifact>>::new();
    let mut indexes = BTreeMap::<Place, &Artifact>::new();
    for Found { artifact, .. } in &all {
        let repository = artifact.repository.as_str();
        if let Some(subject) = &artifact.subject {
            by_subject.entry((repository, subject)).or_default().push(artifact);
        }
        if artifact.is_index() {
            indexes.insert((repository, &artifact.digest), artifact);
        }
    }
    let stays = |found: &&Found| {
        let Found { artifact, created, .. } = found;
        !artifact.tag.is_empty()
            || mentioned.contains(&artifact.digest)
            || created.is_none_or(|at| at > since)
    };
    let of = |artifact: &'_ Artifact| -> (String, String) {
        (artifact.repository.clone(), artifact.digest.clone())
    };
    let mut open: Vec<(String, String)> = all.iter().filter(stays).map(|found| of(&found.artifact)).collect();
    let mut reached: BTreeSet<(String, String)> = open.iter().cloned().collect();
    while let Some((repository, digest)) = open.pop() {
        let key = (repository.as_str(), digest.as_str());
        let parts = indexes.get(&key).into_iter().flat_map(|index| &index.blobs);
        let about = by_subject.get(&key).into_iter().flatten().map(|artifact| &artifact.digest);
        for next in parts.chain(about) {
            let next = (repository.clone(), next.clone());
            if reached.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    let garbage = all.iter().filter(|found| !reached.contains(&of(&found.artifact)));
    garbage.map(|found| (found.key.clone(), found.revision)).collect()
}

/// The digests that objects of other kinds name, as images of pods do: `name@sha256:...`.
fn mentioned(view: &View) -> BTreeSet<String> {
    let tables = view.tables.iter().filter(|(resource, _)| resource.as_str() != artifacts::ARTIFACTS);
    let objects = tables.flat_map(|(_, table)| table.values());
    let texts = objects.filter_map(|object| std::str::from_utf8(&object.json).ok());
    let digest = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != ':').unwrap_or(text.len());
        Digest::parse(&text[..end]).map(|digest| digest.to_string())
    };
    texts.flat_map(|text| text.split('@').skip(1).filter_map(digest)).collect()
}

/// Files that are needed, and those of them whose content says what more is: manifests that no artifact tells about.
struct Named {
    files: BTreeSet<Digest>,
    unread: Vec<Digest>,
}

fn named(view: &View) -> Named {
    let (mut files, mut indexed, mut known) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for Found { artifact, .. } in artifacts::all(view) {
        let digest = Digest::parse(&artifact.digest);
        known.extend(digest.clone());
        files.extend(digest);
        let names = artifact.blobs.iter().filter_map(|name| Digest::parse(name));
        for name in names {
            if artifact.is_index() {
                indexed.insert(name.clone());
            }
            files.insert(name);
        }
    }
    let images: BTreeSet<Digest> =
        mentioned(view).iter().filter_map(|digest| Digest::parse(digest)).collect();
    let unread = indexed.union(&images).filter(|digest| !known.contains(*digest)).cloned().collect();
    files.extend(images);
    Named { files, unread }
}

/// The same with what those manifests name that are here.
async fn with_content(blobs: &Blobs, named: Named) -> Result<BTreeSet<Digest>, BlobError> {
    let Named { mut files, unread: mut open } = named;
    let mut read = BTreeSet::new();
    while let Some(digest) = open.pop() {
        let is_manifest = blobs.size(&digest).await.is_some_and(|size| size <= MANIFEST_BYTES_MAX as u64);
        if !is_manifest || !read.insert(digest.clone()) {
            continue;
        }
        if read.len() > READ_MAX {
            return Err(
                std::io::Error::other("there are too many manifests that no artifact tells about").into()
            );
        }
        let manifest = Manifest::of_kept(&blobs.read(&digest).await?);
        let names: Vec<Digest> = manifest.names().collect();
        if manifest.is_index() {
            open.extend(names.iter().cloned());
        }
        files.extend(names);
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
