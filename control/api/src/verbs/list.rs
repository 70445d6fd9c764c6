//! GET of many objects: a list, in pages where asked, or a watch.

use std::{ops::Bound, sync::Arc};

use axum::response::Response;
use coracle_objects::{Object, Revision, View};
use http::StatusCode;

use super::form;
use crate::{
    answer::{self, ListMeta},
    error::ApiError,
    listing::Listing,
    options::{ListOptions, RevisionMatch},
    pages::Continue,
    readable,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    watch,
};

/// LIST or WATCH, as the query says.
pub async fn list_or_watch<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
) -> Result<Response, ApiError> {
    let form = form(request)?;
    let options = ListOptions::parse(request.kind(), &request.query)?;
    if options.watch {
        return watch::watch(api, request, options, form).await;
    }
    let (view, after) = state_for(api, request, &options).await?;
    let page = page(&view, request, &options, after.as_ref());
    page.objects.iter().try_for_each(|object| readable::check(object))?;
    let listing = Listing::new(request.kind().clone(), page.objects, form, (api.config.now)(), &page.meta);
    Ok(answer::json_bytes(StatusCode::OK, listing.body(&api.bounds, &request.context.user.name)))
}

/// A state at least as new as a revision: unset is linearizable, 0 is any.
pub async fn view_at_least<S: Storage>(
    storage: &S,
    revision: Option<Revision>,
) -> Result<Arc<View>, ApiError> {
    let Some(revision) = revision else { return Ok(storage.linearizable().await?) };
    let local = storage.view();
    if local.revision >= revision {
        return Ok(local);
    }
    let view = storage.linearizable().await?;
    if view.revision < revision {
        return Err(ApiError::RevisionTooLarge { requested: revision, current: view.revision });
    }
    Ok(view)
}

/// The state to list from, and where to go on in it.
async fn state_for<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
    options: &ListOptions,
) -> Result<(Arc<View>, Option<Continue>), ApiError> {
    if let Some(token) = &options.continuation {
        let after = Continue::parse(token)?;
        let view = match after.revision {
            0 => api.storage.linearizable().await?,
            revision => match past_state(api, request, revision).await {
                Ok(Some(past)) => past,
                // Where it is too large it is of another cluster, or of a state that was given up.
                Ok(None) | Err(ApiError::RevisionTooLarge { .. }) => return Err(after.expired()),
                Err(error) => return Err(error),
            },
        };
        return Ok((view, Some(after)));
    }
    if options.revision_match == Some(RevisionMatch::Exact) {
        let revision = options.revision.unwrap_or(0);
        let expired = || ApiError::Expired {
            message: "The resourceVersion for the provided list is too old.".to_owned(),
            continuation: None,
        };
        return Ok((past_state(api, request, revision).await?.ok_or_else(expired)?, None));
    }
    Ok((view_at_least(&api.storage, options.revision).await?, None))
}

/// The state of exactly this revision, as far as the request's resource is concerned; None where it is not known any more.
async fn past_state<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
    revision: Revision,
) -> Result<Option<Arc<View>>, ApiError> {
    let resource = request.kind().storage_resource();
    // Another member, which gave the token, may be ahead of this one.
    let view = view_at_least(&api.storage, Some(revision)).await?;
    if view.revision == revision {
        return Ok(Some(view));
    }
    Ok(api.storage.view_at(&resource, revision))
}

/// A page of a list.
struct Page {
    objects: Vec<Arc<Object>>,
    meta: ListMeta,
}

fn page(view: &View, request: &Request, options: &ListOptions, after: Option<&Continue>) -> Page {
    let resource = request.kind().storage_resource();
    let namespace = request.path.namespace.as_deref();
    let start = match after {
        Some(after) => Bound::Excluded(after.object()),
        None => {
            namespace.map_or(Bound::Unbounded, |ns| Bound::Included(coracle_objects::ObjectName::new(ns, "")))
        }
    };
    let unfiltered = options.labels.is_everything() && options.fields.is_everything();
    let mut rest = view
        .tables
        .get(resource.as_str())
        .into_iter()
        .flat_map(|table| table.range((start.clone(), Bound::Unbounded)))
        .map(|(_, object)| object)
        .take_while(|object| namespace.is_none_or(|namespace| object.namespace() == namespace))
        .filter(|object| unfiltered || options.selects(request.kind(), object));
    // A list of one object by its name in the path is a watch's; lists have none.
    let objects: Vec<Arc<Object>> = match options.limit {
        Some(limit) => rest.by_ref().take(limit).cloned().collect(),
        None => rest.by_ref().cloned().collect(),
    };
    let mut meta = ListMeta::at(view.revision);
    let full = options.limit.is_some_and(|limit| objects.len() == limit);
    if full
        && let Some(last) = objects.last()
        && rest.next().is_some()
    {
        meta.continuation = Some(Continue::after(view.revision, &last.key.name).token());
        meta.remaining = unfiltered.then(|| rest.count() + 1);
    }
    Page { objects, meta }
}
