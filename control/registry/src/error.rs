//! The registry's errors as the distribution specification wants them.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::blobs::{BlobError, Digest};

/// One error with its code of the specification.
#[derive(Debug)]
pub struct RegistryError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl RegistryError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn unauthorized() -> Self {
        let message = "the registry needs a client certificate of an administrator or a node";
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
    }

    pub fn denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", "administrators may push and pull, nodes may pull")
    }

    pub fn unsupported() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the registry does not do this")
    }

    pub fn name_invalid(name: &str) -> Self {
        let rule = "lower case letters and digits, with `.`, `_`, `-` between them, parts separated by `/`";
        let message = format!("{name:?} cannot name a repository: it takes {rule}");
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
    }

    pub fn name_unknown(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("there is no repository {name}"))
    }

    pub fn tag_invalid(tag: &str) -> Self {
        let message = format!("{tag:?} cannot be a tag: letters, digits, `.`, `_` and `-`, at most 128");
        Self::new(StatusCode::BAD_REQUEST, "TAG_INVALID", message)
    }

    pub fn digest_invalid(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    pub fn manifest_unknown(repository: &str, reference: &str) -> Self {
        let message = format!("there is no {repository} {reference} in the registry");
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
    }

    pub fn manifest_invalid(reason: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", format!("the manifest is refused: {reason}"))
    }

    /// A manifest names a blob that is not here.
    pub fn manifest_blob(digest: &Digest, error: BlobError) -> Self {
        match error {
            BlobError::Missing(_) => {
                let message = format!("the manifest names {digest}, which was not pushed");
                Self::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", message)
            }
            error => Self::blob(digest, error),
        }
    }

    pub fn blob(digest: &Digest, error: BlobError) -> Self {
        match error {
            BlobError::Missing(_) => {
                Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("{digest} is not in the registry"))
            }
            error => error.into(),
        }
    }

    pub fn upload_unknown(upload: &str) -> Self {
        let message = format!("there is no upload {upload}; begin a new one");
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
    }

    pub fn out_of_order(size: u64) -> Self {
        let message = format!("the upload has {size} bytes: the next chunk begins there");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
    }

    pub fn broke_off(reason: &str) -> Self {
        let message = format!("the content broke off: {reason}");
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    pub fn too_many_uploads() -> Self {
        let message = "too many uploads are under way; try again when some have ended";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
    }

    pub fn unavailable(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", error.to_string())
    }
}

impl From<BlobError> for RegistryError {
    fn from(error: BlobError) -> Self {
        let (status, code) = match &error {
            BlobError::WrongDigest { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            BlobError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            BlobError::Missing(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            BlobError::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
            BlobError::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "UNAVAILABLE"),
            BlobError::NoMajority { .. } => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let body = json!({ "errors": [{ "code": self.code, "message": self.message }] });
        let mut response = (self.status, axum::Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
