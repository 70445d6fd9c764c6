//! What nothing needs any more, and when it goes: manifests that no tag reaches, and files that no manifest names.
//!
//! A tag reaches its manifest, what that names, and what is about it, as signatures are. A digest that stands in another
//! object of the cluster, as in the image of a pod, counts as a tag. Each member looks through its own files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime},
};

use coracle_api::{Admission, Storage, UserInfo};
use coracle_objects::{ObjectKey, Revision, Transaction, View};
use jiff::Timestamp;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

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

/// How long what was there before this process stays at least. A version before wrote no object for a manifest that was
/// pushed by its digest, so that its files look as if nothing needed them.
const SETTLING: Duration = Duration::from_secs(24 * 3600);

/// What one pass reads of manifests that no artifact tells about. The next one goes on from there.
#[derive(Clone, Copy, Debug)]
struct Budget {
    files: usize,
    bytes: usize,
}

const BUDGET: Budget = Budget { files: 10_000, bytes: 256 * 1024 * 1024 };

/// Takes garbage away for as long as it is polled.
pub async fn collect<S: Storage>(storage: S, admission: Admission, blobs: Arc<Blobs>) {
    let own = admission.storage_of(storage, UserInfo::api_server());
    let (began, clock) = (SystemTime::now(), Instant::now());
    let mut search = None;
    loop {
        let soon = search.is_some() || !blobs.have_room();
        sleep(if soon { PERIOD_WITHOUT_ROOM } else { PERIOD }).await;
        let patience = if blobs.have_room() { PATIENCE } else { PATIENCE_WITHOUT_ROOM };
        if let Err(error) = delete_unreached(&own, patience).await {
            tracing::warn!(error, "manifests that no tag reaches not deleted");
        }
        let old = old(patience, began, clock.elapsed());
        if let Err(error) = remove_unnamed(&own, &blobs, old, &mut search).await {
            tracing::warn!(error, "blobs that nothing needs not removed");
        }
    }
}

/// From when a file is that is old: of those from before this process none is, until it has run for long enough.
fn old(patience: Patience, began: SystemTime, runs: Duration) -> Range<SystemTime> {
    let first = if runs < SETTLING { began } else { SystemTime::UNIX_EPOCH };
    first..SystemTime::now() - patience.file
}

async fn delete_unreached<S: Storage>(storage: &S, patience: Patience) -> Result<(), String> {
    let told = |error: &dyn fmt::Display| error.to_string();
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
    Ok(())
}

/// Begins a search, or goes on with one; where it ends, what it found is removed.
async fn remove_unnamed<S: Storage>(
    storage: &S,
    blobs: &Arc<Blobs>,
    old: Range<SystemTime>,
    search: &mut Option<Search>,
) -> Result<(), String> {
    let told = |error: &dyn fmt::Display| error.to_string();
    let view = storage.linearizable().await.map_err(|error| told(&error))?;
    let named = spawn_blocking(move || named(&view)).await.map_err(|error| told(&error))?;
    let mut found = match search.take() {
        Some(under_way) => under_way,
        None => Search::begin(blobs, &named, old.clone()).await.map_err(|error| told(&error))?,
    };
    found.spare(named);
    let reader = blobs.clone();
    let read = spawn_blocking(move || found.read(&reader, BUDGET).map(|()| found));
    let found = read.await.map_err(|error| told(&error))??;
    if let Some(next) = found.open.last() {
        let left = found.open.len();
        tracing::warn!(left, %next, "many manifests have no artifact: blobs stay until all are read");
        *search = Some(found);
        return Ok(());
    }
    let removed = blobs.remove(found.unnamed, old).await.map_err(|error| told(&error))?;
    if removed.files > 0 {
        tracing::info!(files = removed.files, bytes = removed.bytes, "blobs that nothing needs removed");
    }
    Ok(())
}

/// A repository and a digest.
type Place<'a> = (&'a str, &'a str);

