//! What a node holds goes with the pods that it held it for.

use std::collections::BTreeSet;

use coracle_proto::node::{PodStatus, node_down::Body as Down, node_up::Body as Up, object_event};
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

use super::{PATIENCE, Rig, first, image, object_event as put, pod};
use crate::{app::Event, held::Held};

/// Until it is looked again.
const LOOK: Duration = Duration::from_millis(20);

impl Rig {
    pub(super) async fn held(&self) -> Held {
        let (counted, answer) = oneshot::channel();
        self.events.send(Event::Count(counted)).await.unwrap();
        answer.await.unwrap()
    }

    pub(super) async fn delete(&mut self, resource: &str, object: &Value) {
        let deleted = object_event::Type::Delete.into();
        self.tell(Down::Object(coracle_proto::node::ObjectEvent {
            r#type: deleted,
            ..put(resource, object)
        }))
        .await;
    }

    /// Waits until the node holds no more than this.
    pub(super) async fn until_held(&mut self, wanted: &Held) {
        let begun = Instant::now();
        loop {
            // What waits to be sent counts as well.
            let _ = tokio::time::timeout(LOOK, self.outgoing.next()).await;
            let held = self.held().await;
            let more: Held = held
                .into_iter()
                .filter(|(what, count)| wanted.iter().any(|(of, before)| of == what && count > before))
                .collect();
            if more.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{more:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_held_of_pods_that_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    let before = rig.held().await;
    let one = |name: &str, policy: &str| {
        json!({ "restartPolicy": policy, "containers": [{ "name": "c", "image": image(name),
            "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }],
            "volumes": [{ "name": "v", "configMap": { "name": "cfg" } }] })
    };
    let cfg = json!({ "metadata": { "name": "cfg", "namespace": "d" }, "data": { "a": "1" } });
    rig.put("configmaps", cfg.clone()).await;
    let mut pods: Vec<Value> = (0..3)
        .map(|number| pod(&format!("web-{number}"), one("hello-http", "Always")))
        .chain([pod("crash", one("crash", "Always")), pod("job", one("pi-job", "Never"))])
        .collect();
    for pod in &pods {
        rig.put("pods", pod.clone()).await;
    }
    rig.give_block("10.128.7.0/24").await;
    // In whatever order they come about.
    let mut waited = BTreeSet::from(["web-0", "crash", "job"]);
    rig.until(|body| {
        let Up::PodStatus(PodStatus { uid, status_json, .. }) = body else { return None };
        let status: Value = serde_json::from_slice(status_json).unwrap();
        let restarted = first(&status)["restartCount"] == 1;
        if first(&status)["ready"] == true || restarted || status["phase"] == "Succeeded" {
            waited.remove(uid.as_str());
        }
        waited.is_empty().then_some(())
    })
    .await;
    // What runs keeps its image on the node, and what has ended does not.
    let keep = |held: Held| held.into_iter().find(|(what, _)| *what == "pods with images").unwrap().1;
    assert!(keep(rig.held().await) >= 1);
    rig.until_held(&vec![("pods with images", 4)]).await;
    // The others are deleted wherever they stand.
    for pod in &mut pods {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        rig.put("pods", pod.clone()).await;
        rig.delete("pods", pod).await;
    }
    rig.delete("configmaps", &cfg).await;
    rig.until_held(&before).await;
    let left = |folder: &str| std::fs::read_dir(dir.path().join(folder)).map_or(0, Iterator::count);
    assert_eq!((left("pods"), left("logs")), (0, 0));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_read_to_its_end_has_no_reader_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    let spec = json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": image("pi-job") }] });
    rig.put("pods", pod("job", spec)).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("job", |status| (status["phase"] == "Succeeded").then_some(())).await;
    rig.until_held(&vec![("pods with images", 0)]).await;
    let before = rig.held().await;
    for request in 0..10 {
        assert!(!rig.log(request, "job").await.is_empty());
    }
    rig.until_held(&before).await;
    rig.stop().await;
}
