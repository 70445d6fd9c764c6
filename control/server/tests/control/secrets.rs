//! Secrets at rest: what is on disk, what clients read, and the change of keys.

use std::{collections::BTreeMap, path::Path};

use coracle_proto::{
    security::{
        DropKeyRequest, KeysRequest, KeysResponse, RotateKeysRequest, security_client::SecurityClient,
    },
    tls,
};
use coracle_server::{Control, Mode};
use http::{Method, StatusCode};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use tonic::transport::Channel;

use crate::bench::{admin, client, init, send, start, three, until};

const VALUE: &[u8] = b"a value that only its readers may see";

async fn secrets(control: &Control) -> kube::Api<Secret> {
    kube::Api::namespaced(client(control).await, "default")
}

fn secret(name: &str, value: &[u8]) -> Secret {
    let data = Some(BTreeMap::from([("k".into(), ByteString(value.to_vec()))]));
    let mut secret = Secret { data, ..Secret::default() };
    secret.metadata.name = Some(name.into());
    secret
}

fn value(secret: &Secret) -> &[u8] {
    &secret.data.as_ref().unwrap()["k"].0
}

fn security(control: &Control) -> SecurityClient<Channel> {
    SecurityClient::new(tls::channel(&control.address(), admin(control)))
}

async fn keys(control: &Control) -> KeysResponse {
    security(control).keys(KeysRequest {}).await.unwrap().into_inner()
}

