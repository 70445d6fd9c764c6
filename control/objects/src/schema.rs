//! Facts of the Kubernetes API schema: how each list or map field merges, and which schema its elements have.
//!
//! Strategic merge, server-side apply and the OpenAPI extensions are driven by these. The schemas are those of API
//! version 1.33, by their names in OpenAPI: `io.k8s.api.core.v1.PodSpec`.

mod edges;
mod merge;

pub use edges::EDGES;
pub use merge::FACTS;

/// What is stated about the fields of one schema.
#[derive(Debug, PartialEq, Eq)]
pub struct SchemaFacts {
    pub schema: &'static str,
    /// Sorted by field.
    pub fields: &'static [FieldFacts],
}

/// How one field merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldFacts {
    /// `.` is the schema itself.
    pub field: &'static str,
    pub patch: PatchStrategy,
    /// Whether patches of the field may name the keys to be kept (`$retainKeys`).
    pub retain_keys: bool,
    /// The key by which strategic merge tells list elements apart; empty for lists of scalars.
    pub patch_key: &'static str,
    pub list: ListType,
    /// The keys by which server-side apply tells elements of a [`ListType::Map`] apart.
    pub list_keys: &'static [&'static str],
    pub map: MapType,
}

/// `x-kubernetes-patch-strategy`, `retainKeys` aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchStrategy {
    /// Not stated: lists are replaced, maps are merged.
    Unstated,
    Merge,
    Replace,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Not stated: atomic.
    Unstated,
    Atomic,
    Set,
    Map,
}

/// `x-kubernetes-map-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// Not stated: granular.
    Unstated,
    Granular,
    Atomic,
}

/// The fields of one schema whose values (or elements, or map values) have a schema of their own.
#[derive(Debug, PartialEq, Eq)]
pub struct SchemaEdges {
    pub schema: &'static str,
    /// (field, schema), sorted by field.
    pub fields: &'static [(&'static str, &'static str)],
}

/// What is stated about a field, if anything is.
pub fn facts(schema: &str, field: &str) -> Option<&'static FieldFacts> {
    let at = FACTS.binary_search_by(|facts| facts.schema.cmp(schema)).ok()?;
    let fields = FACTS[at].fields;
    fields.binary_search_by(|facts| facts.field.cmp(field)).ok().map(|at| &fields[at])
}

/// The schema of a field's value, of its list's elements or of its map's values, where that is an object's.
pub fn child(schema: &str, field: &str) -> Option<&'static str> {
    let at = EDGES.binary_search_by(|edges| edges.schema.cmp(schema)).ok()?;
    let fields = EDGES[at].fields;
    fields.binary_search_by(|(name, _)| (*name).cmp(field)).ok().map(|at| fields[at].1)
}

/// The words in which the tables are written.
impl FieldFacts {
    const fn of(field: &'static str) -> Self {
        Self {
            field,
            patch: PatchStrategy::Unstated,
            retain_keys: false,
            patch_key: "",
            list: ListType::Unstated,
            list_keys: &[],
            map: MapType::Unstated,
        }
    }

    const fn merge(self, key: &'static str) -> Self {
        Self { patch: PatchStrategy::Merge, patch_key: key, ..self }
    }

    const fn replace(self) -> Self {
        Self { patch: PatchStrategy::Replace, ..self }
    }

    const fn retain_keys(self) -> Self {
        Self { retain_keys: true, ..self }
    }

    const fn atomic_list(self) -> Self {
        Self { list: ListType::Atomic, ..self }
    }

    const fn set(self) -> Self {
        Self { list: ListType::Set, ..self }
    }

    const fn map_list(self, keys: &'static [&'static str]) -> Self {
        Self { list: ListType::Map, list_keys: keys, ..self }
    }

    const fn atomic_map(self) -> Self {
        Self { map: MapType::Atomic, ..self }
    }

    const fn granular_map(self) -> Self {
        Self { map: MapType::Granular, ..self }
    }
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
        let env = facts("io.k8s.api.core.v1.Container", "env").unwrap();
        assert_eq!((env.patch, env.patch_key, env.list), (PatchStrategy::Merge, "name", ListType::Map));
        let volumes = facts("io.k8s.api.core.v1.PodSpec", "volumes").unwrap();
        assert!(volumes.retain_keys && volumes.patch == PatchStrategy::Merge);
        assert_eq!(facts("io.k8s.api.core.v1.Container", "args").unwrap().list, ListType::Atomic);
        assert!(facts("io.k8s.api.core.v1.Container", "image").is_none());
        assert!(child("nothing", "nowhere").is_none());
    }

    #[test]
    fn the_tables_are_sorted() {
        assert!(FACTS.is_sorted_by(|one, other| one.schema < other.schema));
        assert!(EDGES.is_sorted_by(|one, other| one.schema < other.schema));
        for facts in FACTS {
            assert!(facts.fields.is_sorted_by(|one, other| one.field < other.field), "{}", facts.schema);
        }
        for edges in EDGES {
            assert!(edges.fields.is_sorted(), "{}", edges.schema);
        }
    }
}
