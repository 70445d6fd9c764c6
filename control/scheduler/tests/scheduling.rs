//! Scripted scenarios: nodes and pods come and go, the decisions are read as text.

use std::{fmt::Write as _, sync::Arc};

use coracle_objects::{Event, EventKind, Expect, Object, ObjectKey, View, Write};
use coracle_scheduler::{Decisions, Scheduler};
use expect_test::{Expect as Golden, expect};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// A store in small: applies the decisions' transactions where their preconditions hold, and lets the scheduler see.
struct Cluster {
    scheduler: Scheduler,
    view: View,
    now: Timestamp,
}

impl Cluster {
    fn new() -> Self {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Self { scheduler: Scheduler::new(), view: View::default(), now }
    }

    fn put(&mut self, key: ObjectKey, value: &Value) {
        self.view.revision += 1;
        let object =
            Object::from_draft(key.clone(), value.to_string().as_bytes(), self.view.revision).unwrap();
        let object = Arc::new(object);
        let table = self.view.tables.entry(key.resource.clone()).or_default();
        let previous = table.insert(key.name.clone(), object.clone());
        let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
        self.scheduler.observe(&Event { kind, object, previous });
    }

    fn delete(&mut self, key: &ObjectKey) {
        self.view.revision += 1;
        let previous = self.view.tables.get_mut(&key.resource).unwrap().remove(&key.name).unwrap();
        let object = Arc::new(previous.at_revision(self.view.revision));
        self.scheduler.observe(&Event { kind: EventKind::Deleted, object, previous: Some(previous) });
    }

    fn node(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut node = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {
                "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        change(&mut node);
        self.put(node_key(name), &node);
    }

    fn pod(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}}}]},
            "status": {"phase": "Pending"},
        });
        change(&mut pod);
        self.put(pod_key(name), &pod);
    }

    /// Decides without applying.
    fn decide(&mut self) -> Decisions {
        self.scheduler.schedule(self.now)
    }

    /// Decides, applies and writes down.
    fn step(&mut self) -> String {
        let decisions = self.decide();
        let mut text = String::new();
        for placement in &decisions.placements {
            writeln!(text, "{} -> {}", placement.pod.name, placement.node).unwrap();
        }
        for failure in &decisions.failures {
            writeln!(text, "{}: {}", failure.pod.name, failure.message).unwrap();
        }
        let placed = decisions.placements.into_iter().map(|placement| placement.transaction);
        let failed = decisions.failures.into_iter().map(|failure| failure.transaction);
        for transaction in placed.chain(failed) {
            for precondition in &transaction.preconditions {
                let found = self.view.get(&precondition.key).expect("the object exists");
                match &precondition.expect {
                    Expect::Revision(revision) => assert_eq!(found.revision, *revision),
                    Expect::Uid(uid) => assert_eq!(&found.meta.uid, uid),
                    other => panic!("unexpected precondition {other:?}"),
                }
            }
            for write in transaction.writes {
                let Write::Put { key, draft } = write else { panic!("the scheduler deletes nothing") };
                self.put(key, &serde_json::from_slice(&draft).unwrap());
            }
        }
        text
    }

    fn pass(&mut self, ms: i64) {
        self.now += SignedDuration::from_millis(ms);
    }

    fn get(&self, key: &ObjectKey) -> Value {
        self.view.get(key).unwrap().parse().unwrap()
    }
}

fn pod_key(name: &str) -> ObjectKey {
    ObjectKey::new("pods", "default", name)
}

fn node_key(name: &str) -> ObjectKey {
    ObjectKey::new("nodes", "", name)
}

fn owned(pod: &mut Value) {
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
        "uid": "uid-web", "controller": true}]);
}

fn check(actual: &str, golden: Golden) {
    golden.assert_eq(actual);
}

