//! Kinds that the cluster's own CustomResourceDefinitions declare: one for each served version.
//!
//! Source: apiextensions-apiserver. What a definition says is compiled once; objects are then walked by what came of it,
//! with bounds on the work, as the schema is a user's.

mod columns;
mod defaults;
mod formats;
mod path;
mod pattern;
mod rules;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use self::{columns::Cells, rules::Rules};
use crate::{
    Object,
    field_error::FieldError,
    fields::{condition_true, flag, list, text},
    kind::{ALL_VERBS, Behaviour, Endpoint, Generational, Kind, NameRule, Subresource, Text},
    schema::{Types, refer},
};

pub use self::{
    path::{is_path, pointer},
    rules::schema_faults,
};

/// Of a definition that is being deleted: its objects go, and no more are made.
const VERBS_AT_THE_END: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What a kind does that a definition has declared.
#[derive(Debug)]
pub struct Declared {
    stored_version: String,
    /// How an object of the kind begins, as drafts do: `{"kind":"Foo","apiVersion":"example.com/v1"`.
    head: String,
    /// What is stored may lack defaults, or be of another version.
    is_converted: bool,
    types: Types,
    rules: Rules,
    cells: Cells,
    /// The schema as OpenAPI shows it.
    schema: Value,
    scale: Option<ScalePaths>,
}

/// Where a kind has what its Scale shows; JSON pointers (RFC 6901).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub replicas: String,
    pub status_replicas: String,
    /// Of the selector as text; empty where there is none. None where `spec.selector` is a label selector.
    pub selector: Option<String>,
}

/// The kinds of a definition, one for each version that it serves.
pub(crate) fn kinds_of(definition: &Object) -> Vec<Kind> {
    let ends = definition.meta.deletion_timestamp.is_some();
    let Ok(definition) = definition.parse::<Value>() else { return Vec::new() };
    let versions = list(&definition, "/spec/versions");
    let stored = versions.iter().find(|version| flag(version, "/storage"));
    let stored = stored.map_or("", |version| text(version, "/name"));
    let served = versions.iter().filter(|version| flag(version, "/served"));
    served.map(|version| kind_of(&definition, version, stored, versions.len() > 1, ends)).collect()
}

fn kind_of(definition: &Value, version: &Value, stored: &str, many: bool, ends: bool) -> Kind {
    let names_at = names_in_use(definition);
    let (group, names) = (text(definition, "/spec/group"), |name: &str| owned(definition, names_at, name));
    let (kind, version_name) = (names("kind"), text(version, "/name"));
    let schema_name = schema_name(group, version_name, &kind);
    let schema = whole(version.pointer("/schema/openAPIV3Schema"));
    let types = Types::declared(&BTreeMap::from([(schema_name.clone(), schema.clone())]));
    let rules = Rules::of(&schema);
    let texts = |field: &str| {
        let all = list(definition, &format!("{names_at}/{field}")).iter();
        all.filter_map(Value::as_str).map(|name| Text::Owned(name.to_owned())).collect()
    };
    let group = Text::Owned(group.to_owned());
    let columns = list(version, "/additionalPrinterColumns");
    let selectable = list(version, "/selectableFields").iter();
    let scale = version.pointer("/subresources/scale").map(|scale| ScalePaths {
        replicas: pointer(text(scale, "/specReplicasPath")).unwrap_or_default(),
        status_replicas: pointer(text(scale, "/statusReplicasPath")).unwrap_or_default(),
        selector: Some(pointer(text(scale, "/labelSelectorPath")).unwrap_or_default()),
    });
    let declared = Declared {
        stored_version: stored.to_owned(),
        head: format!(r#"{{"kind":"{kind}","apiVersion":"{group}/{version_name}""#),
        is_converted: many || rules.has_defaults(),
        cells: Cells::of(columns),
        types,
        rules,
        schema,
        scale,
    };
    let mut subresources = Vec::new();
    if declared.scale.is_some() {
        subresources.push(Subresource::scale());
    }
    if version.pointer("/subresources/status").is_some_and(|status| !status.is_null()) {
        subresources.push(Subresource {
            endpoint: Endpoint::Status,
            group: group.clone(),
            version: version_name.to_owned().into(),
            kind: kind.clone().into(),
            verbs: &["get", "patch", "update"],
        });
    }
    Kind {
        group,
        version: version_name.to_owned().into(),
        kind: kind.into(),
        plural: names("plural").into(),
        singular: names("singular").into(),
        list: names("listKind").into(),
        short_names: texts("shortNames"),
        categories: texts("categories"),
        namespaced: text(definition, "/spec/scope") == "Namespaced",
        verbs: if ends { VERBS_AT_THE_END } else { ALL_VERBS },
        subresources,
        schema: schema_name.into(),
        columns: columns::shown(columns),
        selectable_fields: selectable
            .map(|field| Text::Owned(text(field, "/jsonPath").trim_start_matches('.').to_owned()))
            .collect(),
        name_rule: NameRule::Subdomain,
        generational: Generational::All,
        behaviour: Behaviour::Declared(Box::new(declared)),
    }
}

/// Whether a definition has names that were found to be its own: it is served under them whatever it wants since.
pub fn has_its_names(definition: &Value) -> bool {
    let same = |name: &str| {
        let accepted = text(definition, &format!("/status/acceptedNames/{name}"));
        !accepted.is_empty() && accepted == text(definition, &format!("/spec/names/{name}"))
    };
    condition_true(definition, "Established") && same("plural") && same("kind")
}

/// Where the names are under which a definition is served: those that are wanted since may be another kind's.
pub(crate) fn names_in_use(definition: &Value) -> &'static str {
    if has_its_names(definition) { "/status/acceptedNames" } else { "/spec/names" }
}

