//! The `paths` of a document: which operations there are, on what.

use coracle_objects::{Endpoint, Kind, Subresource, schema::refer};
use serde_json::{Map, Value, json};

use super::gvk;
use crate::auth::reviews::Review;

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// Adds the paths of a kind and its subresources.
pub fn add_kind(kind: &Kind, paths: &mut Map<String, Value>) {
    let own = gvk(&kind.group, &kind.version, &kind.kind);
    let base = base(&kind.group, &kind.version);
    let collection = if kind.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{base}/{}", kind.plural)
    };
    let list = format!("{}List", kind.schema);
    let scope = scope(kind.namespaced, false);
    let mut at_collection = json!({ "parameters": scope });
    let mut put = |method: &str, operation: Value| at_collection[method] = operation;
    if kind.takes("list") {
        put("get", operation("list", kind, &own, &list_parameters(), None, &list));
    }
    if kind.takes("create") {
        put("post", operation("post", kind, &own, &write_parameters(), Some(&kind.schema), &kind.schema));
    }
    if kind.takes("deletecollection") {
        put(
            "delete",
            operation("deletecollection", kind, &own, &list_parameters(), Some(DELETE_OPTIONS), STATUS),
        );
    }
    let item = format!("{collection}/{{name}}");
    paths.insert(collection, at_collection);
    if kind.namespaced {
        let everywhere = json!({ "get": operation("list", kind, &own, &list_parameters(), None, &list) });
        paths.insert(format!("{base}/{}", kind.plural), everywhere);
    }
    paths.insert(item.clone(), object(kind, &own, &kind.schema, kind.verbs));
    for subresource in &kind.subresources {
        paths.insert(format!("{item}/{}", subresource.endpoint.name()), sub(kind, subresource));
    }
}

