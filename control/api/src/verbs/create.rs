//! POST: creates an object.

use axum::response::Response;
use coracle_objects::{Endpoint, FieldError, Kind, ObjectKey, View, admission::faults_of_new};
use http::StatusCode;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;

use super::written;
use crate::{
    admission::{self, Operation, Write, Writer},
    body::{self, Expected},
    draft::fresh_uid,
    error::ApiError,
    metadata,
    options::WriteOptions,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::{Subject, WritePlan, transact},
};

/// The letters of generated names: no vowels and no digits that look like letters, so that no words come about.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many of them follow `generateName`.
const NAME_SUFFIX_LENGTH: usize = 5;
/// The whole name is cut to fit into this.
const NAME_LENGTH_MAX: usize = 63;

pub async fn create<S: Storage, N: Nodes>(api: &Api<S, N>, request: &Request) -> Result<Response, ApiError> {
    let kind = request.kind();
    if kind.namespaced && request.path.namespace.is_none() {
        return Err(ApiError::BadRequest("the namespace of the request is missing from its path".to_owned()));
    }
    let options = WriteOptions::parse(&request.query)?;
    let body = body::decode(request, &Expected::of(kind), options.field_validation)?;
    let template = prepare(kind, request.namespace(), body.value, (api.config.now)())?;
    // What no state can mend is not decided again by a newer one.
    let refused: Mutex<Option<Vec<FieldError>>> = Mutex::default();
    let writer = Writer { config: &api.config, user: &request.context.user };
    let (template, refused) = (&template, &refused);
    let done = transact(&api.storage, options.dry_run, |view| async move {
        if let Some(errors) = refused.lock().take() {
            return Err(ApiError::invalid(kind, metadata::text(template, "name"), errors));
        }
        plan(writer, kind, template, &view, refused).await
    })
    .await?;
    written(api, request, StatusCode::CREATED, &done, &body.warnings)
}

/// What does not depend on the state: metadata that only the server gives.
fn prepare(kind: &Kind, namespace: &str, mut object: Value, now: Timestamp) -> Result<Value, ApiError> {
    let metadata = metadata::of(&mut object);
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|text| !text.is_empty() && text != "0")
    {
        return Err(ApiError::BadRequest(
            "resourceVersion should not be set on objects to be created".to_owned(),
        ));
    }
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or("");
    if kind.namespaced && !given.is_empty() && given != namespace {
        return Err(ApiError::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request"
                .to_owned(),
        ));
    }
    if kind.namespaced {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    for field in [
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "generation",
        "resourceVersion",
    ] {
        metadata.shift_remove(field);
    }
    metadata.insert("uid".to_owned(), fresh_uid().into());
    metadata.insert("creationTimestamp".to_owned(), metadata::time(now).into());
    if kind.spec_is_generational() {
        metadata.insert("generation".to_owned(), 1.into());
    }
    metadata::name_owners_once(&mut object);
    // A node registers with its status; every other kind's status is written through its subresource.
    if kind.has(Endpoint::Status)
        && !kind.registers_with_status()
        && let Some(map) = object.as_object_mut()
    {
        map.shift_remove("status");
    }
    Ok(object)
}

/// What makes the object. Faults that no other state would mend are left in `refused` as well.
async fn plan(
    writer: Writer<'_>,
    kind: &Kind,
    template: &Value,
    view: &View,
    refused: &Mutex<Option<Vec<FieldError>>>,
) -> Result<WritePlan, ApiError> {
    let mut object = template.clone();
    let generated = name_object(&mut object);
    kind.defaults(&mut object);
    let name = metadata::text(&object, "name").to_owned();
    let key = ObjectKey::new(kind.storage_resource().as_str(), metadata::text(&object, "namespace"), &name);
    let Writer { config, user } = writer;
    let write = Write { operation: Operation::Create, kind, key: &key, view, config, user, old: None };
    let along = admission::mutate(&write, &mut object).await?;
    let errors = faults_of_new(kind, &object);
    if !errors.is_empty() {
        if !admission::completes(&write) {
            *refused.lock() = Some(errors.clone());
        }
        return Err(ApiError::invalid(kind, &name, errors));
    }
    admission::validate(&write, Some(&object)).await?;
    // A generated name that is taken is no fault of the client: the precondition fails and another one is drawn.
    if !generated && view.get(&key).is_some() {
        return Err(ApiError::AlreadyExists { resource: kind.resource(), name });
    }
    kind.to_storage(&mut object);
    let draft = stored_draft(kind, &object);
    Ok(WritePlan::new(Subject::Create { key, draft: draft.into() }, along))
}

/// The bytes for the store, in the form of the kind that the store keeps. The object is in that form already.
pub fn stored_draft(kind: &Kind, object: &Value) -> Vec<u8> {
    let (api_version, kind) = kind.stored_as();
    metadata::draft(&kind, &api_version, object)
}

/// Gives an object without a name one from its generateName. Returns whether it did.
fn name_object(object: &mut Value) -> bool {
    let prefix = metadata::text(object, "generateName").to_owned();
    if prefix.is_empty() || !metadata::text(object, "name").is_empty() {
        return false;
    }
    let mut name: String = prefix.chars().take(NAME_LENGTH_MAX - NAME_SUFFIX_LENGTH).collect();
    for _ in 0..NAME_SUFFIX_LENGTH {
        name.push(char::from(NAME_LETTERS[rand::random_range(0..NAME_LETTERS.len())]));
    }
    metadata::of(object).insert("name".to_owned(), name.into());
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_generated_with_five_letters() {
        let mut object = json!({ "metadata": { "generateName": "web-" } });
        assert!(name_object(&mut object));
        let name = metadata::text(&object, "name");
        assert_eq!(name.len(), "web-".len() + NAME_SUFFIX_LENGTH);
        assert!(name.starts_with("web-"));
        let mut named = json!({ "metadata": { "generateName": "web-", "name": "x" } });
        assert!(!name_object(&mut named));
    }
}
