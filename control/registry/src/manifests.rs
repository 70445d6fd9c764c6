//! Manifests that are pulled, pushed and deleted.

use std::collections::BTreeSet;

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    response::{IntoResponse, Response},
};
use coracle_api::{Storage, UserInfo};
use coracle_objects::View;
use http::{HeaderName, Method, StatusCode, header};

use crate::{
    CONTENT_DIGEST, Registry,
    artifacts::{self, Artifact, ArtifactError, Deleted},
    blobs::{BlobError, Blobs, Members},
    content_headers,
    digest::{Algorithm, Digest},
    error::RegistryError,
    manifest::{MANIFEST_BYTES_MAX, Manifest, Reference, check_type},
    path::{self, Query},
};

/// Tags that one push sets.
const TAGS_SET_MAX: usize = 100;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

impl<S: Storage> Registry<S> {
    pub(super) async fn get_manifest(
        &self,
        user: &UserInfo,
        repository: &str,
        reference: &str,
        method: &Method,
    ) -> Result<Response, RegistryError> {
        let unknown = || RegistryError::manifest_unknown(repository, reference);
        let (digest, media_type) = self.resolve(user, repository, reference).await?.ok_or_else(unknown)?;
        let content = self.manifest_content(&digest).await?.ok_or_else(unknown)?;
        let media_type = media_type.unwrap_or_else(|| Manifest::of_kept(&content).media_type(None));
        let headers = content_headers(&digest, &media_type, content.len() as u64);
        let content = if *method == Method::HEAD { Body::empty() } else { content.into() };
        Ok((headers, content).into_response())
    }

    /// The manifest that a tag or digest means in a repository, and its type as far as it is known.
    async fn resolve(
        &self,
        user: &UserInfo,
        repository: &str,
        reference: &str,
    ) -> Result<Option<(Digest, Option<String>)>, RegistryError> {
        let digest = Digest::parse(reference);
        // What the pods of a node name by a digest was let through, whatever names it beside them.
        if let (Some(digest), true) = (&digest, user.as_node().is_some()) {
            let known = known(&self.storage.view(), repository, digest);
            return Ok(Some((digest.clone(), known.flatten())));
        }
        // What was just pushed or deleted through another member must be so here.
        let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
        let Some(digest) = digest else {
            let found = artifacts::find(&view, repository, reference);
            return Ok(found.and_then(|tag| Some((Digest::parse(&tag.digest)?, Some(tag.media_type)))));
        };
        if let Some(known) = known(&view, repository, &digest) {
            return Ok(Some((digest, known)));
        }
        let is_kept =
            !artifacts::is_anywhere(&view, &digest) && self.is_of_before(repository, &digest).await?;
        Ok(is_kept.then_some((digest, None)))
    }

    /// Whether a file is a manifest of a version that wrote no object for what was pushed by its digest. It was in every
    /// repository then.
    async fn is_of_before(&self, repository: &str, digest: &Digest) -> Result<bool, RegistryError> {
        if self.blobs.is_hidden(repository, digest).await {
            return Ok(false);
        }
        let content = self.manifest_content(digest).await?;
        Ok(content.is_some_and(|content| Manifest::is_one(&content)))
    }

    /// The bytes of a manifest; `None` where it is nowhere.
    pub(super) async fn manifest_content(&self, digest: &Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        match obtain(&self.blobs, &*self.members, digest).await? {
            Some(_) => Ok(Some(self.blobs.read(digest).await?)),
            None => Ok(None),
        }
    }

    pub(super) async fn put_manifest(
        &self,
        user: UserInfo,
        repository: &str,
        reference: &str,
        query: &Query,
        request: Request,
    ) -> Result<Response, RegistryError> {
        let by_digest = Digest::parse(reference);
        let tags = tags_set(by_digest.as_ref(), reference, query)?;
        let pushed_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let pushed_type = pushed_type.map(str::to_owned);
        let content = read_whole(request).await?;
        let algorithm = by_digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::by(algorithm, &content);
        if let Some(wanted) = by_digest.as_ref().filter(|wanted| **wanted != digest) {
            let message = format!("the manifest has the digest {digest}, not {wanted}");
            return Err(RegistryError::digest_invalid(&message));
        }
        let invalid = |reason: String| RegistryError::manifest_invalid(&reason);
        let manifest = Manifest::parse(&content).map_err(invalid)?;
        let media_type = manifest.media_type(pushed_type.as_deref());
        // Of the manifest's own it is known by now.
        check_type("Content-Type", &media_type).map_err(invalid)?;
        let references = self.present(manifest.references().map_err(invalid)?).await?;
        self.blobs.put(&digest, &content).await.map_err(|error| RegistryError::blob(&digest, error))?;
        let mut needed: Vec<Digest> = references.iter().map(|reference| reference.digest.clone()).collect();
        needed.push(digest.clone());
        let replicated = self.blobs.replicate(&needed, &*self.members).await;
        replicated.map_err(RegistryError::unavailable)?;
        let subject = manifest.subject();
        let artifact = Artifact {
            repository: repository.into(),
            tag: String::new(),
            digest: digest.to_string(),
            media_type,
            size: references.iter().fold(content.len() as u64, |sum, blob| sum.saturating_add(blob.size)),
            blobs: references.iter().map(|reference| reference.digest.to_string()).collect(),
            subject: subject.as_ref().map(Digest::to_string),
            artifact_type: subject.as_ref().and(manifest.artifact_type()).map(str::to_owned),
        };
        let artifacts: Vec<Artifact> = match tags.as_slice() {
            [] => vec![artifact.clone()],
            tags => tags.iter().map(|tag| artifact.tagged(tag)).collect(),
        };
        let own = self.admission.storage_of(self.storage.clone(), user);
        artifacts::commit(&own, &artifacts).await.map_err(|error| match error {
            ArtifactError::Taken { .. } => RegistryError::manifest_invalid(&error.to_string()),
            ArtifactError::NotWritten(error) => RegistryError::unavailable(error),
        })?;
        for shown in &needed {
            self.blobs.show(repository, shown).await?;
        }
        tracing::info!(repository, reference, %digest, "artifact pushed");
        Ok(accepted(&artifact, &tags, by_digest.is_some()))
    }

