//! What users can make that never works: circles, what is undone again, refused, unreadable or too large. The
//! controllers come to rest, or try again ever more rarely, and everybody else's work goes on.

use coracle_controllers::{Config, Controllers};
use coracle_objects::{Event, EventKind, Object, ObjectKey, Write};
use serde_json::{Value, json};

use crate::harness::{Cluster, OBJECT_BYTES_MAX, deployment, web};

fn map(name: &str) -> ObjectKey {
    ObjectKey::new("configmaps", "default", name)
}

fn owned(name: &str, owners: &[&str]) -> Value {
    let reference = |owner: &&str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": owner, "blockOwnerDeletion": true});
    json!({"metadata": {"name": name, "namespace": "default", "uid": name,
        "ownerReferences": owners.iter().map(reference).collect::<Vec<_>>()}})
}

fn set(replicas: i64) -> (ObjectKey, Value) {
    let value = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "set", "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
        "status": {},
    });
    (ObjectKey::new("replicasets.apps", "default", "web"), value)
}

fn condition(cluster: &Cluster, key: &ObjectKey, type_: &str) -> Value {
    let value = cluster.get(key);
    let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
}

/// A new namespace is given what all are.
fn others_are_served(cluster: &mut Cluster) {
    cluster.namespace("other");
    cluster.settle();
    assert!(cluster.find(&ObjectKey::new("serviceaccounts", "other", "default")).is_some());
}

#[test]
fn circles_of_owners_go_as_a_whole() {
    type Owned = (&'static str, &'static [&'static str]);
    let circles: [(&[Owned], &[&str]); 4] = [
        (&[("a", &["a"])], &["a"]),
        (&[("a", &["c"]), ("b", &["a"]), ("c", &["b"])], &["a"]),
        (&[("a", &["b"]), ("b", &["a"])], &["a", "b"]),
        // Two circles that share an object, and a tail.
        (&[("a", &["b", "c"]), ("b", &["a"]), ("c", &["a"]), ("d", &["c"])], &["a"]),
    ];
    for (objects, deleted) in circles {
        let mut cluster = Cluster::new();
        for (name, owners) in objects {
            cluster.put(map(name), owned(name, owners));
        }
        cluster.settle();
        for name in deleted {
            cluster.delete(&map(name), Some("foregroundDeletion"));
        }
        cluster.settle();
        assert_eq!(cluster.names("configmaps"), ["default/kube-root-ca.crt"], "{objects:?}");
        others_are_served(&mut cluster);
    }
}

#[test]
fn an_owner_of_a_circle_waits_for_what_does_not_wait_for_it() {
    let mut cluster = Cluster::new();
    for (name, owners) in [("a", ["b"]), ("b", ["a"]), ("held", ["a"])] {
        cluster.put(map(name), owned(name, &owners));
    }
    cluster.edit(&map("held"), |value| value["metadata"]["finalizers"] = json!(["example.com/hold"]));
    cluster.delete(&map("a"), Some("foregroundDeletion"));
    cluster.settle();
    assert!(cluster.find(&map("a")).is_some(), "it waits for the one that is held");
    cluster.edit(&map("held"), |value| value["metadata"]["finalizers"] = json!([]));
    cluster.delete(&map("held"), None);
    cluster.settle();
    assert_eq!(cluster.names("configmaps"), ["default/kube-root-ca.crt"]);
}

#[test]
fn an_event_that_blocks_its_owner_wakes_it_when_it_goes() {
    let mut cluster = Cluster::new();
    cluster.put(map("a"), owned("a", &[]));
    let event = ObjectKey::new("events", "default", "e");
    cluster.put(event.clone(), owned("e", &["a"]));
    cluster.delete(&map("a"), Some("foregroundDeletion"));
    cluster.settle();
    assert!(cluster.find(&map("a")).is_none() && cluster.find(&event).is_none());
}

#[test]
fn pods_that_end_at_once_are_replaced_ever_more_rarely() {
    let mut cluster = Cluster::new();
    cluster.put(set(1).0, set(1).1);
    let mut made = Vec::new();
    for minute in 0..10 {
        let end = cluster.now.as_second() + 60;
        while cluster.now.as_second() < end {
            cluster.settle();
            let pods: Vec<String> = cluster.names("pods");
            for name in pods {
                let key = ObjectKey::new("pods", "default", name.strip_prefix("default/").unwrap());
                if cluster.get(&key)["status"]["phase"] == "Pending" {
                    cluster.edit(&key, |pod| pod["status"]["phase"] = "Failed".into());
                }
            }
            cluster.pass(100);
        }
        made.push(cluster.names("pods").len());
        assert!(made[0] <= 7 && made[minute] <= 12, "{made:?}");
    }
    assert!(made[9] >= 8, "it is still tried: {made:?}");
    // Where events were missed, what was tried in vain is still known.
    let (before, view) = (cluster.names("pods").len(), cluster.view.clone());
    cluster.controllers.resync(&view);
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), before);
    // A change of the set is another try.
    let before = cluster.names("pods").len();
    cluster.edit(&set(1).0, |set| set["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into());
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), before + 1);
}

