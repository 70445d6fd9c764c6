//! PUT of `namespaces/NAME/finalize`: the namespace controller says that it is done.

use axum::response::Response;
use http::StatusCode;

use super::{Part, update, written};
use crate::{
    admission::Writer,
    body::{self, Expected},
    error::ApiError,
    options::WriteOptions,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::transact,
};

/// Replaces `spec.finalizers`. A namespace that is being deleted goes with the last of them.
pub async fn finalize<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
) -> Result<Response, ApiError> {
    let kind = request.kind();
    let key = request.key()?;
    let options = WriteOptions::parse(&request.query)?;
    let body = body::decode(request, &Expected::of(kind), options.field_validation)?;
    let writer = Writer { config: &api.config, user: &request.context.user };
    let (key, wanted) = (&key, &body.value);
    let done = transact(&api.storage, options.dry_run, |view| async move {
        let old = view.get(key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
        update::plan(writer, kind, &view, old, wanted.clone(), Part::Finalize).await
    })
    .await?;
    written(api, request, StatusCode::OK, &done, &body.warnings)
}
