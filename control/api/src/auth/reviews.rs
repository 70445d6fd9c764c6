//! Kinds that are answered and never stored: who am I, may I do this.

use axum::response::Response;
use coracle_objects::fields;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Attributes, UserInfo};
use crate::{
    answer,
    body::{self, Content, Expected},
    config::ApiConfig,
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
    user: &UserInfo,
    config: &ApiConfig,
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
    metadata::of(&mut object).insert("creationTimestamp".to_owned(), metadata::time((config.now)()).into());
    object["status"] = status(review, &object, user, config);
    Ok(answer::json_value(StatusCode::CREATED, &object))
}

fn status(review: &Review, object: &Value, user: &UserInfo, config: &ApiConfig) -> Value {
    match review.kind {
        "SelfSubjectReview" => {
            let mut told = json!({ "username": user.name, "groups": user.groups });
            if !user.uid.is_empty() {
                told["uid"] = user.uid.as_str().into();
            }
            if !user.extra.is_empty() {
                told["extra"] = json!(user.extra);
            }
            json!({ "userInfo": told })
        }
        "SelfSubjectRulesReview" => rules(user, config),
        "SubjectAccessReview" => {
            let groups = fields::list(object, "/spec/groups").iter().filter_map(Value::as_str);
            let subject = UserInfo {
                name: fields::text(object, "/spec/user").to_owned(),
                uid: fields::text(object, "/spec/uid").to_owned(),
                groups: groups.map(str::to_owned).collect(),
                ..UserInfo::default()
            };
            access(object, &subject, config)
        }
        _ => access(object, user, config),
    }
}

/// All rules, where everything is allowed; of others those that everybody has, and that there may be more.
fn rules(user: &UserInfo, config: &ApiConfig) -> Value {
    let everything =
        Attributes { verb: "*", group: "*", version: "*", resource: "*", ..Attributes::default() };
    if config.authorizer.authorize(user, &everything).is_allowed() {
        return json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        });
    }
    json!({ "resourceRules": [], "nonResourceRules": health_rules(), "incomplete": true })
}

fn health_rules() -> Value {
    json!([{ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version"] }])
}

/// What the authorizer says of what a review asks about.
fn access(object: &Value, user: &UserInfo, config: &ApiConfig) -> Value {
    let text = |path: &str| fields::text(object, path);
    let attributes = if fields::present(object, "/spec/nonResourceAttributes") {
        let path = text("/spec/nonResourceAttributes/path");
        Attributes { verb: text("/spec/nonResourceAttributes/verb"), path, ..Attributes::default() }
    } else {
        let of = |field: &str| fields::text(object, &format!("/spec/resourceAttributes/{field}"));
        Attributes {
            verb: of("verb"),
            group: of("group"),
            version: of("version"),
            resource: of("resource"),
            subresource: of("subresource"),
            namespace: of("namespace"),
            name: of("name"),
            path: "",
        }
    };
    json!({ "allowed": config.authorizer.authorize(user, &attributes).is_allowed() })
}
