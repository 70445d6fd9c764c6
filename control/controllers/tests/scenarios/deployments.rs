//! Deployments: rollouts, scaling, pausing, deadlines, history.

use coracle_objects::ObjectKey;
use expect_test::expect;
use serde_json::{Value, json};

use crate::harness::{Cluster, deployment, web};

fn image(cluster: &mut Cluster, image: &str) {
    cluster.edit(&web(), |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = image.into());
}

fn condition(cluster: &Cluster, type_: &str) -> Value {
    let value = cluster.get(&web());
    let conditions = value["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == type_).cloned().unwrap_or_default()
}

/// The sizes of the replica sets, oldest first.
fn sizes(cluster: &Cluster) -> Vec<i64> {
    let mut sets: Vec<Value> =
        cluster.view.list("replicasets.apps", None).map(|set| set.parse().unwrap()).collect();
    let revision = |set: &Value| {
        let text = set["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str().unwrap();
        text.parse::<i64>().unwrap()
    };
    sets.sort_by_key(revision);
    sets.iter().map(|set| set["spec"]["replicas"].as_i64().unwrap()).collect()
}

fn running(replicas: i64) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.put(web(), deployment(replicas));
    cluster.run(1_000);
    cluster.read();
    cluster
}

#[test]
fn a_deployment_is_born() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.put(web(), deployment(2));
    cluster.run(1_000);
    expect![[r#"
        create replicasets.apps default/web-7f7q9qg7lh replicas=2
        update deployments.apps default/web metadata.annotations={"deployment.kubernetes.io/revision":"1"} status.observedGeneration=1 status.unavailableReplicas=2 Progressing=True(NewReplicaSetCreated) Available=False(MinimumReplicasUnavailable)
        event deployments.apps default/web ScalingReplicaSet: Scaled up replica set web-7f7q9qg7lh from 0 to 2
        create pods default/web-7f7q9qg7lh-lf6bn
        create pods default/web-7f7q9qg7lh-28twp
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulCreate: Created pod: web-7f7q9qg7lh-lf6bn
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulCreate: Created pod: web-7f7q9qg7lh-28twp
        update replicasets.apps default/web-7f7q9qg7lh status.replicas=2 status.fullyLabeledReplicas=2 status.observedGeneration=1
        update deployments.apps default/web Progressing=True(ReplicaSetUpdated) status.replicas=2 status.updatedReplicas=2
        update replicasets.apps default/web-7f7q9qg7lh status.readyReplicas=2 status.availableReplicas=2
        update deployments.apps default/web Available=True(MinimumReplicasAvailable) Progressing=True(NewReplicaSetAvailable) status.readyReplicas=2 status.availableReplicas=2 status.unavailableReplicas=null
    "#]].assert_eq(&cluster.read());
    assert_eq!(cluster.refusals, 0);
}

#[test]
fn a_rolling_update_goes_step_by_step() {
    let mut cluster = running(3);
    image(&mut cluster, "hello:2");
    cluster.run(1_000);
    expect![[r#"
        create replicasets.apps default/web-zrw878xpwk replicas=1
        update deployments.apps default/web metadata.annotations.deployment.kubernetes.io/revision="2" status.observedGeneration=2 Progressing=True(NewReplicaSetCreated) status.unavailableReplicas=1 status.updatedReplicas=null
        event deployments.apps default/web ScalingReplicaSet: Scaled up replica set web-zrw878xpwk from 0 to 1
        create pods default/web-zrw878xpwk-whz7h
        event replicasets.apps default/web-zrw878xpwk SuccessfulCreate: Created pod: web-zrw878xpwk-whz7h
        update replicasets.apps default/web-zrw878xpwk status.replicas=1 status.fullyLabeledReplicas=1 status.observedGeneration=1
        update replicasets.apps default/web-7f7q9qg7lh metadata.generation=2 spec.replicas=2
        update deployments.apps default/web Progressing=True(ReplicaSetUpdated) status.replicas=4 status.updatedReplicas=1 status.unavailableReplicas=null
        update replicasets.apps default/web-zrw878xpwk status.readyReplicas=1 status.availableReplicas=1
        event deployments.apps default/web ScalingReplicaSet: Scaled down replica set web-7f7q9qg7lh from 3 to 2
        update deployments.apps default/web status.readyReplicas=4 status.availableReplicas=4
        update pods default/web-7f7q9qg7lh-lf6bn metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:31Z" metadata.deletionGracePeriodSeconds=30
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulDelete: Deleted pod: web-7f7q9qg7lh-lf6bn
        update replicasets.apps default/web-zrw878xpwk metadata.generation=2 spec.replicas=2
        update replicasets.apps default/web-7f7q9qg7lh status.replicas=2 status.fullyLabeledReplicas=2 status.readyReplicas=2 status.availableReplicas=2 status.observedGeneration=2
        event deployments.apps default/web ScalingReplicaSet: Scaled up replica set web-zrw878xpwk from 1 to 2
        update deployments.apps default/web status.replicas=3 status.readyReplicas=3 status.availableReplicas=3 status.unavailableReplicas=1
        create pods default/web-zrw878xpwk-kkxfl
        event replicasets.apps default/web-zrw878xpwk SuccessfulCreate: Created pod: web-zrw878xpwk-kkxfl
        update replicasets.apps default/web-zrw878xpwk status.replicas=2 status.fullyLabeledReplicas=2 status.observedGeneration=2
        update replicasets.apps default/web-7f7q9qg7lh metadata.generation=3 spec.replicas=1
        update deployments.apps default/web status.replicas=4 status.updatedReplicas=2 status.unavailableReplicas=null
        update replicasets.apps default/web-zrw878xpwk status.readyReplicas=2 status.availableReplicas=2
        event deployments.apps default/web ScalingReplicaSet: Scaled down replica set web-7f7q9qg7lh from 2 to 1
        update deployments.apps default/web status.readyReplicas=4 status.availableReplicas=4
        update pods default/web-7f7q9qg7lh-28twp metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:31Z" metadata.deletionGracePeriodSeconds=30
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulDelete: Deleted pod: web-7f7q9qg7lh-28twp
        update replicasets.apps default/web-zrw878xpwk metadata.generation=3 spec.replicas=3
        update replicasets.apps default/web-7f7q9qg7lh status.replicas=1 status.fullyLabeledReplicas=1 status.readyReplicas=1 status.availableReplicas=1 status.observedGeneration=3
        event deployments.apps default/web ScalingReplicaSet: Scaled up replica set web-zrw878xpwk from 2 to 3
        update deployments.apps default/web status.replicas=3 status.readyReplicas=3 status.availableReplicas=3 status.unavailableReplicas=1
        create pods default/web-zrw878xpwk-xl2tg
        event replicasets.apps default/web-zrw878xpwk SuccessfulCreate: Created pod: web-zrw878xpwk-xl2tg
        update replicasets.apps default/web-zrw878xpwk status.replicas=3 status.fullyLabeledReplicas=3 status.observedGeneration=3
        update replicasets.apps default/web-7f7q9qg7lh metadata.generation=4 spec.replicas=0
        update deployments.apps default/web status.replicas=4 status.updatedReplicas=3 status.unavailableReplicas=null
        update replicasets.apps default/web-zrw878xpwk status.readyReplicas=3 status.availableReplicas=3
        event deployments.apps default/web ScalingReplicaSet: Scaled down replica set web-7f7q9qg7lh from 1 to 0
        update deployments.apps default/web status.readyReplicas=4 status.availableReplicas=4
        update pods default/web-7f7q9qg7lh-5mnvp metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:31Z" metadata.deletionGracePeriodSeconds=30
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulDelete: Deleted pod: web-7f7q9qg7lh-5mnvp
        update replicasets.apps default/web-7f7q9qg7lh status.replicas=0 status.observedGeneration=4 status.fullyLabeledReplicas=null status.readyReplicas=null status.availableReplicas=null
        update deployments.apps default/web Progressing=True(NewReplicaSetAvailable) status.replicas=3 status.readyReplicas=3 status.availableReplicas=3
    "#]].assert_eq(&cluster.read());
    assert_eq!(cluster.refusals, 0);
    assert_eq!(sizes(&cluster), [0, 3]);
}

#[test]
fn scaling_up_and_down_outside_of_a_rollout() {
    let mut cluster = running(1);
    cluster.edit(&web(), |value| value["spec"]["replicas"] = 3.into());
    cluster.run(1_000);
    expect![[r#"
        update replicasets.apps default/web-7f7q9qg7lh metadata.generation=2 metadata.annotations.deployment.kubernetes.io/desired-replicas="3" metadata.annotations.deployment.kubernetes.io/max-replicas="4" spec.replicas=3
        update deployments.apps default/web status.observedGeneration=2 Available=False(MinimumReplicasUnavailable) status.unavailableReplicas=2
        event deployments.apps default/web ScalingReplicaSet: Scaled up replica set web-7f7q9qg7lh from 1 to 3
        create pods default/web-7f7q9qg7lh-28twp
        create pods default/web-7f7q9qg7lh-5mnvp
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulCreate: Created pod: web-7f7q9qg7lh-28twp
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulCreate: Created pod: web-7f7q9qg7lh-5mnvp
        update replicasets.apps default/web-7f7q9qg7lh status.replicas=3 status.fullyLabeledReplicas=3 status.observedGeneration=2
        update deployments.apps default/web status.replicas=3 status.updatedReplicas=3
        update replicasets.apps default/web-7f7q9qg7lh status.readyReplicas=3 status.availableReplicas=3
        update deployments.apps default/web Available=True(MinimumReplicasAvailable) status.readyReplicas=3 status.availableReplicas=3 status.unavailableReplicas=null
    "#]].assert_eq(&cluster.read());
    cluster.edit(&web(), |value| value["spec"]["replicas"] = 0.into());
    cluster.run(1_000);
    expect![[r#"
        update replicasets.apps default/web-7f7q9qg7lh metadata.generation=3 metadata.annotations.deployment.kubernetes.io/desired-replicas="0" metadata.annotations.deployment.kubernetes.io/max-replicas="0" spec.replicas=0
        update deployments.apps default/web status.observedGeneration=3
        event deployments.apps default/web ScalingReplicaSet: Scaled down replica set web-7f7q9qg7lh from 3 to 0
        update pods default/web-7f7q9qg7lh-28twp metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:32Z" metadata.deletionGracePeriodSeconds=30
        update pods default/web-7f7q9qg7lh-5mnvp metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:32Z" metadata.deletionGracePeriodSeconds=30
        update pods default/web-7f7q9qg7lh-lf6bn metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:32Z" metadata.deletionGracePeriodSeconds=30
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulDelete: Deleted pod: web-7f7q9qg7lh-28twp
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulDelete: Deleted pod: web-7f7q9qg7lh-5mnvp
        event replicasets.apps default/web-7f7q9qg7lh SuccessfulDelete: Deleted pod: web-7f7q9qg7lh-lf6bn
        update replicasets.apps default/web-7f7q9qg7lh status.replicas=0 status.observedGeneration=3 status.fullyLabeledReplicas=null status.readyReplicas=null status.availableReplicas=null
        update deployments.apps default/web status.replicas=null status.updatedReplicas=null status.readyReplicas=null status.availableReplicas=null
    "#]].assert_eq(&cluster.read());
    assert_eq!(cluster.refusals, 0);
}

#[test]
fn scaling_within_a_rollout_is_proportional() {
    let mut cluster = running(10);
    image(&mut cluster, "broken");
    cluster.run(1_000);
    assert_eq!(sizes(&cluster), [8, 5], "25 % of ten: two may be missing, three may be too many");
    cluster.edit(&web(), |value| value["spec"]["replicas"] = 20.into());
    cluster.run(1_000);
    assert_eq!(sizes(&cluster), [15, 10], "upstream: 25 in all, shared 8 to 5");
}

#[test]
fn a_rollout_that_hangs_exceeds_its_deadline() {
    let mut cluster = running(4);
    image(&mut cluster, "broken");
    cluster.run(1_000);
    assert_eq!(condition(&cluster, "Progressing")["reason"], "ReplicaSetUpdated");
    assert_eq!(condition(&cluster, "Available")["status"], "True");
    cluster.run(700_000);
    let progressing = condition(&cluster, "Progressing");
    assert_eq!(progressing["reason"], "ProgressDeadlineExceeded");
    assert_eq!(progressing["status"], "False");
    assert_eq!(sizes(&cluster), [3, 2]);
    image(&mut cluster, "hello:1");
    cluster.run(1_000);
    assert_eq!(sizes(&cluster), [0, 4], "back to the first template, whose set is taken again");
    assert_eq!(condition(&cluster, "Progressing")["reason"], "NewReplicaSetAvailable");
    let revision = &cluster.get(&web())["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
    assert_eq!(revision, "3");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut cluster = running(2);
    cluster.edit(&web(), |value| value["spec"]["paused"] = true.into());
    image(&mut cluster, "hello:2");
    cluster.edit(&web(), |value| value["spec"]["replicas"] = 4.into());
    cluster.run(1_000);
    assert_eq!(sizes(&cluster), [4]);
    assert_eq!(condition(&cluster, "Progressing")["reason"], "DeploymentPaused");
    cluster.edit(&web(), |value| value["spec"]["paused"] = false.into());
    cluster.run(1_000);
    assert_eq!(sizes(&cluster), [0, 4]);
    assert_eq!(condition(&cluster, "Progressing")["reason"], "NewReplicaSetAvailable");
}

#[test]
fn recreate_waits_for_the_end_of_old_pods() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let mut value = deployment(2);
    value["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.put(web(), value);
    cluster.run(1_000);
    cluster.read();
    image(&mut cluster, "hello:2");
    cluster.settle();
    assert_eq!(sizes(&cluster), [0], "pods are being deleted but still run");
    cluster.run(1_000);
    assert_eq!(sizes(&cluster), [0, 2]);
    cluster.edit(&web(), |value| value["spec"]["replicas"] = 5.into());
    cluster.run(1_000);
    assert_eq!(sizes(&cluster), [0, 5]);
}

#[test]
fn old_sets_beyond_the_limit_go() {
    let mut cluster = running(1);
    cluster.edit(&web(), |value| value["spec"]["revisionHistoryLimit"] = 2.into());
    for index in 2..7 {
        image(&mut cluster, &format!("hello:{index}"));
        cluster.run(1_000);
    }
    assert_eq!(sizes(&cluster), [0, 0, 1]);
    assert_eq!(cluster.refusals, 0);
}

#[test]
fn readiness_must_last_for_min_ready_seconds() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let mut value = deployment(2);
    value["spec"]["minReadySeconds"] = 10.into();
    cluster.put(web(), value);
    cluster.run(5_000);
    assert_eq!(cluster.get(&web())["status"]["readyReplicas"], 2);
    assert_eq!(cluster.get(&web())["status"].get("availableReplicas"), None);
    cluster.run(6_000);
    assert_eq!(cluster.get(&web())["status"]["availableReplicas"], 2);
}

#[test]
fn a_taken_name_is_avoided() {
    let cluster = running(1);
    let set = cluster.names("replicasets.apps")[0].clone();
    let key = ObjectKey::new("replicasets.apps", "default", set.strip_prefix("default/").unwrap());
    let mut other = Cluster::new();
    other.node("n1", "True");
    let mut foreign = cluster.get(&key);
    foreign["metadata"]["ownerReferences"] = json!([]);
    foreign["metadata"]["labels"] = json!({"app": "other"});
    foreign["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
    foreign["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    foreign["spec"]["replicas"] = 0.into();
    other.put(key, foreign);
    other.put(web(), deployment(1));
    other.run(1_000);
    assert_eq!(other.names("replicasets.apps").len(), 2);
    assert_eq!(other.get(&web())["status"]["collisionCount"], 1);
    assert_eq!(other.get(&web())["status"]["availableReplicas"], 1);
}

#[test]
fn orphaned_sets_are_adopted_again() {
    let mut cluster = running(2);
    let pods = cluster.names("pods");
    cluster.delete(&web(), Some("orphan"));
    cluster.run(1_000);
    assert_eq!(cluster.names("deployments.apps").len(), 0);
    assert_eq!(cluster.names("pods"), pods);
    let mut value = deployment(2);
    value["metadata"]["uid"] = "web-2".into();
    cluster.put(web(), value);
    cluster.run(1_000);
    assert_eq!(cluster.names("pods"), pods, "the same pods, under a new deployment");
    assert_eq!(cluster.names("replicasets.apps").len(), 1);
    assert_eq!(cluster.get(&web())["status"]["availableReplicas"], 2);
}