#[test]
fn pods_of_one_owner_are_spread() {
    let mut cluster = Cluster::new();
    for name in ["n1", "n2", "n3"] {
        cluster.node(name, |_| {});
    }
    for index in 0..6 {
        cluster.pod(&format!("web-{index}"), owned);
    }
    let text = cluster.step();
    for name in ["n1", "n2", "n3"] {
        assert_eq!(text.matches(&format!("-> {name}")).count(), 2, "{text}");
    }
    assert_eq!(cluster.step(), "");
    assert_eq!(cluster.scheduler.next_deadline(), None);
    let pod = cluster.get(&pod_key("web-0"));
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(pod["status"]["conditions"][0]["status"], "True");
}

#[test]
fn each_filter_has_its_reason() {
    let mut cluster = Cluster::new();
    cluster.pod("a", |pod| pod["spec"]["nodeSelector"] = json!({"disk": "ssd"}));
    check(
        &cluster.step(),
        expect![[r#"
            default/a: no nodes available to schedule pods
        "#]],
    );
    cluster.node("cordoned", |node| node["spec"]["unschedulable"] = true.into());
    cluster.node("tainted", |node| {
        node["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}])
    });
    cluster.node("tainted-too", |node| {
        node["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoExecute"}])
    });
    cluster.node("wrong", |_| {});
    cluster.node("down", |node| {
        node["metadata"]["labels"]["disk"] = "ssd".into();
        node["status"]["conditions"][0]["status"] = "Unknown".into();
    });
    cluster.node("full", |node| {
        node["metadata"]["labels"]["disk"] = "ssd".into();
        node["status"]["allocatable"] = json!({"cpu": "100m", "memory": "1Mi", "pods": 0});
    });
    cluster.pass(1_000);
    check(
        &cluster.step(),
        expect![[r#"
            default/a: 0/6 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were not ready, 1 node(s) were unschedulable, 2 node(s) had untolerated taint {k: v}.
        "#]],
    );
    let condition = cluster.get(&pod_key("a"))["status"]["conditions"][0].clone();
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["reason"], "Unschedulable");
}

#[test]
fn a_pod_in_vain_waits_for_a_change_and_its_backoff() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["status"]["allocatable"]["cpu"] = "600m".into());
    cluster.pod("a", |_| {});
    cluster.pod("b", |_| {});
    check(
        &cluster.step(),
        expect![[r#"
            default/a -> n1
            default/b: 0/1 nodes are available: 1 Insufficient cpu.
        "#]],
    );
    cluster.pass(40);
    cluster.node("n2", |_| {});
    assert_eq!(cluster.step(), "", "the backoff is not over");
    let deadline = cluster.scheduler.next_deadline().unwrap();
    assert_eq!(deadline.duration_since(cluster.now).as_millis(), 10);
    cluster.now = deadline;
    check(
        &cluster.step(),
        expect![[r#"
            default/b -> n2
        "#]],
    );
}

#[test]
fn an_unchanged_reason_is_not_told_twice() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["spec"]["unschedulable"] = true.into());
    cluster.pod("a", |_| {});
    assert_ne!(cluster.step(), "");
    cluster.pass(1_000);
    cluster.node("n1", |node| {
        node["spec"]["unschedulable"] = true.into();
        node["metadata"]["labels"]["new"] = "label".into();
    });
    assert_eq!(cluster.step(), "");
}

#[test]
fn the_room_of_finished_and_deleted_pods_is_used_again() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["status"]["allocatable"]["pods"] = 1.into());
    cluster.pod("a", |_| {});
    cluster.step();
    cluster.pod("b", |_| {});
    assert!(cluster.step().contains("1 Too many pods"));
    let mut finished = cluster.get(&pod_key("a"));
    finished["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    finished["status"]["phase"] = "Succeeded".into();
    cluster.put(pod_key("a"), &finished);
    cluster.pass(1_000);
    assert_eq!(cluster.step(), "default/b -> n1\n");
    cluster.pod("c", |_| {});
    assert!(cluster.step().contains("1 Too many pods"));
    cluster.delete(&pod_key("b"));
    cluster.pass(1_000);
    assert_eq!(cluster.step(), "default/c -> n1\n");
}

#[test]
fn a_refused_placement_is_made_again() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["status"]["allocatable"]["pods"] = 1.into());
    cluster.pod("a", |_| {});
    assert_eq!(cluster.decide().placements.len(), 1);
    assert_eq!(cluster.decide().placements.len(), 0, "it is under way");
    cluster.pod("a", |pod| pod["metadata"]["labels"] = json!({"changed": "meanwhile"}));
    assert_eq!(cluster.step(), "default/a -> n1\n");
}

