//! One request to a resource, taken apart.

use std::sync::Arc;

use bytes::Bytes;
use coracle_objects::{Kind, ObjectKey};
use http::{HeaderMap, HeaderValue, Method};
use tokio::time::Instant;

use crate::{auth::UserInfo, encoding::Encoding, error::ApiError, options::Query, path::ResourcePath};

/// What goes with a request on its whole way.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who asks, or as whom they ask.
    pub user: UserInfo,
    /// Names the request to whoever looks for it in answers and logs.
    pub audit_id: HeaderValue,
    /// When its client no longer waits. A request that goes on after its answer has begun has none of that.
    pub deadline: Instant,
    /// In which the answer goes out.
    pub encoding: Encoding,
}

/// A request to objects of one kind. The body has been read whole.
#[derive(Clone, Debug)]
pub struct Request {
    pub context: Context,
    pub method: Method,
    pub path: ResourcePath,
    pub query: Query,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    pub fn kind(&self) -> &Arc<Kind> {
        &self.path.kind
    }

    /// The namespace of the path; empty for cluster-scoped kinds and for lists over all namespaces.
    pub fn namespace(&self) -> &str {
        self.path.namespace.as_deref().unwrap_or("")
    }

    /// The object that the path names.
    pub fn key(&self) -> Result<ObjectKey, ApiError> {
        let name = self.path.name.as_deref().ok_or(ApiError::MethodNotAllowed)?;
        Ok(ObjectKey::new(self.kind().storage_resource().as_str(), self.namespace(), name))
    }

    pub fn header(&self, name: http::header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}
