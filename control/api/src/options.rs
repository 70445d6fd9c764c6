//! The query options of requests, parsed at the edge.

use std::time::Duration;

use coracle_objects::{
    FieldError, FieldSelector, Kind, LabelSelector, Object, Revision, deletion::Propagation,
};
use serde::Deserialize;

use crate::{answer, error::ApiError};

/// The decoded query of a request, in order. The first value of a name counts, as in Kubernetes.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(uri: &http::Uri) -> Result<Self, ApiError> {
        axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map(|query| Self(query.0))
            .map_err(|error| ApiError::BadRequest(format!("the query cannot be read: {error}")))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// A boolean as Kubernetes reads it: anything but `false` and `0` is true, also nothing behind the name.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| !matches!(value.as_str(), "false" | "0" | "False" | "FALSE" | "F" | "f"))
    }

    pub fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            ApiError::BadRequest(format!("invalid value for query parameter {name}: {text:?} is no integer"))
        })
    }
}

impl Query {
    /// A duration in Go's form: `1m30s`, `500ms`, `0`.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        duration(text).map(Some).ok_or_else(|| {
            ApiError::BadRequest(format!("invalid {name} specified in the request URL - got: {text:?}"))
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let unit_at = rest.find(|char: char| !char.is_ascii_digit() && char != '.')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        let unit_end =
            rest[unit_at..].find(|char: char| char.is_ascii_digit()).map_or(rest.len(), |at| unit_at + at);
        let seconds = match &rest[unit_at..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

/// A resourceVersion that a client gave.
pub fn revision(text: &str) -> Result<Revision, ApiError> {
    text.parse().map_err(|_| ApiError::Invalid {
        group: String::new(),
        kind: String::new(),
        name: String::new(),
        errors: vec![FieldError::invalid("resourceVersion", text, "must be a decimal integer")],
    })
}

/// How a given resourceVersion is to be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionMatch {
    Exact,
    NotOlderThan,
}

/// The options of LIST, WATCH and DELETECOLLECTION.
#[derive(Clone, Debug)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// None where unset.
    pub revision: Option<Revision>,
    pub revision_match: Option<RevisionMatch>,
    /// None is no limit.
    pub limit: Option<usize>,
    pub continuation: Option<String>,
    pub watch: bool,
    pub bookmarks: bool,
    pub timeout_seconds: Option<u64>,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    pub fn parse(kind: &Kind, query: &Query) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or(""))
            .map_err(|error| ApiError::BadRequest(error.to_string()))?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or(""))
            .map_err(|error| ApiError::BadRequest(error.to_string()))?;
        fields.check(kind).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        let revision_match = match query.get("resourceVersionMatch") {
            None => None,
            Some("Exact") => Some(RevisionMatch::Exact),
            Some("NotOlderThan") => Some(RevisionMatch::NotOlderThan),
            Some(other) => {
                let error =
                    FieldError::not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan", ""]);
                return Err(invalid_options(vec![error]));
            }
        };
        let options = Self {
            labels,
            fields,
            revision: query.get("resourceVersion").map(revision).transpose()?,
            revision_match,
            limit: query.integer("limit")?.filter(|limit| *limit > 0).map(|limit| limit as usize),
            continuation: query.get("continue").map(str::to_owned),
            watch: query.flag("watch").unwrap_or(false),
            bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            timeout_seconds: query.integer("timeoutSeconds")?.map(|seconds| seconds.max(0) as u64),
            send_initial_events: query.flag("sendInitialEvents"),
        };
        options.validate()?;
        Ok(options)
    }

    /// Whether an object of the kind is selected by its labels and fields.
    pub fn selects(&self, kind: &Kind, object: &Object) -> bool {
        self.labels.matches(&object.meta.labels) && self.fields_match(kind, object)
    }

    fn fields_match(&self, kind: &Kind, object: &Object) -> bool {
        if !kind.is_converted() || self.fields.is_everything() {
            return self.fields.matches(object);
        }
        // The fields are those of the kind's own form, which is not the stored one.
        self.fields.matches_value(&answer::present_value(kind, object))
    }

    fn validate(&self) -> Result<(), ApiError> {
        let mut errors = Vec::new();
        let mut forbid = |field: &str, detail: &str| errors.push(FieldError::forbidden(field, detail));
        if self.watch {
            match (self.send_initial_events, self.revision_match) {
                (None, Some(_)) => {
                    forbid(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    );
                }
                (Some(_), matching) if matching != Some(RevisionMatch::NotOlderThan) => forbid(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ),
                _ => {}
            }
        } else {
            if self.send_initial_events.is_some() {
                forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
            }
            if self.revision_match.is_some() && self.revision.is_none() {
                forbid(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                );
            }
            if self.revision_match.is_some() && self.continuation.is_some() {
                forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
            }
            if self.revision_match == Some(RevisionMatch::Exact) && self.revision == Some(0) {
                forbid(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                );
            }
            if self.continuation.is_some() && self.revision.is_some_and(|revision| revision != 0) {
                return Err(ApiError::BadRequest(
                    "specifying resource version is not allowed when using continue".to_owned(),
                ));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(invalid_options(errors)) }
    }
}