    /// Those of the blobs that are here, or are fetched from other members. All that are required must be, and have the
    /// size that the manifest says.
    async fn present(&self, references: Vec<Reference>) -> Result<Vec<Reference>, RegistryError> {
        let mut present = vec![];
        for reference in references {
            let Reference { digest, size, is_required } = &reference;
            match self.hold(digest).await {
                Ok(found) if found == *size => present.push(reference),
                Ok(found) => return Err(RegistryError::size_invalid(digest, *size, found)),
                Err(BlobError::Missing(_)) if !is_required => {}
                Err(error) => return Err(RegistryError::manifest_blob(digest, error)),
            }
        }
        Ok(present)
    }

    /// Takes a tag away, or a manifest with its tags.
    pub(super) async fn delete_manifest(
        &self,
        user: UserInfo,
        repository: &str,
        reference: &str,
    ) -> Result<Response, RegistryError> {
        let own = self.admission.storage_of(self.storage.clone(), user);
        let unknown = || RegistryError::manifest_unknown(repository, reference);
        // What was pushed through another member must be found here.
        self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
        let Some(digest) = Digest::parse(reference) else {
            let deleted = artifacts::delete_tag(&own, repository, reference).await;
            return match deleted.map_err(RegistryError::unavailable)? {
                true => Ok(StatusCode::ACCEPTED.into_response()),
                false => Err(unknown()),
            };
        };
        let deleted = artifacts::delete(&own, repository, &digest).await;
        match deleted.map_err(RegistryError::unavailable)? {
            Deleted::Done => {}
            Deleted::Nothing => return Err(unknown()),
            Deleted::PartOf(index) => return Err(RegistryError::in_use(&digest, &index)),
        }
        self.blobs.hide_everywhere(repository, &digest, &*self.members).await?;
        tracing::info!(repository, %digest, "manifest deleted");
        Ok(StatusCode::ACCEPTED.into_response())
    }
}

/// The size of a manifest, which is here then; `None` where it is nowhere. What is larger was never taken for a manifest: it
/// is a blob, whose place is elsewhere.
pub async fn obtain(
    blobs: &Blobs,
    members: &dyn Members,
    digest: &Digest,
) -> Result<Option<u64>, RegistryError> {
    match blobs.obtain(digest, members).await {
        Ok(size) if size <= MANIFEST_BYTES_MAX as u64 => Ok(Some(size)),
        Ok(_) | Err(BlobError::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a manifest is in a repository, and its type as far as its artifacts tell. Of an index that was pushed by an older
/// version the manifests have no artifacts of their own.
fn known(view: &View, repository: &str, digest: &Digest) -> Option<Option<String>> {
    if let Some(found) = artifacts::find_digest(view, repository, digest) {
        return Some(Some(found.media_type));
    }
    artifacts::naming(view, repository, digest).filter(Artifact::is_index).map(|_| None)
}

/// The tags of a push: where it is by a digest, those that the query adds.
fn tags_set(
    by_digest: Option<&Digest>,
    reference: &str,
    query: &Query,
) -> Result<Vec<String>, RegistryError> {
    if by_digest.is_none() {
        return Ok(vec![reference.to_owned()]);
    }
    let tags: BTreeSet<&str> = query.all("tag").collect();
    if tags.len() > TAGS_SET_MAX {
        return Err(RegistryError::too_many_tags(TAGS_SET_MAX));
    }
    tags.iter().try_for_each(|tag| path::tag(tag))?;
    Ok(tags.into_iter().map(str::to_owned).collect())
}

/// A body that announces too much is refused before it is read.
async fn read_whole(request: Request) -> Result<Vec<u8>, RegistryError> {
    if request.body().size_hint().lower() > MANIFEST_BYTES_MAX as u64 {
        return Err(RegistryError::manifest_too_large(MANIFEST_BYTES_MAX));
    }
    match axum::body::to_bytes(request.into_body(), MANIFEST_BYTES_MAX).await {
        Ok(content) => Ok(content.into()),
        Err(error) if is_too_large(&error) => Err(RegistryError::manifest_too_large(MANIFEST_BYTES_MAX)),
        Err(error) => Err(RegistryError::manifest_invalid(&format!("it broke off: {error}"))),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

fn accepted(artifact: &Artifact, tags: &[String], by_digest: bool) -> Response {
    let Artifact { repository, digest, .. } = artifact;
    let location = format!("/v2/{repository}/manifests/{digest}");
    let headers = [(header::LOCATION, location), (CONTENT_DIGEST, digest.clone())];
    let subject = artifact.subject.clone().map(|subject| [(OCI_SUBJECT, subject)]);
    let set = (by_digest && !tags.is_empty()).then(|| [(OCI_TAG, tags.join(", "))]);
    let mut response = (StatusCode::CREATED, headers).into_response();
    let more = subject.into_iter().chain(set).flatten();
    response.headers_mut().extend(more.filter_map(|(name, value)| Some((name, value.try_into().ok()?))));
    response
}
