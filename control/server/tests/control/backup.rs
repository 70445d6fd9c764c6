//! Backup and restore, and what is left after the loss of a quorum.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use coracle_api::Storage;
use coracle_objects::{Object, ObjectKey};
use coracle_proto::{
    cluster::SaveSnapshotRequest,
    join::Role,
    security::{AuthoritiesRequest, RotateAuthoritiesRequest, security_client::SecurityClient},
    tls,
};
use coracle_server::{Control, Mode, RestoreOptions, ServerError};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{ListParams, PostParams, WatchParams},
};
use serde_json::json;

use crate::bench::{
    admin, administration, client, config, config_map, config_maps, files, init, start, three, until,
    write_on, written,
};

/// Takes a backup through one control node.
async fn save(control: &Control, file: &Path) -> coracle_server::Inspection {
    let mut chunks =
        administration(control).save_snapshot(SaveSnapshotRequest {}).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    let first = chunks.message().await.unwrap().unwrap();
    assert!(first.data.is_empty(), "an answer comes before the snapshot is written");
    while let Some(chunk) = chunks.message().await.unwrap() {
        bytes.extend_from_slice(&chunk.data);
    }
    fs::write(coracle_server::partial(file), bytes).unwrap();
    coracle_server::keep(file).unwrap()
}

