//! GET of one object.

use axum::response::Response;
use http::StatusCode;

use super::{form, list};
use crate::{
    answer,
    error::ApiError,
    options, readable,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
};

/// One object: linearizable, or at least as new as the given resourceVersion.
pub async fn get<S: Storage, N: Nodes>(api: &Api<S, N>, request: &Request) -> Result<Response, ApiError> {
    let form = form(request)?;
    let key = request.key()?;
    let revision = request.query.get("resourceVersion").map(options::revision).transpose()?;
    let view = list::view_at_least(&api.storage, revision).await?;
    let object = view.get(&key).ok_or_else(|| ApiError::not_found(request.kind(), &key.name.name))?;
    readable::check(object)?;
    Ok(answer::json_bytes(StatusCode::OK, answer::one(request.kind(), object, form, (api.config.now)())))
}
