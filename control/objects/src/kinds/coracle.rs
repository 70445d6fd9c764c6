//! The kinds of our own, group `coracle.dev`: what the cluster keeps about itself. Clients may read them; the control
//! plane writes them.

use serde_json::{Value, json};

use super::{age, function};
use crate::{
    fields::text,
    kind::{Column, Native},
};

const GROUP: &str = "coracle.dev";
const READ: &[&str] = &["get", "list", "watch"];

/// A control node: name = raft id in decimal; spec {id, name, address, version, entryFormat}; status.conditions has
/// `Healthy` once the member was dead.
pub(super) const MEMBER: Native = Native {
    group: GROUP,
    kind: "Member",
    plural: "members",
    singular: "member",
    namespaced: false,
    verbs: READ,
    schema: "dev.coracle.v1.Member",
    columns: &[
        Column::name(),
        Column::text("Node", "The control node's name"),
        Column::text("Address", "Where the others reach it"),
        Column::text("Version", "The build that it runs"),
        Column::age(),
    ],
    cells: |object, now| row(object, &["/spec/name", "/spec/address", "/spec/version"], now),
    ..Native::BASE
};

/// A block of pod addresses that a node has claimed: name = the block with `-` for `/`; spec {cidr, nodeName}.
pub(super) const POD_BLOCK: Native = Native {
    group: GROUP,
    kind: "PodBlock",
    plural: "podblocks",
    singular: "podblock",
    namespaced: false,
    verbs: READ,
    schema: "dev.coracle.v1.PodBlock",
    columns: &[
        Column::name(),
        Column::text("CIDR", "The addresses of the block"),
        Column::text("Node", "The node that hands them out"),
        Column::age(),
    ],
    cells: |object, now| row(object, &["/spec/cidr", "/spec/nodeName"], now),
    selectable_fields: &["spec.nodeName"],
    ..Native::BASE
};

/// A manifest in the cluster's registry, under a tag or, where the tag is empty, by its digest alone; spec {repository, tag,
/// digest, mediaType, size, blobs, subject, artifactType}.
pub(super) const ARTIFACT: Native = Native {
    group: GROUP,
    kind: "Artifact",
    plural: "artifacts",
    singular: "artifact",
    namespaced: false,
    verbs: &["delete", "get", "list", "watch"],
    schema: "dev.coracle.v1.Artifact",
    columns: &[
        Column::name(),
        Column::text("Repository", "The image's name"),
        Column::text("Tag", "The image's tag"),
        Column::text("Digest", "The digest of its manifest"),
        Column::age(),
    ],
    cells: |object, now| {
        let mut cells = row(object, &["/spec/repository", "/spec/tag", "/spec/digest"], now);
        if cells[2] == "" {
            cells[2] = "<none>".into();
        }
        cells
    },
    ..Native::BASE
};

/// A node port that a service has: name = the port in decimal; spec {service: namespace/name}.
pub(super) const PORT_ALLOCATION: Native = Native {
    group: GROUP,
    kind: "PortAllocation",
    plural: "portallocations",
    singular: "portallocation",
    namespaced: false,
    verbs: READ,
    schema: "dev.coracle.v1.PortAllocation",
    columns: &[Column::name(), Column::text("Service", "The service that has the port"), Column::age()],
    cells: |object, now| row(object, &["/spec/service"], now),
    ..Native::BASE
};

/// Name, the texts at these paths, age.
fn row(object: &Value, paths: &[&str], now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = vec![Value::from(text(object, "/metadata/name"))];
    cells.extend(paths.iter().map(|path| Value::from(text(object, path))));
    cells.push(age(text(object, "/metadata/creationTimestamp"), now).into());
    cells
}

/// The OpenAPI schema of a kind of ours, by [`Kind::schema`]. References point to `#/components/schemas/`.
pub fn openapi(schema: &str) -> Option<Value> {
    let text = || json!({"type": "string"});
    let integer = || json!({"type": "integer", "format": "int64"});
    let (description, spec, required) = match schema {
        "dev.coracle.v1.Member" => (
            "A control node of the cluster.",
            json!({"id": integer(), "name": text(), "address": text(), "version": text(),
                "entryFormat": integer()}),
            json!(["id", "name", "address"]),
        ),
        "dev.coracle.v1.PodBlock" => (
            "A block of pod addresses that a node has claimed.",
            json!({"cidr": text(), "nodeName": text()}),
            json!(["cidr", "nodeName"]),
        ),
        "dev.coracle.v1.Artifact" => (
            "An artifact of the cluster's own registry.",
            json!({"repository": text(), "tag": text(), "digest": text(), "mediaType": text(), "size": integer(),
                "blobs": {"type": "array", "items": text()}, "subject": text(), "artifactType": text()}),
            json!(["repository", "tag", "digest"]),
        ),
        "dev.coracle.v1.PortAllocation" => {
            ("A node port that a service has.", json!({"service": text()}), json!(["service"]))
        }
        other => return function::openapi(other),
    };
    let metadata = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let condition = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.Condition";
    let mut whole = json!({
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": text(),
            "kind": text(),
            "metadata": {"allOf": [{"$ref": metadata}]},
            "spec": {"type": "object", "properties": spec, "required": required},
        },
    });
    if schema == MEMBER.schema {
        let conditions = json!({"type": "array", "items": {"allOf": [{"$ref": condition}]}});
        whole["properties"]["status"] = json!({"type": "object", "properties": {"conditions": conditions}});
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::kinds;

    #[test]
    fn each_kind_of_ours_has_a_schema() {
        for kind in kinds() {
            assert_eq!(openapi(&kind.schema).is_some(), kind.group == GROUP, "{}", kind.kind);
        }
    }
}
