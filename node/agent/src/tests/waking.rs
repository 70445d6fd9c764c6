//! Instances of functions that the node starts by itself.

use coracle_fabric::Name;
use coracle_objects::kinds::REVISION_LABEL;
use coracle_proto::node::{PodWoken, WakeRefused};

use super::*;

fn revision(name: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": "d", "labels": { REVISION_LABEL: name } },
        "spec": { "image": image("hello-http"), "imagePullPolicy": "IfNotPresent", "port": 80 } })
}

fn instance(uid: &str, of: &str) -> Value {
    let mut pod = pod(uid, json!({ "containers": [{ "name": "function", "image": image("hello-http") }] }));
    pod["metadata"]["labels"] = json!({ REVISION_LABEL: of });
    pod
}

/// A node that is told of a revision, its namespace, and an instance that runs.
async fn rig(dir: &Path) -> Rig {
    let mut rig = Rig::new(dir).await;
    rig.put("namespaces", json!({ "metadata": { "name": "d" } })).await;
    rig.put("functionrevisions.coracle.dev", revision("hello-1")).await;
    rig.put("pods", instance("first", "hello-1")).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("first", ready).await;
    rig
}

fn ready(status: &Value) -> Option<()> {
    (first(status)["ready"] == true).then_some(())
}

impl Rig {
    async fn want(&self, revision: &str) {
        self.events.send(Event::InstancesWanted(vec![Name::new("d", revision)])).await.unwrap();
    }

    async fn woken(&mut self) -> PodWoken {
        self.until(|body| if let Up::PodWoken(woken) = body { Some(woken.clone()) } else { None }).await
    }

    async fn delete_pod(&mut self, uid: &str) {
        let mut event = object_event("pods", &pod(uid, json!({})));
        event.r#type = object_event::Type::Delete.into();
        self.tell(Down::Object(event)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_started_told_of_and_becomes_the_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(dir.path()).await;
    rig.delete_pod("first").await;
    rig.want("hello-1").await;
    let woken = rig.woken().await;
    assert_eq!((woken.namespace.as_str(), woken.revision.as_str()), ("d", "hello-1"));
    assert!(woken.name.starts_with("hello-1-"), "{woken:?}");
    rig.status(&woken.uid, ready).await;
    // While one is on its way there is no other, and it stays though all that the cluster knows is told anew.
    rig.want("hello-1").await;
    rig.tell(Down::Synced(Synced { revision: 2 })).await;
    let mut known = instance(&woken.uid, "hello-1");
    known["metadata"]["name"] = woken.name.clone().into();
    known["status"] = json!({ "phase": "Pending" });
    rig.put("pods", known).await;
    rig.status(&woken.uid, ready).await;
    let told = rig.seen.iter().filter(|body| matches!(body, Up::PodWoken(_))).count();
    assert_eq!(told, 1);
    let held = rig.held().await;
    assert!(held.contains(&("instances that the leader is asked for", 0)), "{held:?}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_leader_refuses_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(dir.path()).await;
    rig.want("hello-1").await;
    let woken = rig.woken().await;
    rig.status(&woken.uid, ready).await;
    rig.tell(Down::WakeRefused(WakeRefused { uid: woken.uid.clone(), reason: "no".to_owned() })).await;
    let ended = async {
        // The first goes on.
        while !rig.held().await.contains(&("pods looked after", 1)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends");
    let held = rig.held().await;
    assert!(held.contains(&("pods wanted", 1)) && held.contains(&("instances of functions", 1)), "{held:?}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_cannot_run_is_left_to_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig(dir.path()).await;
    // One that has not run here, one that is not there, one on a node that takes no pods.
    rig.put("functionrevisions.coracle.dev", revision("hello-2")).await;
    rig.want("hello-2").await;
    rig.want("hello-3").await;
    rig.put("nodes", json!({ "metadata": { "name": "n1" }, "spec": { "unschedulable": true } })).await;
    rig.want("hello-1").await;
    rig.put("nodes", json!({ "metadata": { "name": "n1" }, "spec": {} })).await;
    rig.want("hello-1").await;
    let woken = rig.woken().await;
    assert_eq!(woken.revision, "hello-1");
    rig.status(&woken.uid, ready).await;
    let held = rig.held().await;
    assert!(held.contains(&("pods wanted", 2)), "{held:?}");
    // Where anything of its namespace does not start, what is kept goes, and comes again with the next instance.
    let garbage = dir.path().join("garbage.wasm");
    std::fs::write(&garbage, "this is no WebAssembly").unwrap();
    let container = json!({ "name": "c", "image": format!("file://{}", garbage.display()) });
    rig.put("pods", pod("bad", json!({ "containers": [container] }))).await;
    rig.status("bad", |status| first(status)["state"]["waiting"].get("message").map(drop)).await;
    let held = rig.held().await;
    assert!(held.contains(&("images of functions", 0)), "{held:?}");
    rig.put("pods", instance("again", "hello-1")).await;
    rig.status("again", ready).await;
    let held = rig.held().await;
    assert!(held.contains(&("images of functions", 1)), "{held:?}");
    // With its revision goes what was kept for it.
    let mut event = object_event("functionrevisions.coracle.dev", &revision("hello-1"));
    event.r#type = object_event::Type::Delete.into();
    rig.tell(Down::Object(event)).await;
    let held = rig.held().await;
    assert!(held.contains(&("images of functions", 0)), "{held:?}");
    rig.stop().await;
}
