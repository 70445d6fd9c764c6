//! Functions: revisions, traffic, instances.

use std::collections::BTreeMap;

use coracle_controllers::{Config, Controllers, FunctionDemand};
use coracle_objects::{ObjectKey, ObjectName};
use serde_json::{Value, json};

use crate::harness::Cluster;

fn key() -> ObjectKey {
    ObjectKey::new("functions.coracle.dev", "default", "hello")
}

fn in_default(resource: &str, name: &str) -> ObjectKey {
    ObjectKey::new(resource, "default", name)
}

/// A cluster of one node with the function `hello`, whose instances go after 30 s.
fn cluster(spec: Value) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let mut spec_of_all = json!({"image": "hello:1", "port": 80, "scale": {"min": 0, "max": 20, "targetConcurrency": 10,
        "idleSeconds": 30}});
    coracle_objects::patch::merge(&mut spec_of_all, &spec);
    cluster.put(
        key(),
        json!({"apiVersion": "coracle.dev/v1", "kind": "Function",
        "metadata": {"name": "hello", "namespace": "default", "uid": "f", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec_of_all, "status": {}}),
    );
    cluster
}

fn condition(object: &Value, type_: &str) -> String {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|condition| condition["type"] == type_).cloned().unwrap_or_default();
    format!("{} {}", found["status"].as_str().unwrap_or("-"), found["reason"].as_str().unwrap_or("-"))
}

fn traffic(cluster: &Cluster) -> String {
    let parts = cluster.get(&key())["status"]["traffic"].as_array().cloned().unwrap_or_default();
    let part = |part: &Value| {
        let tag = part["tag"].as_str().map(|tag| format!("/{tag}")).unwrap_or_default();
        format!("{}{tag}={}", part["revision"].as_str().unwrap_or("-"), part["percent"])
    };
    parts.iter().map(part).collect::<Vec<_>>().join(" ")
}

fn replicas(cluster: &Cluster, revision: &str) -> i64 {
    cluster.get(&in_default("replicasets.apps", revision))["spec"]["replicas"].as_i64().unwrap()
}

fn asked(cluster: &mut Cluster, revision: &str, demand: FunctionDemand) {
    let told = BTreeMap::from([(ObjectName::new("default", revision), demand)]);
    let now = cluster.now;
    cluster.controllers.hear_demand(told, now);
}

#[test]
fn a_function_has_a_revision_which_serves_and_then_goes_to_rest() {
    let mut cluster = cluster(json!({}));
    cluster.settle();
    assert_eq!(cluster.names("functionrevisions.coracle.dev"), ["default/hello-1"]);
    assert_eq!(traffic(&cluster), "", "nothing serves yet");
    assert_eq!(condition(&cluster.get(&key()), "Ready"), "Unknown Starting");
    cluster.run(1_000);
    let function = cluster.get(&key());
    assert_eq!(traffic(&cluster), "hello-1=100");
    assert_eq!(condition(&function, "Ready"), "True Serves");
    assert_eq!(function["status"]["url"], "http://hello.localhost");
    assert_eq!(function["status"]["latestReadyRevision"], "hello-1");
    let service = cluster.get(&in_default("services", "hello-1"));
    assert_eq!(service["spec"]["clusterIP"], "None");
    let pods = cluster.names("pods");
    assert_eq!(pods.len(), 1);
    cluster.run(40_000);
    assert_eq!((replicas(&cluster, "hello-1"), cluster.names("pods").len()), (0, 0));
    assert_eq!(
        condition(&cluster.get(&key()), "Ready"),
        "True Serves",
        "it is at rest, and ready to be asked"
    );
    // Another leader knows nothing of what was asked, and wakes nothing.
    cluster.controllers = Controllers::new(Config { ca_bundle: "PEM".to_owned() });
    let view = cluster.view.clone();
    cluster.controllers.resync(&view);
    cluster.run(1_000);
    assert_eq!((replicas(&cluster, "hello-1"), cluster.names("pods").len()), (0, 0));
    asked(&mut cluster, "hello-1", FunctionDemand { waiting: 1, arrived: 1, request_milliseconds: 10 });
    cluster.run(1_000);
    assert_eq!((replicas(&cluster, "hello-1"), cluster.names("pods").len()), (1, 1));
}

