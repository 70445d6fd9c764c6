//! The one table of kinds. A kind is declared once, in `kinds/`; everything else is generic over the declaration.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    field_error::FieldError,
    kinds::ALL,
    name::ResourceName,
    schema,
    validate::{keys::duplicate_keys, status::conditions},
};

/// A served kind: one group, version and plural.
#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// In alphabetical order, as discovery shows them.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// The key in OpenAPI and in [`crate::schema`]: `io.k8s.api.apps.v1.Deployment`.
    pub schema: &'static str,
    /// The first is the name. Those of priority 1 are shown with `-o wide` only.
    pub columns: &'static [Column],
    /// The cells of an object's row, in the order of `columns`.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// Fills in what the client left out, as kube-apiserver's defaulting does. Idempotent. At a create it is called
    /// after the client's `status` was dropped, so that the initial status (a pod's `Pending`) is filled in as well.
    pub defaults: fn(&mut Value),
    /// The faults of a new object or (with the old one) of an update, `metadata` aside. Called after `defaults`.
    pub validate: fn(&Value, Option<&Value>) -> Vec<FieldError>,
    /// The faults of a changed status that are this kind's own; all of them are [`Kind::status_faults`]. Called after
    /// `defaults`.
    pub validate_status: fn(&Value) -> Vec<FieldError>,
    /// What field selectors may name beyond `metadata.name` and `metadata.namespace`.
    pub selectable_fields: &'static [&'static str],
    /// What `metadata.name` must look like.
    pub name_rule: NameRule,
    /// The resource whose objects these are in the store, where it is another one: core's `events`.
    pub storage: Option<&'static str>,
    /// Turns an object as it is stored into this kind's form. Does nothing where `storage` is none.
    pub from_storage: fn(&mut Value),
    /// Turns an object of this kind's form into the stored one. Does nothing where `storage` is none.
    pub to_storage: fn(&mut Value),
    /// The stored name of a field that selectors name, where it is another one: `regarding.name`.
    pub storage_field: fn(&str) -> Option<String>,
    /// The fields beside `metadata` and `status` whose change moves `metadata.generation`; empty where the kind has no
    /// generation.
    pub generational: &'static [&'static str],
}

/// A part of an object with a path of its own: `pods/NAME/status`.
#[derive(Debug)]
pub struct Subresource {
    pub name: &'static str,
    /// Group, version and kind of its body.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// A column of the table that `kubectl get` prints.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    /// OpenAPI's types: `string`, `integer`.
    pub type_: &'static str,
    /// `name` for the name's column, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 = always, 1 = wide only.
    pub priority: i32,
}

/// What names of a kind must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 bytes.
    Subdomain,
    /// RFC 1123 label, at most 63 bytes.
    Label,
    /// RFC 1035 label: begins with a letter.
    Label1035,
    /// An IP address in its canonical form.
    IpAddress,
}

/// All served kinds, preferred versions of a resource first.
pub fn kinds() -> &'static [Kind] {
    ALL
}

/// The kind behind `/apis/<group>/<version>/<plural>`.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

/// The kind that a body with this apiVersion and kind is of.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    ALL.iter().find(|known| known.group == group && known.version == version && known.kind == kind)
}

/// The preferred version of a resource by its whole name: `deployments.apps`.
pub fn by_resource(resource: &str) -> Option<&'static Kind> {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    ALL.iter().find(|kind| kind.group == group && kind.plural == plural)
}

impl Kind {
    /// The resource as clients name it: `events.events.k8s.io`. Keys of the store take [`Kind::storage_resource`].
    pub fn resource(&self) -> ResourceName {
        ResourceName::new(self.plural, self.group)
    }

