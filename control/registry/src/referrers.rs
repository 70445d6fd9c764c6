//! The manifests that are about a manifest: signatures, bills of materials and the like.

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use coracle_api::Storage;
use coracle_objects::View;
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use crate::{
    Registry,
    artifacts::{self, Artifact},
    digest::Digest,
    error::RegistryError,
    listing::link,
    manifest::{INDEX, MANIFEST_BYTES_MAX, Manifest},
    path::{Query, encode},
};

/// Descriptors in one answer, which is a manifest and as large at most, and bytes of manifests that are read for it.
const PAGE_MAX: usize = 1000;
const PAGE_BYTES_MAX: usize = MANIFEST_BYTES_MAX;
const READ_BYTES_MAX: usize = 32 * 1024 * 1024;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const ARTIFACT_TYPE: &str = "artifactType";

/// The first descriptors of a list, and behind which digest it goes on.
#[derive(Default)]
struct Page {
    descriptors: Vec<Value>,
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
        let mut found = artifacts::referring(&view, repository, subject);
        for artifact in self.listed_by_tag(&view, repository, subject).await? {
            found.extend(Digest::parse(&artifact.digest).map(|digest| (digest, artifact)));
        }
        let wanted = query.get(ARTIFACT_TYPE).filter(|wanted| !wanted.is_empty());
        if let Some(wanted) = wanted {
            found.retain(|_, artifact| artifact.artifact_type.as_deref() == Some(wanted));
        }
        if let Some(last) = query.get("last") {
            let last = crate::path::digest(last)?;
            found.retain(|digest, _| *digest > last);
        }
        let page = self.page(found).await?;
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": page.descriptors });
        let mut response = ([(header::CONTENT_TYPE, INDEX)], index.to_string()).into_response();
        if wanted.is_some() {
            response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static(ARTIFACT_TYPE));
        }
        if let Some(last) = page.next {
            let filter = wanted.map(|wanted| format!("&{ARTIFACT_TYPE}={}", encode(wanted)));
            let last = encode(&last.to_string());
            let next =
                format!("/v2/{repository}/referrers/{subject}?last={last}{}", filter.unwrap_or_default());
            response.headers_mut().extend(link(&next).try_into().map(|value| (header::LINK, value)));
        }
        Ok(response)
    }

    async fn page(&self, referrers: BTreeMap<Digest, Artifact>) -> Result<Page, RegistryError> {
        let (mut page, mut bytes, mut read) = (Page::default(), 0, 0);
        let mut last = None;
        for (digest, artifact) in referrers {
            // What is nowhere any more is not listed: it could not be pulled.
            let Some(content) = self.manifest_content(&digest).await? else { continue };
            let descriptor = descriptor(&digest, &artifact, &content);
            bytes += descriptor.to_string().len();
            read += content.len();
            let is_full =
                page.descriptors.len() == PAGE_MAX || bytes > PAGE_BYTES_MAX || read > READ_BYTES_MAX;
            if is_full && !page.descriptors.is_empty() {
                page.next = last;
                break;
            }
            page.descriptors.push(descriptor);
            last = Some(digest);
        }
        Ok(page)
    }

    /// What clients wrote down in an index under a tag made of the subject's digest, before there was this list.
    /// Source: the distribution specification, "Enabling the Referrers API".
    async fn listed_by_tag(
        &self,
        view: &View,
        repository: &str,
        subject: &Digest,
    ) -> Result<Vec<Artifact>, RegistryError> {
        let Some(index) = artifacts::find(view, repository, &referrers_tag(subject)) else {
            return Ok(vec![]);
        };
        let mut listed = vec![];
        for digest in index.blobs.iter().filter(|_| index.is_index()).take(PAGE_MAX) {
            let Some(digest) = Digest::parse(digest) else { continue };
            let Some(content) = self.manifest_content(&digest).await? else { continue };
            let manifest = Manifest::of_kept(&content);
            if manifest.subject().as_ref() != Some(subject) {
                continue;
            }
            listed.push(Artifact {
                repository: repository.to_owned(),
                tag: String::new(),
                digest: digest.to_string(),
                media_type: manifest.media_type(None),
                size: 0,
                blobs: vec![],
                subject: Some(subject.to_string()),
                artifact_type: manifest.artifact_type().map(str::to_owned),
            });
        }
        Ok(listed)
    }
}

fn descriptor(digest: &Digest, artifact: &Artifact, content: &[u8]) -> Value {
    let mut descriptor = json!({
        "mediaType": artifact.media_type,
        "digest": digest.to_string(),
        "size": content.len(),
    });
    if let Some(artifact_type) = &artifact.artifact_type {
        descriptor[ARTIFACT_TYPE] = json!(artifact_type);
    }
    if let Some(annotations) = Manifest::of_kept(content).annotations {
        descriptor["annotations"] = json!(annotations);
    }
    descriptor
}

/// Source: the distribution specification, "Referrers Tag Schema".
fn referrers_tag(subject: &Digest) -> String {
    format!("{}-{}", subject.algorithm().as_str(), &subject.hex()[..64])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn the_tag_of_a_subject_fits_in_a_tag() {
        let hex = "a".repeat(64);
        let short = Digest::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(referrers_tag(&short), format!("sha256-{hex}"));
        let long = Digest::by(Algorithm::Sha512, b"x");
        assert_eq!(referrers_tag(&long).len(), "sha512-".len() + 64);
    }
}
