//! Tables: what `kubectl get` prints.

use coracle_objects::{Kind, Object};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::{Include, ListMeta, metadata_only, present, present_value};

/// A `meta.k8s.io` Table of objects. Watch events after the first leave the column definitions out.
pub fn render(
    kind: &Kind,
    objects: &[&Object],
    include: Include,
    version: &str,
    now: Timestamp,
    meta: &ListMeta,
    with_columns: bool,
) -> Vec<u8> {
    let mut out = head(kind, version, meta, with_columns).into_bytes();
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        row(kind, object, include, version, now, &mut out);
    }
    out.extend_from_slice(b"]}");
    out
}

/// A table up to its first row.
pub fn head(kind: &Kind, version: &str, meta: &ListMeta, with_columns: bool) -> String {
    let columns = if with_columns { columns(kind).to_string() } else { "null".to_owned() };
    format!(
        r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{version}","metadata":{},"columnDefinitions":{columns},"rows":["#,
        meta.json()
    )
}

/// One row.
pub fn row(kind: &Kind, object: &Object, include: Include, version: &str, now: Timestamp, out: &mut Vec<u8>) {
    let cells = Value::Array(kind.cells(&present_value(kind, object), now));
    out.extend_from_slice(format!(r#"{{"cells":{cells},"object":"#).as_bytes());
    match include {
        Include::None => out.extend_from_slice(b"null"),
        Include::Metadata => out.extend_from_slice(&metadata_only(object, version)),
        Include::Object => out.extend_from_slice(&present(kind, object)),
    }
    out.push(b'}');
}

fn columns(kind: &Kind) -> Value {
    kind.columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.type_,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}
