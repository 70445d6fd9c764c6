//! Pods that the sandbox has no seat for.

use super::*;

const INSTANCES: u32 = 16;
/// Pods that a node of so many instances offers to hold; one namespace may have them all.
const OF_A_NAMESPACE: usize = 10;

fn echo(name: &str) -> Value {
    let spec =
        json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": image("tcp-echo") }] });
    pod(name, spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_seat_waits_with_the_reason_and_runs_when_one_gets_free() {
    let dir = tempfile::tempdir().unwrap();
    let parts = Parts { max_instances: INSTANCES, ..Parts::default() };
    let mut rig = Rig::with(dir.path(), Vec::new(), parts);
    rig.tell(Down::Synced(Synced { revision: 1 })).await;
    for number in 0..OF_A_NAMESPACE {
        let name = format!("echo-{number}");
        rig.put("pods", echo(&name)).await;
        if number == 0 {
            rig.give_block("10.128.7.0/24").await;
        }
        rig.status(&name, |status| (first(status)["ready"] == true).then_some(())).await;
    }
    rig.put("pods", echo("waits")).await;
    let waiting = rig
        .status("waits", |status| {
            let is_told = first(status)["state"]["waiting"]["reason"] == "InstancesExhausted";
            is_told.then(|| status.clone())
        })
        .await;
    assert_eq!((&waiting["phase"], &first(&waiting)["restartCount"]), (&json!("Pending"), &json!(0)));
    let message = first(&waiting)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("the namespace holds ") && message.contains("add a node"), "{message}");

    // Another namespace is not concerned.
    let mut other = echo("other");
    other["metadata"]["namespace"] = "o".into();
    rig.put("pods", other).await;
    rig.status("other", |status| (first(status)["ready"] == true).then_some(())).await;

    // Eleven are more than it offers to hold: one of each has to go.
    for (name, namespace) in [("other", "o"), ("echo-0", "d")] {
        let mut deleted = echo(name);
        deleted["metadata"]["namespace"] = namespace.into();
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        deleted["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        rig.put("pods", deleted).await;
    }
    let runs = rig.status("waits", |status| (first(status)["ready"] == true).then(|| status.clone())).await;
    assert_eq!((&runs["phase"], &first(&runs)["restartCount"]), (&json!("Running"), &json!(0)));
    let told = |body: &Up| event_reason(body).filter(|reason| reason == "InstancesExhausted");
    if !rig.seen.iter().any(|body| told(body).is_some()) {
        rig.until(told).await;
    }
    assert_eq!(
        rig.seen.iter().filter(|body| told(body).is_some()).count(),
        1,
        "once, however often it was tried"
    );
    rig.stop().await;
}