/// Everything that must survive: all objects of users, as they were written.
fn objects(control: &Control, resource: &str) -> BTreeMap<ObjectKey, Vec<u8>> {
    let view = control.storage().view();
    let ours = |object: &&std::sync::Arc<Object>| {
        object.name() != "kube-root-ca.crt" && object.name() != "coracle-cluster"
    };
    view.list(resource, None)
        .filter(ours)
        .map(|object| (object.key.clone(), object.draft().to_vec()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_becomes_a_new_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let controls = three(dir.path()).await;
    let follower = &controls[1];
    config_maps(follower).await.create(&PostParams::default(), &config_map("kept", "1")).await.unwrap();
    let writer = write_on(&controls[2], "load");
    until("some load", || async { written(follower, "load") > 50 }).await;
    let acknowledged = written(follower, "load");
    let saved = save(follower, &file).await;
    let count = writer.stop().await;
    assert_eq!(saved.cluster_id, follower.cluster_id());
    let config_maps_saved = saved.kinds.iter().find(|kind| kind.resource == "configmaps").unwrap().objects;
    assert!(config_maps_saved as usize > acknowledged, "everything acknowledged before is in it");
    assert!(count >= acknowledged);
    assert_eq!(coracle_server::inspect(&file).unwrap(), saved);
    let before = objects(follower, "configmaps");
    let (old_cluster, revision) = (follower.cluster_id().to_owned(), saved.revision);
    futures::future::join_all(controls.into_iter().map(Control::abort)).await;

    let sealed =
        coracle_server::restore(&file, &dir.path().join("new"), &RestoreOptions::default()).unwrap_err();
    assert!(sealed.to_string().contains("--key-ring"), "{sealed}");
    let missing =
        RestoreOptions { key_ring: Some(dir.path().join("missing.ring")), ..RestoreOptions::default() };
    let missing = coracle_server::restore(&file, &dir.path().join("new"), &missing).unwrap_err();
    assert!(missing.to_string().contains("missing.ring"), "{missing}");
    let options = RestoreOptions {
        name: "new".into(),
        key_ring: Some(dir.path().join("b/keys/secrets.ring")),
        drop_secrets: false,
        ..RestoreOptions::default()
    };
    let restored = coracle_server::restore(&file, &dir.path().join("new"), &options).unwrap();
    assert_eq!(restored.member_id, 4, "no id is used again");
    assert!(restored.revision > revision + 999_999_999);
    let control = start(dir.path(), "new", Mode::Resume).await.unwrap();
    until("it to lead", || async { control.storage().linearizable().await.is_ok() }).await;
    assert_ne!(control.cluster_id(), old_cluster);
    assert_eq!(control.cluster_id(), restored.cluster_id);
    let after = objects(&control, "configmaps");
    assert_eq!(after.len() as u64, config_maps_saved - system(&control), "nothing more, nothing less");
    assert!(after.iter().all(|(key, draft)| before.get(key) == Some(draft)), "each as it was");

    // An informer of the old cluster has to read everything again, and then goes on.
    let api = config_maps(&control).await;
    let watched =
        api.watch(&WatchParams::default(), &revision.to_string()).await.err().expect("it is too old");
    assert!(matches!(&watched, kube::Error::Api(status) if status.code == 410), "{watched:?}");
    assert!(
        api.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .iter()
            .any(|map| map.metadata.name.as_deref() == Some("kept"))
    );
    api.create(&PostParams::default(), &config_map("written-after", "1")).await.unwrap();

    // Others join it.
    let token = control.create_token(Role::Control, 60).await.unwrap().to_string();
    let mode = Mode::Join { addresses: vec![control.address()], token };
    let joined = start(dir.path(), "joined", mode).await.unwrap();
    assert_eq!(joined.member_id(), 5);
    until("the joined to have it all", || async { objects(&joined, "configmaps").len() == after.len() + 1 })
        .await;
    for control in [joined, control] {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_has_authorities_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let peer = RotateAuthoritiesRequest { peer: true, ..RotateAuthoritiesRequest::default() };
    security(&control).rotate_authorities(peer).await.unwrap();
    let state = async |control: &Control| {
        security(control).authorities(AuthoritiesRequest {}).await.unwrap().into_inner()
    };
    let done = async || {
        let state = state(&control).await;
        state.generation == 3 && state.changing.is_empty()
    };
    until("the change of an authority", done).await;
    let annotations = json!({ "coracle.dev/trust-generation": "3" });
    let node = json!({ "metadata": { "name": "n1", "annotations": annotations } });
    let nodes: Api<Node> = Api::all(client(&control).await);
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let file = dir.path().join("backup");
    save(&control, &file).await;
    let (old_address, old_administrator) = (control.address(), admin(&control));
    control.shutdown().await;

    let key_ring = Some(dir.path().join("a/keys/secrets.ring"));
    for (name, options) in [
        ("with-secrets", RestoreOptions { key_ring, ..RestoreOptions::default() }),
        ("without", RestoreOptions { drop_secrets: true, ..RestoreOptions::default() }),
    ] {
        coracle_server::restore(&file, &dir.path().join(name), &options).unwrap();
        let mut config = config(dir.path(), name, Mode::Resume);
        config.listen = old_address.parse().unwrap();
        let control = coracle_server::start(config).await.unwrap();
        until("it to lead", || async { control.storage().linearizable().await.is_ok() }).await;
        tls::connect(&old_address, old_administrator.clone().into())
            .await
            .expect_err("it is another cluster");
        let new = state(&control).await;
        assert_eq!((new.generation, new.changing.len()), (0, 0), "{name}");
        // What the node had confirmed was of the old cluster: a change here waits for it.
        let client = RotateAuthoritiesRequest { client: true, ..RotateAuthoritiesRequest::default() };
        until("a key to seal with", || async { security(&control).rotate_authorities(client).await.is_ok() })
            .await;
        let waits = async || state(&control).await.waiting_members.is_empty();
        until("the member to go by it", waits).await;
        assert_eq!(state(&control).await.waiting_nodes, ["n1"], "{name}");
        control.shutdown().await;
    }
}

/// The cluster's keys and certificates at one control node, as its administrator.
fn security(control: &Control) -> SecurityClient<tonic::transport::Channel> {
    SecurityClient::new(tls::channel(&control.address(), admin(control)))
}

/// How many of the ConfigMaps are the system's own.
fn system(control: &Control) -> u64 {
    let view = control.storage().view();
    let system = |name: &str| name == "kube-root-ca.crt" || name == "coracle-cluster";
    view.list("configmaps", None).filter(|object| system(object.name())).count() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_whole_backup_or_no_empty_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let control = init(dir.path()).await;
    control.create_token(Role::Node, 60).await.unwrap();
    save(&control, &file).await;
    control.shutdown().await;
    let options = RestoreOptions { name: "x".into(), drop_secrets: true, ..RestoreOptions::default() };
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut newer = good.clone();
    newer[7] = b'9';
    let cases: [(&str, &[u8]); 5] = [
        ("cut", &good[..good.len() - 1]),
        ("half", &good[..good.len() / 2]),
        ("flipped", &flipped),
        ("newer", &newer),
        ("foreign", b"thesis, chapter 1"),
    ];
    for (name, bytes) in cases {
        let bad = dir.path().join(name);
        fs::write(&bad, bytes).unwrap();
        let target = dir.path().join(format!("{name}-dir"));
        let error = coracle_server::restore(&bad, &target, &options).unwrap_err();
        assert!(matches!(error, ServerError::Backup { .. }), "{name}: {error}");
        assert!(!target.exists(), "{name}: nothing is made");
        assert!(coracle_server::inspect(&bad).is_err(), "{name}");
        fs::write(coracle_server::partial(&file), bytes).unwrap();
        coracle_server::keep(&file).unwrap_err();
        assert!(fs::read(&file).unwrap() == good && !coracle_server::partial(&file).exists(), "{name}");
    }
    let before = files(&dir.path().join("a"));
    for taken in [dir.path().join("a"), dir.path().to_owned()] {
        let error = coracle_server::restore(&file, &taken, &options).unwrap_err();
        assert!(matches!(error, ServerError::NotVacant { .. }), "{error}");
    }
    assert!(files(&dir.path().join("a")) == before);
    let empty: PathBuf = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    coracle_server::restore(&file, &empty, &options).unwrap();
    // Without the keys the rest is restored, and the cluster makes a key of its own.
    let control = start(dir.path(), "empty", Mode::Resume).await.unwrap();
    until("it to lead", || async { control.storage().linearizable().await.is_ok() }).await;
    let secrets = control.storage().view().count("secrets");
    assert_eq!(secrets, 0, "what nobody can open is left out");
    until("a token to be made", || async { control.create_token(Role::Node, 60).await.is_ok() }).await;
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_with_the_one_member_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let writer = write_on(&controls[0], "before");
    until("some writes", || async { written(&controls[2], "before") > 100 }).await;
    let count = writer.stop().await;
    until("the last member to have all", || async { written(&controls[2], "before") == count }).await;
    let node_token = controls[0].create_token(Role::Node, 600).await.unwrap();
    let old_cluster = controls[2].cluster_id().to_owned();
    let revision = controls[0].storage().view().revision;
    until("the last member to have it", || async { controls[2].storage().view().revision >= revision }).await;
    let last = controls.pop().unwrap();
    let locked = coracle_server::force_new_cluster(&dir.path().join("c")).unwrap_err();
    assert!(matches!(locked, ServerError::Locked(_)), "{locked}");
    last.abort().await;
    // Member b survives as well, but stays behind: it must not wander back.
    let survivor = controls.pop().unwrap();
    controls.pop().unwrap().abort().await;

    let done = coracle_server::force_new_cluster(&dir.path().join("c")).unwrap();
    assert_eq!(
        (done.old_cluster_id.as_str(), done.old_member_id, done.member_id),
        (old_cluster.as_str(), 3, 4)
    );
    assert!(done.kept.join("member").exists(), "the old log is kept");
    let recovered = start(dir.path(), "c", Mode::Resume).await.unwrap();
    until("it to lead", || async { recovered.storage().linearizable().await.is_ok() }).await;
    assert_eq!(recovered.cluster_id(), done.cluster_id);
    assert_eq!(written(&recovered, "before"), count, "nothing is lost");
    config_maps(&recovered).await.create(&PostParams::default(), &config_map("after", "1")).await.unwrap();
    let status = recovered.storage().status();
    assert_eq!((status.voters, status.learners), (vec![4], vec![]));
    assert_eq!(recovered.storage().view().count("members.coracle.dev"), 1);
    assert_eq!(survivor.storage().status().voters, [1, 2, 3], "it heard of nothing");
    survivor.abort().await;

    // The CAs are the old ones: tokens and certificates of nodes go on, and control nodes join as before.
    coracle_proto::join::join(&[recovered.address()], &node_token, "n1", "127.0.0.1:1").await.unwrap();
    let token = recovered.create_token(Role::Control, 60).await.unwrap().to_string();
    let mode = Mode::Join { addresses: vec![recovered.address()], token };
    let joined = start(dir.path(), "d", mode).await.unwrap();
    assert_eq!(joined.member_id(), 5);
    until("the joined to have all", || async { written(&joined, "before") == count }).await;
    // The old member's directory is of the old cluster for ever.
    let back = start(dir.path(), "a", Mode::Resume).await.unwrap();
    assert_eq!(back.cluster_id(), old_cluster);
    for control in [back, joined, recovered] {
        control.abort().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_was_cut_short_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let missing = coracle_server::force_new_cluster(&dir.path().join("none")).unwrap_err();
    assert!(matches!(missing, ServerError::NothingToRecover(_)), "{missing}");
    assert!(!dir.path().join("none").exists());
    let control = init(dir.path()).await;
    let old_cluster = control.cluster_id().to_owned();
    control.shutdown().await;
    let data = dir.path().join("a");
    let recorded = fs::read(data.join("cluster.json")).unwrap();
    let done = coracle_server::force_new_cluster(&data).unwrap();
    // As it was when the directories had changed places, but nothing else had been written.
    fs::write(data.join("cluster.json"), recorded).unwrap();
    fs::write(data.join("recovering.json"), serde_json::to_vec(&done).unwrap()).unwrap();
    let error = start(dir.path(), "a", Mode::Resume).await.err().expect("half recovered");
    assert!(matches!(error, ServerError::Recovering(_)), "{error}");
    assert_eq!(coracle_server::force_new_cluster(&data).unwrap(), done);
    let control = start(dir.path(), "a", Mode::Resume).await.unwrap();
    assert_eq!(control.cluster_id(), done.cluster_id);
    assert_ne!(control.cluster_id(), old_cluster);
    control.shutdown().await;
}
