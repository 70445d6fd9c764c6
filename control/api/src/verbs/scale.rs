//! `scale`: the number of replicas of anything that has one, as an `autoscaling/v1` Scale.

use std::sync::Arc;

use axum::response::Response;
use coracle_objects::{FieldError, Kind, LabelSelector, Object, declared::ScalePaths, fields, schema::types};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Part, patch::Patch, update};
use crate::{
    admission::Writer,
    answer,
    body::{self, Expected},
    error::{ApiError, MODIFIED},
    metadata,
    options::WriteOptions,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::transact,
    typed,
    verbs::list,
};

const SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";
const EXPECTED: Expected<'static> =
    Expected { group: "autoscaling", version: "v1", kind: "Scale", schema: SCHEMA, declared: None };

pub async fn scale<S: Storage, N: Nodes>(api: &Api<S, N>, request: &Request) -> Result<Response, ApiError> {
    answer::negotiate(&request.headers, &request.query, false)?;
    match request.method {
        Method::GET | Method::HEAD => {
            let key = request.key()?;
            let view = list::view_at_least(&api.storage, None).await?;
            let object = view.get(&key).ok_or_else(|| ApiError::not_found(request.kind(), &key.name.name))?;
            let scale =
                scale_of(&answer::present_value(request.kind(), object), &request.kind().scale_paths());
            Ok(answer::json_value(StatusCode::OK, &scale))
        }
        Method::PUT => {
            let options = WriteOptions::parse(&request.query)?;
            let body = body::decode(request, &EXPECTED, options.field_validation)?;
            change(api, request, options, |_| Ok(body.value.clone())).await
        }
        Method::PATCH => {
            let options = WriteOptions::parse(&request.query)?;
            let (patch, _) = Patch::decode(request)?;
            change(api, request, options, |mut scale| {
                patch.apply(&mut scale, SCHEMA).map_err(|error| ApiError::BadRequest(error.to_string()))?;
                Ok(scale)
            })
            .await
        }
        _ => Err(ApiError::MethodNotAllowed),
    }
}

/// Sets the replicas to those of the Scale that `edit` makes of the present one.
async fn change<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
    options: WriteOptions,
    edit: impl Fn(Value) -> Result<Value, ApiError> + Send + Sync,
) -> Result<Response, ApiError> {
    let kind = request.kind();
    let key = request.key()?;
    let paths = kind.scale_paths();
    let writer = Writer { config: &api.config, user: &request.context.user };
    let (key, edit, scale_paths) = (&key, &edit, &paths);
    let done = transact(&api.storage, options.dry_run, |view| async move {
        let old = view.get(key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
        let mut object = answer::present_value(kind, old);
        let mut wanted = edit(scale_of(&object, scale_paths))?;
        let replicas = check(kind, old, &mut wanted)?;
        put(&mut object, &scale_paths.replicas, replicas);
        metadata::of(&mut object).shift_remove("resourceVersion");
        update::plan(writer, kind, &view, old, object, Part::Main).await
    })
    .await?;
    Ok(answer::json_value(StatusCode::OK, &scale_of(&answer::present_value(kind, &done.object), &paths)))
}

/// The replicas that a Scale asks for.
fn check(kind: &Kind, old: &Arc<Object>, wanted: &mut Value) -> Result<i64, ApiError> {
    let name = old.name();
    if let Some(mismatch) = typed::conform(wanted, types(), SCHEMA).mismatch {
        return Err(ApiError::BadRequest(format!(
            "Scale in version \"v1\" cannot be handled as a Scale: {mismatch}"
        )));
    }
    let given = metadata::text(wanted, "name");
    if !given.is_empty() && given != name {
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let revision = metadata::text(wanted, "resourceVersion");
    if !revision.is_empty() && revision != old.revision.to_string() {
        return Err(ApiError::conflict(kind, name, MODIFIED));
    }
    let replicas = fields::integer(wanted, "/spec/replicas").unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(ApiError::Invalid {
            group: "autoscaling".to_owned(),
            kind: "Scale".to_owned(),
            name: name.to_owned(),
            errors: vec![error],
        });
    }
    Ok(replicas)
}

/// Writes a number at a JSON pointer whose parents may not be there yet.
fn put(object: &mut Value, pointer: &str, number: i64) {
    let unescaped = |part: &str| part.replace("~1", "/").replace("~0", "~");
    let place = pointer.split('/').skip(1).fold(object, |value, part| {
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[unescaped(part)]
    });
    *place = number.into();
}

/// The Scale of an object.
fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let mut kept = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata::copy(object, &mut kept, field);
    }
    let selector = match &paths.selector {
        Some(path) if path.is_empty() => String::new(),
        Some(path) => fields::text(object, path).to_owned(),
        None => LabelSelector::from_json(object.pointer("/spec/selector"))
            .map(|selector| selector.to_string())
            .unwrap_or_default(),
    };
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept["metadata"],
        "spec": { "replicas": fields::integer(object, &paths.replicas).unwrap_or(0) },
        "status": {
            "replicas": fields::integer(object, &paths.status_replicas).unwrap_or(0),
            "selector": selector,
        },
    })
}