#[test]
fn a_placement_that_is_never_seen_is_given_up() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["status"]["allocatable"]["pods"] = 1.into());
    cluster.pod("a", |_| {});
    assert_eq!(cluster.decide().placements.len(), 1);
    cluster.now = cluster.scheduler.next_deadline().unwrap();
    assert_eq!(cluster.step(), "default/a -> n1\n");
}

#[test]
fn tolerations_and_affinity_open_and_choose_nodes() {
    let mut cluster = Cluster::new();
    cluster.node("tainted", |node| {
        node["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]);
        node["metadata"]["labels"]["zone"] = "a".into();
    });
    cluster.node("disliked", |node| {
        node["spec"]["taints"] = json!([{"key": "slow", "effect": "PreferNoSchedule"}]);
        node["metadata"]["labels"]["zone"] = "b".into();
    });
    cluster.node("plain", |node| node["metadata"]["labels"]["zone"] = "b".into());
    cluster.pod("tolerant", |pod| {
        pod["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
        pod["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}});
    });
    cluster.pod("drawn", |pod| {
        pod["spec"]["affinity"] = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["plain"]}]}}]}});
    });
    cluster.pod("indifferent", |_| {});
    check(
        &cluster.step(),
        expect![[r#"
            default/tolerant -> tainted
            default/drawn -> plain
            default/indifferent -> plain
        "#]],
    );
}

#[test]
fn important_pods_go_first_and_gated_or_foreign_ones_not_at_all() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["status"]["allocatable"]["pods"] = 1.into());
    cluster.pod("gated", |pod| pod["spec"]["schedulingGates"] = json!([{"name": "g"}]));
    cluster.pod("foreign", |pod| pod["spec"]["schedulerName"] = "another".into());
    cluster.pod("minor", |_| {});
    cluster.pod("major", |pod| pod["spec"]["priority"] = 1000.into());
    check(
        &cluster.step(),
        expect![[r#"
            default/major -> n1
            default/minor: 0/1 nodes are available: 1 Too many pods.
        "#]],
    );
}

#[test]
fn lost_events_are_made_up_for_and_what_was_tried_in_vain_stays_known() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["status"]["allocatable"]["cpu"] = "600m".into());
    cluster.node("gone", |node| node["spec"]["unschedulable"] = true.into());
    cluster.pod("a", |_| {});
    cluster.pod("b", |_| {});
    assert!(cluster.step().starts_with("default/a -> n1"));
    // Unseen by the scheduler: a has ended, a node has gone and another come.
    let mut seen = std::mem::take(&mut cluster.scheduler);
    cluster.delete(&pod_key("a"));
    cluster.delete(&node_key("gone"));
    cluster.node("n2", |node| node["status"]["allocatable"]["cpu"] = "600m".into());
    cluster.pass(40);
    seen.catch_up(&cluster.view);
    cluster.scheduler = seen;
    assert_eq!(cluster.step(), "", "the backoff of b is not over");
    cluster.now = cluster.scheduler.next_deadline().unwrap();
    assert_eq!(cluster.decide().placements.len(), 1, "and then there is room");
    cluster.scheduler.catch_up(&cluster.view);
    assert_eq!(cluster.decide().placements.len(), 0, "its placement is under way");
    cluster.pod("c", |_| {});
    let mut other = Scheduler::new();
    other.resync(&cluster.view);
    assert_eq!(other.schedule(cluster.now).placements.len(), 2);
    let placed = cluster.decide().placements;
    assert_eq!(placed.len(), 1, "what b holds by then is held");
}

