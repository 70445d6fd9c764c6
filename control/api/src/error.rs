//! What can go wrong in a request, and the one place where it becomes HTTP: a `metav1.Status`.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use coracle_objects::{
    FieldError, Kind, Refusal, ResourceName, Revision, field_error::FIELD_ERRORS_MAX, transaction::Found,
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use thiserror::Error;

use crate::storage::{NodeError, ProposeError, Unavailable};

/// The text of a write that was based on an older state of the object.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// A request that was not carried out. `Display` is `status.message`.
#[derive(Clone, Debug, Error)]
pub enum ApiError {
    #[error("{resource} \"{name}\" not found")]
    NotFound { resource: ResourceName, name: String },
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// A kind or a subresource that is not served, in words.
    #[error("the server could not find the requested resource: {0}")]
    NotServed(String),
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists { resource: ResourceName, name: String },
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {reason}")]
    Conflict { resource: ResourceName, name: String, reason: String },
    #[error("{} \"{name}\" is invalid: {}", qualified(kind, group), sentence(errors))]
    Invalid { group: String, kind: String, name: String, errors: Vec<FieldError> },
    #[error("{0}")]
    BadRequest(String),
    #[error("Unauthorized")]
    Unauthorized,
    #[error("{}{reason}", forbidden(resource, name))]
    Forbidden { resource: Option<ResourceName>, name: String, reason: String },
    /// A new object in a namespace that is ending.
    #[error("{}{reason}", forbidden(&Some(resource.clone()), name))]
    NamespaceTerminating { resource: ResourceName, name: String, namespace: String, reason: String },
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    #[error("only the following media types are accepted: {accepted}")]
    NotAcceptable { accepted: &'static str },
    #[error("{reason}")]
    UnsupportedMediaType { reason: String },
    /// `continuation` goes on with the list at the present state instead.
    #[error("{message}")]
    Expired { message: String, continuation: Option<String> },
    #[error("Too large resource version: {requested}, current: {current}")]
    RevisionTooLarge { requested: Revision, current: Revision },
    #[error("Request entity too large: limit is {limit}")]
    TooLarge { limit: u64 },
    #[error("too many requests, please try again later")]
    TooManyRequests,
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    UnknownOutcome(String),
    #[error("{0}")]
    NoSpace(String),
    #[error("Internal error occurred: {0}")]
    Internal(String),
}

fn qualified(kind: &str, group: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}

/// One error as it is, several in brackets, each once.
fn sentence(errors: &[FieldError]) -> String {
    let mut seen = BTreeSet::new();
    let mut texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.retain(|text| seen.insert(text.clone()));
    if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
}

fn forbidden(resource: &Option<ResourceName>, name: &str) -> String {
    match resource {
        None => "forbidden: ".to_owned(),
        Some(resource) if name.is_empty() => format!("{resource} is forbidden: "),
        Some(resource) => format!("{resource} \"{name}\" is forbidden: "),
    }
}

impl ApiError {
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        ApiError::NotFound { resource: kind.resource(), name: name.to_owned() }
    }

    pub fn conflict(kind: &Kind, name: &str, reason: impl Into<String>) -> Self {
        ApiError::Conflict { resource: kind.resource(), name: name.to_owned(), reason: reason.into() }
    }

    /// The first faults, where there are very many.
    pub fn invalid(kind: &Kind, name: &str, mut errors: Vec<FieldError>) -> Self {
        errors.truncate(FIELD_ERRORS_MAX);
        ApiError::Invalid {
            group: kind.group.to_string(),
            kind: kind.kind.to_string(),
            name: name.to_owned(),
            errors,
        }
    }

    /// The request's time was over before there was an answer.
    pub fn late(writes: bool) -> Self {
        let unknown = if writes { ": what it writes may or may not be written" } else { "" };
        ApiError::UnknownOutcome(format!(
            "Timeout: request did not complete within the allotted timeout{unknown}"
        ))
    }