#[test]
fn instances_follow_what_is_asked_within_the_bounds() {
    let mut cluster = cluster(json!({"scale": {"min": 1, "max": 6}}));
    cluster.run(1_000);
    for _ in 0..10 {
        asked(
            &mut cluster,
            "hello-1",
            FunctionDemand { request_milliseconds: 45_000, arrived: 45, waiting: 0 },
        );
        cluster.run(1_000);
    }
    assert_eq!(replicas(&cluster, "hello-1"), 5);
    for _ in 0..10 {
        asked(
            &mut cluster,
            "hello-1",
            FunctionDemand { request_milliseconds: 900_000, arrived: 45, waiting: 0 },
        );
        cluster.run(1_000);
    }
    assert_eq!(replicas(&cluster, "hello-1"), 6);
    cluster.run(200_000);
    assert_eq!(replicas(&cluster, "hello-1"), 1, "no fewer than min");
    // Of what is no revision nothing is remembered.
    asked(&mut cluster, "other", FunctionDemand { request_milliseconds: 1, arrived: 1, waiting: 0 });
    assert!(!cluster.step());
}

#[test]
fn requests_go_to_another_revision_once_it_serves_and_the_former_drains() {
    let mut cluster = cluster(json!({"scale": {"min": 1}}));
    cluster.run(1_000);
    cluster.edit(&key(), |function| function["spec"]["image"] = "broken".into());
    cluster.run(1_000);
    assert_eq!(traffic(&cluster), "hello-1=100", "what does not serve gets no requests");
    assert_eq!(condition(&cluster.get(&key()), "Ready"), "Unknown Starting");
    cluster.edit(&key(), |function| function["spec"]["image"] = "hello:3".into());
    cluster.run(1_000);
    assert_eq!(traffic(&cluster), "hello-3=100");
    assert_eq!(condition(&cluster.get(&key()), "Ready"), "True Serves");
    assert_eq!(replicas(&cluster, "hello-1"), 1, "not every gateway knows yet");
    cluster.run(20_000);
    assert_eq!((replicas(&cluster, "hello-1"), replicas(&cluster, "hello-3")), (0, 1));
    // What does not change what runs makes no revision.
    cluster.edit(&key(), |function| {
        function["spec"]["hosts"] = json!(["a.example"]);
        function["spec"]["traffic"] = json!([{"revision": "hello-1", "percent": 10, "tag": "old"},
            {"latestRevision": true, "percent": 90}]);
    });
    cluster.settle();
    assert_eq!(traffic(&cluster), "hello-3=100", "the other has no instance yet");
    cluster.run(1_000);
    assert_eq!(traffic(&cluster), "hello-1/old=10 hello-3=90");
    assert_eq!(cluster.get(&key())["status"]["traffic"][0]["url"], "http://old-a.example");
    assert_eq!(cluster.get(&in_default("functionrevisions.coracle.dev", "hello-1"))["status"]["percent"], 10);
    assert!(cluster.read().contains("TrafficChanged: Requests go to hello-1=10 hello-3=90"));
    cluster.edit(&key(), |function| {
        function["spec"]["traffic"] = json!([{"revision": "hello-9", "percent": 100}]);
    });
    cluster.run(1_000);
    assert_eq!(traffic(&cluster), "hello-1/old=10 hello-3=90", "what is not there gets none");
    assert_eq!(condition(&cluster.get(&key()), "Ready"), "False RevisionMissing");
}

#[test]
fn old_revisions_are_collected_but_not_those_in_use() {
    let mut cluster = cluster(json!({"scale": {"min": 1}}));
    cluster.run(1_000);
    cluster.edit(&key(), |function| {
        function["spec"]["traffic"] = json!([{"revision": "hello-1", "percent": 100}]);
    });
    for version in 2..20 {
        cluster.edit(&key(), |function| function["spec"]["image"] = format!("hello:{version}").into());
        cluster.run(60_000);
    }
    let kept = cluster.names("functionrevisions.coracle.dev");
    assert_eq!(kept.len(), 12, "ten for a way back, the one in use, the latest: {kept:?}");
    assert!(kept.contains(&"default/hello-1".to_owned()) && kept.contains(&"default/hello-19".to_owned()));
    assert_eq!(traffic(&cluster), "hello-1=100");
    assert_eq!(cluster.names("replicasets.apps").len(), 12, "with all that they own");
    cluster.delete(&key(), None);
    cluster.run(60_000);
    for resource in ["functionrevisions.coracle.dev", "replicasets.apps", "services", "pods"] {
        assert_eq!(cluster.names(resource), Vec::<String>::new());
    }
}

