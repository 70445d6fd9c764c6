//! The version gate: what is agreed on, and what an older build may not touch.

use std::{fs, path::Path};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::{
    join::{self, JoinError, Role, join_as},
    store::{TxnRequest, store_client::StoreClient},
    tls,
};
use coracle_server::{Build, Control, ControlConfig, Mode, ServerError};
use coracle_store::{Request, RequestId, encode_transaction};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::bench::{admin, client, config, config_map, config_maps, files, init, join, start, until};

/// Waits until the cluster has agreed on its version: where that stands.
async fn version_agreed(control: &Control) -> ObjectKey {
    let info = ObjectKey::new("configmaps", "kube-system", "coracle-cluster");
    until("the version to be agreed on", || async {
        let view = control.storage().view();
        view.get(&info).is_some_and(|info| String::from_utf8_lossy(&info.json).contains("entryFormat"))
    })
    .await;
    info
}

fn with(path: &Path, field: &str, value: Value) {
    let mut recorded: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    recorded[field] = value;
    fs::write(path, recorded.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_build_leaves_new_data_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let recorded = dir.path().join("a/cluster.json");
    let version = env!("CARGO_PKG_VERSION");
    until("the version to be agreed on and written down", || async {
        let text = fs::read(&recorded).unwrap_or_default();
        let recorded: Value = serde_json::from_slice(&text).unwrap_or_default();
        recorded["clusterVersion"] == version && recorded["entryFormat"] == 1
    })
    .await;
    control.shutdown().await;
    for (field, value) in
        [("clusterVersion", json!("99.0.0")), ("entryFormat", json!(200)), ("format", json!(7))]
    {
        let good = fs::read(&recorded).unwrap();
        with(&recorded, field, value);
        let before = files(dir.path());
        let error = start(dir.path(), "a", Mode::Resume).await.err().expect("an old build does not start");
        assert!(matches!(error, ServerError::OldBuild { .. } | ServerError::NewerLayout { .. }), "{error}");
        assert!(error.to_string().contains("or newer") || error.to_string().contains("newer one"), "{error}");
        assert!(files(dir.path()) == before, "{field}: nothing is changed");
        fs::write(&recorded, good).unwrap();
    }
    start(dir.path(), "a", Mode::Resume).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_that_is_older_than_the_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    version_agreed(&control).await;
    let token = control.create_token(Role::Control, 60).await.unwrap();
    let old = join::Build { version: "0.0.1".into(), entry_format: 1 };
    let error = join_as(&[control.address()], &token, "b", "127.0.0.1:1", &old).await.err().unwrap();
    assert!(matches!(error, JoinError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("this is version 0.0.1"), "{error}");
    assert_eq!(control.storage().status().learners, [0; 0]);
    // The token was not used up.
    let mode = Mode::Join { addresses: vec![control.address()], token: token.to_string() };
    start(dir.path(), "b", mode).await.unwrap().shutdown().await;
    control.shutdown().await;
}

/// A build of before, and one that writes a newer format of entries.
fn builds() -> [Build; 2] {
    [("0.0.9", 1), ("9.0.0", 2)]
        .map(|(version, entry_format)| Build { version: version.into(), entry_format })
}

fn as_build(dir: &Path, name: &str, mode: Mode, build: &Build) -> ControlConfig {
    ControlConfig { build: build.clone(), ..config(dir, name, mode) }
}

/// What the cluster has agreed on, as one member knows it.
fn agreed(control: &Control) -> (String, String) {
    let view = control.storage().view();
    let info = view.get(&ObjectKey::new("configmaps", "kube-system", "coracle-cluster"));
    let info: Value = info.map(|info| serde_json::from_slice(&info.json).unwrap()).unwrap_or_default();
    let text = |field: &str| info["data"][field].as_str().unwrap_or_default().to_owned();
    (text("version"), text("entryFormat"))
}

/// Whether a member has announced this build, as another one knows it.
fn announced(control: &Control, id: u64, build: &Build) -> bool {
    let view = control.storage().view();
    view.get(&ObjectKey::new("members.coracle.dev", "", &id.to_string())).is_some_and(|member| {
        let member: Value = serde_json::from_slice(&member.json).unwrap();
        member["spec"]["version"] == build.version && member["spec"]["entryFormat"] == build.entry_format
    })
}

fn recorded(dir: &Path, name: &str) -> Value {
    let text = fs::read(dir.join(name).join("cluster.json")).unwrap();
    let recorded: Value = serde_json::from_slice(&text).unwrap();
    json!([recorded["clusterVersion"], recorded["entryFormat"]])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_raises_the_gate_with_the_last_member() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = builds();
    let first = coracle_server::start(as_build(dir.path(), "a", Mode::Init, &old)).await.unwrap();
    let mut controls = vec![first];
    for name in ["b", "c"] {
        controls.push(join(&controls[0], |mode| as_build(dir.path(), name, mode, &old)).await);
    }
    for control in &controls {
        until("three voters", || async { control.storage().status().voters.len() == 3 }).await;
    }
    let low = ("0.0.9".to_owned(), "1".to_owned());
    until("the old version to be agreed on", || async { agreed(&controls[0]) == low }).await;

    for (turn, name) in ["c", "b", "a"].into_iter().enumerate() {
        let stopped = controls.pop().unwrap();
        let id = stopped.member_id();
        stopped.shutdown().await;
        // An old build goes back and forth, up to here.
        let back = coracle_server::start(as_build(dir.path(), name, Mode::Resume, &old)).await.unwrap();
        back.shutdown().await;
        let upgraded = coracle_server::start(as_build(dir.path(), name, Mode::Resume, &new)).await.unwrap();
        controls.insert(0, upgraded);
        until("the new build to be known", || async { controls.iter().all(|one| announced(one, id, &new)) })
            .await;
        let map = config_map(&format!("upgraded-{name}"), "1");
        config_maps(&controls[turn]).await.create(&PostParams::default(), &map).await.expect("writes go on");
        if name != "a" {
            assert!(controls.iter().all(|control| agreed(control) == low), "some are old");
            until("the old version to be written down", || async {
                recorded(dir.path(), name) == json!(["0.0.9", 1])
            })
            .await;
        }
    }
    let high = ("9.0.0".to_owned(), "2".to_owned());
    for control in &controls {
        until("the new version to be agreed on", || async { agreed(control) == high }).await;
    }
    for name in ["a", "b", "c"] {
        until("it to be written down", || async { recorded(dir.path(), name) == json!(["9.0.0", 2]) }).await;
    }

    let last = controls.pop().unwrap();
    last.shutdown().await;
    let before = files(&dir.path().join("c"));
    let refused = coracle_server::start(as_build(dir.path(), "c", Mode::Resume, &old)).await;
    let error = refused.err().expect("an old build on new data").to_string();
    assert!(error.contains("the cluster runs version 9.0.0, this is version 0.0.9"), "{error}");
    assert!(files(&dir.path().join("c")) == before, "nothing is changed");
    let token = controls[0].create_token(Role::Control, 60).await.unwrap();
    let mode = Mode::Join { addresses: vec![controls[0].address()], token: token.to_string() };
    let refused = coracle_server::start(as_build(dir.path(), "d", mode, &old)).await.err().unwrap();
    assert!(refused.to_string().contains("this is version 0.0.9"), "{refused}");
    controls.push(coracle_server::start(as_build(dir.path(), "c", Mode::Resume, &new)).await.unwrap());
    let map = config_map("after", "1");
    config_maps(&controls[2]).await.create(&PostParams::default(), &map).await.unwrap();
    for control in controls {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_control_plane_writes_what_it_must_not_forget() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let info = version_agreed(&control).await;
    let before = control.storage().view().get(&info).unwrap().json.clone();
    let maps: Api<ConfigMap> = Api::namespaced(client(&control).await, "kube-system");
    let patch = Patch::Merge(json!({ "data": { "version": "99.0.0", "entryFormat": "200" } }));
    let (patching, deleting) = (PatchParams::default(), DeleteParams::default());
    let forbidden = [
        maps.patch("coracle-cluster", &patching, &patch).await.err(),
        maps.delete("coracle-cluster", &deleting).await.err(),
        maps.replace("coracle-cluster", &PostParams::default(), &config_map("coracle-cluster", "1"))
            .await
            .err(),
    ];
    for error in forbidden {
        let Some(kube::Error::Api(status)) = error else { panic!("{error:?}") };
        assert!(status.code == 403 && status.message.contains("control plane itself"), "{status:?}");
    }
    maps.create(&PostParams::default(), &config_map("other", "1")).await.unwrap();
    maps.delete_collection(&deleting, &ListParams::default()).await.unwrap();
    assert!(maps.get_opt("other").await.unwrap().is_none());

    let mut store = StoreClient::new(tls::channel(&control.address(), admin(&control)));
    let write = Write::Delete { key: info.clone() };
    let transaction = Transaction { preconditions: vec![], writes: vec![write] };
    let request = Request { id: RequestId { client: 5, sequence: 1 }, transaction };
    let refused = store.txn(TxnRequest { transaction: encode_transaction(&request) }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    assert_eq!(control.storage().view().get(&info).unwrap().json, before);
    control.shutdown().await;
}
