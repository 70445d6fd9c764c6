//! Declared kinds: what a schema asks, fills in and shows.

use serde_json::{Value, json};

use super::*;
use crate::ObjectKey;

/// The kind of a definition with this schema, a status, a scale and a column.
fn kind(schema: Value) -> Kind {
    let definition = json!({
        "metadata": { "name": "foos.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList" },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
                "subresources": {
                    "status": {},
                    "scale": { "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size",
                        "labelSelectorPath": ".status.selector" },
                },
                "additionalPrinterColumns": [
                    { "name": "Size", "type": "integer", "jsonPath": ".spec.size" },
                    { "name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp", "priority": 1 },
                ],
            }],
        },
    });
    let key = ObjectKey::new("customresourcedefinitions.apiextensions.k8s.io", "", "foos.example.com");
    let object = Object::from_draft(key, definition.to_string().as_bytes(), 1).unwrap();
    kinds_of(&object).remove(0)
}

fn schema(spec: Value) -> Value {
    json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": spec } } })
}

fn faults(rules: Value, value: Value) -> Vec<String> {
    let kind = kind(schema(json!({ "x": rules })));
    let object = json!({ "spec": { "x": value } });
    kind.validate(&object, None).iter().map(ToString::to_string).collect()
}

#[test]
fn values_are_checked_in_the_words_of_kubernetes() {
    for (rules, value, told) in [
        (
            json!({"type": "integer"}),
            json!("a"),
            r#"spec.x: Invalid value: "string": spec.x in body must be of type integer: "string""#,
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!(0),
            "spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1",
        ),
        (
            json!({"type": "integer", "maximum": 3, "exclusiveMaximum": true}),
            json!(3),
            "spec.x: Invalid value: 3: spec.x in body should be less than 3",
        ),
        (
            json!({"type": "integer", "multipleOf": 2}),
            json!(3),
            "spec.x: Invalid value: 3: spec.x in body should be a multiple of 2",
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            r#"spec.x: Unsupported value: "c": supported values: "a", "b""#,
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("b"),
            r#"spec.x: Invalid value: "b": spec.x in body should match '^a+$'"#,
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("b"),
            r#"spec.x: Invalid value: "b": spec.x in body should be at least 2 chars long"#,
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("bbb"),
            "spec.x: Too long: may not be more than 2 bytes",
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("b"),
            r#"spec.x: Invalid value: "b": spec.x in body must be of type date-time: "b""#,
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            "spec.x: Too many: 2: must have at most 1 items",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            json!(["a", 1]),
            r#"spec.x[1]: Invalid value: "integer": spec.x[1] in body must be of type string: "integer""#,
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
            json!(["a", "a"]),
            r#"spec.x[1]: Duplicate value: "a""#,
        ),
        (json!({"type": "object", "required": ["y"]}), json!({}), "spec.x.y: Required value"),
        (
            json!({"type": "object", "additionalProperties": {"type": "boolean"}}),
            json!({"k": 1}),
            r#"spec.x.k: Invalid value: "integer": spec.x.k in body must be of type boolean: "integer""#,
        ),
        (
            json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({}),
            "spec.x: Invalid value: null: spec.x in body must validate one and only one schema (oneOf). Found none valid",
        ),
        (
            json!({"type": "object", "not": {"required": ["a"]}}),
            json!({"a": 1}),
            "spec.x: Invalid value: null: spec.x in body must not validate the schema (not)",
        ),
        (
            json!({"type": "integer"}),
            json!(null),
            r#"spec.x: Invalid value: "null": spec.x in body must be of type integer: "null""#,
        ),
    ] {
        assert_eq!(faults(rules.clone(), value.clone()), [told], "{rules} {value}");
    }
    for (rules, value) in [
        (json!({"type": "integer", "nullable": true}), json!(null)),
        (json!({"x-kubernetes-int-or-string": true}), json!("50%")),
        (json!({"x-kubernetes-int-or-string": true}), json!(5)),
        (json!({"x-kubernetes-preserve-unknown-fields": true}), json!({"a": [1]})),
        (json!({"type": "number", "minimum": 0}), json!(0.5)),
        (json!({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}), json!({"b": 1})),
    ] {
        assert_eq!(faults(rules.clone(), value.clone()), [] as [String; 0], "{rules} {value}");
    }
}

#[test]
fn what_was_wrong_before_and_is_left_holds_nothing_back() {
    let kind = kind(schema(
        json!({ "a": { "type": "string", "maxLength": 3 }, "b": { "type": "string", "maxLength": 3 } }),
    ));
    let old = json!({ "spec": { "a": "too long", "b": "ok" } });
    let told = |a: &str, b: &str| {
        let new = json!({ "metadata": { "labels": { "l": "1" } }, "spec": { "a": a, "b": b } });
        kind.validate(&new, Some(&old)).iter().map(|fault| fault.field.clone()).collect::<Vec<String>>()
    };
    assert_eq!(told("too long", "ok"), [] as [String; 0]);
    assert_eq!(told("too long", "also too long"), ["spec.b"]);
    assert_eq!(told("longer than before", "ok"), ["spec.a"]);
}

