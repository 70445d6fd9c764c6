//! The version gate: what is agreed on, and what an older build may not touch.

use std::{fs, path::Path};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::{
    join::{Build, JoinError, Role, join_as},
    store::{TxnRequest, store_client::StoreClient},
    tls,
};
use coracle_server::{Mode, ServerError};
use coracle_store::{Request, RequestId, encode_transaction};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::bench::{admin, client, config_map, files, init, start, until};

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
    let info = ObjectKey::new("configmaps", "kube-system", "coracle-cluster");
    until("the version to be agreed on", || async {
        let view = control.storage().view();
        view.get(&info).is_some_and(|info| String::from_utf8_lossy(&info.json).contains("entryFormat"))
    })
    .await;
    let token = control.create_token(Role::Control, 60).await.unwrap();
    let old = Build { version: "0.0.1".into(), entry_format: 1 };
    let error = join_as(&[control.address()], &token, "b", "127.0.0.1:1", &old).await.err().unwrap();
    assert!(matches!(error, JoinError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("this is version 0.0.1"), "{error}");
    assert_eq!(control.storage().status().learners, [0; 0]);
    // The token was not used up.
    let mode = Mode::Join { addresses: vec![control.address()], token: token.to_string() };
    start(dir.path(), "b", mode).await.unwrap().shutdown().await;
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_control_plane_writes_what_it_must_not_forget() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let info = ObjectKey::new("configmaps", "kube-system", "coracle-cluster");
    until("the version to be agreed on", || async {
        let view = control.storage().view();
        view.get(&info).is_some_and(|info| String::from_utf8_lossy(&info.json).contains("entryFormat"))
    })
    .await;
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