#[test]
fn a_resync_gives_the_same_decisions_as_the_events_did() {
    let mut cluster = Cluster::new();
    for index in 0..20 {
        cluster.node(&format!("n{index}"), |_| {});
    }
    for index in 0..100 {
        cluster.pod(&format!("p{index}"), |pod| {
            if index % 2 == 0 {
                owned(pod);
            }
        });
    }
    let mut other = Scheduler::new();
    other.resync(&cluster.view);
    let mut from_events = cluster.decide().placements;
    let mut from_view = other.schedule(cluster.now).placements;
    assert_eq!(from_events.len(), 80, "ten pods of 500m and 2 cores a node leave room for four each");
    assert_eq!(from_view.len(), 80);
    let mut again = Scheduler::new();
    again.resync(&cluster.view);
    let repeated = again.schedule(cluster.now).placements;
    let as_text = |placement: &coracle_scheduler::Placement| format!("{:?}", placement.transaction);
    assert!(from_view.iter().map(as_text).eq(repeated.iter().map(as_text)));
    from_events.sort_by(|a, b| a.pod.cmp(&b.pod));
    from_view.sort_by(|a, b| a.pod.cmp(&b.pod));
    let load = |placements: &[coracle_scheduler::Placement], node: &str| {
        placements.iter().filter(|placement| placement.node == node).count()
    };
    for index in 0..20 {
        assert_eq!(load(&from_events, &format!("n{index}")), 4);
        assert_eq!(load(&from_view, &format!("n{index}")), 4);
    }
}

/// Arrays in arrays: too deep to be parsed, and yet an object of the store, in a field that nobody reads.
fn deep() -> String {
    format!("{}{}", "[".repeat(200), "]".repeat(200))
}