#[test]
fn a_selector_that_no_replica_set_can_match_makes_none() {
    for replicas in [0, 1] {
        check_selector(replicas);
    }
}

fn check_selector(replicas: i64) {
    let mut cluster = Cluster::new();
    let mut value = deployment(replicas);
    value["spec"]["selector"]["matchLabels"]["pod-template-hash"] = "mine".into();
    value["spec"]["template"]["metadata"]["labels"]["pod-template-hash"] = "mine".into();
    cluster.put(web(), value);
    cluster.settle();
    assert_eq!(cluster.names("replicasets.apps").len(), 0);
    let progressing = condition(&cluster, &web(), "Progressing");
    assert_eq!(progressing["reason"], "ReplicaSetCreateError");
    assert!(progressing["message"].as_str().unwrap().contains("pod-template-hash"), "{progressing}");
    // Nor is its status written again.
    cluster.read();
    cluster.run(120_000);
    assert_eq!(cluster.read(), "");
}

#[test]
fn what_would_be_too_large_is_tried_ever_more_rarely_and_a_condition_says_so() {
    let mut cluster = Cluster::new();
    let mut value = deployment(1);
    value["spec"]["template"]["metadata"]["annotations"] = json!({"a": "x".repeat(OBJECT_BYTES_MAX)});
    cluster.put(web(), value);
    let (revision, refusals) = (cluster.view.revision, cluster.refusals);
    for _ in 0..600 {
        for _ in 0..20 {
            let plan = cluster.plan();
            for (transaction, origin) in plan.transactions.into_iter().zip(&plan.origins) {
                cluster.apply(origin, transaction);
            }
        }
        cluster.pass(100);
    }
    let (written, refused) = (cluster.view.revision - revision, cluster.refusals - refusals);
    assert!(written <= 3 && refused <= 10, "{written} written, {refused} refused within a minute");

    let (key, mut value) = set(1);
    value["spec"]["template"]["metadata"]["annotations"] = json!({"a": "x".repeat(OBJECT_BYTES_MAX - 750)});
    cluster.put(key.clone(), value);
    cluster.run(60_000);
    assert_eq!(cluster.names("pods").len(), 0);
    let failure = condition(&cluster, &key, "ReplicaFailure");
    assert_eq!((&failure["status"], &failure["reason"]), (&json!("True"), &json!("FailedCreate")));
    assert!(failure["message"].as_str().unwrap().contains("the limit is 100000"), "{failure}");
    // What fits again is made at once.
    cluster.edit(&key, |set| set["spec"]["template"]["metadata"]["annotations"] = json!({}));
    cluster.run(1_000);
    assert_eq!(cluster.names("pods").len(), 1);
    assert_eq!(condition(&cluster, &key, "ReplicaFailure"), Value::Null);
}

#[test]
fn what_is_refused_many_times_over_is_told_once_and_tells_of_nothing_done() {
    let mut cluster = Cluster::new();
    let (key, mut value) = set(300);
    value["spec"]["template"]["metadata"]["annotations"] = json!({"a": "x".repeat(OBJECT_BYTES_MAX - 750)});
    cluster.put(key, value);
    cluster.read();
    cluster.run(900);
    let said = cluster.read();
    let count = |text: &str| said.matches(text).count();
    let failed = "event replicasets.apps default/web FailedCreate";
    assert_eq!((count(failed), count("SuccessfulCreate")), (1, 0), "{said}");
    // A second later it is tried again, not five minutes.
    cluster.run(2_000);
    assert_eq!(cluster.read().matches(failed).count(), 1);
}

#[test]
fn a_template_whose_pods_nobody_could_edit_makes_none() {
    let mut cluster = Cluster::new();
    let (key, mut value) = set(1);
    value["spec"]["template"]["metadata"]["finalizers"] = json!(["2026-13-01T00:00:00Z"]);
    cluster.put(key.clone(), value);
    cluster.run(60_000);
    assert_eq!(cluster.names("pods").len(), 0);
    let message = condition(&cluster, &key, "ReplicaFailure")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("metadata.finalizers: Invalid value: \"2026-13-01T00:00:00Z\""), "{message}");
    cluster.edit(&key, |set| set["spec"]["template"]["metadata"]["finalizers"] = json!(["e.example/hold"]));
    cluster.run(1_000);
    assert_eq!(cluster.names("pods").len(), 1);
    others_are_served(&mut cluster);
}

#[test]
fn pods_that_cannot_be_read_exist() {
    let mut cluster = Cluster::new();
    let (key, value) = set(2);
    cluster.put(key, value);
    for name in ["x", "y"] {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true}]},
            "spec": {"nodeName": "n1", "tolerations": null, "hostname": 3}, "status": {"phase": "Running"},
        });
        cluster.put(ObjectKey::new("pods", "default", name), pod);
    }
    cluster.read();
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), 2);
    assert!(cluster.read().contains("event pods default/x Unreadable: This object cannot be read"));
    assert_eq!(cluster.controllers.situation().unreadable, 2);
    others_are_served(&mut cluster);
}

