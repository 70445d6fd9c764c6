//! CustomResourceDefinitions: kinds that the cluster declares. What comes of one is [`crate::declared`].

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    declared::{pointer, schema_faults},
    field_error::{FIELD_ERRORS_MAX, FieldError},
    fields::{child, default, default_text, entries, flag, list, present, text},
    kind::{Column, Native, Subresource},
    validate::{
        rules::{immutable, one_of},
        syntax::{label_1035_faults, label_faults, subdomain_faults},
    },
};

/// The resource of definitions.
pub const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// The finalizer that keeps a deleted definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Versions of one definition: each is compiled.
const VERSIONS_MAX: usize = 32;
/// Columns of one version.
const COLUMNS_MAX: usize = 64;

pub(super) const DEFINITION: Native = Native {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::status("apiextensions.k8s.io", "CustomResourceDefinition")],
    schema: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    columns: &[Column::name(), Column::new("Created At", "date", "", "When it was created", 0)],
    cells,
    defaults,
    validate,
    validate_status: stored_versions,
    warn: Some(unserved),
    generational: &["spec"],
    ..Native::BASE
};

fn cells(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![text(object, "/metadata/name").into(), text(object, "/metadata/creationTimestamp").into()]
}

fn defaults(object: &mut Value) {
    let deleting = present(object, "/metadata/deletionTimestamp");
    if let Some(metadata) = child(object, "metadata")
        && !deleting
    {
        default(metadata, "finalizers", json!([]));
        if let Some(finalizers) = metadata["finalizers"].as_array_mut()
            && !finalizers.iter().any(|name| name == CLEANUP)
        {
            finalizers.push(CLEANUP.into());
        }
    }
    let kind = text(object, "/spec/names/kind").to_owned();
    let stored = list(object, "/spec/versions").iter().find(|version| flag(version, "/storage"));
    let stored = stored.map(|version| text(version, "/name").to_owned());
    if let Some(spec) = child(object, "spec") {
        if let Some(names) = child(spec, "names")
            && !kind.is_empty()
        {
            default_text(names, "singular", &kind.to_lowercase());
            default_text(names, "listKind", &format!("{kind}List"));
        }
        if let Some(conversion) = child(spec, "conversion") {
            default_text(conversion, "strategy", "None");
        }
    }
    if let Some(status) = child(object, "status") {
        default(status, "conditions", json!([]));
        default(status, "acceptedNames", json!({ "plural": "", "kind": "" }));
        default(status, "storedVersions", json!([]));
        if let (Some(stored), Some(versions)) = (stored, status["storedVersions"].as_array_mut())
            && !versions.iter().any(|version| *version == stored)
        {
            versions.push(stored.into());
        }
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let group = text(object, "/spec/group");
    let invalid = |errors: &mut Vec<FieldError>, field: &str, value: &str, faults: Vec<String>| {
        errors.extend(faults.into_iter().map(|fault| FieldError::invalid(field, value, fault)));
    };
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else {
        invalid(&mut errors, "spec.group", group, subdomain_faults(group));
        if !group.contains('.') {
            let detail = "should be a domain with at least one dot";
            errors.push(FieldError::invalid("spec.group", group, detail));
        }
    }
    one_of("spec.scope", text(object, "/spec/scope"), &["Cluster", "Namespaced"], &mut errors);
    names(object, &mut errors);
    let name = format!("{}.{group}", text(object, "/spec/names/plural"));
    if text(object, "/metadata/name") != name {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", text(object, "/metadata/name"), detail));
    }
    match text(object, "/spec/conversion/strategy") {
        "" | "None" => {}
        "Webhook" => errors.push(FieldError::forbidden(
            "spec.conversion.strategy",
            "conversion by webhooks is not served; with None versions differ in their name alone",
        )),
        other => {
            errors.push(FieldError::not_supported("spec.conversion.strategy", other, &["None", "Webhook"]));
        }
    }
    if flag(object, "/spec/preserveUnknownFields") {
        let detail =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in the schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, detail));
    }
    versions(object, &mut errors);
    errors.extend(stored_versions(object));
    if ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")))
        && text(object, "/metadata/annotations/api-approved.kubernetes.io").is_empty()
    {
        let detail = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see \
                      https://github.com/kubernetes/enhancements/pull/1111";
        errors.push(FieldError::required("metadata.annotations[api-approved.kubernetes.io]", detail));
    }
    if group == "coracle.dev" {
        errors.push(FieldError::forbidden("spec.group", "the group is the cluster's own"));
    }
    if let Some(old) = old {
        for field in ["group", "scope", "names/plural", "names/kind"] {
            immutable(object, old, &format!("/spec/{field}"), &mut errors);
        }
    }
    errors
}

/// A version in which objects may be stored is one of the definition's.
fn stored_versions(object: &Value) -> Vec<FieldError> {
    let known = |name: &Value| list(object, "/spec/versions").iter().any(|version| version["name"] == *name);
    let stored = list(object, "/status/storedVersions").iter().enumerate();
    let missing = stored.filter(|(_, name)| !known(name)).map(|(index, name)| {
        let field = format!("status.storedVersions[{index}]");
        FieldError::invalid(
            field,
            name.clone(),
            "missing from spec.versions; objects may be stored in it still",
        )
    });
    missing.collect()
}

