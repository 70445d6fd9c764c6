//! What users can make very much work of: dense graphs of owners, wide selectors, and writes that would go on for ever.
//! The work follows what there is, once, and everybody else's goes on meanwhile.

use coracle_objects::{ObjectKey, Write};
use serde_json::{Value, json};

use crate::harness::{Cluster, OBJECT_BYTES_MAX, deployment, web};

fn map(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new("configmaps", namespace, name)
}

fn reference(owner: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": owner, "blockOwnerDeletion": true})
}

fn owned(namespace: &str, name: &str, owners: &[Value]) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace, "uid": name, "ownerReferences": owners}})
}

/// Objects that all own all, themselves included, as they are while a deletion in the foreground of them all goes on.
fn mutual_owners(cluster: &mut Cluster, count: usize) {
    let names: Vec<String> = (0..count).map(|index| format!("m{index:03}")).collect();
    let references: Vec<Value> = names.iter().map(|name| reference(name)).collect();
    for name in &names {
        cluster.put(map("default", name), owned("default", name, &references));
    }
    cluster.settle();
    for name in &names {
        cluster.delete(&map("default", name), Some("foregroundDeletion"));
    }
}

#[test]
fn mutual_owners_go_in_as_much_work_as_there_are_references() {
    for count in [100, 500] {
        let mut cluster = Cluster::new();
        cluster.namespace("other");
        cluster.put(map("other", "owner"), owned("other", "owner", &[]));
        cluster.put(map("other", "its"), owned("other", "its", &[reference("owner")]));
        cluster.settle();
        mutual_owners(&mut cluster, count);
        cluster.delete(&map("other", "owner"), None);
        let (mut plans, mut steps) = (0, 0);
        while cluster.controllers.situation().waiting > 0 {
            let plan = cluster.plan();
            assert!(plan.steps <= 200_000, "{} steps in one plan", plan.steps);
            plans += 1;
            steps += plan.steps;
            for (transaction, origin) in plan.transactions.into_iter().zip(&plan.origins) {
                cluster.apply(origin, transaction);
            }
        }
        assert_eq!(cluster.names("configmaps").len(), 2, "the gifts of the namespaces");
        assert!(plans <= 4 && steps <= count * count, "{plans} plans, {steps} steps for {count}");
    }
}

#[test]
fn owners_that_wait_for_one_that_is_held_stay_until_it_goes() {
    let mut cluster = Cluster::new();
    mutual_owners(&mut cluster, 500);
    // They wait for another, which waits for one that is held: so none of them goes.
    let last = [reference("m499")];
    cluster.put(map("default", "z"), owned("default", "z", &last));
    cluster.put(map("default", "held"), owned("default", "held", &[reference("z")]));
    cluster
        .edit(&map("default", "held"), |held| held["metadata"]["finalizers"] = json!(["example.com/hold"]));
    cluster.delete(&map("default", "z"), Some("foregroundDeletion"));
    for round in 0..3 {
        while cluster.controllers.situation().waiting > 0 {
            let plan = cluster.plan();
            assert!(plan.steps < 250_000, "{} steps", plan.steps);
            for (transaction, origin) in plan.transactions.into_iter().zip(&plan.origins) {
                cluster.apply(origin, transaction);
            }
        }
        cluster.edit(&map("default", "z"), |z| {
            z["metadata"]["annotations"] = json!({"round": round.to_string()})
        });
    }
    assert_eq!(cluster.names("configmaps").len(), 503);
    cluster.edit(&map("default", "held"), |held| held["metadata"]["finalizers"] = json!([]));
    cluster.delete(&map("default", "held"), None);
    cluster.settle();
    assert_eq!(cluster.names("configmaps").len(), 1);
}

#[test]
fn what_waits_for_owners_is_not_looked_at_for_every_change_of_another() {
    let mut cluster = Cluster::new();
    let owners: Vec<Value> = (0..100).map(|index| reference(&format!("o{index}"))).collect();
    for index in 0..100 {
        let name = format!("o{index}");
        cluster.put(map("default", &name), owned("default", &name, &[]));
    }
    cluster.put(map("default", "held"), owned("default", "held", &owners));
    cluster
        .edit(&map("default", "held"), |held| held["metadata"]["finalizers"] = json!(["example.com/hold"]));
    for index in 0..100 {
        cluster.delete(&map("default", &format!("o{index}")), Some("foregroundDeletion"));
    }
    cluster.settle();
    cluster.edit(&map("default", "held"), |held| held["metadata"]["annotations"] = json!({"a": "b"}));
    let plan = cluster.plan();
    assert!(plan.tasks <= 1, "{} tasks", plan.tasks);
}

