//! The verbs: what each method does to objects of any kind, and the subresources.

pub mod binding;
pub mod create;
pub mod delete;
pub mod deletecollection;
pub mod finalize;
pub mod get;
pub mod list;
pub mod log;
pub mod patch;
pub mod scale;
pub mod update;

use axum::response::Response;
use coracle_objects::Endpoint;
use http::{Method, StatusCode};

use crate::{
    answer::{self, Form},
    error::ApiError,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::Written,
};

/// Which part of an object a write is for. Each leaves the other's part alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status, where that is a part of its own.
    Main,
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
}

/// Carries out a request to a resource.
pub async fn dispatch<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
) -> Result<Response, ApiError> {
    let kind = request.kind();
    match (&request.path.name, request.path.subresource) {
        (None, _) => match request.method {
            Method::GET | Method::HEAD => list::list_or_watch(api, request).await,
            Method::POST if kind.takes("create") => create::create(api, request).await,
            Method::DELETE if kind.takes("deletecollection") => {
                deletecollection::delete_all(api, request).await
            }
            _ => Err(ApiError::MethodNotAllowed),
        },
        (Some(_), None) => match request.method {
            Method::GET | Method::HEAD if request.query.flag("watch") == Some(true) => {
                list::list_or_watch(api, request).await
            }
            Method::GET | Method::HEAD => get::get(api, request).await,
            Method::PUT if kind.takes("update") => update::update(api, request, Part::Main).await,
            Method::PATCH if kind.takes("patch") => patch::patch(api, request, Part::Main).await,
            Method::DELETE if kind.takes("delete") => delete::delete(api, request).await,
            _ => Err(ApiError::MethodNotAllowed),
        },
        (Some(_), Some(endpoint)) => at(endpoint, api, request).await,
    }
}

/// Carries out a request to a part of an object.
async fn at<S: Storage, N: Nodes>(
    endpoint: Endpoint,
    api: &Api<S, N>,
    request: &Request,
) -> Result<Response, ApiError> {
    match (endpoint, request.method.as_str()) {
        (Endpoint::Status, "GET" | "HEAD") => get::get(api, request).await,
        (Endpoint::Status, "PUT") => update::update(api, request, Part::Status).await,
        (Endpoint::Status, "PATCH") => patch::patch(api, request, Part::Status).await,
        (Endpoint::Scale, _) => scale::scale(api, request).await,
        (Endpoint::Log, "GET") => log::log(api, request).await,
        (Endpoint::Binding, "POST") => binding::bind(api, request).await,
        (Endpoint::Finalize, "PUT") => finalize::finalize(api, request).await,
        _ => Err(ApiError::MethodNotAllowed),
    }
}

/// The answer to a write: the object as it now is, in the form that the client asked for.
pub fn written<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
    status: StatusCode,
    done: &Written,
    warnings: &[String],
) -> Result<Response, ApiError> {
    let form = form(request)?;
    let body = answer::one(request.kind(), &done.object, form, (api.config.now)());
    let mut response = answer::json_bytes(status, body);
    answer::warn(&mut response, warnings);
    answer::warn(&mut response, &done.warnings);
    if let Some(warn) = request.kind().warn().filter(|_| request.path.subresource.is_none()) {
        answer::warn(&mut response, &warn(&answer::present_value(request.kind(), &done.object)));
    }
    Ok(response)
}

/// The form that the client asked for.
pub fn form(request: &Request) -> Result<Form, ApiError> {
    answer::negotiate(&request.headers, &request.query, true)
}
