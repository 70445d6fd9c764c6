//! What is wrong with one field of an object, in the words of Kubernetes.

use std::fmt;

use serde_json::Value;

/// Faults that one object is refused with; more of them help nobody. A check of a long list ends where it has so many.
pub const FIELD_ERRORS_MAX: usize = 1000;

/// The kind of fault. [`Cause::reason`] is what clients see in `status.details.causes[].reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Required,
    Invalid,
    NotSupported,
    Forbidden,
    Duplicate,
    TooLong,
    TooMany,
    TypeInvalid,
    NotFound,
}

impl Cause {
    /// The machine-readable reason of a `StatusCause`.
    pub fn reason(self) -> &'static str {
        match self {
            Cause::Required => "FieldValueRequired",
            Cause::Invalid => "FieldValueInvalid",
            Cause::NotSupported => "FieldValueNotSupported",
            Cause::Forbidden => "FieldValueForbidden",
            Cause::Duplicate => "FieldValueDuplicate",
            Cause::TooLong => "FieldValueTooLong",
            Cause::TooMany => "FieldValueTooMany",
            Cause::TypeInvalid => "FieldValueTypeInvalid",
            Cause::NotFound => "FieldValueNotFound",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Cause::Required => "Required value",
            Cause::Invalid | Cause::TypeInvalid => "Invalid value",
            Cause::NotSupported => "Unsupported value",
            Cause::Forbidden => "Forbidden",
            Cause::Duplicate => "Duplicate value",
            Cause::TooLong => "Too long",
            Cause::TooMany => "Too many",
            Cause::NotFound => "Not found",
        }
    }
}

/// One fault of one field. `Display` is the whole sentence: `spec.replicas: Invalid value: -1: must be ...`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// The path from the object's root: `spec.containers[0].name`.
    pub field: String,
    pub reason: Cause,
    /// The value at fault, where the message shows it.
    pub value: Option<Value>,
    /// May be empty.
    pub detail: String,
}

impl FieldError {
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), reason: Cause::Required, value: None, detail: detail.into() }
    }

    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), reason: Cause::Invalid, value: Some(value.into()), detail: detail.into() }
    }

    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), reason: Cause::Forbidden, value: None, detail: detail.into() }
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        let value = Some(value.into());
        Self { field: field.into(), reason: Cause::Duplicate, value, detail: String::new() }
    }

    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        let value = Some(value.into());
        Self { field: field.into(), reason: Cause::NotFound, value, detail: String::new() }
    }

    /// `supported` in the order in which the message shall name them.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|one| format!("{one:?}")).collect();
        Self {
            field: field.into(),
            reason: Cause::NotSupported,
            value: Some(value.into()),
            detail: format!("supported values: {}", quoted.join(", ")),
        }
    }

    /// `limit` in bytes.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let detail = format!("may not be more than {limit} bytes");
        Self { field: field.into(), reason: Cause::TooLong, value: None, detail }
    }

    pub fn too_many(field: impl Into<String>, count: usize, limit: usize) -> Self {
        Self {
            field: field.into(),
            reason: Cause::TooMany,
            value: Some(count.into()),
            detail: format!("must have at most {limit} items"),
        }
    }

    /// A value of the wrong JSON type: `expected` is an article and a type, `a string`.
    pub fn wrong_type(field: impl Into<String>, value: impl Into<Value>, expected: &str) -> Self {
        Self {
            field: field.into(),
            reason: Cause::TypeInvalid,
            value: Some(value.into()),
            detail: format!("must be {expected}"),
        }
    }

    /// The sentence without the field: the message of a `StatusCause`.
    pub fn body(&self) -> String {
        let mut text = self.reason.text().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.body())
        } else {
            write!(f, "{}: {}", self.field, self.body())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_those_of_kubernetes() {
        let cases = [
            (FieldError::required("spec.selector", ""), "spec.selector: Required value"),
            (
                FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                FieldError::not_supported("spec.restartPolicy", "Maybe", &["Always", "Never"]),
                r#"spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "Never""#,
            ),
            (
                FieldError::duplicate("spec.containers[1].name", "a"),
                r#"spec.containers[1].name: Duplicate value: "a""#,
            ),
            (FieldError::too_long("data[x]", 5), "data[x]: Too long: may not be more than 5 bytes"),
        ];
        for (error, expected) in cases {
            assert_eq!(error.to_string(), expected);
        }
    }
}
