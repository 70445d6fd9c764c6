//! OpenAPI v3: one document a group-version, generated from the registry of kinds and their schemas.

mod paths;
mod v2;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    sync::{Arc, OnceLock},
};

use axum::response::Response;
use bytes::Bytes;
use coracle_objects::{
    Catalog,
    schema::{published, refer, reference},
};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    answer, auth::reviews::REVIEWS, error::ApiError, health::KUBERNETES_MINOR, options::Query, served::Served,
};

/// `GET /openapi/v2`: only the little that old kubectls need, only in protobuf; 406 else.
pub fn index_v2(served: &Served, headers: &HeaderMap) -> Result<Response, ApiError> {
    if !answer::accepted(headers).iter().any(|range| v2::accepts(range.media_type)) {
        return Err(ApiError::NotAcceptable { accepted: v2::CONTENT_TYPE });
    }
    let document = served.document_v2.get_or_init(|| v2::document(&served.catalog).into());
    let mut response = answer::json_bytes(StatusCode::OK, document.clone());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(v2::CONTENT_TYPE));
    Ok(response)
}

/// A document and what is needed to send it. It is kept compressed, as nearly every client wants it: the documents are
/// some megabytes that are asked for seldom.
pub struct Document {
    gzip: Bytes,
    /// Hexadecimal SHA-256 of what is compressed, as clients name it in `?hash=`.
    hash: String,
}

impl Document {
    fn new(value: &Value) -> Self {
        let body = value.to_string();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let compressed = encoder.write_all(body.as_bytes()).and_then(|()| encoder.finish());
        let gzip = compressed.expect("memory takes what is written").into();
        Self { gzip, hash: hex::encode_upper(Sha256::digest(&body)) }
    }

    /// For a client that takes no gzip.
    fn body(&self) -> Bytes {
        let mut body = Vec::new();
        GzDecoder::new(&self.gzip[..]).read_to_end(&mut body).expect("it was compressed here");
        body.into()
    }
}

/// The documents by their paths: `api/v1`, `apis/apps/v1`.
pub type Documents = BTreeMap<String, Arc<Document>>;

/// The documents of what is served. Those in which no definition has a kind are made once.
fn documents(served: &Served) -> &Documents {
    static NATIVE: OnceLock<Documents> = OnceLock::new();
    served.documents.get_or_init(|| {
        let native = Catalog::native();
        let native = NATIVE.get_or_init(|| documents_of(&Served::of(native.clone()), &Documents::default()));
        documents_of(served, native)
    })
}

/// All documents; of the known ones those that are the same.
fn documents_of(served: &Served, known: &Documents) -> Documents {
    let has_declared = |group: &str, version: &str| {
        let mut kinds = served.catalog.kinds().iter();
        kinds.any(|kind| kind.declared().is_some() && kind.group == group && kind.version == version)
    };
    let mut schemas = None;
    let document = |(group, version): (&str, &str)| {
        let path = group_path(group, version);
        let same = known.get(&path).filter(|_| !has_declared(group, version));
        let document = same.cloned().unwrap_or_else(|| {
            let schemas = schemas.get_or_insert_with(published);
            Arc::new(Document::new(&generate(&served.catalog, group, version, schemas)))
        });
        (path, document)
    };
    served.groups.group_versions().map(document).collect()
}

fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `GET /openapi/v3`: where the documents are, with their hashes.
pub fn index(served: &Served, headers: &HeaderMap) -> Response {
    let index = served.index.get_or_init(|| {
        let paths: Map<String, Value> = documents(served)
            .iter()
            .map(|(path, document)| {
                let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                (path.clone(), json!({ "serverRelativeURL": url }))
            })
            .collect();
        Document::new(&json!({ "paths": paths }))
    });
    send(index, false, headers)
}

/// `GET /openapi/v3/apis/apps/v1`. With the right `?hash=` it may be kept for ever.
pub fn document(
    served: &Served,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let document = documents(served).get(path).ok_or(ApiError::NoSuchPath)?;
    match query.get("hash") {
        Some(hash) if hash != document.hash => {
            let mut response = answer::json_bytes(StatusCode::MOVED_PERMANENTLY, "");
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            if let Ok(url) = HeaderValue::from_str(&url) {
                response.headers_mut().insert(header::LOCATION, url);
            }
            Ok(response)
        }
        hash => Ok(send(document, hash.is_some(), headers)),
    }
}

