//! The cluster's own registry: the OCI distribution API (v2), version 1.1.
//!
//! Blobs and manifests are files on the control nodes; which manifests a repository has, and by what tags, objects say. An
//! object is committed only after a majority of the members has what it names. Administrators and pushers push and pull,
//! nodes pull what their pods name.

mod artifacts;
pub mod blobs;
pub mod digest;
mod downloads;
mod error;
mod garbage;
mod listing;
mod manifest;
mod manifests;
mod path;
mod pulls;
mod range;
mod referrers;
mod uploads;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use coracle_api::{Admission, Attributes, Authorizer, Decision, Storage, UserInfo};
use http::{HeaderName, Method, StatusCode, header};

pub use self::garbage::collect as collect_garbage;
use self::{
    blobs::{BlobError, Blobs, Members},
    digest::{Algorithm, Digest},
    error::RegistryError,
    path::{Query, Target},
    uploads::{Chunk, Uploads},
};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

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

/// The answer to who is not known, or not by what they say: how to log in.
pub fn unauthorized() -> Response {
    RegistryError::unauthorized().into_response()
}

impl<S: Storage> Registry<S> {
    async fn answer(&self, request: Request) -> Result<Response, RegistryError> {
        let user = request.extensions().get::<UserInfo>().cloned().unwrap_or_else(UserInfo::anonymous);
        self.authorize(&user, request.method(), request.uri().path())?;
        let target = path::parse(request.uri().path())?;
        if let Some(node) = user.as_node() {
            self.admit_node(node, &target).await?;
        }
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let method = request.method().clone();
        match (method, target) {
            (Method::GET | Method::HEAD, Target::Base) => Ok(StatusCode::OK.into_response()),
            (Method::GET, Target::Tags { repository }) => self.list_tags(&repository, &query).await,
            (Method::GET, Target::Referrers { repository, digest }) => {
                self.list_referrers(&repository, &digest, &query).await
            }
            (method @ (Method::GET | Method::HEAD), Target::Blob { repository, digest }) => {
                self.get_blob(&repository, &digest, &method, request.headers()).await
            }
            (Method::DELETE, Target::Blob { repository, digest }) => {
                self.delete_blob(&repository, &digest).await
            }
            (method @ (Method::GET | Method::HEAD), Target::Manifest { repository, reference }) => {
                self.get_manifest(&user, &repository, &reference, &method).await
            }
            (Method::PUT, Target::Manifest { repository, reference }) => {
                self.put_manifest(user, &repository, &reference, &query, request).await
            }
            (Method::DELETE, Target::Manifest { repository, reference }) => {
                self.delete_manifest(user, &repository, &reference).await
            }
            (Method::POST, Target::Uploads { repository }) => {
                self.begin_upload(&user, &repository, &query, request).await
            }
            (method, Target::Upload { repository, upload }) => {
                self.on_upload(&method, &repository, &upload, &query, request).await
            }
            _ => Err(RegistryError::unsupported()),
        }
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

    /// The size of a blob that is about to be named, and is not taken away meanwhile.
    async fn hold(&self, digest: &Digest) -> Result<u64, BlobError> {
        self.obtain(digest).await?;
        self.blobs.hold(digest).await?.ok_or_else(|| BlobError::Missing(digest.to_string()))
    }

    async fn begin_upload(
        &self,
        user: &UserInfo,
        repository: &str,
        query: &Query,
        request: Request,
    ) -> Result<Response, RegistryError> {
        if let Some(algorithm) = query.get("digest-algorithm")
            && Algorithm::parse(algorithm).is_none()
        {
            let message = format!("digest-algorithm: {algorithm:?} is neither sha256 nor sha512");
            return Err(RegistryError::digest_invalid(&message));
        }
        if let Some(mount) = query.get("mount") {
            let digest = path::digest(mount)?;
            let from = query.get("from").filter(|from| !from.is_empty());
            if self.mount(user, repository, &digest, from).await? {
                return Ok(created_blob(repository, &digest));
            }
        } else if query.get("digest").is_some() {
            let (digest, chunk) = (query.digest()?, Chunk::of(request)?);
            let upload = self.uploads.begin(&user.name, repository).await?;
            let finished = self.uploads.finish(repository, &upload, &digest, chunk).await;
            if let Err(error) = finished {
                // Nobody was told of it.
                let _ = self.uploads.cancel(repository, &upload);
                return Err(error);
            }
            return Ok(created_blob(repository, &digest));
        }
        let upload = self.uploads.begin(&user.name, repository).await?;
        Ok(uploads::accepted(repository, &upload, 0))
    }

    async fn on_upload(
        &self,
        method: &Method,
        repository: &str,
        upload: &str,
        query: &Query,
        request: Request,
    ) -> Result<Response, RegistryError> {
        match *method {
            Method::PATCH => {
                let size = self.uploads.append(repository, upload, Chunk::of(request)?).await?;
                Ok(uploads::accepted(repository, upload, size))
            }
            Method::PUT => {
                let digest = query.digest()?;
                self.uploads.finish(repository, upload, &digest, Chunk::of(request)?).await?;
                Ok(created_blob(repository, &digest))
            }
            Method::GET => {
                let size = self.uploads.size(repository, upload)?;
                Ok(uploads::progress(repository, upload, size))
            }
            Method::DELETE => {
                self.uploads.cancel(repository, upload)?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            _ => Err(RegistryError::unsupported()),
        }
    }
}

fn created_blob(repository: &str, digest: &Digest) -> Response {
    let location = format!("/v2/{repository}/blobs/{digest}");
    (StatusCode::CREATED, [(header::LOCATION, location), (CONTENT_DIGEST, digest.to_string())])
        .into_response()
}

/// What is said of content: its type, its digest, and how much of it there is.
fn content_headers(digest: &Digest, media_type: &str, size: u64) -> [(HeaderName, String); 3] {
    [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (CONTENT_DIGEST, digest.to_string()),
    ]
}
