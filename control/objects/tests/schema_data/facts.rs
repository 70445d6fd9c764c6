//! How the table of merge facts is written, and what OpenAPI says for each.

use serde_json::{Map, Value};

/// What is stated about the fields of one schema.
pub struct SchemaFacts {
    pub schema: &'static str,
    /// Sorted by field.
    pub fields: &'static [FieldFacts],
}

/// How one field merges.
pub struct FieldFacts {
    /// `.` is the schema itself.
    pub field: &'static str,
    patch: Option<&'static str>,
    retain_keys: bool,
    patch_key: &'static str,
    list: Option<&'static str>,
    list_keys: &'static [&'static str],
    map: Option<&'static str>,
}

/// The words in which the table is written.
impl FieldFacts {
    pub const fn of(field: &'static str) -> Self {
        Self { field, patch: None, retain_keys: false, patch_key: "", list: None, list_keys: &[], map: None }
    }

    pub const fn merge(self, key: &'static str) -> Self {
        Self { patch: Some("merge"), patch_key: key, ..self }
    }

    pub const fn replace(self) -> Self {
        Self { patch: Some("replace"), ..self }
    }

    pub const fn retain_keys(self) -> Self {
        Self { retain_keys: true, ..self }
    }

    pub const fn atomic_list(self) -> Self {
        Self { list: Some("atomic"), ..self }
    }

    pub const fn set(self) -> Self {
        Self { list: Some("set"), ..self }
    }

    pub const fn map_list(self, keys: &'static [&'static str]) -> Self {
        Self { list: Some("map"), list_keys: keys, ..self }
    }

    pub const fn atomic_map(self) -> Self {
        Self { map: Some("atomic"), ..self }
    }

    pub const fn granular_map(self) -> Self {
        Self { map: Some("granular"), ..self }
    }

    /// Adds the extensions that say so.
    pub fn put_into(&self, schema: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| {
            schema.insert(format!("x-kubernetes-{key}"), value);
        };
        let strategies: Vec<&str> =
            self.patch.into_iter().chain(self.retain_keys.then_some("retainKeys")).collect();
        if !strategies.is_empty() {
            put("patch-strategy", strategies.join(",").into());
        }
        if !self.patch_key.is_empty() {
            put("patch-merge-key", self.patch_key.into());
        }
        if let Some(list) = self.list {
            put("list-type", list.into());
        }
        if !self.list_keys.is_empty() {
            put("list-map-keys", self.list_keys.to_vec().into());
        }
        if let Some(map) = self.map {
            put("map-type", map.into());
        }
    }
}