#[test]
fn what_others_have_is_left_to_them() {
    let mut cluster = cluster(json!({}));
    cluster.put(in_default("services", "hello-1"), json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "hello-1", "namespace": "default", "uid": "s"}, "spec": {"ports": [{"port": 1}]}}));
    cluster.run(1_000);
    assert_eq!(traffic(&cluster), "hello-2=100");
    // What a revision owns comes back.
    cluster.delete(&in_default("services", "hello-2"), None);
    cluster.delete(&in_default("replicasets.apps", "hello-2"), None);
    cluster.run(1_000);
    assert!(cluster.find(&in_default("services", "hello-2")).is_some());
    assert_eq!(replicas(&cluster, "hello-2"), 1);
}

#[test]
fn a_function_whose_host_another_namespace_has_says_so_until_that_gives_it_up() {
    let mut cluster = Cluster::new();
    cluster.namespace("old");
    let ingress = ObjectKey::new("ingresses.networking.k8s.io", "old", "i");
    cluster.put(ingress.clone(), json!({"metadata": {"name": "i", "namespace": "old", "uid": "i",
        "creationTimestamp": "2025-01-01T00:00:00Z"}, "spec": {"rules": [{"host": "hello.localhost"}]}, "status": {}}));
    cluster.node("n1", "True");
    let function = |namespace: &str, uid: &str| {
        json!({"apiVersion": "coracle.dev/v1", "kind": "Function",
        "metadata": {"name": "hello", "namespace": namespace, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"image": "hello:1", "port": 80}, "status": {}})
    };
    cluster.put(key(), function("default", "f"));
    cluster.run(1_000);
    assert_eq!(condition(&cluster.get(&key()), "Ready"), "False HostHeld");
    cluster.delete(&ingress, None);
    cluster.run(1_000);
    assert_eq!(condition(&cluster.get(&key()), "Ready"), "True Serves");
    // The same of a function that came first.
    cluster.namespace("young");
    let young = ObjectKey::new("functions.coracle.dev", "young", "hello");
    let mut value = function("young", "g");
    value["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
    cluster.put(young.clone(), value);
    cluster.run(1_000);
    assert_eq!(condition(&cluster.get(&young), "Ready"), "False HostHeld");
    cluster.delete(&key(), None);
    cluster.run(1_000);
    assert_eq!(condition(&cluster.get(&young), "Ready"), "True Serves");
}

#[test]
fn one_that_has_nothing_but_a_tag_rests_and_one_that_never_served_goes() {
    let mut cluster = cluster(json!({}));
    cluster.run(1_000);
    cluster.edit(&key(), |function| {
        function["spec"]["image"] = "hello:2".into();
        function["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100},
            {"revision": "hello-1", "percent": 0, "tag": "old"}]);
    });
    cluster.run(1_000);
    assert_eq!(traffic(&cluster), "hello-2=100 hello-1/old=0");
    cluster.run(120_000);
    let rests = |cluster: &Cluster| (replicas(cluster, "hello-1"), replicas(cluster, "hello-2"));
    assert_eq!(rests(&cluster), (0, 0));
    cluster.read();
    cluster.run(600_000);
    assert_eq!((rests(&cluster), cluster.read().as_str()), ((0, 0), ""), "and stays so");
    assert_eq!(condition(&cluster.get(&key()), "Ready"), "True Serves");
    for image in ["broken", "hello:4"] {
        cluster.edit(&key(), |function| function["spec"]["image"] = image.into());
        cluster.run(1_000);
    }
    cluster.run(120_000);
    assert_eq!(replicas(&cluster, "hello-3"), 0, "nobody uses it");
}
