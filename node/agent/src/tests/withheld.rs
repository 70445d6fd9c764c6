//! ConfigMaps and Secrets that the node is not sent.

use std::collections::BTreeSet;

use coracle_proto::node::{
    ObjectEvent, PodStatus, Synced, node_down::Body as Down, node_up::Body as Up, object_event::Type,
};
use serde_json::{Value, json};

use super::{Rig, first, image, object_event, pod};

const WHY: &str = "they take more than 64 MiB; make them smaller";

fn config_map() -> Value {
    json!({ "metadata": { "name": "cfg", "namespace": "d" }, "data": { "A": "1" } })
}

fn withheld() -> ObjectEvent {
    let (object_json, reason) = (Vec::new().into(), WHY.to_owned());
    ObjectEvent {
        r#type: Type::Withheld.into(),
        object_json,
        reason,
        ..object_event("configmaps", &config_map())
    }
}

/// One that ends by itself, and could do without the config map.
fn reader(uid: &str) -> Value {
    let from = json!([{ "configMapRef": { "name": "cfg", "optional": true } }]);
    let container = json!({ "name": "c", "image": image("pi-job"), "args": ["20"], "envFrom": from });
    pod(uid, json!({ "restartPolicy": "Never", "containers": [container] }))
}

fn mounting(uid: &str) -> Value {
    let container = json!({ "name": "c", "image": image("spin"),
        "volumeMounts": [{ "name": "v", "mountPath": "/etc/cfg" }] });
    let volumes = json!([{ "name": "v", "configMap": { "name": "cfg" } }]);
    pod(uid, json!({ "containers": [container], "volumes": volumes }))
}

fn waits(status: &Value) -> Option<String> {
    let waiting = &first(status)["state"]["waiting"];
    (waiting["reason"] == "CreateContainerConfigError")
        .then(|| waiting["message"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_waits_for_what_is_withheld_and_starts_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    // Before anybody says otherwise the node goes by what it was told last.
    let block = json!({ "metadata": { "name": "10.128.7.0-24" },
        "spec": { "cidr": "10.128.7.0/24", "nodeName": "n1" } });
    let last = vec![
        object_event("podblocks.coracle.dev", &block),
        withheld(),
        object_event("pods", &reader("early")),
    ];
    let mut rig = Rig::start(dir.path(), last);
    let message = rig.status("early", waits).await;
    assert_eq!(message, format!("configmap \"cfg\" is not sent to this node: {WHY}"));
    rig.tell(Down::Object(withheld())).await;
    rig.put("pods", reader("early")).await;
    rig.put("pods", reader("late")).await;
    rig.tell(Down::Synced(Synced { revision: 1 })).await;
    rig.status("late", waits).await;
    rig.put("configmaps", config_map()).await;
    // In whichever order they end.
    let mut awaited = BTreeSet::from(["early", "late"]);
    rig.until(|body| {
        if let Up::PodStatus(PodStatus { uid, status_json, .. }) = body {
            let status: Value = serde_json::from_slice(status_json).unwrap();
            awaited.retain(|one| one != uid || status["phase"] != "Succeeded");
        }
        awaited.is_empty().then_some(())
    })
    .await;
    rig.stop().await;
}

fn withheld_pod(pod: &Value) -> ObjectEvent {
    let outline_json = json!({ "metadata": pod["metadata"] }).to_string().into();
    let (object_json, reason) = (Vec::new().into(), "its spec takes too much; fewer containers".to_owned());
    let r#type = Type::Withheld.into();
    ObjectEvent { r#type, object_json, outline_json, reason, ..object_event("pods", pod) }
}

fn deleting(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    pod["metadata"]["deletionGracePeriodSeconds"] = 1.into();
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_withheld_waits_with_the_reason_and_runs_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    let spins = |uid: &str| pod(uid, json!({ "containers": [{ "name": "c", "image": image("spin") }] }));
    let (late, never) = (spins("late"), spins("never"));
    let is_told = |status: &Value| {
        let why = "its spec takes too much; fewer containers";
        let conditions = status["conditions"].as_array().unwrap();
        let all = conditions.iter().all(|one| one["status"] == "False" && one["message"] == why);
        assert!(status["phase"] != "Running");
        (status["phase"] == "Pending" && status["message"] == why && all).then_some(())
    };
    for pod in [&late, &never] {
        rig.tell(Down::Object(withheld_pod(pod))).await;
    }
    rig.status("late", is_told).await;
    rig.status("never", is_told).await;
    // It changes, as by what was told of it: nothing is told again.
    rig.tell(Down::Object(withheld_pod(&late))).await;
    rig.put("pods", late.clone()).await;
    rig.give_block("10.128.7.0/24").await;
    let runs = |status: &Value| (status["phase"] == "Running").then(|| status.get("reason").is_none());
    assert!(rig.status("late", runs).await);
    // Grown beyond the room it goes on, and its deletion is heard of.
    rig.tell(Down::Object(withheld_pod(&late))).await;
    rig.tell(Down::Object(withheld_pod(&deleting(&never)))).await;
    let gone = |uid: &'static str| {
        move |body: &Up| matches!(body, Up::PodGone(gone) if gone.uid == uid).then_some(())
    };
    rig.until(gone("never")).await;
    rig.tell(Down::Object(withheld_pod(&deleting(&late)))).await;
    rig.until(gone("late")).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_what_is_withheld_stay_as_they_are_and_new_ones_wait() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    rig.put("configmaps", config_map()).await;
    rig.put("pods", mounting("first")).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("first", |status| (status["phase"] == "Running").then_some(())).await;
    rig.tell(Down::Object(withheld())).await;
    rig.put("pods", mounting("second")).await;
    let expected = format!(
        "MountVolume.SetUp failed for volume \"v\" : configmap \"cfg\" is not sent to this node: {WHY}"
    );
    rig.until(|body| {
        let Up::Event(event) = body else { return None };
        let event: Value = serde_json::from_slice(&event.event_json).unwrap();
        (event["reason"] == "FailedMount").then(|| {
            assert_eq!(event["involvedObject"]["uid"], "second");
            assert_eq!(event["message"], expected.as_str());
        })
    })
    .await;
    let file = dir.path().join("pods/first/v/A");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    let mut changed = object_event("configmaps", &config_map());
    changed.revision = 2;
    changed.object_json = config_map().to_string().replace("\"1\"", "\"2\"").into();
    rig.tell(Down::Object(changed)).await;
    rig.status("second", |status| (status["phase"] == "Running").then_some(())).await;
    assert_eq!(std::fs::read_to_string(dir.path().join("pods/second/v/A")).unwrap(), "2");
    rig.stop().await;
}
