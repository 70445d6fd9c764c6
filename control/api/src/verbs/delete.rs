//! DELETE of one object: at once, or by steps where finalizers, a grace period or dependents want it.

use std::sync::Arc;

use axum::response::Response;
use coracle_objects::{
    Endpoint, Kind, Object, Transaction, View, claims,
    deletion::{self, Wish},
};
use jiff::Timestamp;
use serde_json::json;

use super::{create::stored_draft, written};
use crate::{
    admission::{self, Operation, Write, Writer},
    answer, body,
    error::ApiError,
    options::DeleteOptions,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::{Subject, WritePlan, transact},
};

pub async fn delete<S: Storage, N: Nodes>(api: &Api<S, N>, request: &Request) -> Result<Response, ApiError> {
    let kind = request.kind();
    let key = request.key()?;
    let options = options(request)?;
    let dry_run = options.dry_run()?;
    let now = (api.config.now)();
    let writer = Writer { config: &api.config, user: &request.context.user };
    let (key, options) = (&key, &options);
    let done = transact(&api.storage, dry_run, |view| async move {
        let old = view.get(key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
        plan(writer, kind, &view, old, options, now).await
    })
    .await?;
    if done.deleted && !kind.is_graceful() {
        let mut details = json!({ "name": done.object.name(), "group": kind.group, "kind": kind.plural, "uid": done.object.meta.uid });
        if let Some(map) = details.as_object_mut() {
            map.retain(|_, value| value != "");
        }
        return Ok(answer::success(details));
    }
    written(api, request, http::StatusCode::OK, &done, &[])
}

/// The options, from the body and the query.
pub fn options(request: &Request) -> Result<DeleteOptions, ApiError> {
    body::delete_options(request)?.with_query(&request.query)
}

/// What a delete of `old` does in this state.
pub async fn plan(
    writer: Writer<'_>,
    kind: &Kind,
    view: &View,
    old: &Arc<Object>,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<WritePlan, ApiError> {
    check_preconditions(kind, old, options)?;
    let before = answer::present_value(kind, old);
    let Writer { config, user } = writer;
    let (operation, key) = (Operation::Delete, &old.key);
    let write = Write { operation, kind, key, view, config, user, old: Some(&before) };
    admission::validate(&write, None).await?;
    let mut new = before.clone();
    let wish = Wish { propagation: options.propagation()?, grace_s: options.grace_period_seconds };
    let resource = kind.resource();
    deletion::wish(resource.as_str(), &mut new, wish, now);
    if deletion::is_complete(resource.as_str(), &new) {
        let along = claims::release(view, old);
        return Ok(WritePlan::new(Subject::Delete { old: old.clone() }, along));
    }
    if kind.has(Endpoint::Finalize) && before == new {
        let reason = "The system is ensuring all content is removed from this namespace.  Upon completion, this \
                      namespace will automatically be purged by the system.";
        return Err(ApiError::conflict(kind, old.name(), reason));
    }
    kind.to_storage(&mut new);
    let draft = stored_draft(kind, &new).into();
    Ok(WritePlan::new(Subject::Update { old: old.clone(), draft }, Transaction::default()))
}

fn check_preconditions(kind: &Kind, old: &Object, options: &DeleteOptions) -> Result<(), ApiError> {
    let Some(preconditions) = &options.preconditions else { return Ok(()) };
    if let Some(uid) = &preconditions.uid
        && *uid != old.meta.uid
    {
        let reason = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been \
             deleted and then recreated",
            old.meta.uid
        );
        return Err(ApiError::conflict(kind, old.name(), reason));
    }
    if let Some(revision) = &preconditions.resource_version
        && *revision != old.revision.to_string()
    {
        let reason = format!(
            "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({}). \
             The object might have been modified",
            old.revision
        );
        return Err(ApiError::conflict(kind, old.name(), reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use coracle_objects::{ObjectKey, by_plural};
    use futures::FutureExt;
    use serde_json::Value;

    use super::*;
    use crate::metadata;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn delete(plural: &str, object: Value, options: &DeleteOptions) -> Result<WritePlan, ApiError> {
        let kind = by_plural("", "v1", plural).unwrap();
        let key = ObjectKey::new(plural, if kind.namespaced { "default" } else { "" }, "x");
        let draft = metadata::draft(&kind.kind, "v1", &object);
        let old = Arc::new(Object::from_draft(key, &draft, 5).unwrap());
        let (config, user) = (crate::ApiConfig::new("c", "0"), crate::UserInfo::anonymous());
        let writer = Writer { config: &config, user: &user };
        let view = View::default();
        let planned = plan(writer, kind, &view, &old, options, NOW.parse().unwrap());
        planned.now_or_never().expect("nothing is waited for")
    }

    fn kept(plan: WritePlan) -> Option<Value> {
        match plan.subject {
            Subject::Update { draft, .. } => Some(serde_json::from_slice(&draft).unwrap()),
            _ => None,
        }
    }

    #[test]
    fn what_is_asked_for_is_marked_and_what_nothing_holds_goes() {
        let running = json!({ "metadata": { "name": "x", "uid": "u" }, "spec": { "nodeName": "n" } });
        let shorter = DeleteOptions { grace_period_seconds: Some(10), ..DeleteOptions::default() };
        let marked = kept(delete("pods", running.clone(), &shorter).unwrap()).unwrap();
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        assert!(kept(delete("pods", running, &now).unwrap()).is_none());
        let object = json!({ "metadata": { "name": "x", "finalizers": ["a.b/c"] } });
        let policy =
            |name: &str| DeleteOptions { propagation_policy: Some(name.into()), ..DeleteOptions::default() };
        let marked = kept(delete("configmaps", object.clone(), &policy("Foreground")).unwrap()).unwrap();
        assert_eq!(marked["metadata"]["finalizers"], json!(["a.b/c", deletion::FOREGROUND]));
        assert!(delete("configmaps", object, &policy("Sideways")).is_err());
    }

    #[test]
    fn preconditions_are_checked() {
        let object = json!({ "metadata": { "name": "x", "uid": "u" } });
        let with = |uid: Option<&str>, revision: Option<&str>| DeleteOptions {
            preconditions: Some(crate::options::DeletePreconditions {
                uid: uid.map(str::to_owned),
                resource_version: revision.map(str::to_owned),
            }),
            ..DeleteOptions::default()
        };
        assert!(delete("configmaps", object.clone(), &with(Some("u"), Some("5"))).is_ok());
        let wrong = delete("configmaps", object.clone(), &with(Some("v"), None));
        assert!(matches!(wrong, Err(ApiError::Conflict { .. })));
        assert!(matches!(
            delete("configmaps", object, &with(None, Some("4"))),
            Err(ApiError::Conflict { .. })
        ));
    }

    #[test]
    fn namespaces_end_in_steps() {
        let namespace = json!({ "metadata": { "name": "x" }, "spec": { "finalizers": ["kubernetes"] } });
        let marked = kept(delete("namespaces", namespace, &DeleteOptions::default()).unwrap()).unwrap();
        assert_eq!(marked["status"]["phase"], "Terminating");
        let again = delete("namespaces", marked, &DeleteOptions::default());
        assert!(matches!(again, Err(ApiError::Conflict { .. })));
    }
}
