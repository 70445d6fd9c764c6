//! The cluster's own registry: what pushing and pulling need of the OCI distribution API (v2).
//!
//! Blobs and manifests are files on the control nodes; a tag is an object. A tag is committed only after a majority of
//! the members has what it names. Administrators push and pull, nodes pull what their pods name.

pub mod blobs;
mod error;
mod path;
mod pulls;
mod tags;
mod uploads;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use coracle_api::{Admission, Attributes, Authorizer, Decision, Storage, UserInfo};
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;

use self::{
    blobs::{BlobError, Blobs, Digest, Members},
    error::RegistryError,
    path::Target,
    tags::Tag,
    uploads::Uploads,
};

/// The largest manifest, in bytes (the specification's recommendation).
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Names in one answer of `tags/list`.
const TAGS_MAX: usize = 1000;

const CONTENT_DIGEST: &str = "docker-content-digest";

/// What the registry works on.
#[derive(Clone)]
struct Registry<S> {
    storage: S,
    admission: Admission,
    authorizer: Arc<dyn Authorizer>,
    blobs: Arc<Blobs>,
    /// Those that have blobs too.
    members: Arc<dyn Members>,
    uploads: Arc<Uploads>,
    /// Held while the pods of a node are looked through.
    looks: Arc<tokio::sync::Mutex<()>>,
}

/// What a manifest names, whatever its kind.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
}

/// Routes for every path below `/v2`. Who asks is the [`UserInfo`] in a request's extensions; without one it is nobody.
/// Tags are objects of `storage`, written in the name of who pushes.
pub fn router<S: Storage>(
    storage: S,
    admission: Admission,
    authorizer: Arc<dyn Authorizer>,
    blobs: Arc<Blobs>,
    members: Arc<dyn Members>,
) -> Router {
    let uploads = Arc::new(Uploads::new(blobs.clone()));
    let looks = Arc::default();
    let registry = Registry { storage, admission, authorizer, blobs, members, uploads, looks };
    Router::new()
        .route("/v2", any(serve::<S>))
        .route("/v2/", any(serve::<S>))
        .route("/v2/{*path}", any(serve::<S>))
        .with_state(registry)
}

async fn serve<S: Storage>(State(registry): State<Registry<S>>, request: Request) -> Response {
    registry.answer(request).await.unwrap_or_else(IntoResponse::into_response)
}

impl<S: Storage> Registry<S> {
    async fn answer(&self, request: Request) -> Result<Response, RegistryError> {
        let user = request.extensions().get::<UserInfo>().cloned().unwrap_or_else(UserInfo::anonymous);
        self.authorize(&user, request.method(), request.uri().path())?;
        let target = path::parse(request.uri().path())?;
        if let Some(node) = user.as_node() {
            self.admit_node(node, &target).await?;
        }
        let query = path::query(request.uri().query().unwrap_or(""));
        let method = request.method().clone();
        match (method, target) {
            (Method::GET | Method::HEAD, Target::Base) => Ok(StatusCode::OK.into_response()),
            (Method::GET, Target::Tags { repository }) => self.list_tags(&repository, &query),
            (method @ (Method::GET | Method::HEAD), Target::Blob { digest }) => {
                self.get_blob(&digest, &method).await
            }
            (method @ (Method::GET | Method::HEAD), Target::Manifest { repository, reference }) => {
                self.get_manifest(&repository, &reference, &method).await
            }
            (Method::PUT, Target::Manifest { repository, reference }) => {
                self.put_manifest(user, &repository, &reference, request).await
            }
            (Method::POST, Target::Uploads { repository }) => {
                self.begin_upload(&repository, &query, request).await
            }
            (Method::PATCH, Target::Upload { repository, upload }) => {
                let start = uploads::range_start(request.headers());
                let size = self.uploads.append(&upload, start, body(request)).await?;
                Ok(uploads::accepted(&repository, &upload, size))
            }
            (Method::PUT, Target::Upload { repository, upload }) => {
                let digest = path::digest(query.get("digest"))?;
                self.uploads.finish(&upload, &digest, body(request)).await?;
                Ok(created_blob(&repository, &digest))
            }
            (Method::GET, Target::Upload { repository, upload }) => {
                let size = self.uploads.size(&upload).await?;
                Ok(uploads::progress(&repository, &upload, size))
            }
            (Method::DELETE, Target::Upload { upload, .. }) => {
                self.uploads.cancel(&upload)?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            _ => Err(RegistryError::unsupported()),
        }
    }

    fn list_tags(
        &self,
        repository: &str,
        query: &BTreeMap<String, String>,
    ) -> Result<Response, RegistryError> {
        let mut tags = tags::of_repository(&self.storage.view(), repository);
        if tags.is_empty() {
            return Err(RegistryError::name_unknown(repository));
        }
        if let Some(last) = query.get("last") {
            tags.retain(|tag| tag > last);
        }
        tags.truncate(query.get("n").and_then(|n| n.parse().ok()).unwrap_or(TAGS_MAX).min(TAGS_MAX));
        Ok(axum::Json(serde_json::json!({ "name": repository, "tags": tags })).into_response())
    }

    fn authorize(&self, user: &UserInfo, method: &Method, path: &str) -> Result<(), RegistryError> {
        match self.authorizer.authorize(user, &Attributes::of_path(method, path)) {
            Decision::Allowed => Ok(()),
            Decision::Denied(_) if user.is_anonymous() => Err(RegistryError::unauthorized()),
            Decision::Denied(_) => Err(RegistryError::denied()),
        }
    }

    async fn obtain(&self, digest: &Digest) -> Result<u64, BlobError> {
        self.blobs.obtain(digest, &*self.members).await
    }

    async fn get_blob(&self, digest: &Digest, method: &Method) -> Result<Response, RegistryError> {
        let size = self.obtain(digest).await.map_err(|error| RegistryError::blob(digest, error))?;
        let content = match *method {
            Method::HEAD => Body::empty(),
            _ => Body::from_stream(
                self.blobs.stream(digest).await.map_err(|e| RegistryError::blob(digest, e))?,
            ),
        };
        Ok(with_digest(StatusCode::OK, digest, "application/octet-stream", size, content))
    }

    async fn begin_upload(
        &self,
        repository: &str,
        query: &BTreeMap<String, String>,
        request: Request,
    ) -> Result<Response, RegistryError> {
        if let Some(mount) = query.get("mount")
            && let Some(digest) = Digest::parse(mount)
            && self.obtain(&digest).await.is_ok()
        {
            return Ok(created_blob(repository, &digest));
        }
        if query.contains_key("digest") {
            let digest = path::digest(query.get("digest"))?;
            let upload = self.uploads.begin().await?;
            self.uploads.finish(&upload, &digest, body(request)).await?;
            return Ok(created_blob(repository, &digest));
        }
        let upload = self.uploads.begin().await?;
        Ok(uploads::accepted(repository, &upload, 0))
    }

    async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
        method: &Method,
    ) -> Result<Response, RegistryError> {
        let unknown = || RegistryError::manifest_unknown(repository, reference);
        let (digest, media_type) = match Digest::parse(reference) {
            Some(digest) => (digest, None),
            None => {
                // A tag just pushed through another member must be found here.
                let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
                let tag = tags::find(&view, repository, reference).ok_or_else(unknown)?;
                (Digest::parse(&tag.digest).ok_or_else(unknown)?, Some(tag.media_type))
            }
        };
        let size = self.obtain(&digest).await.map_err(|_| unknown())?;
        // What is larger was never taken for a manifest: it is a blob, whose place is elsewhere.
        if size > MANIFEST_BYTES_MAX as u64 {
            return Err(unknown());
        }
        let content = self.blobs.read(&digest).await.map_err(|error| RegistryError::blob(&digest, error))?;
        let media_type = media_type.unwrap_or_else(|| media_type_of(&content, &HeaderMap::new()));
        let size = content.len() as u64;
        let content = if *method == Method::HEAD { Body::empty() } else { content.into() };
        Ok(with_digest(StatusCode::OK, &digest, &media_type, size, content))
    }

