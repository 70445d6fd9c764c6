//! The tables against the schemas, and what they say of whole objects.

use std::collections::BTreeSet;

use serde_json::json;

use super::{examples::KINDS, *};
use crate::{by_resource, schema};

/// The struct's fields that have no rule, and rules of fields that it has not.
fn differences(table: &Table, place: &str) -> Vec<String> {
    let mut paths: BTreeSet<String> =
        table.rules.iter().map(|rule| rule.path.trim_end_matches("[]").to_owned()).collect();
    let parts: BTreeSet<&str> = table.parts.iter().map(|part| part.path.trim_end_matches("[]")).collect();
    let mut differences = Vec::new();
    let mut missing = |path: &str| differences.push(format!("no rule for {place}.{path}"));
    known(table.schema, "", &mut paths, &parts, &mut missing);
    differences.extend(paths.into_iter().map(|path| format!("no field {place}.{path}")));
    for part in table.parts {
        differences.extend(self::differences(part.table, &format!("{place}.{}", part.path)));
    }
    differences
}

/// Walks the fields of a struct, taking those away that have rules.
fn known(
    schema: &str,
    above: &str,
    paths: &mut BTreeSet<String>,
    parts: &BTreeSet<&str>,
    missing: &mut dyn FnMut(&str),
) {
    for (name, field) in schema::types().by_schema(schema).unwrap().fields() {
        let path = format!("{above}{name}");
        let is_list = matches!(field.type_, schema::Type::List(..));
        let below = format!("{path}{}.", if is_list { "[]" } else { "" });
        let has_rules_below = paths.iter().any(|known| known.starts_with(&below));
        let own = paths.remove(&path) | parts.contains(path.as_str());
        match field.type_.innermost() {
            Some(inner) if has_rules_below => {
                // What a list's own rule says of its elements it says of their fields.
                let mut nothing = |_: &str| ();
                known(inner.schema(), &below, paths, parts, if own { &mut nothing } else { missing });
            }
            _ if !own => missing(&path),
            _ => {}
        }
    }
}

#[test]
fn every_field_has_a_rule_and_every_rule_a_field() {
    for (_, kind, _, table) in KINDS {
        assert_eq!(differences(table, kind), [""; 0]);
    }
}

fn resource(version: &str, plural: &str) -> String {
    match version.split_once('/') {
        Some((group, _)) => format!("{plural}.{group}"),
        None => plural.to_owned(),
    }
}

#[test]
fn the_tables_are_what_admission_goes_by() {
    for Example { object, resource: (version, plural), field, support, note } in examples() {
        let kind = by_resource(&resource(version, plural)).unwrap();
        let mut filled = object.clone();
        kind.defaults(&mut filled);
        let faults = kind.validate(&filled, None);
        let warnings = kind.warn().unwrap()(&filled);
        let pointer = format!("/{}", field.replace('[', "/").replace(']', "").replace('.', "/"));
        assert!(
            object.pointer(&pointer).is_some_and(|value| !value.is_null()),
            "{field} is not set in {object}"
        );
        match support {
            Support::Served => {
                assert_eq!(faults, [], "{object}");
                assert!(!warnings.iter().any(|told| told.starts_with(&format!("{field}: "))), "{warnings:?}");
            }
            Support::Warned => {
                assert_eq!(faults, [], "{object}");
                assert!(warnings.contains(&format!("{field}: {note}")), "{field} is not among {warnings:?}");
            }
            Support::Refused => {
                let fault = FieldError::forbidden(field, note);
                assert!(faults.contains(&fault), "{fault} is not among {faults:?}");
            }
        }
    }
}

#[test]
fn what_says_the_same_as_nothing_is_nothing() {
    let spec = json!({"hostNetwork": false, "hostAliases": [], "dnsConfig": null, "priority": 0, "runtimeClassName": "",
        "securityContext": {"seLinuxOptions": {}, "runAsNonRoot": false},
        "containers": [{"tty": false, "ports": [{"hostPort": 0}], "securityContext": {"privileged": false}}]});
    let mut errors = Vec::new();
    refuse(&POD_SPEC, &spec, "spec", &mut errors);
    assert_eq!((errors, warnings(&POD_SPEC, &spec, "spec")), (vec![], vec![]));
}

#[test]
fn what_is_filled_in_is_nothing_to_warn_of() {
    for (version, kind, plural, table) in KINDS {
        let spec: Value = serde_json::from_str(table.base).unwrap();
        let mut object =
            json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "a" }, "spec": spec });
        let kind = by_resource(&resource(version, plural)).unwrap();
        kind.defaults(&mut object);
        assert_eq!(kind.warn().unwrap()(&object), [""; 0], "{object}");
    }
}

#[test]
fn an_account_of_its_own_is_warned_of_by_either_name() {
    for field in ["serviceAccount", "serviceAccountName"] {
        let told = |account: &str| warnings(&POD_SPEC, &json!({ field: account }), "spec");
        assert_eq!((told("default"), told("")), (vec![], vec![]));
        let own = told("own");
        assert_eq!(own.len(), 1, "{own:?}");
        assert!(own[0].starts_with(&format!("spec.{field}: its token is not mounted yet")), "{own:?}");
    }
}

#[test]
fn a_field_is_named_where_it_stands() {
    let spec = json!({"containers": [{}, {"securityContext": {"runAsUser": 0}}],
        "initContainers": [{"readinessProbe": {"exec": {"command": ["a"]}}}]});
    let mut errors = Vec::new();
    refuse(&POD_SPEC, &spec, "spec.template.spec", &mut errors);
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["spec.template.spec.initContainers[0].readinessProbe.exec"]);
    let told = warnings(&POD_SPEC, &spec, "spec.template.spec");
    assert_eq!(told.len(), 1);
    assert!(
        told[0].starts_with("spec.template.spec.containers[1].securityContext.runAsUser: has no effect: ")
    );
}

#[test]
fn warnings_are_bounded() {
    let container = json!({"securityContext": {"runAsUser": 1}});
    let spec = json!({"containers": vec![container; 1000]});
    assert_eq!(warnings(&POD_SPEC, &spec, "spec").len(), WARNINGS_MAX);
}