fn send(document: &Document, immutable: bool, headers: &HeaderMap) -> Response {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
    let etag = format!("\"{}\"", document.hash);
    let known = text(header::IF_NONE_MATCH).split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag);
    let wants_gzip = text(header::ACCEPT_ENCODING).split(',').any(|coding| {
        let mut parts = coding.split(';');
        parts.next().is_some_and(|name| name.trim() == "gzip") && parts.all(|part| part.trim() != "q=0")
    });
    let mut response = match (known, wants_gzip) {
        (true, _) => answer::json_bytes(StatusCode::NOT_MODIFIED, ""),
        (false, true) => answer::json_bytes(StatusCode::OK, document.gzip.clone()),
        (false, false) => answer::json_bytes(StatusCode::OK, document.body()),
    };
    let out = response.headers_mut();
    if wants_gzip && !known {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        out.insert(header::ETAG, etag);
    }
    out.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let cache = if immutable { "public, immutable, max-age=31536000" } else { "no-cache, private" };
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

/// The document of one group-version.
fn generate(catalog: &Catalog, group: &str, version: &str, schemas: &BTreeMap<String, Value>) -> Value {
    let published = |name: &str| schemas.get(name).cloned().unwrap_or_else(|| json!({ "type": "object" }));
    let mut paths = Map::new();
    let mut components: BTreeMap<String, Value> = BTreeMap::new();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for kind in catalog.kinds().iter().filter(|kind| kind.group == group && kind.version == version) {
        paths::add_kind(kind, &mut paths);
        let declared = kind.declared().map(|declared| declared.schema().clone());
        let mut schema = declared.unwrap_or_else(|| published(&kind.schema));
        let gvk = gvk(group, version, &kind.kind);
        schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        references(&schema, &mut wanted);
        components.insert(kind.schema.to_string(), schema);
        let list = list_schema(&kind.schema, &kind.list, &gvk);
        references(&list, &mut wanted);
        components.insert(format!("{}List", kind.schema), list);
    }
    for review in REVIEWS.iter().filter(|review| review.group == group && review.version == version) {
        paths::add_review(review, &mut paths);
        let mut schema = published(review.schema);
        schema["x-kubernetes-group-version-kind"] = json!([gvk(group, version, review.kind)]);
        references(&schema, &mut wanted);
        components.insert(review.schema.to_owned(), schema);
    }
    let paths = Value::Object(paths);
    references(&paths, &mut wanted);
    while let Some(name) = wanted.pop_first() {
        if components.contains_key(&name) {
            continue;
        }
        let mut schema = published(&name);
        if let Some(gvk) = foreign_gvk(&name, group, version) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        }
        references(&schema, &mut wanted);
        components.insert(name, schema);
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": format!("v1.{KUBERNETES_MINOR}.0") },
        "paths": paths,
        "components": { "schemas": components },
    })
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

/// The kind of schemas that are bodies but no kind of the group-version itself.
fn foreign_gvk(schema: &str, group: &str, version: &str) -> Option<Value> {
    match schema {
        "io.k8s.api.autoscaling.v1.Scale" => Some(gvk("autoscaling", "v1", "Scale")),
        "io.k8s.api.core.v1.Binding" => Some(gvk("", "v1", "Binding")),
        "io.k8s.api.policy.v1.Eviction" => Some(gvk("policy", "v1", "Eviction")),
        "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions" => Some(gvk(group, version, "DeleteOptions")),
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status" => Some(gvk("", "v1", "Status")),
        _ => None,
    }
}

fn list_schema(schema: &str, list: &str, item: &Value) -> Value {
    let (mut gvk, kind) = (item.clone(), &item["kind"].as_str().unwrap_or(""));
    gvk["kind"] = list.into();
    json!({
        "description": format!("{list} is a list of objects of kind {kind}."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "allOf": [refer("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")] },
            "items": { "type": "array", "items": refer(schema) },
        },
        "x-kubernetes-group-version-kind": [gvk],
    })
}

/// The names of all schemas that a value points to.
fn references(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(_)) = map.get("$ref")
                && let Some(name) = reference(value)
            {
                names.insert(name.to_owned());
            }
            map.values().for_each(|inner| references(inner, names));
        }
        Value::Array(list) => list.iter().for_each(|inner| references(inner, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_closed_and_name_what_clients_look_for() {
        let served = Served::of(Catalog::native().clone());
        for (path, document) in documents(&served) {
            let value: Value = serde_json::from_slice(&document.body()).unwrap();
            let mut names = BTreeSet::new();
            references(&value, &mut names);
            for name in names {
                assert!(value["components"]["schemas"].get(&name).is_some(), "{path} lacks {name}");
            }
        }
        let apps: Value = serde_json::from_slice(&documents(&served)["apis/apps/v1"].body()).unwrap();
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"));
        let schema = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    }

    #[test]
    fn a_known_document_is_not_sent_again() {
        let served = Served::of(Catalog::native().clone());
        let first = index(&served, &HeaderMap::new());
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(index(&served, &headers).status(), StatusCode::NOT_MODIFIED);
        headers.clear();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let query = Query::default();
        let response = document(&served, "apis/apps/v1", &query, &headers).unwrap();
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        assert!(document(&served, "apis/nothing/v1", &query, &headers).is_err());
    }
}