    async fn put_manifest(
        &self,
        user: UserInfo,
        repository: &str,
        reference: &str,
        request: Request,
    ) -> Result<Response, RegistryError> {
        let headers = request.headers().clone();
        let content = axum::body::to_bytes(request.into_body(), MANIFEST_BYTES_MAX).await;
        let content =
            content.map_err(|_| RegistryError::manifest_invalid("it is larger than 4 MiB or broke off"))?;
        let manifest: Manifest = serde_json::from_slice(&content).map_err(|error| {
            RegistryError::manifest_invalid(&format!("it is not a JSON manifest: {error}"))
        })?;
        let mut blobs = vec![];
        let mut size = content.len() as u64;
        for named in manifest.config.iter().chain(&manifest.layers).chain(&manifest.manifests) {
            let digest = path::digest(Some(&named.digest))?;
            self.obtain(&digest).await.map_err(|error| RegistryError::manifest_blob(&digest, error))?;
            size = size.saturating_add(named.size);
            blobs.push(digest);
        }
        let digest = Digest::of(&content);
        if let Some(wanted) = Digest::parse(reference).filter(|wanted| *wanted != digest) {
            return Err(RegistryError::digest_invalid(&format!(
                "the manifest has the digest {digest}, not {wanted}"
            )));
        }
        self.blobs.put(&content).await.map_err(|error| RegistryError::blob(&digest, error))?;
        let mut all = blobs.clone();
        all.push(digest.clone());
        let replicated = self.blobs.replicate(&all, &*self.members).await;
        replicated.map_err(RegistryError::unavailable)?;
        if Digest::parse(reference).is_none() {
            let tag = Tag {
                repository: repository.into(),
                tag: reference.into(),
                digest: digest.to_string(),
                media_type: media_type_of(&content, &headers),
                size,
                blobs: blobs.iter().map(Digest::to_string).collect(),
            };
            let own = self.admission.storage_of(self.storage.clone(), user);
            tags::commit(&own, &tag).await.map_err(RegistryError::unavailable)?;
            tracing::info!(repository, tag = reference, %digest, "artifact pushed");
        }
        let location = format!("/v2/{repository}/manifests/{digest}");
        Ok((StatusCode::CREATED, [(header::LOCATION, location), (digest_header(), digest.to_string())])
            .into_response())
    }
}

fn body(request: Request) -> axum::body::BodyDataStream {
    request.into_body().into_data_stream()
}

fn digest_header() -> header::HeaderName {
    header::HeaderName::from_static(CONTENT_DIGEST)
}

fn created_blob(repository: &str, digest: &Digest) -> Response {
    let location = format!("/v2/{repository}/blobs/{digest}");
    (StatusCode::CREATED, [(header::LOCATION, location), (digest_header(), digest.to_string())])
        .into_response()
}

fn with_digest(status: StatusCode, digest: &Digest, media_type: &str, size: u64, content: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (digest_header(), digest.to_string()),
    ];
    (status, headers, content).into_response()
}

/// The manifest says it itself, else whoever pushed it.
fn media_type_of(content: &[u8], headers: &HeaderMap) -> String {
    let own = serde_json::from_slice::<Manifest>(content).ok().and_then(|manifest| manifest.media_type);
    let pushed = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    own.or(pushed).unwrap_or_else(|| "application/vnd.oci.image.manifest.v1+json".into())
}
