//! Whatever happens, a deployment comes to what it says, and on the way keeps its promises.

use coracle_objects::ObjectKey;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::harness::{Cluster, deployment, web};

/// What a user or the world does.
#[derive(Clone, Debug)]
enum Step {
    Image(u8),
    Replicas(i64),
    Surge(Value, Value),
    Pause(bool),
    /// A pod is deleted by hand; which one.
    DeletePod(u8),
    Plans(u8),
    /// Nodes do their part so often.
    Nodes(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let limit =
        prop_oneof![(0_i64..4).prop_map(Value::from), (0_u8..100).prop_map(|part| json!(format!("{part}%")))];
    prop_oneof![
        2 => (0_u8..4).prop_map(Step::Image),
        2 => (0_i64..9).prop_map(Step::Replicas),
        1 => (limit.clone(), limit).prop_map(|(surge, unavailable)| Step::Surge(surge, unavailable)),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => any::<u8>().prop_map(Step::DeletePod),
        4 => (1_u8..4).prop_map(Step::Plans),
        4 => (1_u8..3).prop_map(Step::Nodes),
    ]
}

fn edit(cluster: &mut Cluster, change: impl FnOnce(&mut Value)) {
    let before = cluster.get(&web());
    let mut after = before.clone();
    change(&mut after);
    if after != before {
        cluster.edit(&web(), |value| *value = after);
    }
}

fn act(cluster: &mut Cluster, step: Step) {
    match step {
        Step::Image(image) => edit(cluster, |value| {
            value["spec"]["template"]["spec"]["containers"][0]["image"] = format!("hello:{image}").into();
        }),
        Step::Replicas(count) => edit(cluster, |value| value["spec"]["replicas"] = count.into()),
        Step::Surge(surge, unavailable) => edit(cluster, |value| {
            value["spec"]["strategy"]["rollingUpdate"] =
                json!({"maxSurge": surge, "maxUnavailable": unavailable});
        }),
        Step::Pause(paused) => edit(cluster, |value| value["spec"]["paused"] = paused.into()),
        Step::DeletePod(index) => {
            let pods: Vec<_> = cluster.view.list("pods", None).map(|pod| pod.key.clone()).collect();
            if !pods.is_empty() {
                let key = &pods[index as usize % pods.len()];
                if cluster.get(key)["metadata"]["deletionTimestamp"].is_null() {
                    cluster.delete(key, None);
                }
            }
        }
        Step::Plans(count) => (0..count).for_each(|_| _ = cluster.step()),
        Step::Nodes(count) => (0..count).for_each(|_| _ = cluster.kubelet()),
    }
    cluster.pass(100);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn from_any_state_the_deployment_converges(steps in prop::collection::vec(step(), 0..40)) {
        let mut cluster = Cluster::new();
        cluster.node("n1", "True");
        cluster.put(web(), deployment(3));
        for step in steps {
            act(&mut cluster, step);
        }
        edit(&mut cluster, |value| value["spec"]["paused"] = false.into());
        cluster.run(10_000);
        let value = cluster.get(&web());
        let wanted = value["spec"]["replicas"].as_i64().unwrap();
        prop_assert_eq!(value["status"]["updatedReplicas"].as_i64().unwrap_or(0), wanted);
        prop_assert_eq!(value["status"]["availableReplicas"].as_i64().unwrap_or(0), wanted);
        prop_assert_eq!(&value["status"]["observedGeneration"], &value["metadata"]["generation"]);
        let image = &value["spec"]["template"]["spec"]["containers"][0]["image"];
        let pods: Vec<Value> = cluster.view.list("pods", None).map(|pod| pod.parse().unwrap()).collect();
        prop_assert_eq!(pods.len() as i64, wanted);
        prop_assert!(pods.iter().all(|pod| &pod["spec"]["containers"][0]["image"] == image));
        cluster.read();
        cluster.run(60_000);
        prop_assert_eq!(cluster.read(), "", "at rest");
    }

    #[test]
    fn a_rollout_keeps_max_surge_and_max_unavailable(
        replicas in 1_i64..12,
        surge in 0_i64..5,
        unavailable in 0_i64..5,
        order in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let mut cluster = Cluster::new();
        cluster.node("n1", "True");
        let mut value = deployment(replicas);
        value["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        cluster.put(web(), value);
        cluster.run(1_000);
        cluster.check = Some(keeps_promises);
        edit(&mut cluster, |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = "hello:2".into());
        for plans in order {
            if plans { cluster.step(); } else { cluster.kubelet(); }
        }
        cluster.run(1_000);
        prop_assert_eq!(cluster.get(&web())["status"]["updatedReplicas"].as_i64(), Some(replicas));
    }
}

/// After every transaction: not more pods than surge allows, not fewer available ones than may be missing.
fn keeps_promises(cluster: &Cluster) {
    let value = cluster.get(&web());
    let number = |path: &str| value.pointer(path).and_then(Value::as_i64).unwrap();
    let replicas = number("/spec/replicas");
    let surge = number("/spec/strategy/rollingUpdate/maxSurge");
    let unavailable = number("/spec/strategy/rollingUpdate/maxUnavailable");
    let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
    let pods: Vec<Value> = cluster.view.list("pods", None).map(|pod| pod.parse().unwrap()).collect();
    let active: Vec<&Value> =
        pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
    let ready = active.iter().filter(|pod| pod["status"]["conditions"][0]["status"] == "True").count() as i64;
    assert!(active.len() as i64 <= replicas + surge, "{} pods of {replicas} + {surge}", active.len());
    assert!(ready >= replicas - unavailable, "{ready} available of {replicas} - {unavailable}");
}

#[test]
fn what_was_missed_is_made_up_for_by_the_difference() {
    let mut cluster = Cluster::new();
    cluster.put(web(), deployment(3));
    cluster.settle();
    cluster.events_get_lost = true;
    cluster.edit(&web(), |web| web["spec"]["replicas"] = 5.into());
    let gone = cluster.names("pods").remove(0);
    let gone = ObjectKey::new("pods", "default", gone.strip_prefix("default/").unwrap());
    cluster.delete(&gone, None);
    cluster.namespace("other");
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), 2, "nobody has heard of it");
    cluster.catch_up();
    cluster.settle();
    assert_eq!(cluster.names("pods").len(), 5);
    assert!(cluster.find(&ObjectKey::new("serviceaccounts", "other", "default")).is_some());
    // Where nothing is different nothing is looked at.
    cluster.catch_up();
    assert_eq!(cluster.plan().tasks, 0);
}
