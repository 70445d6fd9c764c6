//! Workloads.

use super::{POD_SPEC, Part, Rule, Table, served};

pub static DEPLOYMENT: Table = Table {
    title: "Deployment",
    schema: "io.k8s.api.apps.v1.DeploymentSpec",
    base: r#"{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"x:1"}]}}}"#,
    rules: RULES,
    parts: &[Part { path: "template.spec", table: &POD_SPEC, has_examples: false }],
};

const RULES: &[Rule] = &[
    served("minReadySeconds", "5"),
    served("paused", "true"),
    served("progressDeadlineSeconds", "60"),
    served("replicas", "2"),
    served("revisionHistoryLimit", "2"),
    served("selector", "^{}"),
    served("strategy.rollingUpdate.maxSurge", "2"),
    served("strategy.rollingUpdate.maxUnavailable", "2"),
    served("strategy.type", r#""Recreate""#),
    served("template.metadata", "^{}"),
];