impl Cluster {
    fn put_raw(&mut self, key: &ObjectKey, draft: &str) {
        self.view.revision += 1;
        let object = Arc::new(Object::from_draft(key.clone(), draft.as_bytes(), self.view.revision).unwrap());
        self.view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object.clone());
        self.scheduler.observe(&Event { kind: EventKind::Modified, object, previous: None });
    }

    /// A pod of which the fields are JSON as they stand.
    fn raw_pod(&mut self, name: &str, spec: &str, status: &str) {
        let meta = format!(r#"{{"name":"{name}","namespace":"default","uid":"uid-{name}"}}"#);
        let draft = format!(r#"{{"metadata":{meta},"spec":{spec},"status":{status}}}"#);
        self.put_raw(&pod_key(name), &draft);
    }
}

#[test]
fn a_pod_that_cannot_be_written_costs_only_itself() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |_| {});
    let deep = deep();
    cluster.raw_pod("deep-spec", &format!(r#"{{"nodeName":"","containers":[],"x":{deep}}}"#), "{}");
    cluster.raw_pod("deep-status", r#"{"containers":[]}"#, &format!(r#"{{"x":{deep}}}"#));
    cluster.raw_pod("deep-unplaced", &format!(r#"{{"nodeSelector":{{"no":"node"}},"x":{deep}}}"#), "{}");
    let large = "x".repeat(coracle_objects::OBJECT_BYTES_MAX - 150);
    cluster.raw_pod("large", &format!(r#"{{"containers":[],"x":"{large}"}}"#), "{}");
    cluster.pod("good", |_| {});
    let decisions = cluster.decide();
    let placed: Vec<&str> = decisions.placements.iter().map(|placed| placed.node.as_str()).collect();
    assert_eq!(placed, ["n1"], "the good one");
    let told: Vec<&str> = decisions.faults.iter().map(|fault| &*fault.regarding.name.name).collect();
    assert_eq!(told, ["deep-spec", "deep-status", "large", "deep-unplaced"]);
    assert!(decisions.faults.iter().all(|fault| fault.reason == "FailedScheduling"));
    assert!(decisions.failures.is_empty() && decisions.panics.is_empty(), "{:?}", decisions.panics);
    assert_eq!(cluster.scheduler.situation().in_trouble, 4);
    // They wait, and who changes one has it tried at once.
    assert!(cluster.decide().faults.is_empty());
    let meta = json!({"name": "deep-spec", "namespace": "default", "uid": "uid-deep-spec", "generation": 2});
    cluster.put(pod_key("deep-spec"), &json!({"metadata": meta, "spec": {"containers": []}, "status": {}}));
    cluster.pass(1);
    assert_eq!(cluster.decide().placements.len(), 1);
}

#[test]
fn what_cannot_be_read_counts_and_is_told() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |node| node["status"]["allocatable"]["pods"] = "3".into());
    cluster.raw_pod("odd-here", r#"{"nodeName":"n1","containers":7}"#, "{}");
    cluster.raw_pod("odd-waits", r#"{"containers":[],"tolerations":{}}"#, "{}");
    cluster.pod("grew-odd", |pod| pod["spec"]["nodeName"] = "n1".into());
    cluster.raw_pod("grew-odd", r#"{"nodeName":"n1","containers":[],"affinity":7}"#, "{}");
    let told = |decisions: &Decisions| -> Vec<String> {
        assert!(decisions.faults.iter().all(|fault| fault.reason == "Unreadable"));
        decisions.faults.iter().map(|fault| fault.regarding.name.name.to_string()).collect()
    };
    cluster.pod("first", |_| {});
    cluster.pod("second", |_| {});
    let decisions = cluster.decide();
    assert_eq!(told(&decisions), ["grew-odd", "odd-here", "odd-waits"]);
    assert_eq!(decisions.placements.len(), 1, "two of three places are taken by pods that cannot be read");
    assert_eq!(cluster.scheduler.situation().unreadable, 3);
    assert!(cluster.decide().faults.is_empty(), "it is told once");
    // A node that cannot be read any more takes no more pods.
    cluster.node("n2", |_| {});
    let draft = r#"{"metadata":{"name":"n2","uid":"uid-n2"},"spec":{"taints":"none"},"status":{}}"#;
    cluster.put_raw(&node_key("n2"), draft);
    cluster.pass(60_000);
    let decisions = cluster.decide();
    assert_eq!((told(&decisions), decisions.placements.len()), (vec!["n2".to_owned()], 1));
    assert_eq!(decisions.placements[0].node, "n1", "the one that was given up is placed again where it was");
    for name in ["odd-here", "odd-waits", "grew-odd"] {
        cluster.delete(&pod_key(name));
    }
    cluster.node("n2", |_| {});
    assert_eq!(cluster.scheduler.situation().unreadable, 0);
}

#[test]
fn a_placement_that_is_refused_is_made_anew_soon_and_ever_more_rarely() {
    let mut cluster = Cluster::new();
    cluster.node("n1", |_| {});
    cluster.pod("p", |_| {});
    let name = pod_key("p").name;
    let refuse = |cluster: &mut Cluster, after_ms: i64, forever: Option<&str>| {
        cluster.pass(after_ms - 1);
        assert_eq!(cluster.decide().placements.len(), 0, "before {after_ms} ms");
        cluster.pass(1);
        assert_eq!(cluster.decide().placements.len(), 1, "after {after_ms} ms");
        cluster.scheduler.refused(&name, forever, cluster.now);
    };
    assert_eq!(cluster.decide().placements.len(), 1);
    cluster.scheduler.refused(&pod_key("p").name, None, cluster.now);
    assert_eq!(cluster.decide().placements.len(), 1, "at once: the world has changed");
    cluster.scheduler.refused(&pod_key("p").name, None, cluster.now);
    [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000].into_iter().for_each(|ms| {
        refuse(&mut cluster, ms, None);
    });
    refuse(&mut cluster, 10_000, Some("it is too large"));
    let decisions = cluster.decide();
    assert_eq!(decisions.faults.len(), 1);
    assert!(decisions.faults[0].message.contains("too large"), "{}", decisions.faults[0].message);
    refuse(&mut cluster, 1_000, Some("it is too large"));
}
