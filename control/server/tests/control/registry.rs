//! What is pushed at one control node and pulled at others, and by whom.

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction};
use coracle_proto::{
    join::{Role, join},
    tls,
};
use coracle_server::Control;
use http::{Method, Response, StatusCode};
use hyper::body::Bytes;
use rustls::ClientConfig;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::bench::{admin, init, send, stranger, three};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn node(control: &Control) -> ClientConfig {
    let token = control.create_token(Role::Node, 60).await.unwrap();
    let joined = join(&[control.address()], &token, "n1", "127.0.0.1:7443").await.unwrap();
    let response = &joined.response;
    tls::client_config(&response.serving_ca_pem, &response.certificate_pem, &joined.key_pem).unwrap()
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

fn location(response: &Response<Bytes>) -> String {
    response.headers()["location"].to_str().unwrap().to_owned()
}

fn manifest(blob: &[u8]) -> String {
    let layer = json!({ "mediaType": "application/wasm", "digest": digest(blob), "size": blob.len() });
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer] }).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_at_one_member_is_pulled_at_another() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    let admin = admin(&controls[0]);
    let push = controls[1].address();
    let blob = b"\0asm and more".repeat(50_000);

    let begun = send(&push, &admin, Method::POST, "/v2/team/app/blobs/uploads/", b"").await;
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
    let upload = location(&begun);
    let (first, second) = blob.split_at(300_000);
    assert_eq!(send(&push, &admin, Method::PATCH, &upload, first).await.status(), StatusCode::ACCEPTED);
    let wrong = format!("{upload}?digest={}", digest(b"other").replace(':', "%3A"));
    let end = format!("{upload}?digest={}", digest(&blob).replace(':', "%3A"));
    assert_eq!(send(&push, &admin, Method::PUT, &end, second).await.status(), StatusCode::CREATED);
    assert_eq!(send(&push, &admin, Method::PUT, &wrong, b"").await.status(), StatusCode::NOT_FOUND);

    let missing =
        send(&push, &admin, Method::PUT, "/v2/team/app/manifests/0.9", manifest(b"none").as_bytes()).await;
    assert_eq!(missing.status(), StatusCode::BAD_REQUEST, "{:?}", missing.body());
    let text = manifest(&blob);
    let pushed = send(&push, &admin, Method::PUT, "/v2/team/app/manifests/1.0", text.as_bytes()).await;
    assert_eq!(pushed.status(), StatusCode::CREATED, "{:?}", pushed.body());

    let foreign = b"a blob of an image that no pod of the node has";
    let upload = format!("/v2/team/other/blobs/uploads/?digest={}", digest(foreign).replace(':', "%3A"));
    assert_eq!(send(&push, &admin, Method::POST, &upload, foreign).await.status(), StatusCode::CREATED);

    let node = node(&controls[0]).await;
    let elsewhere = send(&push, &node, Method::GET, "/v2/team/app/manifests/1.0", b"").await;
    assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND, "no pod of the node names it");
    let pod = json!({
        "metadata": { "name": "p", "namespace": "default", "uid": "u" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "team/app:1.0" }] },
    });
    let made = Transaction::create(ObjectKey::new("pods", "default", "p"), pod.to_string().into());
    controls[0].storage().propose(made).await.unwrap().unwrap();
    for control in &controls {
        let address = control.address();
        let listed = send(&address, &node, Method::GET, "/v2/team/app/tags/list", b"").await;
        assert_eq!(listed.status(), StatusCode::FORBIDDEN);
        let other = format!("/v2/team/app/blobs/{}", digest(foreign));
        assert_eq!(send(&address, &node, Method::GET, &other, b"").await.status(), StatusCode::NOT_FOUND);
        assert_eq!(send(&address, &admin, Method::GET, &other, b"").await.status(), StatusCode::OK);
        let found = send(&address, &node, Method::GET, "/v2/team/app/manifests/1.0", b"").await;
        assert_eq!((found.status(), found.body().as_ref()), (StatusCode::OK, text.as_bytes()));
        assert_eq!(found.headers()["content-type"], MANIFEST);
        let path = format!("/v2/team/app/blobs/{}", digest(&blob));
        let found = send(&address, &node, Method::GET, &path, b"").await;
        assert_eq!(digest(found.body()), digest(&blob));
        let tags = send(&address, &admin, Method::GET, "/v2/team/app/tags/list", b"").await;
        assert_eq!(tags.body().as_ref(), br#"{"name":"team/app","tags":["1.0"]}"#);
    }
    futures::future::join_all(controls.into_iter().map(Control::shutdown)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_not_push_and_a_stranger_may_not_even_look() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let (address, node) = (control.address(), node(&control).await);
    let refused = send(&address, &node, Method::POST, "/v2/app/blobs/uploads/", b"").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let nothing = send(&address, &node, Method::GET, "/v2/app/manifests/1", b"").await;
    assert_eq!(nothing.status(), StatusCode::NOT_FOUND);
    let stranger = stranger(&control);
    assert_eq!(send(&address, &stranger, Method::GET, "/v2/", b"").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        send(&address, &stranger, Method::GET, "/metrics", b"").await.status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(send(&address, &stranger, Method::GET, "/livez", b"").await.status(), StatusCode::OK);
    let metrics = send(&address, &admin(&control), Method::GET, "/metrics", b"").await;
    let metrics = String::from_utf8_lossy(metrics.body()).into_owned();
    assert!(metrics.contains("coracle_server_is_leader 1"), "{metrics}");
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_is_no_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let (admin, address) = (admin(&control), control.address());
    let blob = vec![7; 4 * 1024 * 1024 + 1];
    let name = digest(&blob);
    let upload = format!("/v2/team/app/blobs/uploads/?digest={}", name.replace(':', "%3A"));
    assert_eq!(send(&address, &admin, Method::POST, &upload, &blob).await.status(), StatusCode::CREATED);
    for method in [Method::GET, Method::HEAD] {
        let path = format!("/v2/team/app/manifests/{name}");
        let answer = send(&address, &admin, method, &path, b"").await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }
    control.shutdown().await;
}
