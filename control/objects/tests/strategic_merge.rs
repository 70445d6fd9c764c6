//! Strategic merge: cases, and the property that a patch made of two objects turns the one into the other.

use std::time::{Duration, Instant};

use std::collections::BTreeMap;

use coracle_objects::{
    patch::{PatchError, strategic},
    schema::{self, PatchStrategy},
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const POD: &str = "io.k8s.api.core.v1.Pod";
const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

fn apply(target: Value, patch: Value, schema: &str) -> Result<Value, PatchError> {
    let mut target = target;
    let before = target.clone();
    let outcome = strategic(&mut target, &patch, schema);
    assert!(outcome.is_ok() || target == before, "a patch that fails changes nothing");
    outcome.map(|()| target)
}

fn check(target: Value, patch: Value, expected: Value) {
    assert_eq!(apply(target, patch.clone(), POD).unwrap(), expected, "{patch}");
}

#[test]
fn maps_merge_and_nulls_delete() {
    check(
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "n", "hostname": "h"}}),
        json!({"metadata": {"labels": {"a": null, "c": "3"}}, "spec": {"nodeName": null, "subdomain": null}, "status": {"x": {"y": null}}}),
        json!({"metadata": {"labels": {"b": "2", "c": "3"}}, "spec": {"hostname": "h"}, "status": {"x": {}}}),
    );
}

#[test]
fn lists_merge_by_their_key() {
    check(
        json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]}}),
        json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "a", "args": ["y"], "image": null}]}}),
        json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "a", "args": ["y"]}]}}),
    );
    // A new element stands before those that the patch does not name.
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "c"}]}}),
        json!({"spec": {"containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]}}),
    );
    check(
        json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "x"}]}]}}),
        json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "y"}, {"containerPort": 81}]}]}}),
        json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "y"}, {"containerPort": 81}]}]}}),
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    check(
        json!({"spec": {"tolerations": [{"key": "a"}, {"key": "b"}]}}),
        json!({"spec": {"tolerations": [{"key": "c"}]}}),
        json!({"spec": {"tolerations": [{"key": "c"}]}}),
    );
    // As `kubectl cordon` and `taint` do it.
    let node = "io.k8s.api.core.v1.Node";
    let target = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "unschedulable": true}});
    let patched = apply(target, json!({"spec": {"taints": null, "unschedulable": null}}), node).unwrap();
    assert_eq!(patched, json!({"spec": {}}));
}

#[test]
fn directives_on_elements() {
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}, {"name": "x", "$patch": "delete"}]}}),
        json!({"spec": {"containers": [{"name": "b"}]}}),
    );
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "c"}, {"$patch": "replace"}]}}),
        json!({"spec": {"containers": [{"name": "c"}]}}),
    );
    // Where there is no list yet, directives leave no trace.
    check(
        json!({}),
        json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}, {"name": "b", "env": [{"name": "x", "value": null}]}]}}),
        json!({"spec": {"containers": [{"name": "b", "env": [{"name": "x"}]}]}}),
    );
}

#[test]
fn directives_on_maps() {
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"b": "2", "$patch": "replace"}}}),
        json!({"metadata": {"labels": {"b": "2"}}}),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"b": "2", "$patch": "delete"}}}),
        json!({"metadata": {"labels": {}}}),
    );
    let target = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let patched = apply(target, patch, DEPLOYMENT).unwrap();
    assert_eq!(patched, json!({"spec": {"strategy": {"type": "Recreate"}}}));
}

