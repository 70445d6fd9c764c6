//! Nodes that fail, are tainted, or are gone.

use coracle_objects::ObjectKey;
use expect_test::expect;
use serde_json::{Value, json};

use crate::harness::{Cluster, deployment, web};

fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or("")
}

fn pods(cluster: &Cluster) -> Vec<Value> {
    cluster.view.list("pods", None).map(|pod| pod.parse().unwrap()).collect()
}

#[test]
fn the_pods_of_a_dead_node_are_replaced() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.node("n2", "True");
    cluster.put(web(), deployment(2));
    cluster.run(1_000);
    assert!(pods(&cluster).iter().any(|pod| node_of(pod) == "n1"));
    cluster.read();
    cluster.node("n1", "Unknown");
    cluster.run(5_000);
    expect![[r#"
        update nodes n1 spec.taints=[{"key":"node.kubernetes.io/unreachable","effect":"NoSchedule","timeAdded":"2026-01-01T00:00:01Z"},{"key":"node.kubernetes.io/unreachable","effect":"NoExecute","timeAdded":"2026-01-01T00:00:01Z"}]
        update pods default/web-7f7q9qg7lh-28twp Ready=False(NodeNotReady)
        event nodes n1 NodeNotReady: Node n1 status is now: NodeNotReady
        update replicasets.apps default/web-7f7q9qg7lh status.readyReplicas=1 status.availableReplicas=1
        update deployments.apps default/web Available=False(MinimumReplicasUnavailable) status.readyReplicas=1 status.availableReplicas=1 status.unavailableReplicas=1
        update pods default/web-7f7q9qg7lh-28twp metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:01Z" metadata.deletionGracePeriodSeconds=0 DisruptionTarget=True(DeletionByTaintManager)
        event pods default/web-7f7q9qg7lh-28twp TaintManagerEviction: Marking for deletion Pod default/web-7f7q9qg7lh-28twp
        create pods default/web-7f7q9qg7lh-5mnvp
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulCreate: Created pod: web-7f7q9qg7lh-5mnvp
        update replicasets.apps default/web-7f7q9qg7lh status.readyReplicas=2 status.availableReplicas=2
        update deployments.apps default/web Available=True(MinimumReplicasAvailable) status.readyReplicas=2 status.availableReplicas=2 status.unavailableReplicas=null
        delete pods default/web-7f7q9qg7lh-28twp
    "#]].assert_eq(&cluster.read());
    assert!(pods(&cluster).iter().all(|pod| node_of(pod) == "n2"));
    cluster.node("n1", "True");
    cluster.run(1_000);
    expect![[r#"
        update nodes n1 spec.taints=null
    "#]]
    .assert_eq(&cluster.read());
    assert_eq!(cluster.refusals, 0);
}

#[test]
fn a_node_that_comes_back_at_once_keeps_its_pods() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.put(web(), deployment(2));
    cluster.run(1_000);
    let before = cluster.names("pods");
    cluster.node("n1", "Unknown");
    cluster.run(400);
    cluster.node("n1", "True");
    cluster.run(60_000);
    assert_eq!(cluster.names("pods"), before);
    assert_eq!(cluster.get(&ObjectKey::new("nodes", "", "n1"))["spec"].get("taints"), None);
}

#[test]
fn a_pod_may_tolerate_an_outage_for_longer() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let mut value = deployment(1);
    value["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
    ]);
    cluster.put(web(), value);
    cluster.run(1_000);
    let before = cluster.names("pods");
    cluster.node("n1", "Unknown");
    cluster.run(50_000);
    assert_eq!(cluster.names("pods"), before);
    cluster.run(20_000);
    assert_ne!(cluster.names("pods"), before);
}

#[test]
fn a_taint_of_the_users_evicts_at_once_and_gracefully() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.put(web(), deployment(1));
    cluster.run(1_000);
    let name = cluster.names("pods")[0].clone();
    let node = ObjectKey::new("nodes", "", "n1");
    cluster.edit(&node, |node| {
        node["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoExecute"}])
    });
    cluster.settle();
    let pod =
        pods(&cluster).into_iter().find(|pod| name.ends_with(pod["metadata"]["name"].as_str().unwrap()));
    let pod = pod.expect("its node ends it, not the controller");
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(pod["metadata"]["deletionTimestamp"], "2026-01-01T00:00:31Z");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|condition| condition["type"] == "DisruptionTarget"));
}

#[test]
fn cordoning_and_a_users_taints_stay_untouched() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let node = ObjectKey::new("nodes", "", "n1");
    let own = json!([{"key": "k", "effect": "NoSchedule"}]);
    cluster.edit(&node, |node| {
        node["spec"] = json!({"unschedulable": true, "taints": own});
    });
    cluster.node("n1", "False");
    cluster.settle();
    assert_eq!(cluster.get(&node)["spec"]["taints"].as_array().unwrap().len(), 3);
    cluster.node("n1", "True");
    cluster.settle();
    assert_eq!(cluster.get(&node)["spec"], json!({"unschedulable": true, "taints": own}));
}

#[test]
fn the_pods_of_a_deleted_node_go_after_a_while() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.node("n2", "True");
    cluster.put(web(), deployment(2));
    cluster.run(1_000);
    cluster.delete(&ObjectKey::new("nodes", "", "n1"), None);
    cluster.run(1_000);
    assert!(pods(&cluster).iter().any(|pod| node_of(pod) == "n1"), "the node may be about to register again");
    cluster.run(2_000);
    assert_eq!(pods(&cluster).len(), 2);
    assert!(pods(&cluster).iter().all(|pod| node_of(pod) == "n2"));
}

#[test]
fn a_pod_deleted_before_it_had_a_node_goes_at_once() {
    let mut cluster = Cluster::new();
    let key = ObjectKey::new("pods", "default", "a");
    let pod = json!({"metadata": {"name": "a", "namespace": "default", "uid": "a",
        "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []}, "status": {"phase": "Pending"}});
    cluster.put(key, pod);
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), 0);
}
