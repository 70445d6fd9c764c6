//! Blobs that are pulled, mounted and deleted.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use coracle_api::{Storage, UserInfo};
use http::{HeaderMap, Method, StatusCode, header};

use crate::{
    Registry, artifacts,
    blobs::{BlobError, WHOLE},
    content_headers,
    digest::Digest,
    error::RegistryError,
    range::{self, Wanted},
};

const BLOB_TYPE: &str = "application/octet-stream";

impl<S: Storage> Registry<S> {
    pub(super) async fn get_blob(
        &self,
        repository: &str,
        digest: &Digest,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response, RegistryError> {
        let size = self.blob_in(repository, digest).await?;
        let etag = format!("\"{digest}\"");
        let validators = [(header::ETAG, etag.clone()), (header::ACCEPT_RANGES, "bytes".to_owned())];
        if *method == Method::HEAD {
            // Who asks whether it is here names it next.
            self.blobs.hold(digest).await?;
            return Ok((validators, content_headers(digest, BLOB_TYPE, size)).into_response());
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // What is wanted of another content than this is the whole of this.
        let is_same = text(header::IF_RANGE).is_none_or(|tag| tag == etag);
        match range::wanted(text(header::RANGE).filter(|_| is_same), size) {
            Wanted::Nothing => Err(RegistryError::range_not_satisfiable(size)),
            Wanted::Whole => {
                let content = Body::from_stream(self.blobs.stream(digest, WHOLE).await?);
                Ok((validators, content_headers(digest, BLOB_TYPE, size), content).into_response())
            }
            Wanted::Part(part) => {
                let said = format!("bytes {}-{}/{size}", part.start, part.end - 1);
                let headers = content_headers(digest, BLOB_TYPE, part.end - part.start);
                let content = Body::from_stream(self.blobs.stream(digest, part).await?);
                let range = [(header::CONTENT_RANGE, said)];
                Ok((StatusCode::PARTIAL_CONTENT, validators, headers, range, content).into_response())
            }
        }
    }

    /// The size of a blob that may be had from this repository.
    async fn blob_in(&self, repository: &str, digest: &Digest) -> Result<u64, RegistryError> {
        let error = |error| RegistryError::blob(digest, error);
        // One that was deleted here may have come back with an image that was pushed through another member.
        if self.blobs.is_hidden(repository, digest).await {
            let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
            if artifacts::naming(&view, repository, digest).is_none() {
                return Err(error(BlobError::Missing(digest.to_string())));
            }
        }
        self.obtain(digest).await.map_err(error)
    }

    /// Whether a blob is in a repository now because it is in another that the user may read.
    pub(super) async fn mount(
        &self,
        user: &UserInfo,
        repository: &str,
        digest: &Digest,
        from: Option<&str>,
    ) -> Result<bool, RegistryError> {
        let from = from.unwrap_or(repository);
        let source = format!("/v2/{from}/blobs/{digest}");
        let may_read = self.authorize(user, &Method::GET, &source).is_ok();
        if !may_read || self.blob_in(from, digest).await.is_err() {
            return Ok(false);
        }
        self.hold(digest).await.map_err(|error| RegistryError::blob(digest, error))?;
        self.blobs.show(repository, digest).await?;
        Ok(true)
    }

    pub(super) async fn delete_blob(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Response, RegistryError> {
        self.blob_in(repository, digest).await?;
        let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
        let of_its_own = artifacts::find_digest(&view, repository, digest);
        if let Some(artifact) = of_its_own.or_else(|| artifacts::naming(&view, repository, digest)) {
            return Err(RegistryError::in_use(digest, &artifact.name()));
        }
        self.blobs.hide_everywhere(repository, digest, &*self.members).await?;
        tracing::info!(repository, %digest, "blob deleted");
        Ok(StatusCode::ACCEPTED.into_response())
    }
}
