//! How lists and maps merge: the extensions of OpenAPI that say so.

use serde_json::Value;

/// What is stated about a field, or about a struct wherever it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merge {
    pub patch: PatchStrategy,
    /// Whether patches of the field may name the keys to be kept (`$retainKeys`).
    pub retain_keys: bool,
    /// The key by which strategic merge tells list elements apart; empty for lists of scalars.
    pub patch_key: String,
    pub list: ListType,
    /// The keys by which server-side apply tells elements of a [`ListType::Map`] apart.
    pub list_keys: Vec<String>,
    pub map: MapType,
}

/// `x-kubernetes-patch-strategy`, `retainKeys` aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PatchStrategy {
    /// Not stated: lists are replaced, maps are merged.
    #[default]
    Unstated,
    Merge,
    Replace,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Not stated: atomic.
    #[default]
    Unstated,
    Atomic,
    Set,
    Map,
}

/// `x-kubernetes-map-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MapType {
    /// Not stated: granular.
    #[default]
    Unstated,
    Granular,
    Atomic,
}

impl Merge {
    /// What a schema states.
    pub(super) fn of(schema: &Value) -> Merge {
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or("");
        let strategy = text("x-kubernetes-patch-strategy");
        let has = |wanted: &str| strategy.split(',').any(|one| one == wanted);
        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten();
        Merge {
            patch: match (has("merge"), has("replace")) {
                (true, _) => PatchStrategy::Merge,
                (false, true) => PatchStrategy::Replace,
                (false, false) => PatchStrategy::Unstated,
            },
            retain_keys: has("retainKeys"),
            patch_key: text("x-kubernetes-patch-merge-key").to_owned(),
            list: match text("x-kubernetes-list-type") {
                "atomic" => ListType::Atomic,
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Unstated,
            },
            list_keys: keys.filter_map(Value::as_str).map(str::to_owned).collect(),
            map: match text("x-kubernetes-map-type") {
                "granular" => MapType::Granular,
                "atomic" => MapType::Atomic,
                _ => MapType::Unstated,
            },
        }
    }
}