/// Adds the path of a review.
pub fn add_review(review: &Review, paths: &mut Map<String, Value>) {
    let operation = json!({
        "description": format!("create a {}", review.kind),
        "tags": [tag(review.group, review.version)],
        "operationId": format!("create{}", review.kind),
        "parameters": write_parameters(),
        "requestBody": body(review.schema),
        "responses": responses(review.schema),
        "x-kubernetes-action": "post",
        "x-kubernetes-group-version-kind": gvk(review.group, review.version, review.kind),
    });
    paths.insert(
        format!("{}/{}", base(review.group, review.version), review.plural),
        json!({ "post": operation }),
    );
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

fn tag(group: &str, version: &str) -> String {
    let group = group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
    format!("{group}_{version}")
}

/// The operations on one object.
fn object(kind: &Kind, gvk: &Value, schema: &str, verbs: &[&str]) -> Value {
    let mut item = json!({ "parameters": scope(kind.namespaced, true) });
    let write = write_parameters();
    for verb in verbs {
        match *verb {
            "get" => item["get"] = operation("get", kind, gvk, &json!([]), None, schema),
            "update" => item["put"] = operation("put", kind, gvk, &write, Some(schema), schema),
            "patch" => {
                let mut parameters = write.clone();
                if let Some(list) = parameters.as_array_mut() {
                    list.push(query("force", "boolean", "Force Apply requests."));
                }
                item["patch"] = operation("patch", kind, gvk, &parameters, Some(PATCH), schema);
            }
            "delete" => {
                item["delete"] =
                    operation("delete", kind, gvk, &delete_parameters(), Some(DELETE_OPTIONS), STATUS)
            }
            "create" if gvk["kind"] != *kind.kind => {
                item["post"] = operation("post", kind, gvk, &write, Some(schema), schema);
            }
            _ => {}
        }
    }
    item
}

fn sub(kind: &Kind, subresource: &Subresource) -> Value {
    let own = gvk(&subresource.group, &subresource.version, &subresource.kind);
    if subresource.endpoint == Endpoint::Log {
        let mut item = json!({ "parameters": scope(kind.namespaced, true) });
        let mut get = operation("connect", kind, &own, &json!([]), None, &kind.schema);
        get["responses"] = json!({ "200": { "description": "OK", "content": { "text/plain": { "schema": { "type": "string" } } } } });
        item["get"] = get;
        return item;
    }
    let schema = match subresource.endpoint {
        Endpoint::Status | Endpoint::Finalize | Endpoint::Log => &*kind.schema,
        Endpoint::Scale => "io.k8s.api.autoscaling.v1.Scale",
        Endpoint::Binding => "io.k8s.api.core.v1.Binding",
    };
    object(kind, &own, schema, subresource.verbs)
}

fn operation(
    action: &str,
    kind: &Kind,
    gvk: &Value,
    parameters: &Value,
    request: Option<&str>,
    response: &str,
) -> Value {
    let mut operation = json!({
        "description": format!("{action} {}", kind.plural),
        "tags": [tag(&kind.group, &kind.version)],
        "parameters": parameters,
        "responses": responses(response),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    });
    match request {
        Some(PATCH) => {
            // Clients see here in which form they may patch.
            let strategic = Some("application/strategic-merge-patch+json");
            let strategic = strategic.filter(|_| kind.declared().is_none());
            let content: Map<String, Value> = ["application/json-patch+json", "application/merge-patch+json"]
                .into_iter()
                .chain(strategic)
                .map(|type_| (type_.to_owned(), json!({ "schema": refer(PATCH) })))
                .collect();
            operation["requestBody"] = json!({ "content": content, "required": true });
        }
        Some(schema) => operation["requestBody"] = body(schema),
        None => {}
    }
    operation
}

fn body(schema: &str) -> Value {
    json!({ "content": { "*/*": { "schema": refer(schema) } } })
}

fn responses(schema: &str) -> Value {
    json!({
        "200": { "description": "OK", "content": { "application/json": { "schema": refer(schema) } } },
        "401": { "description": "Unauthorized" },
    })
}

/// What the path itself names.
fn scope(namespaced: bool, named: bool) -> Value {
    let path = |name: &str, description: &str| {
        json!({
            "name": name, "in": "path", "description": description, "required": true,
            "schema": { "type": "string", "uniqueItems": true },
        })
    };
    let mut parameters = Vec::new();
    if named {
        parameters.push(path("name", "name of the object"));
    }
    if namespaced {
        parameters.push(path("namespace", "object name and auth scope, such as for teams and projects"));
    }
    parameters.into()
}

fn query(name: &str, type_: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "query", "description": description,
        "schema": { "type": type_, "uniqueItems": true },
    })
}

fn write_parameters() -> Value {
    json!([
        query(
            "dryRun",
            "string",
            "When present, indicates that modifications should not be persisted. Valid: All."
        ),
        query("fieldManager", "string", "The name of the actor that is making these changes."),
        query(
            "fieldValidation",
            "string",
            "What to do about unknown or duplicate fields: Ignore, Warn or Strict."
        ),
    ])
}

fn delete_parameters() -> Value {
    json!([
        query(
            "dryRun",
            "string",
            "When present, indicates that modifications should not be persisted. Valid: All."
        ),
        query("gracePeriodSeconds", "integer", "Seconds before the object should be deleted."),
        query("propagationPolicy", "string", "Orphan, Background or Foreground."),
    ])
}

fn list_parameters() -> Value {
    json!([
        query("continue", "string", "Where a list in pages goes on."),
        query("fieldSelector", "string", "Restricts the list by fields."),
        query("labelSelector", "string", "Restricts the list by labels."),
        query("limit", "integer", "The most objects of one page."),
        query("resourceVersion", "string", "What state the answer may be of."),
        query("resourceVersionMatch", "string", "How resourceVersion is applied: Exact or NotOlderThan."),
        query("sendInitialEvents", "boolean", "Whether a watch begins with the present objects."),
        query("allowWatchBookmarks", "boolean", "Whether a watch may have bookmarks."),
        query("timeoutSeconds", "integer", "How long a watch lasts."),
        query("watch", "boolean", "Whether to watch instead of listing."),
    ])
}