/// The artifacts without a tag that nothing reaches, and that have been so since before this time.
fn unreached(view: &View, since: Timestamp) -> Vec<(ObjectKey, Revision)> {
    let all = artifacts::all(view);
    let mentioned = mentioned(view);
    let mut by_subject = BTreeMap::<Place, Vec<&Artifact>>::new();
    let mut parts = BTreeMap::<Place, &[String]>::new();
    for Found { artifact, .. } in &all {
        let repository = artifact.repository.as_str();
        if let Some(subject) = &artifact.subject {
            by_subject.entry((repository, subject)).or_default().push(artifact);
        }
        // Whether it is an index no type says for certain: what is named stays.
        parts.insert((repository, &artifact.digest), &artifact.blobs);
    }
    let stays = |found: &&Found| {
        let Found { artifact, created, .. } = found;
        !artifact.tag.is_empty()
            || mentioned.contains(&artifact.digest)
            || created.is_none_or(|at| at > since)
    };
    let mut open: Vec<Place> = all.iter().filter(stays).map(place).collect();
    let mut reached: BTreeSet<Place> = open.iter().copied().collect();
    while let Some(key @ (repository, _)) = open.pop() {
        let named = parts.get(&key).into_iter().copied().flatten();
        let about = by_subject.get(&key).into_iter().flatten().map(|artifact| &artifact.digest);
        for next in named.chain(about) {
            let next = (repository, next.as_str());
            // Of most blobs nothing is told.
            let is_known = parts.contains_key(&next) || by_subject.contains_key(&next);
            if is_known && reached.insert(next) {
                open.push(next);
            }
        }
    }
    let garbage = all.iter().filter(|found| !reached.contains(&place(found)));
    garbage.map(|found| (found.key.clone(), found.revision)).collect()
}

fn place(found: &Found) -> Place<'_> {
    (&found.artifact.repository, &found.artifact.digest)
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
            if artifact.may_be_index() {
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

/// A search for old files that nothing names. Each manifest is read once, in as many passes as it takes: while some are not
/// read, nothing is removed, as they may name it. What comes meanwhile lengthens the search only by what it spares.
struct Search {
    unnamed: BTreeSet<Digest>,
    /// Manifests still to be read.
    open: Vec<Digest>,
    /// Those, and those that were read.
    seen: BTreeSet<Digest>,
}

impl Search {
    async fn begin(blobs: &Arc<Blobs>, named: &Named, old: Range<SystemTime>) -> Result<Self, BlobError> {
        let unnamed = blobs.others(named.files.clone(), old).await?;
        let mut search = Self { unnamed, open: vec![], seen: BTreeSet::new() };
        named.unread.iter().for_each(|digest| search.open(digest));
        Ok(search)
    }

    fn open(&mut self, digest: &Digest) {
        if self.seen.insert(digest.clone()) {
            self.open.push(digest.clone());
        }
    }

    /// Spares what is named by now. It may be a manifest that names more.
    fn spare(&mut self, named: Named) {
        for digest in &named.unread {
            if self.unnamed.contains(digest) {
                self.open(digest);
            }
        }
        self.unnamed.retain(|digest| !named.files.contains(digest));
    }

    /// Reads on, as far as the budget goes. Waits for the disk.
    fn read(&mut self, blobs: &Blobs, mut budget: Budget) -> Result<(), String> {
        // Where there is nothing to be spared, there is nothing to be read.
        while !self.unnamed.is_empty() && budget.files > 0 && budget.bytes > 0 {
            let Some(digest) = self.open.pop() else { return Ok(()) };
            let content = blobs.read_small(&digest, MANIFEST_BYTES_MAX);
            let content = content.map_err(|error| format!("{digest}: {error}"))?.unwrap_or_default();
            budget.files -= 1;
            budget.bytes = budget.bytes.saturating_sub(content.len());
            let manifest = Manifest::of_kept(&content);
            for name in manifest.names() {
                self.unnamed.remove(&name);
                if manifest.is_index() && blobs.is_here(&name) {
                    self.open(&name);
                }
            }
        }
        if self.unnamed.is_empty() {
            self.open.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
