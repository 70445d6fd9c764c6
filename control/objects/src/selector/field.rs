//! Field selectors: `status.phase=Running,spec.nodeName!=a`.

use std::fmt;

use serde_json::Value;

use super::SelectorError;
use crate::{kind::Kind, object::Object};

/// Terms of one selector: each is asked of each object of a list or watch.
pub const TERMS_MAX: usize = 100;

/// Comparisons of fields with text, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// `metadata.name`.
    pub field: String,
    pub negated: bool,
    pub value: String,
}

impl FieldSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Parses the query parameter `fieldSelector`: `=`, `==` and `!=`, terms separated by commas; in values a backslash
    /// escapes a backslash, comma or equals sign.
    pub fn parse(query: &str) -> Result<Self, SelectorError> {
        let broken = |term: &str| SelectorError::Field(query.to_owned(), term.to_owned());
        let mut terms = Vec::new();
        for term in split_unescaped(query).into_iter().filter(|term| !term.is_empty()) {
            let at = term.find(['=', '!']).ok_or_else(|| broken(term))?;
            let (field, rest) = term.split_at(at);
            let (negated, value) = if let Some(value) = rest.strip_prefix("!=") {
                (true, value)
            } else if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
                (false, value)
            } else {
                return Err(broken(term));
            };
            let value = unescape(value).ok_or_else(|| broken(term))?;
            if terms.len() >= TERMS_MAX {
                return Err(SelectorError::TooMany(TERMS_MAX));
            }
            terms.push(FieldTerm { field: field.trim().to_owned(), negated, value });
        }
        Ok(Self { terms })
    }

    /// Refuses fields that the kind cannot be selected by.
    pub fn check(&self, kind: &Kind) -> Result<(), SelectorError> {
        let supported = |field: &str| {
            field == "metadata.name"
                || field == "metadata.namespace"
                || kind.selectable_fields.iter().any(|selectable| selectable == field)
        };
        match self.terms.iter().find(|term| !supported(&term.field)) {
            Some(term) => Err(SelectorError::FieldNotSupported(term.field.clone())),
            None => Ok(()),
        }
    }

    /// The selector for objects as they are stored, where their form differs from the kind's.
    pub fn in_storage(&self, kind: &Kind) -> Self {
        let stored = |term: &FieldTerm| FieldTerm {
            field: kind.storage_field(&term.field).unwrap_or_else(|| term.field.clone()),
            ..term.clone()
        };
        Self { terms: self.terms.iter().map(stored).collect() }
    }

    /// The value that a field must have, if the selector asks for one: lets a list of one name be a get.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| !term.negated && term.field == field).map(|term| term.value.as_str())
    }

    /// Matches an object; its JSON is parsed only where a field beside name and namespace is asked for.
    pub fn matches(&self, object: &Object) -> bool {
        let by_key = |term: &FieldTerm| match term.field.as_str() {
            "metadata.name" => Some((object.name() == term.value) != term.negated),
            "metadata.namespace" => Some((object.namespace() == term.value) != term.negated),
            _ => None,
        };
        if self.terms.iter().any(|term| by_key(term) == Some(false)) {
            return false;
        }
        if self.terms.iter().all(|term| by_key(term).is_some()) {
            return true;
        }
        object.parse::<Value>().is_ok_and(|value| self.matches_value(&value))
    }

    pub fn matches_value(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (lookup(object, &term.field) == term.value) != term.negated)
    }
}

/// The text of a field, as Kubernetes compares it: absent is empty, and false for the two booleans that can be selected.
fn lookup(object: &Value, field: &str) -> String {
    let found = field.split('.').try_fold(object, |value, key| value.get(key)).unwrap_or(&Value::Null);
    match found {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        // An event's `source` is selected by its component, or by who reports it where that is unnamed.
        Value::Object(_) | Value::Null if field == "source" => {
            let component = found.get("component").and_then(Value::as_str).filter(|name| !name.is_empty());
            let reporter = object.get("reportingComponent").and_then(Value::as_str);
            component.or(reporter).unwrap_or("").to_owned()
        }
        _ if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ if field == "status.replicas" => "0".to_owned(),
        _ => String::new(),
    }
}

fn split_unescaped(query: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, byte) in query.bytes().enumerate() {
        match byte {
            b'\\' if !escaped => escaped = true,
            b',' if !escaped => {
                terms.push(&query[start..at]);
                start = at + 1;
            }
            _ => escaped = false,
        }
    }
    terms.push(&query[start..]);
    terms
}

/// None for a bare equals sign or a backslash before anything else than the three that are escaped.
fn unescape(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|next| ['\\', ',', '='].contains(next))?),
            '=' => return None,
            _ => text.push(c),
        }
    }
    Some(text)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{}{value}", term.field, if term.negated { "!=" } else { "=" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{catalog::by_resource, name::ObjectKey};

    #[test]
    fn fields_match() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "one"},
            "status": {"phase": "Running"}, "source": {"component": "scheduler"}, "count": 3});
        let cases = [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace=n", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=one,status.phase!=Succeeded,status.phase!=Failed", true),
            ("spec.nodeName=", false),
            ("spec.absent=", true),
            ("spec.hostNetwork=false", true),
            ("source=scheduler", true),
            ("count=3", true),
        ];
        let object =
            Object::from_draft(ObjectKey::new("pods", "n", "a"), pod.to_string().as_bytes(), 1).unwrap();
        for (query, expected) in cases {
            let selector = FieldSelector::parse(query).unwrap();
            assert_eq!(selector.matches_value(&pod), expected, "{query}");
            assert_eq!(selector.matches(&object), expected, "{query}");
        }
    }

    #[test]
    fn escapes_and_faults() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b\=c\\").unwrap();
        assert_eq!(selector.required("metadata.name"), Some(r"a,b=c\"));
        assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        for query in ["metadata.name", "a=b=c", r"a=\x", "a!b"] {
            assert!(FieldSelector::parse(query).is_err(), "{query}");
        }
        assert!(FieldSelector::parse(&"metadata.name!=a,".repeat(TERMS_MAX)).is_ok());
        assert_eq!(
            FieldSelector::parse(&"metadata.name!=a,".repeat(TERMS_MAX + 1)),
            Err(SelectorError::TooMany(TERMS_MAX))
        );
        let selector = FieldSelector::parse("spec.colour=red").unwrap();
        let refusal = selector.check(by_resource("pods").unwrap()).unwrap_err();
        assert_eq!(refusal.to_string(), "field label not supported: spec.colour");
    }
}
