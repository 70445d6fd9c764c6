//! In which form an answer goes out, and its rendering from the raw bytes of objects.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use coracle_objects::{Kind, Object, Revision};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::{error::ApiError, options::Query, table};

const NOT_ACCEPTABLE: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// How much of each object a table's row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// The form of an answer, as the client's Accept header asks for it. All are JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Object,
    Table { version: &'static str, include: Include },
    Metadata { version: &'static str },
}

/// One media range of an Accept header.
pub struct MediaRange<'a> {
    pub media_type: &'a str,
    parameters: &'a str,
}

impl<'a> MediaRange<'a> {
    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters
            .split(';')
            .filter_map(|part| part.split_once('='))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    }

    pub fn is_json(&self) -> bool {
        matches!(self.media_type, "application/json" | "application/*" | "*/*")
    }
}

/// The media ranges that a client accepts, in its order; none means anything.
pub fn accepted(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let ranges: Vec<MediaRange<'_>> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|range| !range.trim().is_empty())
        .map(|range| {
            let (media_type, parameters) = range.split_once(';').unwrap_or((range, ""));
            MediaRange { media_type: media_type.trim(), parameters }
        })
        .collect();
    if ranges.is_empty() { vec![MediaRange { media_type: "*/*", parameters: "" }] } else { ranges }
}

/// The form to answer in. `tables` tells whether this endpoint has any; 406 where nothing fits.
pub fn negotiate(headers: &HeaderMap, query: &Query, tables: bool) -> Result<Form, ApiError> {
    for range in accepted(headers) {
        if !range.is_json() {
            continue;
        }
        let group = range.parameter("g").unwrap_or("");
        let version = match range.parameter("v") {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        };
        match (range.parameter("as"), group, version) {
            (None, _, _) => return Ok(Form::Object),
            (Some("Table"), "meta.k8s.io", Some(version)) if tables => {
                let include = match query.get("includeObject") {
                    None | Some("Metadata") => Include::Metadata,
                    Some("Object") => Include::Object,
                    Some("None") => Include::None,
                    Some(other) => {
                        return Err(ApiError::BadRequest(format!(
                            "unrecognized includeObject value: {other:?}: must be None, Metadata or Object"
                        )));
                    }
                };
                return Ok(Form::Table { version, include });
            }
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), "meta.k8s.io", Some(version))
                if tables =>
            {
                return Ok(Form::Metadata { version });
            }
            _ => {}
        }
    }
    Err(ApiError::NotAcceptable { accepted: NOT_ACCEPTABLE })
}

/// An answer with a JSON body.
pub fn json_bytes(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub fn json_value(status: StatusCode, value: &Value) -> Response {
    json_bytes(status, value.to_string())
}

/// A Status of success, the answer to a delete.
pub fn success(details: Value) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    json_value(StatusCode::OK, &status)
}

/// Adds what a client should hear about its request (RFC 7234, code 299).
pub fn warn(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.replace('\\', "\\\\").replace('"', "\\\"");
        let text: String =
            text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// An object's JSON in the form of `kind`, which may differ from the stored one where kinds share their storage.
pub fn present(kind: &Kind, object: &Object) -> Bytes {
    // What a dry run would create has no revision.
    let unborn = object.revision == 0;
    if kind.storage.is_none() {
        return if unborn { object.draft() } else { object.json.clone() };
    }
    present_value(kind, object).to_string().into()
}

/// As [`present`], parsed.
pub fn present_value(kind: &Kind, object: &Object) -> Value {
    let mut value: Value = object.parse().unwrap_or_default();
    if kind.storage.is_some() {
        (kind.from_storage)(&mut value);
        value["kind"] = kind.kind.into();
        value["apiVersion"] = kind.api_version().into();
    }
    value
}

#[derive(Deserialize)]
struct MetadataOnly<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

/// `PartialObjectMetadata` of an object, its metadata copied as bytes.
pub fn metadata_only(object: &Object, version: &str) -> Bytes {
    let parsed: Option<MetadataOnly<'_>> = serde_json::from_slice(&object.json).ok();
    let metadata = parsed.and_then(|parsed| parsed.metadata).map_or("{}", RawValue::get);
    format!(
        r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/{version}","metadata":{metadata}}}"#
    )
    .into()
}

/// One object in a form; what GET, POST, PUT and PATCH answer and what events carry.
pub fn one(kind: &Kind, object: &Object, form: Form, now: Timestamp) -> Bytes {
    match form {
        Form::Object => present(kind, object),
        Form::Metadata { version } => metadata_only(object, version),
        Form::Table { version, include } => {
            table::render(kind, &[object], include, version, now, &ListMeta::at(object.revision), true).into()
        }
    }
}

/// What stands in a list's metadata.
#[derive(Clone, Debug, Default)]
pub struct ListMeta {
    pub revision: Revision,
    pub continuation: Option<String>,
    pub remaining: Option<usize>,
}

impl ListMeta {
    pub fn at(revision: Revision) -> Self {
        Self { revision, ..Self::default() }
    }

    pub fn json(&self) -> String {
        let mut meta = json!({ "resourceVersion": self.revision.to_string() });
        if let Some(token) = &self.continuation {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta.to_string()
    }
}

/// A list in a form. Objects' bytes are concatenated, not parsed, but for tables.
pub fn list(kind: &Kind, objects: &[Arc<Object>], form: Form, now: Timestamp, meta: &ListMeta) -> Vec<u8> {
    let (list_kind, api_version) = match form {
        Form::Object => (format!("{}List", kind.kind), kind.api_version()),
        Form::Metadata { version } => {
            ("PartialObjectMetadataList".to_owned(), format!("meta.k8s.io/{version}"))
        }
        Form::Table { version, include } => {
            let objects: Vec<&Object> = objects.iter().map(Arc::as_ref).collect();
            return table::render(kind, &objects, include, version, now, meta, true);
        }
    };
    let size: usize = objects.iter().map(|object| object.json.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    let head = format!(
        r#"{{"kind":"{list_kind}","apiVersion":"{api_version}","metadata":{},"items":["#,
        meta.json()
    );
    out.extend_from_slice(head.as_bytes());
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        match form {
            Form::Metadata { version } => out.extend_from_slice(&metadata_only(object, version)),
            _ => out.extend_from_slice(&present(kind, object)),
        }
    }
    out.extend_from_slice(b"]}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str, tables: bool) -> Result<Form, ApiError> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        negotiate(&headers, &Query::default(), tables)
    }

    #[test]
    fn the_first_form_that_fits_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;\
                       g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl, true).unwrap(), Form::Table { version: "v1", include: Include::Metadata });
        assert_eq!(form(kubectl, false).unwrap(), Form::Object);
        assert_eq!(form("", true).unwrap(), Form::Object);
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json", true).unwrap(), Form::Object);
        assert_eq!(
            form("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", true).unwrap(),
            Form::Metadata { version: "v1" }
        );
        assert!(form("application/json;as=Table;v=v1;g=meta.k8s.io", false).is_err());
        assert!(form("application/vnd.kubernetes.protobuf", true).is_err());
        assert!(form("text/html", true).is_err());
    }

    #[test]
    fn warnings_are_quoted() {
        let mut response = json_bytes(StatusCode::OK, "{}");
        warn(&mut response, &["unknown field \"x\"".to_owned()]);
        assert_eq!(response.headers()[header::WARNING], r#"299 - "unknown field \"x\"""#);
    }
}
