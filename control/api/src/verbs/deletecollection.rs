//! DELETE of all objects that selectors match.

use axum::response::Response;
use coracle_objects::{ObjectKey, is_cluster_info};
use http::StatusCode;

use super::{delete, form, list};
use crate::{
    admission::Writer,
    answer::{self, ListMeta},
    error::ApiError,
    listing::Listing,
    options::ListOptions,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::transact,
};

/// Deletes one after the other, each as DELETE would; what others have deleted meanwhile is no fault. The control plane's
/// own object stays.
pub async fn delete_all<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
) -> Result<Response, ApiError> {
    let kind = request.kind();
    let form = form(request)?;
    let selection = ListOptions::parse(kind, &request.query)?;
    let options = delete::options(request)?;
    let dry_run = options.dry_run()?;
    let view = list::view_at_least(&api.storage, None).await?;
    let keys: Vec<ObjectKey> = view
        .list(kind.storage_resource().as_str(), request.path.namespace.as_deref())
        .filter(|object| selection.selects(kind, object))
        .map(|object| object.key.clone())
        .filter(|key| !is_cluster_info(key))
        .collect();
    let now = (api.config.now)();
    let writer = Writer { config: &api.config, user: &request.context.user };
    let mut objects = Vec::with_capacity(keys.len());
    for key in keys {
        let (key, options) = (&key, &options);
        let outcome = transact(&api.storage, dry_run, |view| async move {
            let old = view.get(key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
            delete::plan(writer, kind, &view, old, options, now).await
        })
        .await;
        match outcome {
            Ok(done) => objects.push(done.object),
            Err(ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let meta = ListMeta::at(api.storage.view().revision);
    let listing = Listing::new(kind.clone(), objects, form, now, &meta);
    Ok(answer::json_bytes(StatusCode::OK, listing.body(&api.bounds, &request.context.user.name)))
}
