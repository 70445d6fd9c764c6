//! PUT: replaces an object or its status; and what every change of an existing object has to keep.

use std::{collections::BTreeSet, sync::Arc};

use axum::response::Response;
use coracle_objects::{Endpoint, FieldError, Kind, Object, View, claims, deletion, fields, validate_meta};
use http::StatusCode;
use serde_json::Value;

use super::{Part, create::stored_draft, written};
use crate::{
    admission::{self, Operation, Write, Writer},
    answer,
    body::{self, Expected},
    error::{ApiError, MODIFIED},
    metadata,
    options::WriteOptions,
    readable,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::{Subject, WritePlan, transact},
};

pub async fn update<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
    part: Part,
) -> Result<Response, ApiError> {
    let kind = request.kind();
    let key = request.key()?;
    let options = WriteOptions::parse(&request.query)?;
    let body = body::decode(request, &Expected::of(kind), options.field_validation)?;
    check_identity(request, &body.value)?;
    let writer = Writer { config: &api.config, user: &request.context.user };
    let (key, wanted) = (&key, &body.value);
    let done = transact(&api.storage, options.dry_run, |view| async move {
        let old = view.get(key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
        plan(writer, kind, &view, old, wanted.clone(), part).await
    })
    .await?;
    written(api, request, StatusCode::OK, &done, &body.warnings)
}

/// The body must be of the object that the path names.
fn check_identity(request: &Request, object: &Value) -> Result<(), ApiError> {
    let name = request.path.name.as_deref().unwrap_or("");
    let given = metadata::text(object, "name");
    if given != name {
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let given = metadata::text(object, "namespace");
    if !given.is_empty() && given != request.namespace() {
        return Err(ApiError::BadRequest(format!(
            "the namespace of the object ({given}) does not match the namespace on the URL ({})",
            request.namespace()
        )));
    }
    Ok(())
}

/// What replaces `old`, given the whole new object as the client wants it. Where the client names a resourceVersion or
/// uid, they must be those of `old`.
pub async fn plan(
    writer: Writer<'_>,
    kind: &Kind,
    view: &View,
    old: &Arc<Object>,
    mut new: Value,
    part: Part,
) -> Result<WritePlan, ApiError> {
    readable::check(old)?;
    check_preconditions(kind, old, &new)?;
    let before = answer::present_value(kind, old);
    keep_system_metadata(&before, &mut new);
    keep_other_part(kind, &before, &mut new, part);
    metadata::name_owners_once(&mut new);
    kind.defaults(&mut new);
    let Writer { config, user } = writer;
    let (operation, key) = (Operation::Update, &old.key);
    let write = Write { operation, kind, key, view, config, user, old: Some(&before) };
    let mut along = admission::mutate(&write, &mut new).await?;
    let errors = faults(kind, &before, &new, part);
    if !errors.is_empty() {
        return Err(ApiError::invalid(kind, old.name(), errors));
    }
    admission::validate(&write, Some(&new)).await?;
    if kind.moves_generation(&before, &new) {
        let generation = fields::integer(&before, "/metadata/generation").unwrap_or(0) + 1;
        metadata::of(&mut new).insert("generation".to_owned(), generation.into());
    }
    if deletion::is_complete(kind.resource().as_str(), &new) {
        along.join(claims::release(view, old));
        return Ok(WritePlan::new(Subject::Delete { old: old.clone() }, along));
    }
    kind.to_storage(&mut new);
    let draft = stored_draft(kind, &new).into();
    Ok(WritePlan::new(Subject::Update { old: old.clone(), draft }, along))
}

fn check_preconditions(kind: &Kind, old: &Object, new: &Value) -> Result<(), ApiError> {
    let uid = metadata::text(new, "uid");
    if !uid.is_empty() && uid != old.meta.uid {
        let reason =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.meta.uid);
        return Err(ApiError::conflict(kind, old.name(), reason));
    }
    let revision = metadata::text(new, "resourceVersion");
    if !revision.is_empty() && revision != old.revision.to_string() {
        if revision.parse::<u64>().is_err() {
            let error =
                FieldError::invalid("metadata.resourceVersion", revision, "must be a decimal integer");
            return Err(ApiError::invalid(kind, old.name(), vec![error]));
        }
        return Err(ApiError::conflict(kind, old.name(), MODIFIED));
    }
    Ok(())
}

fn keep_system_metadata(before: &Value, new: &mut Value) {
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "managedFields",
        "selfLink",
    ] {
        metadata::copy(before, new, field);
    }
}

fn keep_other_part(kind: &Kind, before: &Value, new: &mut Value, part: Part) {
    match part {
        Part::Main => {
            if kind.has(Endpoint::Status) {
                metadata::copy_part(before, new, "status");
            }
            if kind.has(Endpoint::Finalize) {
                metadata::copy_part(before, new, "spec");
            }
        }
        Part::Status => {
            let mut kept = before.clone();
            metadata::copy_part(new, &mut kept, "status");
            metadata::copy(new, &mut kept, "annotations");
            *new = kept;
        }
        Part::Finalize => {
            let mut kept = before.clone();
            metadata::copy_part(new, &mut kept, "spec");
            *new = kept;
        }
    }
}

fn faults(kind: &Kind, before: &Value, new: &Value, part: Part) -> Vec<FieldError> {
    let mut errors = validate_meta(kind, new, Some(before));
    if metadata::deleting(before) {
        let known: BTreeSet<&str> = metadata::finalizers(before).collect();
        let added: Vec<&str> = metadata::finalizers(new).filter(|name| !known.contains(name)).collect();
        let told = errors.iter().any(|error| error.field == "metadata.finalizers");
        if !added.is_empty() && !told {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    // An object that is on its way out must not be held back by rules that came after it, as long as only its metadata
    // changes.
    let leaves = metadata::deleting(before) && !kind.is_graceful() && same_but_for_metadata(before, new);
    if part == Part::Status {
        errors.extend(status_faults(kind, before, new));
    }
    if part == Part::Main && !leaves {
        errors.extend(kind.validate(new, Some(before)));
    }
    errors
}

/// A status that stays as it is holds nothing back, also where it is older than the rules.
fn status_faults(kind: &Kind, before: &Value, new: &Value) -> Vec<FieldError> {
    if before.get("status") == new.get("status") { Vec::new() } else { kind.status_faults(new, Some(before)) }
}

pub fn same_but_for_metadata(before: &Value, new: &Value) -> bool {
    let (Some(before), Some(new)) = (before.as_object(), new.as_object()) else { return false };
    let told = |name: &str| matches!(name, "metadata" | "kind" | "apiVersion");
    let same = |(name, value): (&String, &Value)| told(name) || new.get(name) == Some(value);
    before.iter().all(same) && new.keys().all(|name| told(name) || before.contains_key(name))
}
