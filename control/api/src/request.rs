//! One request to a resource, taken apart.

use std::sync::Arc;

use bytes::Bytes;
use coracle_objects::{Kind, ObjectKey};
use http::{HeaderMap, Method};

use crate::{error::ApiError, options::Query, path::ResourcePath};

/// A request to objects of one kind. The body has been read whole.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub user: String,
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
