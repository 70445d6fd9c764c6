//! Deployments.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    age,
    pod::template_defaults,
    pod_template::{self, number},
};
use crate::{
    field_error::FieldError,
    fields::{child, default, default_text, integer, present, text},
    kind::{Column, Native, Subresource},
    validate::rules::{not_negative, one_of, replica_counts},
};

const REVISION_HISTORY: i64 = 10;
const PROGRESS_DEADLINE_SECONDS: i64 = 600;

pub(super) const DEPLOYMENT: Native = Native {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::scale(), Subresource::status("apps", "Deployment")],
    schema: "io.k8s.api.apps.v1.Deployment",
    columns: &[
        Column::name(),
        Column::text("Ready", "How many pods are ready, of how many"),
        Column::integer("Up-to-date", "How many pods are of the newest template"),
        Column::integer("Available", "How many pods have been ready for long enough"),
        Column::age(),
        pod_template::CONTAINERS,
        pod_template::IMAGES,
        pod_template::SELECTOR,
    ],
    cells,
    defaults,
    validate,
    validate_status: |object| {
        replica_counts(object, &["updatedReplicas", "readyReplicas", "availableReplicas"])
    },
    warn: Some(pod_template::warnings),
    generational: &["spec"],
    ..Native::BASE
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas"));
    let mut cells = vec![
        text(object, "/metadata/name").into(),
        ready.into(),
        number(object, "/status/updatedReplicas").into(),
        number(object, "/status/availableReplicas").into(),
        age(text(object, "/metadata/creationTimestamp"), now).into(),
    ];
    cells.extend(pod_template::wide_cells(object));
    cells
}

fn defaults(object: &mut Value) {
    if let Some(spec) = child(object, "spec") {
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", REVISION_HISTORY);
        default(spec, "progressDeadlineSeconds", PROGRESS_DEADLINE_SECONDS);
        if let Some(strategy) = child(spec, "strategy") {
            default_text(strategy, "type", "RollingUpdate");
            if text(strategy, "/type") == "RollingUpdate"
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                default(rolling, "maxUnavailable", "25%");
                default(rolling, "maxSurge", "25%");
            }
        }
        template_defaults(spec);
    }
    default(object, "status", Value::Object(Map::new()));
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = pod_template::validate(object, old, "deployment");
    let strategy = text(object, "/spec/strategy/type");
    one_of("spec.strategy.type", strategy, &["Recreate", "RollingUpdate"], &mut errors);
    if strategy == "Recreate" && present(object, "/spec/strategy/rollingUpdate") {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", detail));
    }
    if strategy == "RollingUpdate" {
        rolling_update(object, &mut errors);
    }
    not_negative(object, "/spec/revisionHistoryLimit", "spec.revisionHistoryLimit", &mut errors);
    if let Some(seconds) = integer(object, "/spec/progressDeadlineSeconds") {
        not_negative(object, "/spec/progressDeadlineSeconds", "spec.progressDeadlineSeconds", &mut errors);
        if seconds <= number(object, "/spec/minReadySeconds") {
            let detail = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid("spec.progressDeadlineSeconds", seconds, detail));
        }
    }
    errors
}

fn rolling_update(object: &Value, errors: &mut Vec<FieldError>) {
    let mut amounts = [None, None];
    for (amount, key) in amounts.iter_mut().zip(["maxUnavailable", "maxSurge"]) {
        let field = format!("spec.strategy.rollingUpdate.{key}");
        let value = object.pointer(&format!("/spec/strategy/rollingUpdate/{key}")).unwrap_or(&Value::Null);
        match value {
            Value::String(percentage) => match parse_percentage(percentage) {
                None => {
                    let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  \
                        or '93%', regex used for validation is '[0-9]+%')";
                    errors.push(FieldError::invalid(field, value.clone(), detail));
                }
                Some(percent) if percent > 100 && key == "maxUnavailable" => {
                    errors.push(FieldError::invalid(field, value.clone(), "must not be greater than 100%"));
                }
                Some(percent) => *amount = Some(percent),
            },
            Value::Number(number) => match number.as_i64() {
                Some(count) if count >= 0 => *amount = Some(count.unsigned_abs()),
                _ => errors.push(FieldError::invalid(
                    field,
                    value.clone(),
                    "must be greater than or equal to 0",
                )),
            },
            _ => errors.push(FieldError::invalid(
                field,
                value.clone(),
                "must be an integer or percentage (e.g '5%%')",
            )),
        }
    }
    if amounts == [Some(0), Some(0)] {
        let value = json!(object.pointer("/spec/strategy/rollingUpdate/maxUnavailable"));
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid("spec.strategy.rollingUpdate.maxUnavailable", value, detail));
    }
}

fn parse_percentage(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('%')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn deployment(spec: Value) -> Value {
        let mut deployment = json!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}});
        crate::patch::merge(&mut deployment["spec"], &spec);
        defaults(&mut deployment);
        deployment
    }

    fn lines(object: &Value, old: Option<&Value>) -> String {
        validate(object, old).iter().map(|error| format!("{error}\n")).collect()
    }

    #[test]
    fn a_deployment_is_filled_in_and_shown() {
        let mut deployment = deployment(json!({"replicas": 3}));
        assert_eq!(lines(&deployment, Some(&deployment)), "");
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}});
        assert_eq!(deployment["spec"]["strategy"], strategy);
        assert_eq!(deployment["spec"]["progressDeadlineSeconds"], 600);
        assert!(deployment["spec"]["template"]["spec"].get("enableServiceLinks").is_none());
        deployment["status"] = json!({"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1});
        let row = cells(&deployment, Timestamp::UNIX_EPOCH);
        assert_eq!(Value::from(row), json!(["a", "2/3", 3, 1, "<unknown>", "c", "x:1", "app=a"]));
    }

    #[test]
    fn deployments_are_checked() {
        let old = deployment(json!({}));
        let new = deployment(
            json!({"replicas": -1, "selector": {"matchLabels": {"app": "b"}}, "minReadySeconds": 600,
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}},
            "template": {"spec": {"restartPolicy": "Never", "hostPID": true}}}),
        );
        expect![[r#"
            spec.replicas: Invalid value: -1: must be greater than or equal to 0
            spec.template.metadata.labels: Invalid value: {"app":"a"}: `selector` does not match template `labels`
            spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
            spec.template.spec.hostPID: Forbidden: a pod has no access to its node's processes: leave the field out
            spec.selector: Invalid value: {"matchLabels":{"app":"b"}}: field is immutable
            spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0
            spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds
        "#]]
        .assert_eq(&lines(&new, Some(&old)));
        let recreate =
            deployment(json!({"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": "x"}}}));
        expect![[r#"
            spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'
        "#]]
        .assert_eq(&lines(&recreate, None));
        let mut empty = deployment(json!({"selector": null, "template": null}));
        assert!(lines(&empty, None).starts_with("spec.selector: Required value\n"));
        empty["spec"]["selector"] = json!({});
        assert!(lines(&empty, None).contains("empty selector is invalid for deployment"));
    }
}