#[test]
fn orders() {
    // As `kubectl apply` sends it: the order of all that it knows, and c, which it does not know, stays in its place.
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "c"}, {"name": "b"}]}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "2"}]}}),
        json!({"spec": {"containers": [{"name": "c"}, {"name": "b", "image": "2"}, {"name": "a"}]}}),
    );
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
        json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}}),
    );
    check(
        json!({"metadata": {"finalizers": ["a/a", "b/b", "c/c"]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b/b"], "$setElementOrder/finalizers": ["d/d", "a/a"], "finalizers": ["d/d"]}}),
        json!({"metadata": {"finalizers": ["d/d", "a/a", "c/c"]}}),
    );
}

#[test]
fn broken_patches_are_refused() {
    let target = json!({"spec": {"containers": [{"name": "a"}]}, "metadata": {"finalizers": ["x/y"]}});
    let broken = [
        json!([]),
        json!({"spec": {"containers": [{"image": "x"}]}}),
        json!({"spec": {"containers": [{"image": "x", "$patch": "delete"}]}}),
        json!({"spec": {"containers": ["a"]}}),
        json!({"spec": {"containers": [{"name": "a", "$patch": "melt"}]}}),
        json!({"spec": {"$patch": "melt"}}),
        json!({"spec": {"$patch": 3}}),
        json!({"spec": {"$retainKeys": ["a"], "b": 1}}),
        json!({"spec": {"$retainKeys": "a"}}),
        json!({"spec": {"$setElementOrder/containers": {}, "containers": []}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}}),
        json!({"metadata": {"finalizers": [{}]}}),
        json!({"spec": {"tolerations": [{"key": "a", "$patch": "delete"}]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}),
    ];
    for patch in broken {
        assert!(apply(target.clone(), patch.clone(), POD).is_err(), "{patch}");
    }
}

/// The patch that turns `old` into `new`, as a client would make it.
fn diff(old: &Map<String, Value>, new: &Map<String, Value>, schema: Option<&str>) -> Map<String, Value> {
    let mut patch = Map::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        let facts = schema.and_then(|schema| schema::field(schema, name)).map(|field| &field.merge);
        let child = schema.and_then(|schema| schema::child(schema, name));
        let merges = facts.is_some_and(|facts| facts.patch == PatchStrategy::Merge);
        match (old.get(name), value) {
            (Some(before), after) if before == after => {}
            (Some(Value::Object(before)), Value::Object(after)) => {
                patch.insert(name.clone(), diff(before, after, child).into());
            }
            (Some(Value::Array(before)), Value::Array(after)) if merges => {
                diff_list(name, before, after, facts.map_or("", |facts| &facts.patch_key), child, &mut patch);
            }
            (_, after) => {
                patch.insert(name.clone(), after.clone());
            }
        }
    }
    patch
}

fn diff_list(
    name: &str,
    old: &[Value],
    new: &[Value],
    key: &str,
    child: Option<&str>,
    patch: &mut Map<String, Value>,
) {
    if key.is_empty() {
        let gone: Vec<Value> = old.iter().filter(|one| !new.contains(one)).cloned().collect();
        let added: Vec<Value> = new.iter().filter(|one| !old.contains(one)).cloned().collect();
        patch.insert(format!("$deleteFromPrimitiveList/{name}"), gone.into());
        patch.insert(format!("$setElementOrder/{name}"), new.into());
        patch.insert(name.to_owned(), added.into());
        return;
    }
    let mut items = Vec::new();
    for element in new {
        match old.iter().find(|before| before[key] == element[key]) {
            Some(before) if before == element => {}
            Some(before) => {
                let mut item = diff(before.as_object().unwrap(), element.as_object().unwrap(), child);
                item.insert(key.to_owned(), element[key].clone());
                items.push(Value::Object(item));
            }
            None => items.push(element.clone()),
        }
    }
    for gone in old.iter().filter(|before| new.iter().all(|element| element[key] != before[key])) {
        items.push(json!({"$patch": "delete", key: gone[key]}));
    }
    let order: Vec<Value> = new.iter().map(|element| json!({key: element[key]})).collect();
    patch.insert(format!("$setElementOrder/{name}"), order.into());
    patch.insert(name.to_owned(), items.into());
}

/// A list of objects with distinct keys, in any order.
fn keyed(
    key: &'static str,
    keys: Vec<Value>,
    rest: BoxedStrategy<Map<String, Value>>,
) -> impl Strategy<Value = Value> {
    let elements = proptest::sample::subsequence(keys, 0..=3).prop_shuffle();
    (elements, proptest::collection::vec(rest, 3)).prop_map(move |(keys, rest)| {
        let with_key = |(value, mut fields): (Value, Map<String, Value>)| {
            fields.insert(key.to_owned(), value);
            Value::Object(fields)
        };
        keys.into_iter().zip(rest).map(with_key).collect()
    })
}

fn names() -> Vec<Value> {
    ["a", "b", "c", "d"].map(Value::from).to_vec()
}

/// An object with some of these fields.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Map<String, Value>> {
    let (keys, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let values: Vec<_> = values.into_iter().map(proptest::option::of).collect();
    let some = move |values: Vec<Option<Value>>| {
        keys.iter().zip(values).filter_map(|(key, value)| Some(((*key).to_owned(), value?))).collect()
    };
    values.prop_map(some).boxed()
}

fn word() -> BoxedStrategy<Value> {
    "[x-z]{1,2}".prop_map(Value::from).boxed()
}

fn pod() -> impl Strategy<Value = Map<String, Value>> {
    let map = || {
        proptest::collection::btree_map("[a-c]", "[x-z]", 0..3)
            .prop_map(|map: BTreeMap<_, _>| json!(map))
            .boxed()
    };
    let words = || proptest::collection::vec(word(), 0..3).prop_map(Value::from).boxed();
    let env = || keyed("name", names(), object(vec![("value", word())])).boxed();
    let ports = keyed("containerPort", vec![80.into(), 81.into(), 82.into()], object(vec![("name", word())]));
    let container =
        object(vec![("image", word()), ("args", words()), ("env", env()), ("ports", ports.boxed())]);
    let containers = keyed("name", names(), container).boxed();
    let volume = object(vec![("emptyDir", object(vec![("medium", word())]).prop_map(Value::Object).boxed())]);
    let spec = object(vec![
        ("containers", containers),
        ("volumes", keyed("name", names(), volume).boxed()),
        ("tolerations", words()),
        ("nodeSelector", map()),
        ("nodeName", word()),
    ]);
    let finalizers =
        proptest::sample::subsequence(names(), 0..=4).prop_shuffle().prop_map(Value::from).boxed();
    let metadata = object(vec![("labels", map()), ("finalizers", finalizers)]);
    object(vec![
        ("metadata", metadata.prop_map(Value::Object).boxed()),
        ("spec", spec.prop_map(Value::Object).boxed()),
    ])
}

/// Any JSON at all, with names that mean something here and there.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!("delete")),
        Just(json!("replace")),
        Just(json!("a")),
        Just(json!(1)),
        Just(json!(true)),
    ];
    let name = proptest::sample::select(vec![
        "metadata",
        "spec",
        "containers",
        "finalizers",
        "name",
        "env",
        "volumes",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$setElementOrder/finalizers",
        "$deleteFromPrimitiveList/finalizers",
    ]);
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name.clone(), inner), 0..4).prop_map(|fields| {
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_patch_of_two_objects_turns_the_one_into_the_other(old in pod(), new in pod()) {
        let patch = Value::Object(diff(&old, &new, Some(POD)));
        let once = apply(old.clone().into(), patch.clone(), POD).unwrap();
        prop_assert_eq!(&once, &Value::Object(new), "{}", patch);
        let twice = apply(once.clone(), patch.clone(), POD).unwrap();
        prop_assert_eq!(twice, once, "{}", patch);
    }

    #[test]
    fn no_patch_leaves_a_directive_or_panics(old in pod(), patch in anything()) {
        if let Ok(patched) = apply(old.into(), patch.clone(), POD) {
            let text = patched.to_string();
            let traces = ["$patch", "$retainKeys", "$setElementOrder", "$deleteFrom"];
            prop_assert!(traces.iter().all(|trace| !text.contains(trace)), "{} gave {}", patch, text);
        }
    }
}

/// Lists as long as a body can carry: what scans a list for each of its elements takes far longer than this with them.
const MANY: usize = 60_000;
const TIMELY: Duration = Duration::from_secs(10);

#[allow(clippy::disallowed_methods, reason = "how long it takes is what these tests are about")]
fn timely(work: impl FnOnce()) {
    let began = Instant::now();
    work();
    assert!(began.elapsed() < TIMELY, "it took {:?}", began.elapsed());
}

#[test]
fn many_finalizers_merge_at_once() {
    timely(|| {
        let names =
            |from: usize| -> Vec<Value> { (from..from + MANY).map(|at| format!("x/{at}").into()).collect() };
        let target = json!({"metadata": {"finalizers": names(0)}});
        let pod = "io.k8s.api.core.v1.Pod";
        let merged =
            apply(target.clone(), json!({"metadata": {"finalizers": names(MANY / 2)}}), pod).unwrap();
        assert_eq!(merged["metadata"]["finalizers"].as_array().unwrap().len(), MANY * 3 / 2);
        let gone = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": names(0)}});
        assert_eq!(apply(target.clone(), gone, pod).unwrap()["metadata"]["finalizers"], json!([]));
        let turned: Vec<Value> = names(0).into_iter().rev().collect();
        let order = json!({"metadata": {"$setElementOrder/finalizers": turned}});
        assert_eq!(
            apply(target, order, pod).unwrap()["metadata"]["finalizers"][0],
            format!("x/{}", MANY - 1)
        );
    });
}

#[test]
fn many_elements_with_a_key_merge_at_once() {
    timely(|| {
        let env = |from: usize, value: &str| -> Vec<Value> {
            (from..from + MANY).map(|at| json!({"name": format!("V{at}"), "value": value})).collect()
        };
        let pod = |env: Value| json!({"spec": {"containers": [{"name": "c", "env": env}]}});
        let target = pod(env(0, "old").into());
        let merged =
            apply(target.clone(), pod(env(MANY / 2, "new").into()), "io.k8s.api.core.v1.Pod").unwrap();
        let merged = merged["spec"]["containers"][0]["env"].as_array().unwrap();
        assert_eq!(merged.len(), MANY * 3 / 2);
        assert_eq!(merged[MANY / 2]["value"], "new");
        let gone: Vec<Value> =
            (0..MANY).map(|at| json!({"name": format!("V{at}"), "$patch": "delete"})).collect();
        let merged = apply(target, pod(gone.into()), "io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(merged["spec"]["containers"][0]["env"], json!([]));
    });
}

#[test]
fn many_fields_go_and_are_kept_at_once() {
    timely(|| {
        let map = |value: Value| -> Value {
            Value::Object((0..MANY).map(|at| (format!("k{at}"), value.clone())).collect())
        };
        let target = json!({"data": map("x".into())});
        let schema = "io.k8s.api.core.v1.ConfigMap";
        let patched = apply(target.clone(), json!({"data": map(Value::Null)}), schema).unwrap();
        assert_eq!(patched["data"], json!({}));
        let mut kept = map("y".into());
        kept["$retainKeys"] = (0..MANY).map(|at| Value::from(format!("k{at}"))).collect();
        let patched = apply(target, json!({"data": kept}), schema).unwrap();
        assert_eq!(patched["data"]["k7"], "y");
    });
}