#[test]
fn a_deployment_with_a_set_that_cannot_be_read_makes_no_other() {
    let mut cluster = Cluster::new();
    cluster.put(web(), deployment(1));
    cluster.settle();
    let name = cluster.names("replicasets.apps")[0].strip_prefix("default/").unwrap().to_owned();
    let key = ObjectKey::new("replicasets.apps", "default", &name);
    cluster.edit(&key, |set| set["spec"]["minReadySeconds"] = Value::Null);
    cluster.run(60_000);
    assert_eq!(cluster.names("replicasets.apps").len(), 1);
    others_are_served(&mut cluster);
}

#[test]
fn who_names_an_owner_of_another_namespace_is_not_its_pod() {
    let mut cluster = Cluster::new();
    cluster.namespace("other");
    let (key, value) = set(1);
    cluster.put(key.clone(), value);
    let pod = json!({
        "metadata": {"name": "x", "namespace": "other", "uid": "x", "labels": {"app": "web"}, "finalizers": ["e/hold"],
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true}]},
        "spec": {}, "status": {"phase": "Running"},
    });
    cluster.put(ObjectKey::new("pods", "other", "x"), pod);
    cluster.settle();
    assert_eq!(cluster.names("pods").iter().filter(|name| name.starts_with("default/web-")).count(), 1);
    assert_eq!(cluster.get(&key)["status"]["replicas"], 1);
}

#[test]
fn very_many_old_sets_are_cleaned_up_bit_by_bit() {
    let mut cluster = Cluster::new();
    for index in 0..1_000 {
        let name = format!("old-{index}");
        let value = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1, "labels": {"app": "web"}},
            "spec": {
                "replicas": 0, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "n": name}, "annotations": {"a": "x".repeat(5_000)}}},
            },
            "status": {"observedGeneration": 1},
        });
        cluster.put(ObjectKey::new("replicasets.apps", "default", &name), value);
    }
    cluster.put(web(), deployment(1));
    cluster.node("n1", "True");
    let mut bytes_max = 0;
    while cluster.names("replicasets.apps").len() != 11 {
        let plan = cluster.plan();
        for (transaction, origin) in plan.transactions.into_iter().zip(&plan.origins) {
            bytes_max = bytes_max.max(transaction.writes.iter().map(Write::bytes).sum());
            cluster.apply(origin, transaction);
        }
        cluster.kubelet();
        if let Some(deadline) = cluster.controllers.next_deadline() {
            cluster.now = cluster.now.max(deadline);
        }
    }
    assert!(bytes_max < 2 << 20, "{bytes_max}");
}

#[test]
fn a_task_that_panics_costs_only_itself() {
    let mut controllers = Controllers::new(Config::default());
    let observe = |controllers: &mut Controllers, key: &ObjectKey, mut value: Value| {
        value["metadata"]["name"] = (*key.name.name).into();
        let object = Object::from_draft(key.clone(), value.to_string().as_bytes(), 1).unwrap();
        controllers.observe(&Event { kind: EventKind::Added, object: object.into(), previous: None });
    };
    // What needs a uid panics; what does not goes on.
    let namespace = ObjectKey::new("namespaces", "", "n");
    observe(&mut controllers, &namespace, json!({"metadata": {"uid": "n"}}));
    observe(&mut controllers, &map("astray"), owned("astray", &["nobody"]));
    let now = jiff::Timestamp::UNIX_EPOCH;
    let plan = controllers.plan(now, &mut || panic!("no uid"));
    assert_eq!(plan.panics, ["serviceaccount-controller on namespaces n: no uid"]);
    assert_eq!(plan.transactions.len(), 1, "the stray object is collected");
    assert_eq!(controllers.plan(now, &mut || panic!("no uid")).panics.len(), 0, "it waits");
    let later = now + jiff::SignedDuration::from_secs(1);
    assert_eq!(controllers.plan(later, &mut || "u".to_owned()).panics.len(), 0);
    assert_eq!(controllers.plan(later, &mut || "u".to_owned()).transactions.len(), 0);
}

#[test]
fn pods_of_a_set_need_the_account_that_its_template_names() {
    let mut cluster = Cluster::new();
    let (key, mut value) = set(2);
    value["spec"]["template"]["spec"]["serviceAccountName"] = "own".into();
    cluster.put(key.clone(), value);
    cluster.run(1_000);
    assert!(cluster.names("pods").is_empty());
    let message = condition(&cluster, &key, "ReplicaFailure")["message"].as_str().unwrap().to_owned();
    let missing = "error looking up service account default/own: serviceaccount \"own\" not found";
    assert!(message.contains(missing), "{message}");
    let account = ObjectKey::new("serviceaccounts", "default", "own");
    cluster.put(account, json!({"metadata": {"name": "own", "namespace": "default", "uid": "own"}}));
    cluster.run(60_000);
    assert_eq!(cluster.names("pods").len(), 2);
    assert_eq!(condition(&cluster, &key, "ReplicaFailure"), Value::Null);
}
