//! Request bodies: JSON, YAML and Kubernetes' protobuf become one JSON value.

pub mod protobuf;

use coracle_objects::{FieldError, Kind, schema::types};
use http::{HeaderMap, header};
use serde_json::Value;

use crate::{
    encoding,
    error::ApiError,
    metadata,
    options::{DeleteOptions, FieldValidation},
    request::Request,
    strict::{self, Decoded},
    typed,
};

/// Bytes of a request body that are read; kube-apiserver's limit.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A decoded body and what is to be said about it in `Warning` headers.
#[derive(Debug)]
pub struct Body {
    pub value: Value,
    pub warnings: Vec<String>,
}

/// A request's body with the headers that tell what it is.
#[derive(Clone, Copy)]
pub struct Content<'a> {
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

impl<'a> Content<'a> {
    pub fn media_type(&self) -> &'a str {
        let header = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        media_type(header.unwrap_or(""))
    }
}

impl<'a> From<&'a Request> for Content<'a> {
    fn from(request: &'a Request) -> Self {
        Self { headers: &request.headers, body: &request.body }
    }
}

/// The part of a Content-Type before its parameters.
pub fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}

/// Decodes the body as an object of this apiVersion and kind, whose schema is named. No Content-Type means JSON.
pub fn decode<'a>(
    content: impl Into<Content<'a>>,
    expected: &Expected<'_>,
    validation: FieldValidation,
) -> Result<Body, ApiError> {
    let Decoded { mut value, duplicates } = parse(content.into(), expected)?;
    if !value.is_object() {
        return Err(ApiError::BadRequest(format!(
            "couldn't get version/kind; json parse error: the body is no {} object",
            expected.kind
        )));
    }
    expected.check_kind(&mut value)?;
    let types = match expected.declared {
        Some(kind) => kind.types(),
        None => types(),
    };
    let findings = typed::conform(&mut value, types, expected.schema);
    if let Some(error) = findings.too_many {
        return Err(ApiError::Invalid {
            group: expected.group.to_owned(),
            kind: expected.kind.to_owned(),
            name: metadata::text(&value, "name").to_owned(),
            errors: vec![error],
        });
    }
    if let Some(mismatch) = findings.mismatch {
        if let Some(kind) = expected.declared {
            refuse_declared(kind, &value)?;
        }
        return Err(expected.cannot_be_handled(&mismatch));
    }
    let warnings = faults(&findings.unknown, &duplicates, validation);
    if validation == FieldValidation::Strict && !warnings.is_empty() {
        let text = format!("strict decoding error: {}", warnings.join(", "));
        return Err(expected.cannot_be_handled(&text));
    }
    Ok(Body { value, warnings })
}

/// Refuses an object of a declared kind by what its schema asks, which says more than that a type does not fit.
pub fn refuse_declared(kind: &Kind, object: &Value) -> Result<(), ApiError> {
    match kind.declared().map(|declared| declared.validate(object, None)) {
        Some(errors) if !errors.is_empty() => {
            Err(ApiError::invalid(kind, metadata::text(object, "name"), errors))
        }
        _ => Ok(()),
    }
}

/// The faults of a document in the words of Kubernetes; none where they are to be ignored.
pub fn faults(unknown: &[String], duplicates: &[String], validation: FieldValidation) -> Vec<String> {
    if validation == FieldValidation::Ignore {
        return Vec::new();
    }
    let unknown = unknown.iter().map(|path| format!("unknown field {path:?}"));
    let duplicates = duplicates.iter().map(|path| format!("duplicate field {path:?}"));
    unknown.chain(duplicates).collect()
}

/// What a body is expected to be.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub schema: &'a str,
    /// The kind, where a definition has declared it: its schema is not among those of this binary.
    pub declared: Option<&'a Kind>,
}

