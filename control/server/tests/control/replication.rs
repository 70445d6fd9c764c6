//! Three control nodes.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use coracle_api::Storage;
use coracle_server::{Control, Mode};
use futures::{StreamExt, TryStreamExt};
use http::Method;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};

use crate::bench::{admin, config_map, config_maps, leading, send, start, three, until, up_to_date};

/// Takes the leader out.
async fn take_leader(controls: &mut Vec<Control>) -> Control {
    let leader = leading(controls).await;
    controls.remove(leader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_takes_writes_and_they_go_on_without_the_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let leader = take_leader(&mut controls).await;
    let follower = config_maps(&controls[0]).await;
    follower.create(&PostParams::default(), &config_map("before", "1")).await.unwrap();
    follower.get("before").await.expect("a follower reads its own write");
    config_maps(&leader).await.get("before").await.expect("the leader has it too");
    config_maps(&controls[1])
        .await
        .get("before")
        .await
        .expect("a read at the other follower is linearizable");

    let name = ["a", "b", "c"][leader.member_id() as usize - 1];
    leader.abort().await;
    follower.create(&PostParams::default(), &config_map("after", "2")).await.expect("a new leader takes it");
    let names = async |control: &Control| {
        let list = config_maps(control).await.list(&ListParams::default()).await.unwrap();
        let names = list.items.into_iter().filter_map(|object| object.metadata.name);
        names.filter(|name| name != "kube-root-ca.crt").collect::<Vec<_>>()
    };
    assert_eq!(names(&controls[1]).await, ["after", "before"]);

    let back = start(dir.path(), name, Mode::Resume).await.unwrap();
    up_to_date(&back).await;
    assert_eq!(names(&back).await, ["after", "before"], "the old leader catches up");
    follower.delete("before", &DeleteParams::default()).await.unwrap();
    assert_eq!(names(&back).await, ["after"]);
    let hash = |control: &Control| (control.storage().view().revision, control.storage().state_hash());
    until("equal state hashes", || async {
        hash(&back) == hash(&controls[0]) && hash(&back) == hash(&controls[1])
    })
    .await;
    for control in controls.into_iter().chain([back]) {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_takes_a_snapshot_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let away = controls.pop().unwrap();
    away.abort().await;
    let leader = config_maps(&controls[0]).await;
    let big = "x".repeat(200_000);
    for n in 0..120 {
        leader.create(&PostParams::default(), &config_map(&format!("n{n}"), &big)).await.unwrap();
    }
    let late = |control: &Control| control.storage().status().snapshot > 40;
    until("the others' snapshots", || async { controls.iter().all(late) }).await;

    let back = start(dir.path(), "c", Mode::Resume).await.unwrap();
    up_to_date(&back).await;
    let list = config_maps(&back).await.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 121, "with the one that each namespace has");
    until("its snapshot", || async { late(&back) }).await;
    let hash = |control: &Control| (control.storage().view().revision, control.storage().state_hash());
    until("equal state hashes", || async { hash(&back) == hash(&controls[0]) }).await;
    for control in controls.into_iter().chain([back]) {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_under_another_address_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let moving = controls.pop().unwrap();
    let (address, listen) = (moving.address(), moving.listen_address());
    moving.abort().await;
    // Where another program has the port by now it is taken as well.
    let squatter = std::net::TcpListener::bind(listen);
    assert!(squatter.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::AddrInUse), "{squatter:?}");
    config_maps(&controls[0])
        .await
        .create(&PostParams::default(), &config_map("meanwhile", "1"))
        .await
        .unwrap();

    let moved = start(dir.path(), "c", Mode::Resume).await.unwrap();
    assert_ne!(moved.address(), address);
    let maps = config_maps(&moved).await;
    until("it to hear of the leader again", || async { maps.get("meanwhile").await.is_ok() }).await;
    let members = || async {
        let view = controls[0].storage().view();
        view.list("members.coracle.dev", None)
            .any(|member| String::from_utf8_lossy(&member.json).contains(&moved.address()))
    };
    until("the new address among the members", members).await;
    for control in controls.into_iter().chain([moved]) {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_quorum_neither_watches_nor_pretends() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let left = controls.pop().unwrap();
    let maps = config_maps(&left).await;
    let mut watch = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    futures::future::join_all(controls.into_iter().map(Control::abort)).await;
    let begun = Instant::now();
    loop {
        match watch.try_next().await.unwrap() {
            Some(WatchEvent::Added(_) | WatchEvent::Modified(_)) => {}
            Some(other) => panic!("{other:?}"),
            None => break,
        }
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(2), "an election is no reason: {took:?}");
    // A kube client would try again for long.
    let path = "/api/v1/namespaces/default/configmaps";
    let body = serde_json::to_vec(&config_map("never", "1")).unwrap();
    for (method, query, body) in
        [(Method::GET, "watch=true&resourceVersion=1", vec![]), (Method::POST, "dryRun=All", body)]
    {
        let answer = send(&left.address(), &admin(&left), method, &format!("{path}?{query}"), &body).await;
        assert_eq!(answer.status(), 503, "{query}: {answer:?}");
    }
    left.abort().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let leader = take_leader(&mut controls).await;
    let term = leader.storage().status().term;
    leader.shutdown().await;
    let next = leading(&controls).await;
    assert_eq!(controls[next].storage().status().term, term + 1, "without a second election");
    futures::future::join_all(controls.into_iter().map(Control::shutdown)).await;
}
