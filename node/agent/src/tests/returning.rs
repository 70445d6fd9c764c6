//! A node that comes back: what it finds on its disk, what the cluster has done meanwhile, and whether there is one.

use std::collections::BTreeSet;

use coracle_proto::node::Welcome;

use super::*;

fn web(uid: &str) -> Value {
    pod(
        uid,
        json!({ "containers": [{ "name": "web", "image": image("hello-http"), "imagePullPolicy": "IfNotPresent",
            "ports": [{ "containerPort": 8080 }] }] }),
    )
}

/// Waits until a directory is removed.
async fn gone(path: &Path) {
    let gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is removed");
}

fn running_at(status: &Value) -> Option<String> {
    let running = first(status)["state"].get("running").is_some();
    status["podIP"].as_str().filter(|_| running).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_former_pods_left_goes_at_the_start_however_deep_it_is() {
    let dir = crate::removal::quick_dir();
    let old = dir.path().join("pods/old");
    std::fs::create_dir_all(&old).unwrap();
    let flags = rustix::fs::OFlags::DIRECTORY;
    let mut folder = rustix::fs::open(&old, flags, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..30_000 {
        rustix::fs::mkdirat(&folder, "d", rustix::fs::Mode::RWXU).unwrap();
        folder = rustix::fs::openat(&folder, "d", flags, rustix::fs::Mode::empty()).unwrap();
    }
    let rig = Rig::new(dir.path()).await;
    gone(&old).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_taken_back_is_no_longer_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    rig.put("pods", web("before")).await;
    rig.give_block("10.128.7.0/24").await;
    let address = rig.status("before", running_at).await;
    assert_eq!(address, "10.128.7.2");

    // The link was away for long: the block is another node's now.
    rig.events.send(Event::Link(FromLink::Down)).await.unwrap();
    let up = FromLink::Up { number: 2, welcome: Welcome::default() };
    rig.events.send(Event::Link(up)).await.unwrap();
    let block = json!({ "metadata": { "name": "10.128.7.0-24" },
        "spec": { "cidr": "10.128.7.0/24", "nodeName": "n2" } });
    rig.put("podblocks.coracle.dev", block).await;
    rig.put("pods", web("before")).await;
    rig.put("pods", web("after")).await;
    rig.tell(Down::Synced(Synced { revision: 9 })).await;
    rig.give_block("10.128.8.0/24").await;
    // In whichever order they come up.
    let mut awaited = BTreeSet::from(["after", "before"]);
    rig.until(|body| {
        if let Up::PodStatus(PodStatus { uid, status_json, .. }) = body {
            let at = running_at(&serde_json::from_slice(status_json).unwrap());
            awaited.retain(|one| *one != uid || !at.as_ref().is_some_and(|at| at.starts_with("10.128.8.")));
        }
        awaited.is_empty().then_some(())
    })
    .await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_new_with_the_link_gets_no_doubtful_address() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    rig.put("pods", web("before")).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("before", running_at).await;
    let up = FromLink::Up { number: 2, welcome: Welcome::default() };
    rig.events.send(Event::Link(up)).await.unwrap();
    // The block is nobody's: only that it is not named says so, at the end.
    rig.put("pods", web("after")).await;
    rig.tell(Down::Synced(Synced { revision: 9 })).await;
    rig.give_block("10.128.9.0/24").await;
    let address = rig.status("after", running_at).await;
    assert!(address.starts_with("10.128.9."), "{address}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_a_node_runs_what_it_ran_last() {
    let dir = tempfile::tempdir().unwrap();
    let block = json!({ "metadata": { "name": "10.128.7.0-24" },
        "spec": { "cidr": "10.128.7.0/24", "nodeName": "n1" } });
    let last = vec![object_event("podblocks.coracle.dev", &block), object_event("pods", &web("web"))];
    let mut rig = Rig::start(dir.path(), last);
    let address = rig.status("web", running_at).await;
    assert_eq!(address, "10.128.7.2");
    // The cluster is there again, and wants it no longer.
    let up = FromLink::Up { number: 1, welcome: Welcome::default() };
    rig.events.send(Event::Link(up)).await.unwrap();
    rig.tell(Down::Synced(Synced { revision: 9 })).await;
    gone(&dir.path().join("logs/web")).await;
    rig.stop().await;
}
