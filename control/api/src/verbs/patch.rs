//! PATCH: JSON patch, JSON merge patch and strategic merge patch.

use axum::response::Response;
use coracle_objects::{FieldError, Kind, patch};
use http::{StatusCode, header};
use serde_json::Value;

use super::{Part, update, written};
use crate::{
    admission::Writer,
    answer, body,
    error::ApiError,
    metadata,
    options::{FieldValidation, WriteOptions},
    readable,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::{WritePlan, transact},
    typed,
};

const ACCEPTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

/// How a patch is to be applied.
#[derive(Clone, Debug)]
pub enum Patch {
    Json(Vec<patch::PatchOperation>),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads a patch by its Content-Type. The duplicate fields of its document are the second part.
    pub fn decode(request: &Request) -> Result<(Self, Vec<String>), ApiError> {
        match body::media_type(request.header(header::CONTENT_TYPE)) {
            "application/json-patch+json" => {
                let (value, duplicates) = body::decode_patch(request, false)?;
                let operations =
                    patch::parse_json(&value).map_err(|error| ApiError::BadRequest(error.to_string()))?;
                Ok((Patch::Json(operations), duplicates))
            }
            "application/merge-patch+json" => {
                let (value, duplicates) = body::decode_patch(request, false)?;
                Ok((Patch::Merge(object(value)?), duplicates))
            }
            "application/strategic-merge-patch+json" => {
                let (value, duplicates) = body::decode_patch(request, false)?;
                Ok((Patch::Strategic(object(value)?), duplicates))
            }
            "application/apply-patch+yaml" => Err(ApiError::UnsupportedMediaType {
                reason: "server-side apply is not served yet: apply without --server-side".to_owned(),
            }),
            other => Err(ApiError::UnsupportedMediaType {
                reason: format!(
                    "the body of the request was in an unknown format - accepted media types include: {ACCEPTED} \
                     (this one is {other:?})"
                ),
            }),
        }
    }

    /// Applies the patch to an object of the type whose schema is named.
    pub fn apply(&self, target: &mut Value, schema: &str) -> Result<(), patch::PatchError> {
        match self {
            Patch::Json(operations) => patch::json(target, operations),
            Patch::Merge(document) => {
                patch::merge(target, document);
                Ok(())
            }
            Patch::Strategic(document) => patch::strategic(target, document, schema),
        }
    }
}

fn object(value: Value) -> Result<Value, ApiError> {
    if value.is_object() {
        Ok(value)
    } else {
        Err(ApiError::BadRequest("error decoding patch: a merge patch must be an object".to_owned()))
    }
}

pub async fn patch<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
    part: Part,
) -> Result<Response, ApiError> {
    let kind = request.kind();
    let key = request.key()?;
    let options = WriteOptions::parse(&request.query)?;
    let (patch, duplicates) = Patch::decode(request)?;
    if matches!(patch, Patch::Strategic(_)) && kind.declared().is_some() {
        return Err(ApiError::UnsupportedMediaType {
            reason: format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json ({} is a custom resource: how its lists \
                 merge is not known)",
                kind.kind
            ),
        });
    }
    let writer = Writer { config: &api.config, user: &request.context.user };
    let (key, patch, duplicates) = (&key, &patch, &duplicates);
    let done = transact(&api.storage, options.dry_run, |view| async move {
        let old = view.get(key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
        readable::check(old)?;
        let before = answer::present_value(kind, old);
        let mut new = before.clone();
        patch.apply(&mut new, &kind.schema).map_err(|error| refused(kind, &key.name.name, patch, &error))?;
        let warnings = check(request, kind, &before, &mut new, duplicates, options.field_validation)?;
        // A patch that leaves the resourceVersion as it was asks for no particular one.
        if metadata::text(&new, "resourceVersion") == old.revision.to_string() {
            metadata::of(&mut new).shift_remove("resourceVersion");
        }
        Ok(WritePlan { warnings, ..update::plan(writer, kind, &view, old, new, part).await? })
    })
    .await?;
    written(api, request, StatusCode::OK, &done, &[])
}

fn refused(kind: &Kind, name: &str, patch: &Patch, error: &patch::PatchError) -> ApiError {
    match patch {
        // As upstream: a JSON patch that does not fit the object is an unprocessable one.
        Patch::Json(_) => {
            ApiError::invalid(kind, name, vec![FieldError::invalid("patch", Value::Null, error.to_string())])
        }
        _ => ApiError::BadRequest(error.to_string()),
    }
}

/// Checks the patched object as a body is checked, and drops what its type does not have.
fn check(
    request: &Request,
    kind: &Kind,
    before: &Value,
    new: &mut Value,
    duplicates: &[String],
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    if !new.is_object() {
        return Err(ApiError::BadRequest("the patched object is no object".to_owned()));
    }
    body::Expected::of(kind).check_kind(new)?;
    if metadata::text(new, "name") != metadata::text(before, "name") {
        let error = FieldError::invalid("metadata.name", metadata::text(new, "name"), "field is immutable");
        return Err(ApiError::invalid(kind, metadata::text(before, "name"), vec![error]));
    }
    let findings = typed::conform(new, kind.types(), &kind.schema);
    if let Some(error) = findings.too_many {
        return Err(ApiError::invalid(kind, metadata::text(before, "name"), vec![error]));
    }
    if let Some(mismatch) = findings.mismatch {
        body::refuse_declared(kind, new)?;
        return Err(body::patch_error(&request.body, &mismatch));
    }
    let faults = body::faults(&findings.unknown, duplicates, validation);
    if validation == FieldValidation::Strict && !faults.is_empty() {
        return Err(body::patch_error(
            &request.body,
            &format!("strict decoding error: {}", faults.join(", ")),
        ));
    }
    Ok(faults)
}
