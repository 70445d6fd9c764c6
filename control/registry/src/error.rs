//! The registry's errors as the distribution specification wants them.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::{blobs::BlobError, digest::Digest};

/// How who is not known may say who they are. Source: RFC 7617.
const CHALLENGE: &str = "Basic realm=\"coracle\", charset=\"UTF-8\"";

/// Seconds after which an upload may be begun again for which there was no room.
const RETRY_SECONDS: &str = "10";

/// One error with its code of the specification.
#[derive(Debug)]
pub struct RegistryError {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, String)>,
}

impl RegistryError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: vec![] }
    }

    /// The same, with headers more.
    fn with<const N: usize>(mut self, headers: [(HeaderName, String); N]) -> Self {
        self.headers.extend(headers);
        self
    }

    pub fn unauthorized() -> Self {
        let message = "log in with a token of `coracle token create --role pusher` (or reader, to pull) as the \
                       password, or show a client certificate";
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
            .with([(header::WWW_AUTHENTICATE, CHALLENGE.to_owned())])
    }

    pub fn denied() -> Self {
        let message =
            "administrators and tokens of the role pusher may push and pull, readers and nodes may pull";
        Self::new(StatusCode::FORBIDDEN, "DENIED", message)
    }

    pub fn unsupported() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the registry does not do this")
    }

    /// What an image is made of is not deleted from under it.
    pub fn in_use(what: &Digest, by: &str) -> Self {
        let message = format!("{what} is a part of {by}: delete that first");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    pub fn query_invalid(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
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

    /// `headers` say where to go on.
    pub fn out_of_order(size: u64, headers: [(HeaderName, String); 3]) -> Self {
        let message = format!("the upload has {size} bytes: the next chunk begins there");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message).with(headers)
    }

    pub fn chunk_invalid(reason: &str) -> Self {
        let message = format!("Content-Range: {reason}");
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    /// A part of a blob of so many bytes that it does not have.
    pub fn range_not_satisfiable(size: u64) -> Self {
        let message = format!("the blob has {size} bytes, and none of those in the header Range");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message)
            .with([(header::CONTENT_RANGE, format!("bytes */{size}"))])
    }

    pub fn manifest_too_large(bytes_max: usize) -> Self {
        let message = format!("the manifest is larger than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
    }

    pub fn size_invalid(digest: &Digest, said: u64, found: u64) -> Self {
        let message = format!("the manifest says that {digest} has {said} bytes, but it has {found}");
        Self::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", message)
    }

    pub fn too_many_tags(max: usize) -> Self {
        let message = format!("at most {max} tags are set at once");
        Self::new(StatusCode::URI_TOO_LONG, "TAG_INVALID", message)
    }

    pub fn broke_off(reason: &str) -> Self {
        let message = format!("the content broke off: {reason}");
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    pub fn too_many_uploads() -> Self {
        let message = "too many uploads are under way; try again when some have ended";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
            .with([(header::RETRY_AFTER, RETRY_SECONDS.to_owned())])
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
        // What is no value of a header is left out.
        let values = self.headers.into_iter().map(|(name, value)| (name, HeaderValue::try_from(value)));
        response.headers_mut().extend(values.filter_map(|(name, value)| Some((name, value.ok()?))));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().entry(header::RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
        }
        response
    }
}