/// Whether any file below the directory has the value, as it is or as JSON carries it.
fn on_disk(dir: &Path) -> bool {
    use base64::{Engine, engine::general_purpose::STANDARD};
    // Base64 of the middle, whatever stands in front of it.
    let encoded = STANDARD.encode(VALUE);
    let needles = [VALUE, &encoded.as_bytes()[4..encoded.len() - 4]];
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return on_disk(&path);
        }
        let content = std::fs::read(path).unwrap();
        needles.iter().any(|needle| content.windows(needle.len()).any(|window| window == *needle))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_read_and_change_what_no_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    let created =
        secrets(&controls[1]).await.create(&PostParams::default(), &secret("s", VALUE)).await.unwrap();
    for control in &controls {
        assert_eq!(value(&secrets(control).await.get("s").await.unwrap()), VALUE);
    }
    let api = secrets(&controls[2]).await;
    let label = serde_json::json!({ "metadata": { "labels": { "a": "b" } } });
    let patched = api.patch("s", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    assert_eq!(value(&patched), VALUE);
    assert_ne!(patched.metadata.resource_version, created.metadata.resource_version);
    let again = api.patch("s", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    assert_eq!(again.metadata.resource_version, patched.metadata.resource_version, "nothing has changed");
    let selected = api.list(&ListParams::default().labels("a=b")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
    for control in &controls {
        control.storage().raft().snapshot().await.unwrap();
    }
    let raft = std::fs::read_dir(dir.path().join("a/raft")).unwrap();
    let names: Vec<_> = raft.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.ends_with(".snap")), "{names:?}");
    for control in controls {
        control.shutdown().await;
    }
    assert!(!on_disk(dir.path()), "log, snapshots and all other files");

    let names = ["a", "b", "c"];
    let controls = futures::future::join_all(names.map(|name| start(dir.path(), name, Mode::Resume))).await;
    let controls: Vec<Control> = controls.into_iter().map(Result::unwrap).collect();
    assert_eq!(value(&secrets(&controls[0]).await.get("s").await.unwrap()), VALUE, "after a restart");
    for control in controls {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_under_writes_and_the_old_one_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    let api = secrets(&controls[2]).await;
    for at in 0..20 {
        api.create(&PostParams::default(), &secret(&format!("s{at}"), VALUE)).await.unwrap();
    }
    until("one key", || async { keys(&controls[0]).await.keys.len() == 1 }).await;
    let old = keys(&controls[0]).await.keys[0].id.clone();

    let writing = tokio::spawn({
        let api = api.clone();
        async move {
            for at in 20..120 {
                api.create(&PostParams::default(), &secret(&format!("s{at}"), VALUE)).await.unwrap();
            }
        }
    });
    let in_use = security(&controls[1]).drop_key(DropKeyRequest { id: old.clone() }).await.unwrap_err();
    assert_eq!(in_use.code(), tonic::Code::FailedPrecondition, "{in_use}");
    security(&controls[1]).rotate_keys(RotateKeysRequest {}).await.unwrap();
    let changed = || async {
        let keys = keys(&controls[0]).await.keys;
        let new = keys.iter().find(|key| key.id != old);
        new.is_some_and(|new| new.writing && new.lacking.is_empty())
            && keys.iter().all(|key| key.writing || key.objects == 0)
    };
    until("everything is sealed with the new key", changed).await;
    writing.await.unwrap();
    until("what was written meanwhile too", changed).await;
    security(&controls[1]).drop_key(DropKeyRequest { id: old.clone() }).await.unwrap();
    let ring = |name: &str| std::fs::read_to_string(dir.path().join(name).join("keys/secrets.ring")).unwrap();
    until("the old key is forgotten", || async {
        ["a", "b", "c"].iter().all(|name| !ring(name).contains(&old))
    })
    .await;
    // Once more, with nobody writing.
    security(&controls[0]).rotate_keys(RotateKeysRequest {}).await.unwrap();
    let quiet = || async {
        let keys = keys(&controls[0]).await.keys;
        keys.len() == 2 && keys.iter().all(|key| key.writing == (key.objects > 0) && !key.adding)
    };
    until("all are sealed with the third key", quiet).await;
    for control in &controls {
        let list = secrets(control).await.list(&ListParams::default()).await.unwrap();
        assert_eq!(list.items.len(), 120);
        assert!(list.items.iter().all(|secret| value(secret) == VALUE));
    }
    for control in controls {
        control.shutdown().await;
    }
    assert!(!on_disk(dir.path()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ring_is_fetched_from_another_member() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    secrets(&controls[0]).await.create(&PostParams::default(), &secret("s", VALUE)).await.unwrap();
    controls.pop().unwrap().shutdown().await;
    let ring = dir.path().join("c/keys/secrets.ring");
    std::fs::remove_file(&ring).unwrap();
    let back = start(dir.path(), "c", Mode::Resume).await.unwrap();
    let api = secrets(&back).await;
    until("the secret can be read", || async { api.get("s").await.is_ok_and(|s| value(&s) == VALUE) }).await;
    assert!(ring.exists());
    for control in controls.into_iter().chain([back]) {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_key_a_secret_is_refused_and_deleted_only() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    secrets(&control).await.create(&PostParams::default(), &secret("s", VALUE)).await.unwrap();
    until("a key", || async { keys(&control).await.keys.len() == 1 }).await;
    let id = keys(&control).await.keys[0].id.clone();
    control.shutdown().await;
    let ring = dir.path().join("a/keys/secrets.ring");
    let kept = std::fs::read(&ring).unwrap();
    std::fs::remove_file(&ring).unwrap();

    let control = start(dir.path(), "a", Mode::Resume).await.unwrap();
    let (collection, one) = ("/api/v1/namespaces/default/secrets", "/api/v1/namespaces/default/secrets/s");
    let body = serde_json::to_vec(&secret("t", VALUE)).unwrap();
    let cases = [
        (Method::GET, one, &b""[..], StatusCode::INTERNAL_SERVER_ERROR),
        (Method::GET, collection, b"", StatusCode::INTERNAL_SERVER_ERROR),
        (Method::POST, collection, &body, StatusCode::SERVICE_UNAVAILABLE),
    ];
    for (method, path, body, code) in cases {
        let answer = send(&control.address(), &admin(&control), method.clone(), path, body).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(answer.status(), code, "{method} {path}: {text}");
        assert!(text.contains(&id) && text.contains("restore the key ring file"), "{method} {path}: {text}");
    }
    control.shutdown().await;
    assert!(!on_disk(dir.path()), "nothing was written in clear for lack of a key");

    std::fs::write(&ring, kept).unwrap();
    let control = start(dir.path(), "a", Mode::Resume).await.unwrap();
    assert_eq!(value(&secrets(&control).await.get("s").await.unwrap()), VALUE);
    std::fs::remove_file(&ring).unwrap();
    control.shutdown().await;
    let control = start(dir.path(), "a", Mode::Resume).await.unwrap();
    secrets(&control).await.delete("s", &kube::api::DeleteParams::default()).await.unwrap();
    control.shutdown().await;
}
