//! The typed decode: what it takes, drops, fills in and refuses.

use std::collections::BTreeSet;

use serde_json::json;

use coracle_objects::schema::types;

use super::*;

const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
const POD: &str = "io.k8s.api.core.v1.Pod";

fn mismatch(mut value: Value, schema: &str) -> String {
    conform(&mut value, types(), schema).mismatch.unwrap_or_default()
}

fn conformed(mut value: Value, schema: &str) -> Value {
    let findings = conform(&mut value, types(), schema);
    assert_eq!(findings.mismatch, None);
    assert!(findings.unknown.is_empty(), "{:?}", findings.unknown);
    value
}

#[test]
fn unknown_fields_are_named_and_dropped() {
    let mut value = json!({
        "kind": "Deployment",
        "spec": { "foo": 1, "template": { "spec": { "containers": [{ "name": "a", "imagee": "b" }] } } },
        "metadata": { "labels": { "anything": "goes" }, "annotations": null },
    });
    let findings = conform(&mut value, types(), DEPLOYMENT);
    assert_eq!(findings.unknown, ["spec.foo", "spec.template.spec.containers[0].imagee"]);
    assert!(findings.mismatch.is_none());
    assert_eq!(value["spec"], json!({ "template": { "spec": { "containers": [{ "name": "a" }] } } }));
    assert_eq!(value["metadata"], json!({ "labels": { "anything": "goes" } }));
}

#[test]
fn wrong_types_read_as_those_of_go() {
    assert_eq!(
        mismatch(json!({ "spec": { "replicas": "three" } }), DEPLOYMENT),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        mismatch(json!({ "data": { "a": 1 } }), "io.k8s.api.core.v1.ConfigMap"),
        "json: cannot unmarshal number into Go struct field ConfigMap.data.a of type string"
    );
    assert_eq!(
        mismatch(json!({ "spec": { "containers": {} } }), POD),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
    );
    assert!(conform(&mut json!({"anything": 1}), types(), "dev.coracle.v1.Unknown").unknown.is_empty());
}

#[test]
fn null_is_as_if_the_field_were_absent_and_in_lists_and_maps_the_zero_value() {
    let value = json!({
        "metadata": { "labels": { "a": null }, "creationTimestamp": null, "finalizers": [null, "x/y"] },
        "spec": { "tolerations": null, "initContainers": null, "hostname": null, "nodeName": null,
            "containers": [null, { "name": "c", "resources": { "limits": { "cpu": null } }, "ports": [null] }] },
        "status": { "containerStatuses": null },
    });
    assert_eq!(
        conformed(value, POD),
        json!({
            "metadata": { "labels": { "a": "" }, "finalizers": ["", "x/y"] },
            "spec": { "containers": [{}, { "name": "c", "resources": { "limits": { "cpu": "0" } }, "ports": [{}] }] },
            "status": {},
        })
    );
}

