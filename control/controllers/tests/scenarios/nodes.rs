//! Nodes that fail, are tainted, or are gone.

use coracle_controllers::{Config, Controllers};
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
fn a_node_whose_disk_is_nearly_full_gets_no_new_pods_and_keeps_those_that_it_has() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.put(web(), deployment(1));
    cluster.run(1_000);
    cluster.read();
    for pressure in ["True", "False"] {
        let key = ObjectKey::new("nodes", "", "n1");
        let mut node = cluster.get(&key);
        node["status"]["conditions"] =
            json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": pressure}]);
        cluster.put(key, node);
        cluster.run(5_000);
    }
    expect![[r#"
        update nodes n1 spec.taints=[{"key":"node.kubernetes.io/disk-pressure","effect":"NoSchedule","timeAdded":"2026-01-01T00:00:01Z"}]
        update nodes n1 spec.taints=null
    "#]]
    .assert_eq(&cluster.read());
}

#[test]
fn nodes_that_die_in_turn_hold_up_no_pods() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.node("n2", "True");
    cluster.put(web(), deployment(4));
    cluster.run(1_000);
    for round in 0..6 {
        let (dies, stays) = if round % 2 == 0 { ("n1", "n2") } else { ("n2", "n1") };
        assert!(pods(&cluster).iter().any(|pod| node_of(pod) == dies));
        cluster.node(dies, "Unknown");
        cluster.run(1_000);
        let mut now = pods(&cluster);
        now.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        assert!(now.len() == 4 && now.iter().all(|pod| node_of(pod) == stays), "round {round}: {now:#?}");
        // It comes back, and is there for the pods of the other that dies next.
        cluster.node(dies, "True");
        cluster.run(500);
    }
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
    cluster.node("n2", "True");
    let mut value = deployment(1);
    value["spec"]["template"]["spec"]["nodeName"] = "n1".into();
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
    // It is for that node alone, so it is made there again and again: each time with the same patience.
    cluster.read();
    cluster.run(600_000);
    let made = cluster.read().matches("create pods").count();
    assert!((9..=11).contains(&made), "{made} made in ten minutes");
}

#[test]
fn pods_made_for_a_node_that_is_down_are_no_busy_loop() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "Unknown");
    cluster.node("n2", "True");
    let mut value = deployment(1);
    value["spec"]["template"]["spec"]["nodeName"] = "n1".into();
    cluster.put(web(), value);
    cluster.run(1_000);
    cluster.read();
    cluster.run(10_000);
    let made = cluster.read().matches("create pods").count();
    assert!((1..=4).contains(&made), "{made} made in ten seconds");
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

/// Nodes `n1` to `nCOUNT`, all ready, with two pods each.
fn cluster_of(count: i64) -> Cluster {
    let mut cluster = Cluster::new();
    for number in 1..=count {
        cluster.node(&format!("n{number}"), "True");
    }
    cluster.put(web(), deployment(2 * count));
    cluster.run(1_000);
    cluster
}

fn set(cluster: &mut Cluster, nodes: std::ops::RangeInclusive<i64>, ready: &str) {
    nodes.for_each(|number| cluster.node(&format!("n{number}"), ready));
}

/// The pods that are not being deleted, by name.
fn standing(cluster: &Cluster) -> Vec<String> {
    let stay = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null();
    let name = |pod: Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
    pods(cluster).into_iter().filter(stay).map(name).collect()
}

fn kept(cluster: &Cluster, before: &[String]) -> usize {
    let now = standing(cluster);
    before.iter().filter(|pod| now.contains(pod)).count()
}

#[test]
fn nodes_that_fall_silent_together_keep_their_pods() {
    for count in [1, 3, 9] {
        let mut cluster = cluster_of(count);
        let before = standing(&cluster);
        cluster.read();
        set(&mut cluster, 1..=count, "Unknown");
        cluster.run(600_000);
        assert_eq!(standing(&cluster), before, "{count} nodes: {}", cluster.read());
        assert!(!cluster.read().contains("update pods"), "nor do they lose readiness");
        set(&mut cluster, 1..=1, "True");
        cluster.run(3_000);
        set(&mut cluster, 2..=count, "True");
        cluster.run(60_000);
        assert_eq!(standing(&cluster), before, "who came back last had time to: {}", cluster.read());
        assert!(!cluster.read().contains("update pods"));
    }
}