fn names(object: &Value, errors: &mut Vec<FieldError>) {
    for (name, lower) in [("plural", true), ("singular", true), ("kind", false), ("listKind", false)] {
        let (field, given) = (format!("spec.names.{name}"), text(object, &format!("/spec/names/{name}")));
        if given.is_empty() {
            errors.push(FieldError::required(field, ""));
            continue;
        }
        // A kind may have capitals and is else as a label.
        let shown = if lower { given.to_owned() } else { given.to_lowercase() };
        errors.extend(
            label_1035_faults(&shown).into_iter().map(|fault| FieldError::invalid(&field, given, fault)),
        );
    }
    if text(object, "/spec/names/kind") == text(object, "/spec/names/listKind") {
        let list = text(object, "/spec/names/listKind");
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            list,
            "kind and listKind may not be the same",
        ));
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in list(object, &format!("/spec/names/{field}")).iter().enumerate() {
            let (at, name) = (format!("spec.names.{field}[{index}]"), name.as_str().unwrap_or(""));
            errors.extend(label_faults(name).into_iter().map(|fault| FieldError::invalid(&at, name, fault)));
        }
    }
}

fn versions(object: &Value, errors: &mut Vec<FieldError>) {
    let versions = list(object, "/spec/versions");
    if versions.len() > VERSIONS_MAX {
        errors.push(FieldError::too_many("spec.versions", versions.len(), VERSIONS_MAX));
        return;
    }
    let stored = versions.iter().filter(|version| flag(version, "/storage")).count();
    if stored != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", stored, detail));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{index}]");
        let name = text(version, "/name");
        let faults = label_1035_faults(name).into_iter();
        errors.extend(faults.map(|fault| FieldError::invalid(format!("{at}.name"), name, fault)));
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        seen.push(name);
        match version.pointer("/schema/openAPIV3Schema").filter(|schema| !schema.is_null()) {
            Some(schema) => schema_faults(schema, &format!("{at}.schema.openAPIV3Schema"), errors),
            None => errors
                .push(FieldError::required(format!("{at}.schema.openAPIV3Schema"), "schemas are required")),
        }
        if errors.len() >= FIELD_ERRORS_MAX {
            return;
        }
        paths(version, &at, errors);
    }
}

/// The paths that a version names: each must be one that is understood.
fn paths(version: &Value, at: &str, errors: &mut Vec<FieldError>) {
    if let Some(scale) = version.pointer("/subresources/scale").filter(|scale| !scale.is_null()) {
        for (field, within, needed) in [
            ("specReplicasPath", "/spec/", true),
            ("statusReplicasPath", "/status/", true),
            ("labelSelectorPath", "/", false),
        ] {
            let (field, path) =
                (format!("{at}.subresources.scale.{field}"), text(scale, &format!("/{field}")));
            if path.is_empty() && !needed {
                continue;
            }
            if !pointer(path).is_some_and(|found| found.starts_with(within)) {
                let under = within.trim_matches('/');
                let detail = format!("must be a json path of fields under .{under}, without lists");
                errors.push(FieldError::invalid(field, path, detail));
            }
        }
    }
    let columns = list(version, "/additionalPrinterColumns");
    if columns.len() > COLUMNS_MAX {
        errors.push(FieldError::too_many(
            format!("{at}.additionalPrinterColumns"),
            columns.len(),
            COLUMNS_MAX,
        ));
    }
    for (index, column) in columns.iter().take(COLUMNS_MAX).enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{index}]");
        if text(column, "/name").is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        let type_ = text(column, "/type");
        let known = ["boolean", "date", "integer", "number", "string"];
        if !known.contains(&type_) {
            errors.push(FieldError::not_supported(format!("{at}.type"), type_, &known));
        }
        let path = text(column, "/jsonPath");
        if path.is_empty() || !crate::declared::is_path(path) {
            let detail = "must be a json path of fields, indices, [*] and [?(@.field==\"text\")]";
            errors.push(FieldError::invalid(format!("{at}.jsonPath"), path, detail));
        }
    }
}

/// What a definition says that has no effect here, in words for its author.
fn unserved(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, version) in list(object, "/spec/versions").iter().enumerate() {
        if let Some(schema) = version.pointer("/schema/openAPIV3Schema")
            && has_expressions(schema)
        {
            warnings.push(format!(
                "spec.versions[{index}].schema.openAPIV3Schema: x-kubernetes-validations are not evaluated"
            ));
        }
    }
    warnings
}

fn has_expressions(schema: &Value) -> bool {
    entries(schema, "").any(|(name, inner)| match name.as_str() {
        "x-kubernetes-validations" => true,
        "properties" => entries(inner, "").any(|(_, schema)| has_expressions(schema)),
        "items" | "additionalProperties" => has_expressions(inner),
        _ => false,
    })
}