    /// The resource under which the store keeps the objects: that of [`Kind::resource`] but for shared ones.
    pub fn storage_resource(&self) -> ResourceName {
        self.storage.map_or_else(|| self.resource(), ResourceName::from)
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Whether the kind has this subresource.
    pub fn has(&self, subresource: &str) -> bool {
        self.subresource(subresource).is_some()
    }

    /// Whether `metadata.generation` counts this kind's changes.
    pub fn spec_is_generational(&self) -> bool {
        !self.generational.is_empty()
    }

    /// All faults of a changed status: what the kind says, and what all kinds have in common.
    pub fn status_faults(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = (self.validate_status)(object);
        conditions(object, &mut errors);
        if let Some((status, schema)) = object.get("status").zip(schema::child(self.schema, "status")) {
            errors.extend(duplicate_keys(status, schema, "status"));
        }
        errors
    }

    /// Whether an update from `old` to `new` moves `metadata.generation`.
    pub fn moves_generation(&self, old: &Value, new: &Value) -> bool {
        self.generational.iter().any(|field| old.get(field) != new.get(field))
    }
}

/// What most declarations share. A declaration overrides the rest with `..Kind::BASE`.
impl Kind {
    pub(crate) const BASE: Kind = Kind {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        schema: "",
        columns: &[],
        cells: |_, _| Vec::new(),
        defaults: |_| (),
        validate: |_, _| Vec::new(),
        validate_status: |_| Vec::new(),
        selectable_fields: &[],
        name_rule: NameRule::Subdomain,
        storage: None,
        from_storage: |_| (),
        to_storage: |_| (),
        storage_field: |_| None,
        generational: &[],
    };
}

pub(crate) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Subresource {
    /// The status of a kind.
    pub(crate) const fn status(group: &'static str, kind: &'static str) -> Self {
        Self { name: "status", group, version: "v1", kind, verbs: &["get", "patch", "update"] }
    }

    /// The scale of a kind that counts replicas.
    pub(crate) const fn scale() -> Self {
        let verbs = &["get", "patch", "update"];
        Self { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs }
    }
}

impl Column {
    pub(crate) const fn name() -> Self {
        let description = "Name must be unique within a namespace.";
        Self { name: "Name", type_: "string", format: "name", description, priority: 0 }
    }

    pub(crate) const fn age() -> Self {
        Self::text("Age", "How long ago the object was created.")
    }

    pub(crate) const fn text(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "string", format: "", description, priority: 0 }
    }

    pub(crate) const fn integer(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "integer", format: "", description, priority: 0 }
    }

    /// A column of text for `-o wide`.
    pub(crate) const fn wide(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "string", format: "", description, priority: 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_consistent() {
        let mut seen = BTreeSet::new();
        let mut short_names = BTreeSet::new();
        for kind in kinds() {
            let id = (kind.group, kind.version, kind.plural);
            assert!(seen.insert(id), "{id:?} is declared twice");
            assert_eq!(kind.singular, kind.kind.to_lowercase(), "{id:?}");
            assert!(kind.columns.first().is_some_and(|column| column.name == "Name" || kind.kind == "Event"));
            assert!(kind.verbs.is_sorted(), "{id:?}");
            assert!(kind.schema.ends_with(&format!(".{}.{}", kind.version, kind.kind)), "{id:?}");
            assert!(std::ptr::eq(by_plural(kind.group, kind.version, kind.plural).unwrap(), kind));
            assert!(std::ptr::eq(by_kind(kind.group, kind.version, kind.kind).unwrap(), kind));
            assert!(std::ptr::eq(by_resource(kind.resource().as_str()).unwrap(), kind));
            for name in kind.short_names.iter().filter(|_| kind.storage.is_none()) {
                assert!(short_names.insert(*name), "short name {name} is taken twice");
            }
        }
    }

    #[test]
    fn rows_defaults_and_validation_bear_any_object() {
        let shapes = [
            json!({}),
            json!({"metadata": {"name": "a"}, "spec": null, "status": null}),
            json!({"metadata": 1, "spec": 2, "status": "x", "data": [], "subsets": {}, "endpoints": 3}),
            json!({"spec": {"containers": [1, null], "template": {"spec": {"containers": {}}}, "ports": [0],
                "selector": [], "rules": [null], "volumes": ["x"]}, "status": {"conditions": [null, 3]}}),
        ];
        for kind in kinds() {
            for shape in &shapes {
                let mut object = shape.clone();
                assert_eq!(
                    (kind.cells)(&object, Timestamp::UNIX_EPOCH).len(),
                    kind.columns.len(),
                    "{kind:?}"
                );
                (kind.defaults)(&mut object);
                let once = object.clone();
                (kind.defaults)(&mut object);
                assert_eq!(once, object, "defaults of {} are idempotent", kind.kind);
                (kind.validate)(&object, None);
                (kind.validate)(&object, Some(shape));
                kind.status_faults(&object);
            }
        }
    }

    #[test]
    fn shared_storage() {
        let kind = by_plural("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(kind.resource().as_str(), "events.events.k8s.io");
        assert_eq!(kind.storage_resource().as_str(), "events");
        assert_eq!(by_resource("deployments.apps").unwrap().api_version(), "apps/v1");
    }
}
