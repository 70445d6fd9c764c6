//! ReplicaSets.

use serde_json::{Map, Value};

use super::{
    age,
    pod::template_defaults,
    pod_template::{self, number},
};
use crate::{
    fields::{child, default, text},
    kind::{Column, Native, Subresource},
    validate::rules::replica_counts,
};

pub(super) const REPLICA_SET: Native = Native {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::scale(), Subresource::status("apps", "ReplicaSet")],
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    columns: &[
        Column::name(),
        Column::integer("Desired", "How many pods there shall be"),
        Column::integer("Current", "How many pods there are"),
        Column::integer("Ready", "How many of them are ready"),
        Column::age(),
        pod_template::CONTAINERS,
        pod_template::IMAGES,
        pod_template::SELECTOR,
    ],
    cells: |object, now| {
        let mut cells = vec![
            text(object, "/metadata/name").into(),
            number(object, "/spec/replicas").into(),
            number(object, "/status/replicas").into(),
            number(object, "/status/readyReplicas").into(),
            age(text(object, "/metadata/creationTimestamp"), now).into(),
        ];
        cells.extend(pod_template::wide_cells(object));
        cells
    },
    defaults,
    validate: |object, old| pod_template::validate(object, old, "replicaset"),
    validate_status: |object| {
        replica_counts(object, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"])
    },
    warn: Some(pod_template::warnings),
    selectable_fields: &["status.replicas"],
    generational: &["spec"],
    ..Native::BASE
};

fn defaults(object: &mut Value) {
    if let Some(spec) = child(object, "spec") {
        default(spec, "replicas", 1);
        template_defaults(spec);
    }
    default(object, "status", Value::Object(Map::new()));
    if let Some(status) = child(object, "status") {
        default(status, "replicas", 0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Endpoint, by_resource};

    #[test]
    fn a_replica_set_is_filled_in_and_shown() {
        let mut set = json!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}});
        defaults(&mut set);
        assert_eq!((REPLICA_SET.validate)(&set, None), []);
        let row = (REPLICA_SET.cells)(&set, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(Value::from(row), json!(["a", 1, 0, 0, "<unknown>", "c", "x:1", "app=a"]));
        assert_eq!(set["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        assert!(by_resource("replicasets.apps").unwrap().has(Endpoint::Scale));
    }
}