#[test]
fn a_namespace_with_very_many_tasks_does_not_hold_up_another() {
    let mut cluster = Cluster::new();
    cluster.namespace("other");
    cluster.settle();
    let astray = [reference("nobody")];
    for index in 0..2_000 {
        let name = format!("a{index}");
        cluster.put(map("default", &name), owned("default", &name, &astray));
    }
    cluster.put(map("other", "b"), owned("other", "b", &astray));
    let now = cluster.now;
    let mut tasks = 0;
    let mut go_on = || {
        tasks += 1;
        tasks <= 20
    };
    let plan = cluster.controllers.plan_while(now, &mut || "u".to_owned(), &mut go_on);
    let writes = plan.transactions.iter().flat_map(|transaction| &transaction.writes);
    assert!(writes.map(Write::key).any(|key| *key == map("other", "b")));
}

fn set(annotation_bytes: usize) -> (ObjectKey, Value) {
    let value = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "set", "generation": 1},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {"a": "x".repeat(annotation_bytes)}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
        "status": {},
    });
    (ObjectKey::new("replicasets.apps", "default", "web"), value)
}

/// How many transactions there are in so many seconds, with the time going on.
fn transactions_within(cluster: &mut Cluster, seconds: i64) -> usize {
    let mut transactions = 0;
    for _ in 0..10 * seconds {
        for _ in 0..20 {
            let plan = cluster.plan();
            transactions += plan.transactions.len();
            for (transaction, origin) in plan.transactions.into_iter().zip(&plan.origins) {
                cluster.apply(origin, transaction);
            }
        }
        cluster.pass(100);
    }
    transactions
}

#[test]
fn conditions_that_are_there_twice_become_one() {
    let mut cluster = Cluster::new();
    let (key, value) = set(OBJECT_BYTES_MAX - 750);
    cluster.put(key.clone(), value);
    cluster.run(1_000);
    let failure = |since: &str| json!({"type": "ReplicaFailure", "status": "True", "reason": "x", "message": "x", "lastTransitionTime": since});
    cluster.edit(&key, |set| {
        let twice = [failure("2025-01-01T00:00:00Z"), failure("2025-01-02T00:00:00Z")];
        set["status"]["conditions"] = json!(twice);
    });
    let transactions = transactions_within(&mut cluster, 10);
    // One, and one for each time that the making of pods was tried again.
    assert!(transactions <= 5, "{transactions}");
    let conditions = cluster.get(&key)["status"]["conditions"].as_array().cloned().unwrap();
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0]["lastTransitionTime"], "2025-01-01T00:00:00Z");
}

#[test]
fn a_task_that_its_own_writes_wake_for_ever_waits_ever_longer() {
    let mut cluster = Cluster::new();
    let (key, value) = set(0);
    cluster.put(key.clone(), value);
    cluster.settle();
    cluster.alter = Some(|key, value| {
        if key.resource.as_str() == "replicasets.apps" {
            let touched = value["metadata"]["annotations"]["touched"].as_str().map_or(0, str::len);
            value["metadata"]["annotations"] = json!({"touched": "x".repeat(touched + 1)});
            value["status"]["observedGeneration"] = 0.into();
        }
    });
    cluster.read();
    cluster.edit(&key, |set| set["status"]["observedGeneration"] = 0.into());
    let first = transactions_within(&mut cluster, 60);
    assert!((16..=30).contains(&first), "{first} in the first minute");
    let then = transactions_within(&mut cluster, 540);
    assert!(then <= 8, "{then} in nine minutes more");
    assert_eq!(cluster.controllers.situation().restless, 1);
    // What comes from outside is answered at once nevertheless.
    cluster.edit(&key, |set| set["metadata"]["labels"] = json!({"a": "b"}));
    assert!((1..=4).contains(&transactions_within(&mut cluster, 1)));
    cluster.alter = None;
    cluster.edit(&key, |set| set["spec"]["replicas"] = 2.into());
    cluster.run(1_000);
    assert_eq!(cluster.get(&key)["status"]["replicas"], 2);
    assert_eq!(cluster.controllers.situation().restless, 0, "what the user changed is another thing");
}