/// As OpenAPI names it: `com.example.v1.Backup`.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

fn owned(value: &Value, at: &str, name: &str) -> String {
    text(value, &format!("{at}/{name}")).to_owned()
}

/// The schema with what every object has, which definitions need not spell out.
fn whole(schema: Option<&Value>) -> Value {
    let mut schema = schema.cloned().unwrap_or_else(|| json!({ "type": "object" }));
    embed(&mut schema);
    complete(&mut schema);
    schema
}

/// The same within, where objects hold whole objects.
fn complete(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for (name, inner) in map.iter_mut() {
        match name.as_str() {
            "properties" => {
                inner.as_object_mut().into_iter().flatten().for_each(|(_, schema)| complete(schema))
            }
            "items" | "additionalProperties" => complete(inner),
            _ => {}
        }
    }
    if map.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
        embed(schema);
    }
}

fn embed(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    let properties = map.entry("properties").or_insert_with(|| json!({}));
    let Some(properties) = properties.as_object_mut() else { return };
    properties.entry("apiVersion").or_insert_with(|| json!({ "type": "string" }));
    properties.entry("kind").or_insert_with(|| json!({ "type": "string" }));
    properties.insert("metadata".to_owned(), refer(OBJECT_META));
}

impl Declared {
    pub fn stored_version(&self) -> &str {
        &self.stored_version
    }

    /// Whether a stored object is of this version. One that begins otherwise is converted like those of another.
    pub fn is_version_of(&self, json: &[u8]) -> bool {
        json.starts_with(self.head.as_bytes())
    }

    pub fn is_converted(&self) -> bool {
        self.is_converted
    }

    pub fn types(&self) -> &Types {
        &self.types
    }

    pub fn schema(&self) -> &Value {
        &self.schema
    }

    pub fn scale(&self) -> Option<&ScalePaths> {
        self.scale.as_ref()
    }

    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        self.cells.of_object(object, now)
    }

    pub fn defaults(&self, object: &mut Value) {
        self.rules.fill_in(object);
    }

    /// What is wrong with an object. What was wrong already, and has been left as it was, is passed over: a schema may have
    /// become stricter (KEP-4008).
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = self.rules.faults(object);
        if let Some(old) = old.filter(|_| !faults.is_empty()) {
            let known = self.rules.faults(old);
            let left = |fault: &FieldError| at(object, &fault.field) == at(old, &fault.field);
            faults.retain(|fault| !(known.contains(fault) && left(fault)));
        }
        faults
    }
}

/// The value at the field of a fault: `spec.list[0].name`. None where the way is not so plain.
fn at<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    field.split(['.', '[']).filter(|step| !step.is_empty()).try_fold(object, |value, step| {
        match step.strip_suffix(']').and_then(|index| index.parse::<usize>().ok()) {
            Some(index) => value.get(index),
            None => value.get(step),
        }
    })
}

#[cfg(test)]
mod tests;