fn invalid_options(errors: Vec<FieldError>) -> ApiError {
    ApiError::Invalid {
        group: "meta.k8s.io".to_owned(),
        kind: "ListOptions".to_owned(),
        name: String::new(),
        errors,
    }
}

/// What to do about unknown and duplicate fields in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The options of POST, PUT and PATCH.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
}

impl WriteOptions {
    pub fn parse(query: &Query) -> Result<Self, ApiError> {
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let error =
                    FieldError::not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
                return Err(invalid_write(error));
            }
        };
        Ok(Self { dry_run: dry_run(query.all("dryRun"))?, field_validation })
    }
}

/// Whether the values of `dryRun` ask for one.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, ApiError> {
    let mut asked = false;
    for value in values {
        match value {
            "" => {}
            "All" => asked = true,
            other => return Err(invalid_write(FieldError::not_supported("dryRun", other, &["All"]))),
        }
    }
    Ok(asked)
}

fn invalid_write(error: FieldError) -> ApiError {
    ApiError::Invalid {
        group: "meta.k8s.io".to_owned(),
        kind: "CreateOptions".to_owned(),
        name: String::new(),
        errors: vec![error],
    }
}

/// `metav1.DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Option<DeletePreconditions>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeletePreconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Fills in from the query what the body does not say.
    pub fn with_query(mut self, query: &Query) -> Result<Self, ApiError> {
        if self.grace_period_seconds.is_none() {
            self.grace_period_seconds = query.integer("gracePeriodSeconds")?;
        }
        if self.propagation_policy.is_none() {
            self.propagation_policy = query.get("propagationPolicy").map(str::to_owned);
        }
        if self.orphan_dependents.is_none() {
            self.orphan_dependents = query.flag("orphanDependents");
        }
        if self.dry_run.is_none() && query.has("dryRun") {
            self.dry_run = Some(query.all("dryRun").map(str::to_owned).collect());
        }
        Ok(self)
    }

    pub fn dry_run(&self) -> Result<bool, ApiError> {
        dry_run(self.dry_run.iter().flatten().map(String::as_str))
    }

    /// None where the client leaves it to the kind.
    pub fn propagation(&self) -> Result<Option<Propagation>, ApiError> {
        match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some("Background"), _) => Ok(Some(Propagation::Background)),
            (Some("Foreground"), _) => Ok(Some(Propagation::Foreground)),
            (Some("Orphan"), _) | (None, Some(true)) => Ok(Some(Propagation::Orphan)),
            (None, Some(false)) => Ok(Some(Propagation::Background)),
            (None, None) | (Some(""), _) => Ok(None),
            (Some(other), _) => Err(ApiError::Invalid {
                group: "meta.k8s.io".to_owned(),
                kind: "DeleteOptions".to_owned(),
                name: String::new(),
                errors: vec![FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    &["Foreground", "Background", "Orphan"],
                )],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(&format!("/x?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn the_first_value_of_a_name_counts() {
        let query = query("a=1&a=2&b=&watch&follow=false&x=%7By%7D");
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!(query.get("b"), None);
        assert_eq!(query.flag("watch"), Some(true));
        assert_eq!(query.flag("follow"), Some(false));
        assert_eq!(query.get("x"), Some("{y}"));
        assert!(query.integer("x").is_err());
    }

    #[test]
    fn list_options_that_contradict_each_other_are_refused() {
        let kind = coracle_objects::by_plural("", "v1", "pods").unwrap();
        for bad in [
            "resourceVersionMatch=Exact",
            "resourceVersion=0&resourceVersionMatch=Exact",
            "sendInitialEvents=true",
            "watch=1&sendInitialEvents=true",
            "watch=1&resourceVersion=3&resourceVersionMatch=NotOlderThan",
            "resourceVersionMatch=Sometimes&resourceVersion=1",
            "fieldSelector=spec.nonsense=1",
            "resourceVersion=abc",
        ] {
            assert!(ListOptions::parse(kind, &query(bad)).is_err(), "{bad}");
        }
        for good in [
            "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            "limit=500",
            "fieldSelector=spec.nodeName=n,spec.nodeName=n&labelSelector=a in (b,c)",
        ] {
            let good = good.replace(' ', "%20");
            assert!(ListOptions::parse(kind, &query(&good)).is_ok(), "{good}");
        }
    }

    #[test]
    fn delete_options_come_from_body_and_query() {
        let options: DeleteOptions = serde_json::from_str(r#"{"orphanDependents":false}"#).unwrap();
        let options = options.with_query(&query("gracePeriodSeconds=0&dryRun=All")).unwrap();
        assert_eq!(options.grace_period_seconds, Some(0));
        assert!(options.dry_run().unwrap());
        assert_eq!(options.propagation().unwrap(), Some(Propagation::Background));
    }
}
