//! Replica sets by themselves: adoption, release, which pods go first.

use coracle_objects::ObjectKey;
use serde_json::{Value, json};

use crate::harness::Cluster;

fn key() -> ObjectKey {
    ObjectKey::new("replicasets.apps", "default", "web")
}

fn pod_key(name: &str) -> ObjectKey {
    ObjectKey::new("pods", "default", name)
}

fn set(replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "web", "namespace": "default", "uid": "web", "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "hello:1"}]},
            },
        },
        "status": {"replicas": 0},
    })
}

fn pod(name: &str, ready: bool, change: impl FnOnce(&mut Value)) -> Value {
    let mut value = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "labels": {"app": "web"},
            "creationTimestamp": "2025-12-31T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "web",
                "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "web", "image": "hello:1"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": "2025-12-31T00:00:00Z"}]},
    });
    change(&mut value);
    value
}

#[test]
fn created_pods_are_complete() {
    let mut cluster = Cluster::new();
    cluster.put(key(), set(1));
    cluster.settle();
    let name = cluster.names("pods")[0].strip_prefix("default/").unwrap().to_owned();
    let value = cluster.get(&pod_key(&name));
    assert!(name.starts_with("web-") && name.len() == "web-".len() + 5, "{name}");
    assert_eq!(value["metadata"]["generateName"], "web-");
    assert_eq!(value["metadata"]["ownerReferences"][0]["controller"], true);
    assert_eq!(value["spec"]["serviceAccountName"], "default");
    assert_eq!(value["spec"]["restartPolicy"], "Always");
    assert_eq!(value["status"]["phase"], "Pending");
    assert_eq!(value["status"]["qosClass"], "BestEffort");
    assert_eq!(
        cluster.get(&key())["status"],
        json!({"replicas": 1, "fullyLabeledReplicas": 1, "observedGeneration": 1})
    );
}

#[test]
fn matching_orphans_are_adopted_and_strangers_released() {
    let mut cluster = Cluster::new();
    cluster.put(pod_key("a"), pod("a", true, |pod| pod["metadata"]["ownerReferences"] = json!([])));
    cluster.put(key(), set(1));
    cluster.settle();
    assert_eq!(cluster.names("pods"), ["default/a"], "adopted instead of created");
    assert_eq!(cluster.get(&pod_key("a"))["metadata"]["ownerReferences"][0]["uid"], "web");
    cluster.edit(&pod_key("a"), |pod| pod["metadata"]["labels"] = json!({"app": "debug"}));
    cluster.settle();
    assert_eq!(cluster.get(&pod_key("a"))["metadata"].get("ownerReferences"), None, "released");
    assert_eq!(cluster.names("pods").len(), 2, "and replaced");
}

#[test]
fn the_least_useful_pods_go_first() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.node("n2", "True");
    let pods = [
        pod("g-old", true, |_| {}),
        pod("f-restarted", true, |pod| pod["status"]["containerStatuses"] = json!([{"restartCount": 3}])),
        pod("e-new", true, |pod| {
            pod["status"]["conditions"][0]["lastTransitionTime"] = "2025-12-31T23:59:50Z".into();
        }),
        pod("d-cheap", true, |pod| {
            pod["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
        }),
        pod("c-not-ready", false, |_| {}),
        pod("b-pending", false, |pod| pod["status"]["phase"] = "Pending".into()),
        pod("a-unassigned", false, |pod| {
            pod["spec"].as_object_mut().unwrap().shift_remove("nodeName");
            pod["status"]["phase"] = "Pending".into();
        }),
        pod("h-alone", true, |pod| {
            pod["spec"]["nodeName"] = "n2".into();
            pod["status"]["conditions"][0]["lastTransitionTime"] = "2025-12-31T23:59:59Z".into();
        }),
    ];
    for pod in pods {
        cluster.put(pod_key(pod["metadata"]["name"].as_str().unwrap()), pod);
    }
    cluster.put(key(), set(8));
    cluster.settle();
    let active = |cluster: &Cluster| -> Vec<String> {
        let active = |pod: &&std::sync::Arc<coracle_objects::Object>| pod.meta.deletion_timestamp.is_none();
        cluster.view.list("pods", None).filter(active).map(|pod| pod.key.name.to_string()).collect()
    };
    let mut left = active(&cluster);
    // The one that is alone on its node goes only when the other node is no more crowded than its own.
    let order = ["a-unassigned", "b-pending", "c-not-ready", "d-cheap", "e-new", "f-restarted", "h-alone"];
    for (gone, name) in order.iter().enumerate() {
        cluster.edit(&key(), |set| set["spec"]["replicas"] = (7 - gone).into());
        cluster.settle();
        let now = active(&cluster);
        let missing: Vec<&String> = left.iter().filter(|name| !now.contains(name)).collect();
        assert_eq!(missing, [&format!("default/{name}")]);
        left = now;
    }
}

#[test]
fn a_pod_is_not_created_twice_before_it_is_seen() {
    let mut cluster = Cluster::new();
    cluster.put(key(), set(3));
    let plan = cluster.plan();
    assert_eq!(plan.transactions.len(), 3);
    assert_eq!(cluster.plan().transactions.len(), 0, "they are under way");
    cluster.edit(&key(), |set| set["metadata"]["labels"] = json!({"touched": "yes"}));
    let again = cluster.plan();
    assert_eq!(
        again.transactions.len(),
        3,
        "the first ones expect the set as it was: they are refused for certain"
    );
    for plan in [plan, again] {
        for (transaction, origin) in plan.transactions.into_iter().zip(&plan.origins) {
            cluster.apply(origin, transaction);
        }
    }
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), 3);
    assert_eq!(cluster.refusals, 3);
}

#[test]
fn what_is_never_heard_of_is_tried_again() {
    let mut cluster = Cluster::new();
    cluster.put(key(), set(2));
    assert_eq!(cluster.plan().transactions.len(), 2);
    cluster.now = cluster.controllers.next_deadline().unwrap();
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), 2);
}

#[test]
fn pods_that_end_by_themselves_are_replaced() {
    let mut cluster = Cluster::new();
    cluster.put(key(), set(1));
    cluster.put(pod_key("a"), pod("a", false, |pod| pod["status"]["phase"] = "Failed".into()));
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), 2);
    assert_eq!(cluster.get(&key())["status"]["replicas"], 1);
}
