//! POST of `pods/NAME/binding`: gives a pod its node.

use axum::response::Response;
use coracle_objects::{
    FieldError, Transaction,
    binding::{self, NotBound},
    fields,
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    answer,
    body::{self, Expected},
    error::ApiError,
    metadata,
    options::WriteOptions,
    request::Request,
    router::Api,
    storage::{Nodes, Storage},
    transact::{Subject, WritePlan, transact},
};

const EXPECTED: Expected<'static> = Expected {
    group: "",
    version: "v1",
    kind: "Binding",
    schema: "io.k8s.api.core.v1.Binding",
    declared: None,
};

pub async fn bind<S: Storage, N: Nodes>(api: &Api<S, N>, request: &Request) -> Result<Response, ApiError> {
    let kind = request.kind();
    let key = request.key()?;
    let options = WriteOptions::parse(&request.query)?;
    let body = body::decode(request, &EXPECTED, options.field_validation)?;
    let node = target(&body.value, &key.name.name)?;
    let annotations = body.value.pointer("/metadata/annotations").and_then(Value::as_object);
    let (annotations, now) = (annotations.cloned().unwrap_or_default(), (api.config.now)());
    let (key, body, node, annotations) = (&key, &body, &node, &annotations);
    transact(&api.storage, options.dry_run, |view| async move {
        let old = view.get(key).ok_or_else(|| ApiError::not_found(kind, &key.name.name))?;
        let uid = metadata::text(&body.value, "uid");
        if !uid.is_empty() && uid != old.meta.uid {
            let reason = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                old.meta.uid
            );
            return Err(ApiError::conflict(kind, old.name(), reason));
        }
        let draft = binding::bind(old, node, annotations, now).map_err(|refused| {
            let name = old.name();
            let reason = match refused {
                NotBound::Deleting => format!("pod {name} is being deleted, cannot be assigned to a host"),
                NotBound::Bound(node) => format!("pod {name} is already assigned to node {node:?}"),
                NotBound::Gated => format!("pod {name} has non-empty .spec.schedulingGates"),
                NotBound::Unreadable(error) => format!("pod {name} cannot be read: {error}"),
            };
            ApiError::conflict(kind, name, reason)
        })?;
        Ok(WritePlan::new(Subject::Update { old: old.clone(), draft }, Transaction::default()))
    })
    .await?;
    let status =
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(answer::json_value(StatusCode::CREATED, &status))
}

fn target(binding: &Value, name: &str) -> Result<String, ApiError> {
    let mut errors = Vec::new();
    let kind = fields::text(binding, "/target/kind");
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    let node = fields::text(binding, "/target/name");
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if errors.is_empty() {
        return Ok(node.to_owned());
    }
    Err(ApiError::Invalid { group: String::new(), kind: "Binding".to_owned(), name: name.to_owned(), errors })
}
