//! The manifests that are about a manifest: signatures, bills of materials and the like.

use std::collections::{BTreeMap, BTreeSet};

use axum::response::{IntoResponse, Response};
use coracle_api::Storage;
use coracle_objects::View;
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use crate::{
    Registry,
    artifacts::{self, Artifact},
    blobs::{Blobs, Members},
    digest::Digest,
    error::RegistryError,
    listing::link,
    manifest::{INDEX, MANIFEST_BYTES_MAX, Manifest},
    manifests,
    path::{Query, encode},
};

/// Manifests that are looked at for one answer, its bytes (it is a manifest, and as large at most), and those read for it.
const PAGE_MAX: usize = 1000;
const PAGE_BYTES_MAX: usize = MANIFEST_BYTES_MAX;
const READ_BYTES_MAX: u64 = 32 * 1024 * 1024;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const ARTIFACT_TYPE: &str = "artifactType";

/// A manifest that may be in the list.
enum Candidate {
    /// Its object says what it is about.
    Known(Artifact),
    /// An index names it, with this size. Whether it is about the subject it says itself.
    Named(u64),
}

/// The part of the list that fits into one answer.
#[derive(Default)]
struct Page {
    descriptors: Vec<Value>,
    /// Of the descriptors.
    bytes: usize,
    /// Bytes of what was read.
    read: u64,
    looked_at: usize,
    /// Behind which digest the list goes on.
    next: Option<Digest>,
}

impl<S: Storage> Registry<S> {
    pub(super) async fn list_referrers(
        &self,
        repository: &str,
        subject: &Digest,
        query: &Query,
    ) -> Result<Response, RegistryError> {
        let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
        let artifact_type = query.get(ARTIFACT_TYPE).filter(|wanted| !wanted.is_empty());
        let search = Search { blobs: &self.blobs, members: &*self.members, subject, artifact_type };
        let known = artifacts::referring(&view, repository, subject);
        let mut found: BTreeMap<Digest, Candidate> =
            known.into_iter().map(|(digest, artifact)| (digest, Candidate::Known(artifact))).collect();
        let index = self.index_by_tag(&view, repository, subject).await?;
        let read = index.as_ref().map_or(0, |(_, content)| content.len() as u64);
        for (digest, size) in index.iter().flat_map(|(index, content)| named(index, content)) {
            found.entry(digest).or_insert(Candidate::Named(size));
        }
        found.retain(|_, candidate| search.may_want(candidate));
        if let Some(last) = query.get("last") {
            let last = crate::path::digest(last)?;
            found.retain(|digest, _| *digest > last);
        }
        let page = search.page(found, read).await?;
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": page.descriptors });
        let mut response = ([(header::CONTENT_TYPE, INDEX)], index.to_string()).into_response();
        if artifact_type.is_some() {
            response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static(ARTIFACT_TYPE));
        }
        if let Some(last) = page.next {
            let filter = artifact_type.map(|wanted| format!("&{ARTIFACT_TYPE}={}", encode(wanted)));
            let last = encode(&last.to_string());
            let next =
                format!("/v2/{repository}/referrers/{subject}?last={last}{}", filter.unwrap_or_default());
            response.headers_mut().extend(link(&next).try_into().map(|value| (header::LINK, value)));
        }
        Ok(response)
    }

    /// What clients wrote down in an index under a tag made of the subject's digest, before there was this list.
    /// Source: the distribution specification, "Enabling the Referrers API".
    async fn index_by_tag(
        &self,
        view: &View,
        repository: &str,
        subject: &Digest,
    ) -> Result<Option<(Artifact, Vec<u8>)>, RegistryError> {
        let tagged = artifacts::find(view, repository, &referrers_tag(subject));
        let Some(index) = tagged.filter(Artifact::is_index) else { return Ok(None) };
        let Some(digest) = Digest::parse(&index.digest) else { return Ok(None) };
        Ok(self.manifest_content(&digest).await?.map(|content| (index, content)))
    }
}

/// What of an index can be a manifest and was there when it was pushed, with its size.
fn named(index: &Artifact, content: &[u8]) -> Vec<(Digest, u64)> {
    let taken: BTreeSet<&str> = index.blobs.iter().map(String::as_str).collect();
    let references = Manifest::of_kept(content).references().unwrap_or_default();
    let manifests = references.into_iter().filter(|named| {
        named.size <= MANIFEST_BYTES_MAX as u64 && taken.contains(named.digest.to_string().as_str())
    });
    manifests.map(|named| (named.digest, named.size)).collect()
}