#[test]
fn defaults_are_filled_in_at_every_depth() {
    let kind = kind(schema(json!({
        "size": { "type": "integer", "default": 3 },
        "list": { "type": "array", "items": { "type": "object", "properties": { "on": { "type": "boolean", "default": true } } } },
        "deep": { "type": "object", "default": {}, "properties": { "name": { "type": "string", "default": "n" } } },
        "kept": { "type": "string", "nullable": true, "default": "d" },
        "null": { "type": "string", "default": "d" },
    })));
    assert!(kind.is_converted(), "what is stored may lack them");
    let mut object = json!({ "spec": { "list": [{}, { "on": false }], "kept": null, "null": null } });
    kind.defaults(&mut object);
    let expected = json!({ "spec": { "list": [{ "on": true }, { "on": false }], "kept": null, "null": "d",
        "size": 3, "deep": { "name": "n" } } });
    assert_eq!(object, expected);
    let once = object.clone();
    kind.defaults(&mut object);
    assert_eq!(object, once);
}

#[test]
fn what_a_user_writes_costs_no_more_than_can_be_stored() {
    let large = "x".repeat(10_000);
    let items = json!({ "type": "object", "properties": { "text": { "type": "string", "default": large } } });
    let kind = kind(schema(json!({ "list": { "type": "array", "items": items } })));
    let mut object = json!({ "spec": { "list": vec![json!({}); 50_000] } });
    kind.defaults(&mut object);
    assert!(object.to_string().len() < 5_000_000);
    // Each element is tried with each alternative.
    let mut alternatives = vec![json!({ "required": ["never"] }); 200];
    alternatives.push(json!({}));
    let items = json!({ "type": "array", "items": { "type": "object", "anyOf": alternatives } });
    assert_eq!(faults(items.clone(), json!(vec![json!({}); 1000])), [] as [String; 0]);
    let told = faults(items, json!(vec![json!({}); 30_000]));
    assert!(told[0].contains("too much work"), "{told:?}");
}

#[test]
fn rows_and_scales_are_as_declared() {
    let kind = kind(schema(json!({ "size": { "type": "integer" } })));
    let names: Vec<&str> = kind.columns.iter().map(|column| &*column.name).collect();
    assert_eq!(names, ["Name", "Size", "Since"]);
    let object = json!({ "metadata": { "name": "a", "creationTimestamp": "2026-01-01T00:00:00Z" }, "spec": { "size": 2 } });
    let now = "2026-01-01T00:05:00Z".parse().unwrap();
    assert_eq!(kind.cells(&object, now), [json!("a"), json!(2), json!("5m")]);
    let scale = kind.scale_paths();
    assert_eq!((&*scale.replicas, scale.selector.as_deref()), ("/spec/size", Some("/status/selector")));
    assert!(kind.has(Endpoint::Status) && kind.has(Endpoint::Scale) && !kind.has(Endpoint::Log));
}

#[test]
fn a_generation_counts_all_but_metadata_and_status() {
    let kind = kind(schema(json!({})));
    let old = json!({ "metadata": { "a": 1 }, "spec": { "x": 1 }, "status": 1, "extra": 1 });
    let moved = |change: fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        kind.moves_generation(&old, &new)
    };
    assert!(!moved(|new| new["metadata"]["a"] = 2.into()));
    assert!(!moved(|new| new["status"] = 2.into()));
    assert!(moved(|new| new["spec"]["x"] = 2.into()));
    assert!(moved(|new| new["other"] = 2.into()));
    assert!(moved(|new| _ = new.as_object_mut().unwrap().shift_remove("extra")));
}

#[test]
fn a_schema_must_be_structural() {
    let told = |schema: Value| {
        let mut errors = Vec::new();
        schema_faults(&schema, "s", &mut errors);
        errors.iter().map(ToString::to_string).collect::<Vec<String>>()
    };
    assert_eq!(told(schema(json!({ "x": { "type": "string" } }))), [] as [String; 0]);
    let at = "s.properties[spec].properties[x]";
    for (bad, fault) in [
        (json!({}), format!("{at}.type: Required value: must not be empty for specified object fields")),
        (json!({ "type": "array" }), format!("{at}.items: Required value: must be specified")),
        (json!({ "type": "object", "$ref": "y" }), format!("{at}.$ref: Forbidden: $ref is not supported")),
        (
            json!({ "type": "integer", "default": "a" }),
            format!("{at}.default: Invalid value: \"string\":  in body must be of type integer: \"string\""),
        ),
    ] {
        assert_eq!(told(schema(json!({ "x": bad }))), [fault]);
    }
    assert!(
        told(schema(json!({ "x": { "type": "string", "pattern": "(" } })))[0].contains("regular expression")
    );
    assert!(told(json!({ "type": "string" }))[0].contains("must be object at the root"));
    let object = |key: &str| json!({ "type": "object", "required": [key], "properties": { "a": { "type": "string" } } });
    let map = |key: &str, required: &str| {
        json!({ "type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key], "items": object(required) })
    };
    assert_eq!(told(schema(json!({ "x": map("a", "a") }))), [] as [String; 0]);
    for bad in [
        map("a", "b"),
        map("z", "a"),
        json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true }),
        json!({ "type": "array", "items": { "type": "string" }, "x-kubernetes-list-type": "bogus" }),
        json!({ "type": "object", "additionalProperties": false }),
        json!({ "type": "object", "properties": [1] }),
        json!({ "type": "string", "x-kubernetes-int-or-string": true }),
        json!({ "type": "string", "x-kubernetes-preserve-unknown-fields": true }),
        json!({ "type": "string", "anyOf": [{ "type": "string" }] }),
    ] {
        assert_eq!(told(schema(json!({ "x": bad }))).len(), 1, "{bad}");
    }
    let inner = json!({ "type": "object", "required": ["a"], "default": {}, "properties": { "a": { "type": "string", "default": "q" } } });
    assert_eq!(
        told(schema(json!({ "x": inner }))),
        [] as [String; 0],
        "a default is completed by those within"
    );
}
