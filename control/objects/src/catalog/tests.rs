//! Catalogs: of this binary, and of what a state declares.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::{Object, fields::text, kind::Generational};

#[test]
fn the_table_is_consistent() {
    let mut seen = BTreeSet::new();
    let mut short_names = BTreeSet::new();
    for kind in kinds() {
        let id = (&kind.group, &kind.version, &kind.plural);
        assert!(seen.insert(id), "{id:?} is declared twice");
        assert_eq!(kind.singular, kind.kind.to_lowercase(), "{id:?}");
        assert!(kind.columns.first().is_some_and(|column| column.name == "Name" || kind.kind == "Event"));
        assert!(kind.verbs.is_sorted(), "{id:?}");
        assert!(kind.schema.ends_with(&format!(".{}.{}", kind.version, kind.kind)), "{id:?}");
        assert!(Arc::ptr_eq(by_plural(&kind.group, &kind.version, &kind.plural).unwrap(), kind));
        assert!(Arc::ptr_eq(by_kind(&kind.group, &kind.version, &kind.kind).unwrap(), kind));
        assert!(Arc::ptr_eq(by_resource(kind.resource().as_str()).unwrap(), kind));
        for name in kind.short_names.iter().filter(|_| !kind.is_converted()) {
            assert!(short_names.insert(name), "short name {name} is taken twice");
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
            "selector": [], "rules": [null], "volumes": ["x"], "versions": [0, {"schema": 1}], "names": []},
            "status": {"conditions": [null, 3]}}),
    ];
    for kind in kinds() {
        for shape in &shapes {
            let mut object = shape.clone();
            assert_eq!(kind.cells(&object, Timestamp::UNIX_EPOCH).len(), kind.columns.len(), "{kind:?}");
            kind.defaults(&mut object);
            let once = object.clone();
            kind.defaults(&mut object);
            assert_eq!(once, object, "defaults of {} are idempotent", kind.kind);
            kind.validate(&object, None);
            kind.validate(&object, Some(shape));
            kind.status_faults(&object, None);
        }
    }
}

#[test]
fn shared_storage() {
    let kind = by_plural("events.k8s.io", "v1", "events").unwrap();
    assert_eq!(kind.resource().as_str(), "events.events.k8s.io");
    assert_eq!(kind.storage_resource().as_str(), "events");
    assert_eq!(kind.stored_as(), ("v1".to_owned(), "Event".into()));
    assert_eq!(by_resource("deployments.apps").unwrap().api_version(), "apps/v1");
}

fn definition(plural: &str, kind: &str, created: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.example.com"), "creationTimestamp": created },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
                "shortNames": ["short"] },
            "versions": [
                { "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object" } } },
                { "name": "v1beta1", "served": true, "storage": false },
                { "name": "v1alpha1", "served": false, "storage": false },
            ],
        },
    })
}

fn view(definitions: &[(&Value, u64)]) -> View {
    let mut view = View::default();
    for (definition, revision) in definitions {
        let key = ObjectKey::new(DEFINITIONS, "", text(definition, "/metadata/name"));
        let object = Object::from_draft(key.clone(), definition.to_string().as_bytes(), *revision).unwrap();
        view.tables.entry(key.resource).or_default().insert(key.name, Arc::new(object));
    }
    view
}

#[test]
fn definitions_are_kinds_like_others_and_compiled_when_they_change() {
    let (first, second) = (
        definition("foos", "Foo", "2026-01-01T00:00:00Z"),
        definition("bars", "Bar", "2026-01-02T00:00:00Z"),
    );
    assert!(Catalog::native().is_of(&View::default()));
    let state = view(&[(&first, 1)]);
    assert!(!Catalog::native().is_of(&state));
    let catalog = Catalog::native().next(&state);
    assert!(catalog.is_of(&state) && !catalog.is_of(&View::default()));
    let kind = catalog.by_plural("example.com", "v1", "foos").unwrap();
    assert_eq!((&*kind.kind, kind.namespaced, &*kind.schema), ("Foo", true, "com.example.v1.Foo"));
    assert_eq!(kind.generational, Generational::All);
    assert!(Arc::ptr_eq(catalog.by_resource("foos.example.com").unwrap(), kind));
    let other = catalog.by_kind("example.com", "v1beta1", "Foo").unwrap();
    assert_eq!(other.stored_as().0, "example.com/v1");
    assert_eq!(other.storage_resource(), kind.storage_resource());
    assert!(catalog.by_plural("example.com", "v1alpha1", "foos").is_none());
    assert!(catalog.by_plural("", "v1", "pods").is_some());
    // The second wants a short name that the first has.
    let both = view(&[(&first, 1), (&second, 2)]);
    let next = catalog.next(&both);
    assert!(Arc::ptr_eq(next.by_plural("example.com", "v1", "foos").unwrap(), kind), "compiled once");
    assert!(next.by_plural("example.com", "v1", "bars").is_none());
    let names = Names::default().next(&both);
    assert_eq!(
        (names.conflict("foos.example.com"), names.conflict("bars.example.com")),
        (None, Some("short"))
    );
    // The second had the name first, and keeps it whatever an older one wants.
    let mut served = second.clone();
    served["status"] = json!({ "acceptedNames": served["spec"]["names"], "conditions": [{ "type": "Established", "status": "True" }] });
    let held = view(&[(&first, 1), (&served, 3)]);
    let names = Names::default().next(&held);
    assert_eq!(
        (names.conflict("foos.example.com"), names.conflict("bars.example.com")),
        (Some("short"), None)
    );
    assert_eq!(names.resettled(&Names::default()), ["foos.example.com"]);
    assert_eq!(names.next(&view(&[(&first, 1)])).resettled(&names), ["foos.example.com"]);
    assert_eq!(names.resettled(&names), [] as [String; 0]);
    assert!(catalog.next(&held).by_plural("example.com", "v1", "bars").is_some());
    // It goes on under its own names where it wants one that is another's.
    served["spec"]["names"]["shortNames"] = json!(["short", "foo"]);
    let mut holder = first.clone();
    holder["spec"]["names"]["shortNames"] = json!([]);
    let greedy = catalog.next(&view(&[(&holder, 4), (&served, 5)]));
    let bars = greedy.by_plural("example.com", "v1", "bars").unwrap();
    assert_eq!(bars.short_names, ["short"]);
    assert!(greedy.by_plural("example.com", "v1", "foos").is_some());
    // A status does not make a kind of this binary anybody's.
    let mut theft = definition("deployments", "Deployment", "2026-01-01T00:00:00Z");
    theft["metadata"]["name"] = "deployments.apps".into();
    theft["spec"]["group"] = "apps".into();
    theft["status"] = json!({ "acceptedNames": theft["spec"]["names"], "conditions": [{ "type": "Established", "status": "True" }] });
    let apps = catalog.next(&view(&[(&theft, 6)]));
    assert!(Arc::ptr_eq(
        apps.by_resource("deployments.apps").unwrap(),
        by_resource("deployments.apps").unwrap()
    ));
    // Once the first has gone the name is free.
    let last = next.next(&view(&[(&second, 2)]));
    assert!(last.by_plural("example.com", "v1", "bars").is_some());
    let labelled = next.next(&view(&[(&first, 3)]));
    assert!(
        Arc::ptr_eq(labelled.by_plural("example.com", "v1", "foos").unwrap(), kind),
        "its specification is the same"
    );
    let mut first = first;
    first["metadata"]["generation"] = 2.into();
    let changed = next.next(&view(&[(&first, 3)]));
    assert!(!Arc::ptr_eq(changed.by_plural("example.com", "v1", "foos").unwrap(), kind));
}
