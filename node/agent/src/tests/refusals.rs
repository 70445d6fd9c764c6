//! What a pod was refused is an event of it.

use coracle_wasi_host::{
    refusals::{Bound, Refusals, Refused, What},
    shares::Holder,
};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_was_refused_is_an_event_of_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    let spec =
        json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": image("tcp-echo") }] });
    rig.put("pods", pod("web", spec)).await;
    rig.give_block("10.128.7.0/24").await;
    let address = rig
        .status("web", |status| {
            (first(status)["ready"] == true).then(|| status["podIP"].as_str().unwrap().to_owned())
        })
        .await;
    let refusals = Refusals::default();
    tokio::spawn(crate::app::tell(refusals.clone(), rig.events.clone()));
    let outside = Refused::of_share(What::Outside, Bound::Namespace, 4096, 4096, 8192);
    let note = |namespace: &str, pod: &str| {
        let holder = Holder { namespace: namespace.into(), pod: Some(pod.parse().unwrap()) };
        refusals.note(&holder, outside);
    };
    // A pod that was there before has had the address, and one of which nothing is known.
    note("other", &address);
    note("d", "10.128.9.9");
    for _ in 0..100 {
        note("d", &address);
    }
    let told = |body: &Up| {
        let Up::Event(event) = body else { return None };
        let event: Value = serde_json::from_slice(&event.event_json).unwrap();
        (event["reason"] == "LimitReached").then_some(event)
    };
    let event = rig.until(told).await;
    assert_eq!((&event["involvedObject"]["name"], &event["type"]), (&json!("web"), &json!("Warning")));
    assert_eq!(
        event["message"],
        "open connections to beyond the cluster: the namespace holds as many of this node's 8192 as it may while others \
         hold theirs; have the namespace's other pods hold less, or add a node"
    );
    let another = Refused::full(What::Sockets, Bound::Pod, 4096);
    refusals.note(&Holder { namespace: "d".into(), pod: Some(address.parse().unwrap()) }, another);
    let event = rig.until(told).await;
    assert!(
        event["message"].as_str().unwrap().starts_with("sockets: the pod holds the 4096 that it may"),
        "{event}"
    );
    assert_eq!(rig.seen.iter().filter_map(told).count(), 2, "the same is told once");
    rig.stop().await;
}