    pub fn forbidden(kind: &Kind, name: &str, reason: impl Into<String>) -> Self {
        ApiError::Forbidden { resource: Some(kind.resource()), name: name.to_owned(), reason: reason.into() }
    }

    /// What a refusal means to a client, once a newer state has given no better error.
    pub fn from_refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Precondition { key, found: Found::Nothing, .. } | Refusal::NotFound { key } => {
                ApiError::NotFound { resource: key.resource, name: key.name.name.to_string() }
            }
            Refusal::Precondition { key, .. } => ApiError::Conflict {
                resource: key.resource,
                name: key.name.name.to_string(),
                reason: MODIFIED.to_owned(),
            },
            Refusal::BadDraft { reason, .. } => ApiError::Internal(reason),
            Refusal::TooLarge { limit, .. } => ApiError::TooLarge { limit },
        }
    }

    /// What was to be made has no place any more: its namespace ends, or has gone.
    pub fn is_of_ending_namespace(&self) -> bool {
        match self {
            ApiError::NamespaceTerminating { .. } => true,
            ApiError::NotFound { resource, .. } => resource.as_str() == "namespaces",
            _ => false,
        }
    }

    pub fn code(&self) -> StatusCode {
        match self {
            ApiError::NotFound { .. } | ApiError::NoSuchPath | ApiError::NotServed(_) => {
                StatusCode::NOT_FOUND
            }
            ApiError::AlreadyExists { .. } | ApiError::Conflict { .. } => StatusCode::CONFLICT,
            ApiError::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::BadRequest(_) => StatusCode::BAD_REQUEST,
            ApiError::Unauthorized => StatusCode::UNAUTHORIZED,
            ApiError::Forbidden { .. } | ApiError::NamespaceTerminating { .. } => StatusCode::FORBIDDEN,
            ApiError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::NotAcceptable { .. } => StatusCode::NOT_ACCEPTABLE,
            ApiError::UnsupportedMediaType { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ApiError::Expired { .. } => StatusCode::GONE,
            ApiError::RevisionTooLarge { .. } | ApiError::UnknownOutcome(_) => StatusCode::GATEWAY_TIMEOUT,
            ApiError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            ApiError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
            ApiError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            ApiError::NotFound { .. } | ApiError::NoSuchPath | ApiError::NotServed(_) => "NotFound",
            ApiError::AlreadyExists { .. } => "AlreadyExists",
            ApiError::Conflict { .. } => "Conflict",
            ApiError::Invalid { .. } => "Invalid",
            ApiError::BadRequest(_) => "BadRequest",
            ApiError::Unauthorized => "Unauthorized",
            ApiError::Forbidden { .. } | ApiError::NamespaceTerminating { .. } => "Forbidden",
            ApiError::MethodNotAllowed => "MethodNotAllowed",
            ApiError::NotAcceptable { .. } => "NotAcceptable",
            ApiError::UnsupportedMediaType { .. } => "UnsupportedMediaType",
            ApiError::Expired { .. } => "Expired",
            ApiError::RevisionTooLarge { .. } | ApiError::UnknownOutcome(_) => "Timeout",
            ApiError::TooLarge { .. } => "RequestEntityTooLarge",
            ApiError::TooManyRequests => "TooManyRequests",
            ApiError::Unavailable(_) => "ServiceUnavailable",
            ApiError::NoSpace(_) | ApiError::Internal(_) => "InternalError",
        }
    }

    fn details(&self) -> Option<Value> {
        match self {
            ApiError::NotFound { resource, name }
            | ApiError::AlreadyExists { resource, name }
            | ApiError::Conflict { resource, name, .. }
            | ApiError::Forbidden { resource: Some(resource), name, .. } => {
                let mut details =
                    json!({ "name": name, "group": resource.group(), "kind": resource.plural() });
                details.as_object_mut()?.retain(|_, value| value != "");
                Some(details)
            }
            ApiError::NamespaceTerminating { resource, name, namespace, .. } => Some(json!({
                "name": name,
                "kind": resource.plural(),
                "causes": [{
                    "reason": "NamespaceTerminating",
                    "message": format!("namespace {namespace} is being terminated"),
                    "field": "metadata.namespace",
                }],
            })),
            ApiError::Invalid { group, kind, name, errors } => {
                let causes: Vec<Value> = errors
                    .iter()
                    .map(|error| {
                        json!({ "reason": error.reason.reason(), "message": error.body(), "field": error.field })
                    })
                    .collect();
                let mut details = json!({ "name": name, "group": group, "kind": kind, "causes": causes });
                details.as_object_mut()?.retain(|_, value| value != "");
                Some(details)
            }
            ApiError::RevisionTooLarge { .. } => Some(json!({
                "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
                "retryAfterSeconds": 1,
            })),
            ApiError::Unavailable(_) | ApiError::TooManyRequests => Some(json!({ "retryAfterSeconds": 1 })),
            ApiError::Internal(text) => Some(json!({ "causes": [{ "message": text }] })),
            ApiError::NoSuchPath | ApiError::NotServed(_) | ApiError::MethodNotAllowed => Some(json!({})),
            _ => None,
        }
    }

    /// The `metav1.Status` that clients get, also as the object of a watch's ERROR event.
    pub fn status(&self) -> Value {
        let mut metadata = json!({});
        if let ApiError::Expired { continuation: Some(token), .. } = self {
            metadata["continue"] = token.as_str().into();
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.to_string(),
            "reason": self.reason(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status["code"] = self.code().as_u16().into();
        status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.code().is_server_error() {
            tracing::warn!(error = %self, "request failed");
        }
        let mut response = Response::new(Body::from(self.status().to_string()));
        *response.status_mut() = self.code();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            // Also where the outcome is not known: what is sent again finds what has become of it. (Not so what makes
            // something: see the router.)
            ApiError::Unavailable(_)
            | ApiError::RevisionTooLarge { .. }
            | ApiError::TooManyRequests
            | ApiError::UnknownOutcome(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            ApiError::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

impl From<Unavailable> for ApiError {
    fn from(error: Unavailable) -> Self {
        ApiError::Unavailable(error.to_string())
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::Unavailable(_) => ApiError::Unavailable(text),
            ProposeError::Unknown(_) => ApiError::UnknownOutcome(text),
            ProposeError::NoSpace => ApiError::NoSpace(text),
            ProposeError::TooLarge { limit, .. } => ApiError::TooLarge { limit },
            ProposeError::Denied(error) => *error,
        }
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let text = error.to_string();
        match error {
            NodeError::Unreachable { .. } => ApiError::Internal(text),
            NodeError::NotFound(_) | NodeError::Waiting(_) => ApiError::BadRequest(text),
            NodeError::TooMany => ApiError::TooManyRequests,
            NodeError::Other(_) => ApiError::Internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_kubernetes() {
        let resource = ResourceName::from("deployments.apps");
        let name = "web".to_owned();
        let conflict =
            ApiError::Conflict { resource: resource.clone(), name: name.clone(), reason: MODIFIED.into() };
        assert_eq!(
            conflict.status(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified; \
                            please apply your changes to the latest version and try again",
                "reason": "Conflict",
                "details": { "name": "web", "group": "apps", "kind": "deployments" },
                "code": 409,
            })
        );
        let invalid = ApiError::Invalid {
            group: "apps".into(),
            kind: "Deployment".into(),
            name,
            errors: vec![
                FieldError::required("spec.selector", ""),
                FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
            ],
        };
        assert_eq!(
            invalid.to_string(),
            "Deployment.apps \"web\" is invalid: [spec.selector: Required value, spec.replicas: Invalid value: -1: \
             must be greater than or equal to 0]"
        );
        let twice = vec![FieldError::required("spec.a", ""), FieldError::required("spec.a", "")];
        assert_eq!(sentence(&twice), "spec.a: Required value");
        let large = ApiError::RevisionTooLarge { requested: 9, current: 4 };
        assert_eq!(large.status()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    }
}