#[test]
fn integers_are_whole_and_within_their_range() {
    let replicas = |value: Value| mismatch(json!({ "spec": { "replicas": value } }), DEPLOYMENT);
    assert_eq!(
        replicas(json!(3.0)),
        "json: cannot unmarshal number 3.0 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert!(replicas(json!(i64::from(i32::MAX) + 1)).ends_with("of type int32"));
    assert_eq!(replicas(json!(i32::MIN)), "");
    let grace = |value: Value| mismatch(json!({ "spec": { "terminationGracePeriodSeconds": value } }), POD);
    assert_eq!(grace(json!(i64::MAX)), "");
    assert!(grace(json!(u64::MAX)).ends_with("of type int64"));
    assert!(grace(json!(1e3)).ends_with("of type int64"));
    let surge = |value: Value| {
        mismatch(json!({ "spec": { "strategy": { "rollingUpdate": { "maxSurge": value } } } }), DEPLOYMENT)
    };
    assert_eq!(surge(json!("25%")), "");
    assert!(surge(json!(1.0)).ends_with("of type int32"));
    assert!(surge(json!(1_i64 << 40)).ends_with("of type int32"));
    assert!(surge(json!(true)).ends_with("of type intstr.IntOrString"));
}

#[test]
fn quantities_are_quantities_and_become_text() {
    let limits = json!({ "cpu": 1, "memory": 1.5, "x": "2Ki" });
    let value = conformed(json!({ "spec": { "containers": [{ "resources": { "limits": limits } }] } }), POD);
    let limits = &value["spec"]["containers"][0]["resources"]["limits"];
    assert_eq!(limits, &json!({ "cpu": "1", "memory": "1.5", "x": "2Ki" }));
    let divisor = |value: Value| {
        let source = json!({ "resourceFieldRef": { "resource": "limits.cpu", "divisor": value } });
        mismatch(json!({ "spec": { "containers": [{ "env": [{ "valueFrom": source }] }] } }), POD)
    };
    assert_eq!(divisor(json!("1m")), "");
    assert!(divisor(json!("one")).starts_with("quantities must match the regular expression"));
    assert!(divisor(json!("")).contains("spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor"));
    assert!(divisor(json!([])).ends_with("of type resource.Quantity"));
}

#[test]
fn times_are_times_in_utc() {
    let started = |text: &str| {
        let mut value = json!({ "status": { "startTime": text } });
        match conform(&mut value, types(), POD).mismatch {
            None => value["status"]["startTime"].as_str().unwrap().to_owned(),
            Some(mismatch) => mismatch,
        }
    };
    assert_eq!(started("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05Z");
    assert_eq!(started("2026-01-02T03:04:05.25+02:00"), "2026-01-02T01:04:05Z");
    for wrong in ["", "yesterday", "2026-01-02", "-009999-01-02T01:01:22Z", "2026-01-02 03:04:05Z"] {
        assert!(started(wrong).starts_with("parsing time"), "{wrong}");
    }
    let lease = json!({ "spec": { "renewTime": "2026-01-02T03:04:05.123456789Z" } });
    let value = conformed(lease, "io.k8s.api.coordination.v1.Lease");
    assert_eq!(value["spec"]["renewTime"], "2026-01-02T03:04:05.123456Z");
}

#[test]
fn a_time_that_must_be_there_has_its_zero_value() {
    let time = |condition: Value| {
        let service = json!({ "status": { "conditions": [condition] } });
        let service = conformed(service, "io.k8s.api.core.v1.Service");
        // It passes through unchanged when it comes back.
        assert_eq!(conformed(service.clone(), "io.k8s.api.core.v1.Service"), service);
        serde_json::from_value::<k8s_openapi::api::core::v1::Service>(service.clone()).expect("readable");
        service["status"]["conditions"][0]["lastTransitionTime"].clone()
    };
    assert_eq!(time(json!({ "type": "A", "status": "True", "lastTransitionTime": null })), TIME_ZERO);
    assert_eq!(time(Value::Null), TIME_ZERO);
    let given = "2026-01-02T03:04:05Z";
    assert_eq!(time(json!({ "lastTransitionTime": given })), given);
}

#[test]
fn raw_values_stay_as_they_are_but_for_their_depth() {
    let fields = json!({ "f:a": { ".": null, "f:b": 1.0 } });
    let value = json!({ "metadata": { "managedFields": [{ "fieldsV1": fields }] } });
    assert_eq!(conformed(value.clone(), POD), value);
    let nested = |depth: usize| (0..depth).fold(json!({}), |inner, _| json!({ "f:x": inner }));
    let with = |depth: usize| json!({ "metadata": { "managedFields": [{ "fieldsV1": nested(depth) }] } });
    assert_eq!(mismatch(with(DEPTH_MAX - 10), POD), "");
    assert!(mismatch(with(DEPTH_MAX), POD).starts_with("exceeded max depth"));
    assert!(mismatch(with(DEPTH_MAX * 2), POD).len() < 200);
}

#[test]
fn what_is_named_of_many_unknown_fields_is_bounded() {
    let many: serde_json::Map<String, Value> =
        (0..10_000).map(|index| (format!("x{index}"), json!(1))).collect();
    let mut value = Value::Object(many);
    assert_eq!(conform(&mut value, types(), POD).unknown.len(), UNKNOWN_MAX);
    assert_eq!(value, json!({}));
}

/// What looks at a list: its name, the type of its elements, how many it may have, and what puts it in its place.
type Look<'l> = &'l mut dyn FnMut(&str, &Type, usize, &dyn Fn(Value) -> Value);

/// Goes through every list that a value of the type can have, each struct's once: `wrap` puts a value in its place.
fn each_list(
    type_: &Type,
    wrap: &dyn Fn(Value) -> Value,
    seen: &mut BTreeSet<(&'static str, &'static str)>,
    look: Look<'_>,
) {
    let Type::Struct(index) = type_ else { return };
    let struct_ = types().get(*index);
    for (name, field) in struct_.fields() {
        if !seen.insert((struct_.name(), name)) {
            continue;
        }
        let times: serde_json::Map<String, Value> =
            struct_.times.iter().map(|time| (time.clone(), "2026-01-02T03:04:05Z".into())).collect();
        let put = |value: Value| {
            let mut object = times.clone();
            object.insert(name.to_owned(), value);
            wrap(Value::Object(object))
        };
        match &field.type_ {
            Type::List(element, max) => {
                look(&format!("{}.{name}", struct_.name()), element, *max, &put);
                each_list(element, &|value| put(json!([value])), seen, look);
            }
            Type::Map(value) => each_list(value, &|value| put(json!({ "key": value })), seen, look),
            other => each_list(other, &put, seen, look),
        }
    }
}

#[test]
fn every_list_of_every_kind_is_refused_before_it_is_walked_where_it_is_too_long() {
    let mut lists = 0;
    for kind in coracle_objects::kinds() {
        let Some(type_) = types().by_name(&kind.schema) else { continue };
        each_list(type_, &|value| value, &mut BTreeSet::new(), &mut |name, element, max, put| {
            lists += 1;
            assert!(max <= if element.is_plain() { 100_000 } else { 20_000 }, "{name}: {max}");
            // Elements that are no elements: nobody has looked at them.
            let mut long = put(vec![json!([[]]); max + 1].into());
            let findings = conform(&mut long, types(), &kind.schema);
            let error = findings.too_many.unwrap_or_else(|| panic!("{name}: {:?}", findings.mismatch));
            assert_eq!(findings.mismatch, Some(error.to_string()));
            assert!(error.to_string().contains("Too many: "), "{name}: {error}");
        });
    }
    assert!(lists > 300, "{lists}");
}

#[test]
fn the_structs_of_all_lists_together_are_bounded() {
    let ports = |count: usize| json!({ "ports": vec![json!({}); count] });
    let pod = |containers: usize| json!({ "spec": { "containers": vec![ports(99); containers] } });
    assert_eq!(mismatch(pod(500), POD), "");
    let refused = mismatch(pod(501), POD);
    assert!(refused.contains("all lists of the object together must have at most 50000 items"), "{refused}");
}
