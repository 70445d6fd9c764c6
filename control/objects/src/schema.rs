//! The schemas of Kubernetes' API, version 1.33, and of our own kinds: which fields a struct has, what they hold, how
//! lists and maps merge. By their names in OpenAPI: `io.k8s.api.core.v1.PodSpec`.
//!
//! There is one source. `kubernetes-1.33.json.gz` has the schemas as API servers publish them; the test `schema_data`
//! makes it. It is read twice: once for good into [`Types`], which decoding, strictness, strategic merge, server-side
//! apply and validation walk, and again where the schemas themselves are asked for ([`published`]), for OpenAPI.

mod lengths;
mod merge;
mod published;
mod types;

use std::sync::OnceLock;

pub use lengths::ELEMENTS_MAX;
pub use merge::{ListType, MapType, Merge, PatchStrategy};
pub use published::{published, refer, reference};
pub use types::{Field, Struct, Type, Types};

/// All types, made once.
pub fn types() -> &'static Types {
    static TYPES: OnceLock<Types> = OnceLock::new();
    TYPES.get_or_init(|| Types::of(&published()))
}

/// A field of the struct with this schema.
pub fn field(schema: &str, field: &str) -> Option<&'static Field> {
    types().by_schema(schema)?.field(field)
}

/// The schema of a field's value, of its list's elements or of its map's values, where that is a struct's.
pub fn child(schema: &str, name: &str) -> Option<&'static str> {
    field(schema, name)?.type_.innermost().map(Struct::schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_from_a_deployment_to_its_environment() {
        let way = ["spec", "template", "spec", "containers", "env"];
        let mut schema = "io.k8s.api.apps.v1.Deployment";
        for field in way {
            schema = child(schema, field).unwrap();
        }
        assert_eq!(schema, "io.k8s.api.core.v1.EnvVar");
        let env = &field("io.k8s.api.core.v1.Container", "env").unwrap().merge;
        assert_eq!(
            (env.patch, env.patch_key.as_str(), env.list),
            (PatchStrategy::Merge, "name", ListType::Map)
        );
        let volumes = &field("io.k8s.api.core.v1.PodSpec", "volumes").unwrap().merge;
        assert!(volumes.retain_keys && volumes.patch == PatchStrategy::Merge);
        assert_eq!(field("io.k8s.api.core.v1.Container", "args").unwrap().merge.list, ListType::Atomic);
        assert_eq!(field("io.k8s.api.core.v1.Container", "image").unwrap().merge, Merge::default());
        assert_eq!(types().by_schema("io.k8s.api.core.v1.LabelSelector"), None);
        let selector = types().by_schema("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap();
        assert_eq!(selector.merge.map, MapType::Atomic);
        assert!(child("nothing", "nowhere").is_none());
    }
}
