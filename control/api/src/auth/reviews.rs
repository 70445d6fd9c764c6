//! Kinds that are answered and never stored: who am I, may I do this.

use axum::response::Response;
use coracle_objects::fields;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Identity;
use crate::{
    answer,
    body::{self, Content, Expected},
    error::ApiError,
    metadata,
};

/// One review kind. All are cluster-scoped and can only be created.
#[derive(Debug)]
pub struct Review {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub schema: &'static str,
}

pub static REVIEWS: &[Review] = &[
    Review {
        group: "authentication.k8s.io",
        version: "v1",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
    },
    // kubectl 1.27 asks in the version before.
    Review {
        group: "authentication.k8s.io",
        version: "v1beta1",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
    },
];

impl Review {
    pub fn singular(&self) -> String {
        self.kind.to_lowercase()
    }
}

/// Answers a review.
pub fn answer(
    review: &'static Review,
    method: &Method,
    content: Content<'_>,
    identity: &Identity,
    now: jiff::Timestamp,
) -> Result<Response, ApiError> {
    if method != Method::POST {
        return Err(ApiError::MethodNotAllowed);
    }
    let expected = Expected {
        group: review.group,
        version: review.version,
        kind: review.kind,
        schema: review.schema,
        declared: None,
    };
    let mut object = body::decode(content, &expected, crate::options::FieldValidation::Warn)?.value;
    metadata::of(&mut object).insert("creationTimestamp".to_owned(), metadata::time(now).into());
    object["status"] = status(review, &object, identity);
    Ok(answer::json_value(StatusCode::CREATED, &object))
}

fn status(review: &Review, object: &Value, identity: &Identity) -> Value {
    match review.kind {
        "SelfSubjectReview" => {
            json!({ "userInfo": { "username": identity.user, "groups": identity.groups } })
        }
        "SelfSubjectRulesReview" if identity.is_master() => json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        }),
        "SelfSubjectRulesReview" => {
            json!({ "resourceRules": [], "nonResourceRules": health_rules(), "incomplete": false })
        }
        "SubjectAccessReview" => {
            let groups = fields::list(object, "/spec/groups").iter().filter_map(Value::as_str);
            let subject = Identity {
                user: fields::text(object, "/spec/user").to_owned(),
                groups: groups.map(str::to_owned).collect(),
            };
            access(object, &subject)
        }
        _ => access(object, identity),
    }
}

fn health_rules() -> Value {
    json!([{ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version"] }])
}

fn access(object: &Value, identity: &Identity) -> Value {
    let path = fields::text(object, "/spec/nonResourceAttributes/path").trim_end_matches('/');
    let health = matches!(path, "/healthz" | "/livez" | "/readyz" | "/version");
    json!({ "allowed": identity.is_master() || health })
}