#[test]
fn a_node_that_does_not_come_back_with_the_others_is_given_up() {
    let mut cluster = cluster_of(3);
    let before = standing(&cluster);
    set(&mut cluster, 1..=3, "Unknown");
    cluster.run(60_000);
    set(&mut cluster, 1..=2, "True");
    cluster.run(5_900);
    assert_eq!(kept(&cluster, &before), 6);
    cluster.run(200);
    assert_eq!(kept(&cluster, &before), 4);
    assert_eq!(standing(&cluster).len(), 6);
}

#[test]
fn most_nodes_of_a_zone_keep_their_pods_and_the_cluster_says_so() {
    let mut cluster = cluster_of(9);
    let before = standing(&cluster);
    cluster.read();
    set(&mut cluster, 1..=6, "Unknown");
    cluster.run(600_000);
    assert_eq!(standing(&cluster), before);
    let said = cluster.read();
    assert_eq!(said.matches("EvictionsPaused: 6 of 9 nodes of zone \"\" are not ready").count(), 1, "{said}");
}

#[test]
fn several_dead_nodes_are_given_up_one_by_one() {
    let mut cluster = cluster_of(5);
    let before = standing(&cluster);
    set(&mut cluster, 1..=2, "Unknown");
    cluster.run(600);
    assert_eq!(kept(&cluster, &before), 8, "the first at once");
    cluster.run(9_800);
    assert_eq!(kept(&cluster, &before), 8);
    cluster.run(200);
    assert_eq!(kept(&cluster, &before), 6);
    assert_eq!(cluster.refusals, 0);
}

#[test]
fn a_new_leader_and_one_that_was_paused_give_nodes_time() {
    let mut cluster = cluster_of(3);
    let before = standing(&cluster);
    cluster.node("n1", "Unknown");
    cluster.run(100);
    cluster.controllers = Controllers::new(Config { ca_bundle: "PEM".to_owned() });
    let view = cluster.view.clone();
    cluster.controllers.resync(&view);
    cluster.run(5_000);
    cluster.node("n1", "True");
    cluster.run(10_000);
    assert_eq!(standing(&cluster), before, "a new leader");

    cluster.node("n1", "Unknown");
    cluster.run(100);
    // Its plan is due 400 ms later, and comes 15 s later.
    cluster.pass(15_000);
    cluster.run(5_000);
    cluster.node("n1", "True");
    cluster.run(10_000);
    assert_eq!(standing(&cluster), before, "paused");

    cluster.node("n1", "Unknown");
    cluster.run(600);
    assert_eq!(kept(&cluster, &before), 4, "one that really died is given up at once");
}

#[test]
fn a_name_that_was_chosen_is_free_only_when_its_pod_has_ended() {
    let mut cluster = cluster_of(3);
    let key = ObjectKey::new("pods", "default", "db-0");
    cluster.put(
        key.clone(),
        json!({"metadata": {"name": "db-0", "namespace": "default", "uid": "db-0"},
            "spec": {"nodeName": "n1", "containers": [{"name": "db"}]}, "status": {"phase": "Pending"}}),
    );
    cluster.run(1_000);
    cluster.node("n1", "Unknown");
    cluster.run(600_000);
    let pod = cluster.get(&key);
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "it is evicted");
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30, "with the time that it asks for");
    let others = pods(&cluster).iter().filter(|pod| node_of(pod) == "n1").count();
    assert_eq!(others, 1, "those of the replica set are gone");
    cluster.edit(&ObjectKey::new("nodes", "", "n1"), |node| {
        let taint = json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
        node["spec"]["taints"].as_array_mut().unwrap().push(taint);
    });
    cluster.run(1_000);
    assert_eq!(cluster.find(&key), None, "somebody says that the node is off");
}

#[test]
fn pods_for_a_node_that_is_not_there_are_no_busy_loop() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let mut value = deployment(1);
    value["spec"]["template"]["spec"]["nodeName"] = "ghost".into();
    cluster.put(web(), value);
    cluster.run(10_000);
    let removed = cluster.read().matches("delete pods").count();
    assert!((1..=5).contains(&removed), "each pod waits two seconds for its node; {removed} removed in ten");
}
