//! Workloads.

use super::{POD_SPEC, Part, Rule, Table, served};

const BASE: &str = r#"{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"x:1"}]}}}"#;
const PARTS: &[Part] = &[Part { path: "template.spec", table: &POD_SPEC, has_examples: false }];

pub static DEPLOYMENT: Table = Table {
    title: "Deployment",
    schema: "io.k8s.api.apps.v1.DeploymentSpec",
    base: BASE,
    rules: RULES,
    parts: PARTS,
};

pub static REPLICA_SET: Table = Table {
    title: "ReplicaSet",
    schema: "io.k8s.api.apps.v1.ReplicaSetSpec",
    base: BASE,
    rules: &[
        served("minReadySeconds", "5"),
        served("replicas", "2"),
        served("selector", "^{}"),
        served("template.metadata", "^{}"),
    ],
    parts: PARTS,
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
