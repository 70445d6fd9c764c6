//! The schemas as API servers publish them in OpenAPI v3.

use std::{collections::BTreeMap, io::Read};

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::{catalog::kinds, kinds::coracle_openapi};

static KUBERNETES: &[u8] = include_bytes!("kubernetes-1.33.json.gz");
const REFERENCE: &str = "#/components/schemas/";

/// All schemas by their names, read anew: they are some megabytes that are needed seldom.
pub fn published() -> BTreeMap<String, Value> {
    let mut text = String::new();
    GzDecoder::new(KUBERNETES).read_to_string(&mut text).expect("what the build ships is whole");
    let mut schemas: BTreeMap<String, Value> =
        serde_json::from_str(&text).expect("what the build ships is JSON");
    for kind in kinds() {
        if let Some(schema) = coracle_openapi(&kind.schema) {
            schemas.insert(kind.schema.to_string(), schema);
        }
    }
    schemas
}

/// The name of the schema that a `$ref` (by itself or wrapped in `allOf`) points to.
pub fn reference(schema: &Value) -> Option<&str> {
    let direct = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref"));
    direct?.as_str()?.strip_prefix(REFERENCE)
}

/// A schema that points to another.
pub fn refer(name: &str) -> Value {
    json!({ "$ref": format!("{REFERENCE}{name}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_kind_has_a_schema() {
        let schemas = published();
        for kind in kinds() {
            assert!(schemas.contains_key(&*kind.schema), "{}", kind.schema);
        }
    }

    #[test]
    fn schemas_have_the_form_of_real_servers() {
        let schemas = published();
        let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
        let containers = &spec["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(reference(&pod["properties"]["spec"]), Some("io.k8s.api.core.v1.PodSpec"));
        assert!(pod["properties"]["spec"].get("allOf").is_some());
        assert!(schemas["io.k8s.apimachinery.pkg.api.resource.Quantity"].get("oneOf").is_some());
    }
}