/// Whatever a store makes of what controllers write, and whichever of them it sends round for ever.
#[test]
fn chains_of_writes_that_lead_nowhere_are_slowed_down_whoever_writes() {
    fn touch(value: &mut Value) {
        let touched = value["metadata"]["annotations"]["touched"] == "once";
        value["metadata"]["annotations"]["touched"] = if touched { "twice" } else { "once" }.into();
    }
    let alterations: [fn(&ObjectKey, &mut Value); 4] = [
        |key, value| {
            if key.resource.as_str() == "deployments.apps" {
                touch(value);
                value["status"]["observedGeneration"] = 0.into();
            }
        },
        |key, value| {
            if key.resource.as_str() == "replicasets.apps" {
                touch(value);
                value["status"]["observedGeneration"] = 0.into();
            }
        },
        |key, value| {
            if key.resource.as_str() == "endpoints" {
                touch(value);
                value["metadata"]["labels"] = json!({});
            }
        },
        |key, value| {
            if key.resource.as_str() == "endpointslices.discovery.k8s.io" {
                touch(value);
                value["endpoints"] = json!([]);
            }
        },
    ];
    for (at, alter) in alterations.into_iter().enumerate() {
        let mut cluster = Cluster::new();
        cluster.node("n1", "True");
        cluster.put(web(), deployment(2));
        let service = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "service", "generation": 1},
            "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": []},
        });
        cluster.put(ObjectKey::new("services", "default", "web"), service);
        cluster.run(60_000);
        cluster.alter = Some(alter);
        cluster
            .edit(&web(), |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = "2".into());
        for _ in 0..20 {
            cluster.step();
            cluster.kubelet();
            cluster.pass(100);
        }
        let (first, then) = (transactions_within(&mut cluster, 60), transactions_within(&mut cluster, 540));
        assert!(first <= 60 && then <= 30, "{first} in the first minute, then {then}: the {at}th");
        assert!(first + then > 10 && cluster.controllers.situation().restless > 0, "the {at}th goes round");
    }
}

#[test]
fn a_rollout_of_a_thousand_pods_never_rests() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.put(web(), deployment(1_000));
    cluster.run(60_000);
    cluster
        .edit(&web(), |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = "hello:2".into());
    cluster.run(600_000);
    assert_eq!(cluster.get(&web())["status"]["updatedReplicas"], 1_000);
    cluster.edit(&web(), |value| value["spec"]["replicas"] = 3.into());
    cluster.run(60_000);
    assert_eq!(cluster.get(&web())["status"]["replicas"], 3);
    let situation = cluster.controllers.situation();
    assert_eq!((situation.restless, situation.in_trouble), (0, 0));
    assert!(!cluster.read().contains("Restless"));
}

#[test]
fn wide_selectors_are_not_asked_while_changes_are_taken_in() {
    let mut cluster = Cluster::new();
    let wide: serde_json::Map<String, Value> = (0..1_000).map(|at| (format!("l{at}"), json!("x"))).collect();
    let service = |name: &str, selector: &Value| {
        json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1},
            "spec": {"clusterIP": "None", "selector": selector, "ports": []},
        })
    };
    let wide = Value::from(wide);
    let (mut near, mut wider) = (wide.clone(), wide.clone());
    near["l9"] = "y".into();
    wider["more"] = "x".into();
    cluster.put(ObjectKey::new("services", "default", "near"), service("near", &near));
    cluster.put(ObjectKey::new("services", "default", "all"), service("all", &wide));
    cluster.put(ObjectKey::new("services", "default", "none"), service("none", &wider));
    cluster.put(ObjectKey::new("services", "default", "others"), service("others", &json!({"l1": "y"})));
    cluster.put(ObjectKey::new("services", "default", "small"), service("small", &json!({"l7": "x"})));
    cluster.settle();
    let pod = ObjectKey::new("pods", "default", "p");
    let value = json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "p", "labels": wider},
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}, "status": {"phase": "Running"},
    });
    cluster.node("n1", "True");
    cluster.settle();
    cluster.put(pod.clone(), value);
    cluster.make_ready(&pod, "10.128.0.9");
    let waiting = cluster.controllers.situation().waiting;
    assert_eq!(waiting, 3, "those that select it, and the wide one that will see that it does not");
    cluster.run(1_000);
    let addresses = |name: &str| {
        let endpoints = cluster.find(&ObjectKey::new("endpoints", "default", name)).unwrap_or_default();
        endpoints["subsets"].as_array().map_or(0, Vec::len)
    };
    // A selector of more labels than an object may have selects nothing.
    assert_eq!(["all", "small", "near", "others", "none"].map(addresses), [1, 1, 0, 0, 0]);
    // Who matches no more is found as well.
    cluster.edit(&pod, |pod| pod["metadata"]["labels"] = json!({"l7": "y"}));
    cluster.run(1_000);
    for name in ["all", "small"] {
        let endpoints = cluster.get(&ObjectKey::new("endpoints", "default", name));
        assert_eq!(endpoints["subsets"].as_array().map_or(0, Vec::len), 0, "{name}");
    }
}