impl Candidate {
    /// How large it is, as far as that is known before it is here.
    fn size(&self) -> u64 {
        match self {
            Candidate::Known(_) => 0,
            Candidate::Named(size) => *size,
        }
    }
}

impl Page {
    fn has_room_to_read(&self, bytes: u64) -> bool {
        self.looked_at < PAGE_MAX && self.read.saturating_add(bytes) <= READ_BYTES_MAX
    }

    /// Whether there was room for it. The first has room always.
    fn takes(&mut self, descriptor: Value) -> bool {
        self.bytes += descriptor.to_string().len();
        let has_room = self.bytes <= PAGE_BYTES_MAX || self.descriptors.is_empty();
        if has_room {
            self.descriptors.push(descriptor);
        }
        has_room
    }
}

/// What is looked for, and where.
struct Search<'a> {
    blobs: &'a Blobs,
    members: &'a dyn Members,
    subject: &'a Digest,
    artifact_type: Option<&'a str>,
}

impl Search<'_> {
    fn may_want(&self, candidate: &Candidate) -> bool {
        match candidate {
            Candidate::Known(artifact) => self.wants(artifact.artifact_type.as_deref()),
            Candidate::Named(_) => true,
        }
    }

    fn wants(&self, artifact_type: Option<&str>) -> bool {
        self.artifact_type.is_none() || self.artifact_type == artifact_type
    }

    /// Looks at as many as one answer may; so many bytes were read for it before. What is not in the list counts as well.
    async fn page(&self, found: BTreeMap<Digest, Candidate>, read: u64) -> Result<Page, RegistryError> {
        let mut page = Page { read, ..Page::default() };
        let mut last = None;
        for (digest, candidate) in found {
            if !self.look_at(&digest, candidate, &mut page).await? {
                page.next = last;
                break;
            }
            page.looked_at += 1;
            last = Some(digest);
        }
        Ok(page)
    }

    /// Whether the page had room for it.
    async fn look_at(
        &self,
        digest: &Digest,
        candidate: Candidate,
        page: &mut Page,
    ) -> Result<bool, RegistryError> {
        if !page.has_room_to_read(candidate.size()) {
            return Ok(false);
        }
        // What is nowhere any more is not listed: it could not be pulled.
        let Some(size) = manifests::obtain(self.blobs, self.members, digest).await? else { return Ok(true) };
        if !page.has_room_to_read(size) {
            return Ok(false);
        }
        let content = self.blobs.read(digest).await?;
        page.read += content.len() as u64;
        Ok(self.descriptor(digest, candidate, &content).is_none_or(|descriptor| page.takes(descriptor)))
    }

    /// `None` where it is not what is looked for.
    fn descriptor(&self, digest: &Digest, candidate: Candidate, content: &[u8]) -> Option<Value> {
        let manifest = Manifest::of_kept(content);
        let (media_type, artifact_type) = match candidate {
            Candidate::Known(artifact) => (artifact.media_type, artifact.artifact_type),
            Candidate::Named(_) if manifest.subject().as_ref() != Some(self.subject) => return None,
            Candidate::Named(_) => (manifest.media_type(None), manifest.artifact_type().map(str::to_owned)),
        };
        if !self.wants(artifact_type.as_deref()) {
            return None;
        }
        let mut descriptor =
            json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() });
        if let Some(artifact_type) = artifact_type {
            descriptor[ARTIFACT_TYPE] = json!(artifact_type);
        }
        if let Some(annotations) = manifest.annotations {
            descriptor["annotations"] = json!(annotations);
        }
        Some(descriptor)
    }
}

/// Source: the distribution specification, "Referrers Tag Schema".
fn referrers_tag(subject: &Digest) -> String {
    format!("{}-{}", subject.algorithm().as_str(), &subject.hex()[..64])
}

#[cfg(test)]
mod tests {
    use tonic::transport::Channel;

    use super::*;
    use crate::digest::Algorithm;

    struct Alone;

    impl Members for Alone {
        fn others(&self) -> Vec<(u64, Channel)> {
            vec![]
        }
    }

