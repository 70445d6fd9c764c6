//! In which form an answer goes out, and its rendering from the raw bytes of objects.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use coracle_objects::{Kind, Object, Revision};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::{encoding, error::ApiError, options::Query, table};

/// Letters of a warning that are sent, and bytes of all warnings together. Upstream cuts likewise.
const WARNING_LETTERS_MAX: usize = 256;
const WARNINGS_BYTES_MAX: usize = 4096;

/// How much of each object a table's row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// The form of an answer, as the client's Accept header asks for it. All are made in JSON.
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

    /// The same for another media type.
    pub fn of_type(&self, media_type: &str) -> String {
        match self.parameters {
            "" => media_type.to_owned(),
            parameters => format!("{media_type};{parameters}"),
        }
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
    Err(ApiError::NotAcceptable { accepted: encoding::ACCEPTED })
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

/// Adds what a client should hear about its request (RFC 7234, code 299): the beginning of each warning, and no more of
/// them than a head has room for.
pub fn warn(response: &mut Response, warnings: &[String]) {
    let mut left = WARNINGS_BYTES_MAX;
    for warning in warnings {
        let mut text = String::with_capacity(WARNING_LETTERS_MAX);
        for letter in warning.chars().take(WARNING_LETTERS_MAX) {
            match letter {
                '\\' | '"' => text.extend(['\\', letter]),
                letter if letter.is_control() => text.push(' '),
                letter => text.push(letter),
            }
        }
        let Some(rest) = left.checked_sub(text.len()) else { return };
        left = rest;
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(format!("299 - \"{text}\""))) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// An object's JSON in the form of `kind`, which may differ from the stored one where kinds share their storage.
pub fn present(kind: &Kind, object: &Object) -> Bytes {
    // What a dry run would create has no revision.
    let unborn = object.revision == 0;
    if kind.is_form_of(&object.json) {
        return if unborn { object.draft() } else { object.json.clone() };
    }
    present_value(kind, object).to_string().into()
}

/// As [`present`], parsed.
pub fn present_value(kind: &Kind, object: &Object) -> Value {
    let mut value: Value = object.parse().unwrap_or_default();
    if !kind.is_form_of(&object.json) {
        kind.from_storage(&mut value);
        value["kind"] = (*kind.kind).into();
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

    #[test]
    fn warnings_fit_into_a_head_whatever_they_quote() {
        let mut response = json_bytes(StatusCode::OK, "{}");
        let warnings = vec![format!("{}{}", "\"\n\r\u{85}\u{e9}", "x".repeat(100_000)); 100];
        warn(&mut response, &warnings);
        let sent: Vec<&[u8]> =
            response.headers().get_all(header::WARNING).iter().map(HeaderValue::as_bytes).collect();
        assert!((10..20).contains(&sent.len()), "{}", sent.len());
        assert!(sent.iter().map(|value| value.len()).sum::<usize>() < 5000);
        assert!(sent[0].starts_with("299 - \"\\\"   \u{e9}xxx".as_bytes()));
        assert!(sent.iter().all(|value| value.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f)));
    }
}
