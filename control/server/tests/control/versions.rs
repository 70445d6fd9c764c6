//! The version gate: what is agreed on, and what an older build may not touch.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Refusal, Transaction, Write};
use coracle_proto::{
    join::{self, JoinError, Role, join_as},
    store::{TxnRequest, store_client::StoreClient},
    tls,
};
use coracle_raft::snapshot::Reader;
use coracle_server::{Control, ControlConfig, Mode, RestoreOptions, ServerError};
use coracle_storage::version::Build;
use coracle_store::{
    FIRST_LEVEL, LEVELS, Level, Levels, Request, RequestId, encode_transaction, snapshot::origin,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::bench::{
    PATIENCE, admin, client, config, config_map, config_maps, files, init, join, start, until,
};

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

const OLD: &[Level] = &[LEVELS[0]];

/// At its second level smaller drafts are taken than at the first.
const NEW: &[Level] = &[LEVELS[0], Level { object_bytes_max: 20_000, ..LEVELS[0] }];

/// A build of before, and one that knows a level more: of entries, snapshots, decisions and hashes.
fn builds() -> [Build; 2] {
    [("0.0.9", OLD), ("9.0.0", NEW)]
        .map(|(version, levels)| Build { version: version.into(), levels: Levels::new(levels) })
}

/// Writes what the first level takes and the second does not.
async fn write_large(control: &Control, name: &str) -> Result<(), Refusal> {
    let key = ObjectKey::new("configmaps", "default", name);
    let text = "x".repeat(30_000);
    let draft =
        format!(r#"{{"metadata":{{"name":"{name}","namespace":"default"}},"data":{{"k":"{text}"}}}}"#);
    let outcome = control.storage().propose(Transaction::create(key, draft.into())).await;
    outcome.expect("the cluster goes on").map(drop)
}

/// Waits until all have one state: then all have decided alike.
async fn one_state(controls: &[Control]) {
    let state = |control: &Control| (control.storage().view().revision, control.storage().state_hash());
    until("one state", || async { controls.iter().all(|one| state(one) == state(&controls[0])) }).await;
}

/// The snapshots that a member has, with their levels. One that goes meanwhile is left out.
fn snapshots(dir: &Path, name: &str) -> Vec<(PathBuf, u8)> {
    let files = fs::read_dir(dir.join(name).join("raft")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "snap"));
    let level = |path: PathBuf| {
        let mut reader = Reader::open(BufReader::new(File::open(&path).ok()?)).unwrap();
        Some((path, origin(&mut reader, Levels::new(NEW)).unwrap().level))
    };
    files.filter_map(level).collect()
}

/// Has a member make a snapshot of this level: keeps a copy of it.
async fn backup_at(control: &Control, dir: &Path, name: &str, level: u8) -> PathBuf {
    let copy = dir.join(format!("backup-{level}"));
    let written = std::cell::Cell::new(0);
    until("a snapshot", || async {
        let number = written.get();
        written.set(number + 1);
        let map = config_map(&format!("for-{level}-{number}"), "1");
        config_maps(control).await.create(&PostParams::default(), &map).await.unwrap();
        let found = snapshots(dir, name).into_iter().find(|(_, found)| *found == level);
        found.is_some_and(|(path, _)| fs::copy(path, &copy).is_ok())
    })
    .await;
    copy
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
        member["spec"]["version"] == build.version && member["spec"]["entryFormat"] == build.level()
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
        assert!(name == "a" || snapshots(dir.path(), name).iter().all(|(_, level)| *level == 1));
        if name != "a" {
            assert!(controls.iter().all(|control| agreed(control) == low), "some are old");
            write_large(&controls[turn], &format!("large-{name}")).await.expect("as all builds decide");
            one_state(&controls).await;
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
    for control in &controls {
        until("the new level to decide", || async {
            let name = format!("too-large-{}", control.storage().view().revision);
            matches!(write_large(control, &name).await, Err(Refusal::TooLarge { limit: 20_000, .. }))
        })
        .await;
    }
    one_state(&controls).await;
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
async fn a_backup_carries_its_level_and_an_older_build_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = builds();
    let options = |build: &Build| RestoreOptions {
        name: "r".into(),
        drop_secrets: true,
        build: build.clone(),
        ..RestoreOptions::default()
    };
    let control = coracle_server::start(as_build(dir.path(), "a", Mode::Init, &old)).await.unwrap();
    until("the old level", || async { recorded(dir.path(), "a") == json!(["0.0.9", 1]) }).await;
    let low = backup_at(&control, dir.path(), "a", 1).await;
    control.shutdown().await;
    let control = coracle_server::start(as_build(dir.path(), "a", Mode::Resume, &new)).await.unwrap();
    until("the new level", || async { recorded(dir.path(), "a") == json!(["9.0.0", 2]) }).await;
    let high = backup_at(&control, dir.path(), "a", 2).await;
    control.shutdown().await;

    // Of a newer build's restoration an older cluster can still be made as long as its level was not raised.
    for (name, build) in [("low-old", &old), ("low-new", &new)] {
        let path = dir.path().join(name);
        coracle_server::restore(&low, &path, &options(build)).unwrap();
        assert_eq!(recorded(dir.path(), name), json!(["0.0.9", 1]));
        assert!(snapshots(dir.path(), name).iter().all(|(_, level)| *level == 1));
        coracle_server::start(as_build(dir.path(), name, Mode::Resume, &old)).await.unwrap().shutdown().await;
    }
    let before = files(dir.path());
    let mend = "the cluster runs version 9.0.0, this is version 0.0.9: use 9.0.0 or newer";
    let path = dir.path().join("high");
    let error = coracle_server::restore(&high, &path, &options(&old)).unwrap_err().to_string();
    assert!(error.contains(mend) && error.contains("nothing was changed"), "{error}");
    assert!(files(dir.path()) == before && !path.exists());
    coracle_server::restore(&high, &path, &options(&new)).unwrap();
    assert_eq!(recorded(dir.path(), "high"), json!(["9.0.0", 2]), "before anybody has started on it");
    let error = coracle_server::start(as_build(dir.path(), "high", Mode::Resume, &old)).await.err().unwrap();
    assert!(error.to_string().contains(mend), "{error}");
    let control = coracle_server::start(as_build(dir.path(), "high", Mode::Resume, &new)).await.unwrap();
    assert_eq!(agreed(&control), ("9.0.0".into(), "2".into()));
    control.shutdown().await;
}

/// As after a crash between the raise and its being written down.
fn forget_the_level(dir: &Path, name: &str) {
    let path = dir.join(name).join("cluster.json");
    with(&path, "clusterVersion", json!("0.0.9"));
    with(&path, "entryFormat", json!(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_build_that_is_let_in_stops_before_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = builds();
    let mend = "the cluster runs version 9.0.0, this is version 0.0.9: use 9.0.0 or newer";
    // What the member has is in a snapshot, or in its log alone.
    for (name, snapshot_entries) in [("snapshot", 40), ("log", 100_000)] {
        let of = |mode, build: &Build| ControlConfig {
            snapshot_entries,
            ..as_build(dir.path(), name, mode, build)
        };
        let control = coracle_server::start(of(Mode::Init, &new)).await.unwrap();
        until("the new level", || async { recorded(dir.path(), name) == json!(["9.0.0", 2]) }).await;
        match name {
            "snapshot" => drop(backup_at(&control, dir.path(), name, 2).await),
            _ => drop(
                config_maps(&control).await.create(&PostParams::default(), &config_map("last", "1")).await,
            ),
        }
        let state = (control.storage().view().revision, control.storage().state_hash());
        control.abort().await;
        forget_the_level(dir.path(), name);
        let reason = match coracle_server::start(of(Mode::Resume, &old)).await {
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
            Ok(control) => {
                let reason = tokio::time::timeout(PATIENCE, control.closed()).await.expect("it stops");
                control.abort().await;
                reason.to_string()
            }
        };
        assert!(reason.contains(mend), "{name}: {reason}");
        let control = coracle_server::start(of(Mode::Resume, &new)).await.unwrap();
        until("all that there was", || async { control.storage().view().revision >= state.0 }).await;
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
    let refused =
        store.txn(TxnRequest { transaction: encode_transaction(&request, FIRST_LEVEL) }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    assert_eq!(control.storage().view().get(&info).unwrap().json, before);
    control.shutdown().await;
}
