//! One control node: its objects, a client's day, a restart.

use std::{fs::Permissions, os::unix::fs::PermissionsExt, time::Duration};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::join::Role;
use coracle_server::{Mode, ServerError, holds_member};
use futures::{StreamExt, TryStreamExt};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use tokio::io::AsyncReadExt;

use crate::bench::{
    admin, ask, config_map, config_maps, connect, init, send, settled, start, stranger, until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_creates_lists_and_watches_and_a_restart_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    assert!(holds_member(&dir.path().join("a")));
    settled(&control).await;
    let api = config_maps(&control).await;
    let first = api.create(&PostParams::default(), &config_map("one", "1")).await.unwrap();
    let version = first.metadata.resource_version.clone().unwrap();
    let mut watch = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    api.create(&PostParams::default(), &config_map("two", "2")).await.unwrap();
    let event = watch.try_next().await.unwrap().unwrap();
    assert!(
        matches!(&event, WatchEvent::Added(object) if object.metadata.name.as_deref() == Some("two")),
        "{event:?}"
    );
    drop(watch);
    let (address, cluster) = (control.address(), control.cluster_id().to_owned());
    control.shutdown().await;

    let control = start(dir.path(), "a", Mode::Resume).await.unwrap();
    assert_eq!(
        (control.address(), control.cluster_id()),
        (address, cluster.as_str()),
        "the same port and cluster"
    );
    let api = config_maps(&control).await;
    let names = async || -> Vec<String> {
        let list = api.list(&ListParams::default()).await.unwrap();
        list.items
            .into_iter()
            .filter_map(|object| object.metadata.name)
            .filter(|name| name != "kube-root-ca.crt")
            .collect()
    };
    assert_eq!(names().await, ["one", "two"]);
    let again = api.get("one").await.unwrap();
    assert_eq!(again.metadata.resource_version, Some(version));
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_born_with_its_system_objects() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let wanted = [
        ("services", "default", "kubernetes"),
        ("endpointslices.discovery.k8s.io", "default", "kubernetes"),
        ("ingressclasses.networking.k8s.io", "", "coracle"),
        ("members.coracle.dev", "", "1"),
        ("serviceaccounts", "default", "default"),
        ("configmaps", "kube-system", "kube-root-ca.crt"),
    ];
    for (resource, namespace, name) in wanted {
        let key = ObjectKey::new(resource, namespace, name);
        until(&format!("{key}"), || async { control.storage().view().get(&key).is_some() }).await;
    }
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_has_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let storage = control.storage();
    let address = |name: &str| ObjectKey::new("ipaddresses.networking.k8s.io", "", name);
    let kubernetes = ObjectKey::new("services", "default", "kubernetes");
    let endpoints = ObjectKey::new("endpoints", "default", "kubernetes");
    for key in [&kubernetes, &endpoints] {
        until("born", || async { storage.view().get(key).is_some() }).await;
    }
    // Of a service that has lost its claims, and of the one that everybody needs.
    let spec = r#"{"type":"NodePort","clusterIP":"10.96.3.3","ports":[{"port":80,"nodePort":30999}]}"#;
    let draft = format!(
        r#"{{"metadata":{{"name":"s1","namespace":"default","uid":"s1"}},"spec":{spec},"status":{{}}}}"#
    );
    let service = ObjectKey::new("services", "default", "s1");
    let mut born = Transaction::create(service, draft.clone().into());
    let parent = r#"{"parentRef":{"resource":"services","namespace":"default","name":"s1"}}"#;
    let claim = format!(r#"{{"metadata":{{"name":"10.96.3.3","uid":"c"}},"spec":{parent}}}"#);
    // Together with its service: the leader would claim it for one that has none.
    born.writes.push(Write::Put { key: address("10.96.3.3"), draft: claim.into() });
    storage.propose(born).await.unwrap().unwrap();
    for key in [address("10.96.3.3"), address("10.96.0.1"), kubernetes.clone(), endpoints] {
        let known = storage.view().get(&key).cloned().unwrap();
        storage.propose(Transaction::delete(key.clone(), known.revision)).await.unwrap().unwrap();
        let again = || async { storage.view().get(&key).is_some_and(|now| now.meta.uid != known.meta.uid) };
        until(&format!("{key}"), again).await;
    }
    let port = ObjectKey::new("portallocations.coracle.dev", "", "30999");
    assert!(storage.view().get(&port).is_some());
    // One that never had its claims, of which no event tells: who begins to lead looks at all services.
    let service = ObjectKey::new("services", "default", "s2");
    let draft = draft.replace("s1", "s2").replace("10.96.3.3", "10.96.3.4").replace("30999", "30998");
    storage.propose(Transaction::create(service, draft.into())).await.unwrap().unwrap();
    control.shutdown().await;
    let control = start(dir.path(), "a", Mode::Resume).await.unwrap();
    let storage = control.storage();
    until("claims of s2", || async { storage.view().get(&address("10.96.3.4")).is_some() }).await;
    control.shutdown().await;
}

/// The names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| name(task.ok()?)).map(|name| name.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaders_planners_have_threads_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    for planner in ["controllers", "scheduler"] {
        until(planner, || async { threads().iter().any(|name| name == planner) }).await;
    }
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_the_scheduler_cannot_write_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let storage = control.storage();
    // Too deep to be parsed whole, in a field that nobody reads: no user gets it past the API.
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let key = |name: &str| ObjectKey::new("pods", "default", name);
    for (name, x) in [("bad", deep.as_str()), ("good", "1")] {
        let meta = format!(r#"{{"name":"{name}","namespace":"default","uid":"uid-{name}"}}"#);
        let draft = format!(r#"{{"metadata":{meta},"spec":{{"containers":[],"x":{x}}},"status":{{}}}}"#);
        storage.propose(Transaction::create(key(name), draft.into())).await.unwrap().unwrap();
    }
    let told = |name: &'static str| {
        let view = storage.view();
        let about = |event: &serde_json::Value| {
            event["involvedObject"]["name"] == name && event["reason"] == "FailedScheduling"
        };
        let mut events = view.list("events", Some("default"));
        events.any(|event| event.parse().is_ok_and(|event: serde_json::Value| about(&event)))
    };
    for name in ["bad", "good"] {
        until(name, || async { told(name) }).await;
    }
    let good: serde_json::Value = storage.view().get(&key("good")).unwrap().parse().unwrap();
    assert_eq!(good["status"]["conditions"][0]["type"], "PodScheduled");
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_refused_where_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let locked = start(dir.path(), "a", Mode::Resume).await.err().unwrap();
    assert!(matches!(locked, ServerError::Locked(_)), "{locked}");
    control.shutdown().await;
    let empty = start(dir.path(), "empty", Mode::Resume).await.err().unwrap();
    assert!(matches!(empty, ServerError::NothingToResume(_)), "{empty}");
    let strange = dir.path().join("strange");
    std::fs::create_dir(&strange).unwrap();
    std::fs::write(strange.join("photo.jpg"), "").unwrap();
    let strange = start(dir.path(), "strange", Mode::Init).await.err().unwrap();
    assert!(matches!(strange, ServerError::NotEmpty { .. }), "{strange}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_keeps_no_client_out() {
    // Both ends of each connection are files of this process.
    if rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.is_some_and(|most| most < 4096) {
        eprintln!("skipped: this process may not open 4096 files");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let (address, stranger) = (control.address(), stranger(&control));
    let token = format!("Bearer {}", control.create_token(Role::Pusher, 60).await.unwrap().proof());
    let token = [("authorization", token.as_str())];
    let mut pushes = connect(&address, &stranger).await;
    let answer = ask(&mut pushes, &address, http::Method::GET, "/v2/", &token, b"").await;
    assert_eq!(answer.status(), 200);
    let mut idle = vec![];
    for _ in 0..1100 {
        idle.push(tokio::net::TcpStream::connect(control.listen_address()).await.unwrap());
    }
    let maps = config_maps(&control).await;
    maps.create(&PostParams::default(), &config_map("amid", "1")).await.expect("a client gets in");
    let mut byte = [0; 1];
    let closed = tokio::time::timeout(Duration::from_secs(5), idle[0].read(&mut byte)).await;
    assert_ne!(
        closed.expect("the oldest made room, long before its handshake is over its time").ok(),
        Some(1)
    );
    let answer = ask(&mut pushes, &address, http::Method::GET, "/v2/", &token, b"").await;
    assert_eq!(answer.status(), 200, "who has shown a good token stays");
    drop(idle);
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_directory_is_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let control = crate::bench::init(dir.path()).await;
    let admin = admin(&control);
    let answer = send(&control.address(), &admin, http::Method::GET, "/readyz", b"").await;
    assert_eq!(answer.status(), 200);
    control.shutdown().await;
    let data = dir.path().join("a");
    let mut open = Vec::new();
    let mut left = vec![data.clone()];
    while let Some(path) = left.pop() {
        let found = std::fs::symlink_metadata(&path).unwrap();
        if found.permissions().mode() & 0o077 != 0 {
            open.push(path.clone());
        }
        if found.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(open.is_empty(), "{open:?}");
    // One of an earlier build is closed.
    std::fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
    start(dir.path(), "a", Mode::Resume).await.unwrap().shutdown().await;
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o7777, 0o700);
    // Somebody else's is refused as it is.
    let strange = dir.path().join("strange");
    std::fs::create_dir(&strange).unwrap();
    std::fs::write(strange.join("file"), "").unwrap();
    std::fs::set_permissions(&strange, Permissions::from_mode(0o755)).unwrap();
    assert!(start(dir.path(), "strange", Mode::Init).await.is_err());
    assert_eq!(std::fs::metadata(&strange).unwrap().permissions().mode() & 0o7777, 0o755);
}