    /// A manifest of a number, about a subject.
    fn about(subject: &Digest, number: usize) -> Vec<u8> {
        let subject = json!({ "mediaType": "a/b", "digest": subject.to_string(), "size": 1 });
        let annotations = json!({ "number": number.to_string() });
        json!({ "artifactType": "a/t", "layers": [], "subject": subject, "annotations": annotations })
            .to_string()
            .into_bytes()
    }

    async fn keep(blobs: &Blobs, content: &[u8]) -> (Digest, u64) {
        let digest = Digest::of(content);
        blobs.put(&digest, content).await.unwrap();
        (digest, content.len() as u64)
    }

    fn candidates(named: &[(Digest, u64)]) -> BTreeMap<Digest, Candidate> {
        named.iter().map(|(digest, size)| (digest.clone(), Candidate::Named(*size))).collect()
    }

    #[tokio::test]
    async fn a_page_reads_no_more_than_it_may_and_goes_on_behind_what_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), || true).unwrap();
        let (subject, other) = (Digest::of(b"subject"), Digest::of(b"other"));
        let mut named = vec![];
        for number in 0..5 {
            named.push(keep(&blobs, &about(&subject, number)).await);
        }
        named.sort_unstable();
        let size = named[0].1;
        let search = Search { blobs: &blobs, members: &Alone, subject: &subject, artifact_type: None };
        let page = search.page(candidates(&named), READ_BYTES_MAX - 2 * size).await.unwrap();
        assert_eq!((page.descriptors.len(), page.read), (2, READ_BYTES_MAX));
        assert_eq!(page.next.as_ref(), Some(&named[1].0));
        assert_eq!(page.descriptors[0]["digest"], named[0].0.to_string());
        assert_eq!(page.descriptors[0][ARTIFACT_TYPE], "a/t");
        let page = search.page(candidates(&named[2..]), 0).await.unwrap();
        assert_eq!((page.descriptors.len(), page.read, page.next), (3, 3 * size, None));
        // What is about something else, or of another type, was read as well.
        for search in [
            Search { subject: &other, ..search },
            Search { artifact_type: Some("c/d"), blobs: &blobs, members: &Alone, subject: &subject },
        ] {
            let page = search.page(candidates(&named), READ_BYTES_MAX - size).await.unwrap();
            assert_eq!((page.descriptors.len(), page.read), (0, READ_BYTES_MAX));
            assert_eq!(page.next.as_ref(), Some(&named[0].0));
        }
    }

    #[tokio::test]
    async fn what_is_announced_or_found_to_be_too_much_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), || true).unwrap();
        let subject = Digest::of(b"subject");
        let (here, size) = keep(&blobs, &about(&subject, 0)).await;
        let search = Search { blobs: &blobs, members: &Alone, subject: &subject, artifact_type: None };
        for (announced, read) in [(READ_BYTES_MAX + 1, 0), (0, READ_BYTES_MAX - size + 1)] {
            let mut page = Page { read, ..Page::default() };
            assert!(!search.look_at(&here, Candidate::Named(announced), &mut page).await.unwrap());
            assert_eq!((page.read, page.descriptors.len()), (read, 0));
        }
        let mut page = Page { looked_at: PAGE_MAX, ..Page::default() };
        assert!(!search.look_at(&here, Candidate::Named(size), &mut page).await.unwrap());
    }

    #[test]
    fn an_index_names_only_what_came_with_it_and_can_be_a_manifest() {
        let digests = [Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"3")];
        let sizes = [7, MANIFEST_BYTES_MAX + 1, 7];
        let manifests: Vec<Value> = digests
            .iter()
            .zip(sizes)
            .map(|(digest, size)| json!({ "mediaType": "a/b", "digest": digest.to_string(), "size": size }))
            .collect();
        let index = Artifact {
            repository: "a".into(),
            tag: "b".into(),
            digest: Digest::of(b"index").to_string(),
            media_type: INDEX.into(),
            size: 1,
            blobs: digests[..2].iter().map(Digest::to_string).collect(),
            subject: None,
            artifact_type: None,
        };
        let content = json!({ "manifests": manifests }).to_string();
        assert_eq!(named(&index, content.as_bytes()), [(digests[0].clone(), 7)]);
    }

    #[test]
    fn the_tag_of_a_subject_fits_in_a_tag() {
        let hex = "a".repeat(64);
        let short = Digest::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(referrers_tag(&short), format!("sha256-{hex}"));
        let long = Digest::by(Algorithm::Sha512, b"x");
        assert_eq!(referrers_tag(&long).len(), "sha512-".len() + 64);
    }
}