impl<'a> Expected<'a> {
    pub fn of(kind: &'a Kind) -> Self {
        Self {
            group: &kind.group,
            version: &kind.version,
            kind: &kind.kind,
            schema: &kind.schema,
            declared: kind.declared().map(|_| kind),
        }
    }

    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Refuses bodies of another kind; fills in what the body leaves out.
    pub fn check_kind(&self, value: &mut Value) -> Result<(), ApiError> {
        let expected = self.api_version();
        let given = value.get("apiVersion").and_then(Value::as_str).unwrap_or("");
        if !given.is_empty() && given != expected {
            return Err(ApiError::BadRequest(format!(
                "the API version in the data ({given}) does not match the expected API version ({expected})"
            )));
        }
        let given = value.get("kind").and_then(Value::as_str).unwrap_or("");
        if !given.is_empty() && given != self.kind {
            return Err(ApiError::BadRequest(format!(
                "{given} in version {:?} cannot be handled as a {}: the kind in the data ({given}) does not match \
                 the expected kind ({})",
                self.version, self.kind, self.kind
            )));
        }
        value["apiVersion"] = expected.into();
        value["kind"] = self.kind.into();
        Ok(())
    }

    fn cannot_be_handled(&self, text: &str) -> ApiError {
        ApiError::BadRequest(format!(
            "{} in version {:?} cannot be handled as a {}: {text}",
            self.kind, self.version, self.kind
        ))
    }
}

fn parse(content: Content<'_>, expected: &Expected<'_>) -> Result<Decoded, ApiError> {
    match content.media_type() {
        "" | "application/json" | "*/*" => strict::decode_json(content.body)
            .map_err(|error| expected.cannot_be_handled(&format!("json parse error: {error}"))),
        "application/yaml" | "text/yaml" | "application/x-yaml" => strict::decode_yaml(content.body)
            .map_err(|error| expected.cannot_be_handled(&format!("error converting YAML to JSON: {error}"))),
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(content.body)
                .map_err(|error| expected.cannot_be_handled(&error.to_string()))?;
            Ok(Decoded { value, duplicates: Vec::new() })
        }
        other => Err(ApiError::UnsupportedMediaType {
            reason: format!(
                "the body of the request was in an unknown format - accepted media types include: {} \
                 (this one is {other})",
                encoding::ACCEPTED
            ),
        }),
    }
}

/// Decodes a patch: JSON or YAML without a kind. The duplicates of its fields are the second part.
pub fn decode_patch(request: &Request, yaml: bool) -> Result<(Value, Vec<String>), ApiError> {
    let decoded = if yaml {
        strict::decode_yaml(&request.body).map_err(|error| error.to_string())
    } else {
        strict::decode_json(&request.body).map_err(|error| error.to_string())
    };
    let decoded = decoded.map_err(|error| ApiError::BadRequest(format!("error decoding patch: {error}")))?;
    Ok((decoded.value, decoded.duplicates))
}

/// So much of a patch is shown in its refusal, in bytes.
const PATCH_SHOWN_MAX: usize = 1024;

/// The refusal of a patch whose result is not of the type.
pub fn patch_error(patch: &[u8], text: &str) -> ApiError {
    let patch = &patch[..patch.len().min(PATCH_SHOWN_MAX)];
    ApiError::Invalid {
        group: String::new(),
        kind: String::new(),
        name: String::new(),
        errors: vec![FieldError::invalid("patch", String::from_utf8_lossy(patch).into_owned(), text)],
    }
}

/// `metav1.DeleteOptions` of a body; the defaults where there is none.
pub fn delete_options(request: &Request) -> Result<DeleteOptions, ApiError> {
    if request.body.is_empty() {
        return Ok(DeleteOptions::default());
    }
    let expected = Expected {
        group: "meta.k8s.io",
        version: "v1",
        kind: "DeleteOptions",
        schema: "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        declared: None,
    };
    let mut value = parse(request.into(), &expected)?.value;
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or("");
    if !matches!(kind, "" | "DeleteOptions") {
        return Err(ApiError::BadRequest(format!(
            "decoded object cannot be converted to DeleteOptions: it is a {kind}"
        )));
    }
    if let Some(mismatch) = typed::conform(&mut value, types(), expected.schema).mismatch {
        return Err(expected.cannot_be_handled(&mismatch));
    }
    serde_json::from_value(value).map_err(|error| expected.cannot_be_handled(&error.to_string()))
}
