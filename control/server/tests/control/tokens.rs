//! Tokens: made, listed, revoked, used by one control node only, and to read with.

use coracle_api::Storage;
use coracle_proto::{
    cluster::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest},
    join::{JoinToken, Role, join},
};
use coracle_server::{Control, Mode};
use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tonic::Code;

use crate::bench::{administration, init, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_made_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let mut admin = administration(&control);
    let create = |role: &str| CreateTokenRequest { role: role.into(), ttl_seconds: 90, node: String::new() };
    let token = admin.create_token(create("node")).await.unwrap().into_inner().token;
    let token: JoinToken = token.parse().unwrap();
    assert_eq!(token.role, Role::Node);
    assert_eq!(admin.create_token(create("king")).await.unwrap_err().code(), Code::InvalidArgument);
    let listed = admin.list_tokens(ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let listed = listed.iter().find(|listed| listed.id == token.id).expect("it is listed");
    let left = listed.expires_unix - jiff::Timestamp::now().as_second();
    assert!((0..=90).contains(&left) && listed.role == "node" && !listed.used, "{listed:?}");
    // The secret is nowhere.
    let view = control.storage().view();
    let kept = |text: &str| {
        view.list("secrets", Some("kube-system"))
            .any(|secret| String::from_utf8_lossy(&secret.json).contains(text))
    };
    assert!(kept(&format!("bootstrap-token-{}", token.id)) && !kept(&token.secret));

    let addresses = [control.address()];
    for name in ["n1", "n2"] {
        join(&addresses, &token, name, "127.0.0.1:1").await.expect("a node's token serves until it ends");
    }
    admin.revoke_token(RevokeTokenRequest { id: token.to_string() }).await.unwrap();
    let error = join(&addresses, &token, "n3", "127.0.0.1:1").await.err().unwrap();
    assert!(error.to_string().contains("not known here"), "{error}");
    let again = admin.revoke_token(RevokeTokenRequest { id: token.id }).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_token_serves_one_of_many_that_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let token = control.create_token(Role::Control, 60).await.unwrap();
    let names = ["b", "c", "d", "e"];
    let starts = names.map(|name| {
        let mode = Mode::Join { addresses: vec![control.address()], token: token.to_string() };
        start(dir.path(), name, mode)
    });
    let mut joined = Vec::new();
    for outcome in futures::future::join_all(starts).await {
        match outcome {
            Ok(control) => joined.push(control),
            Err(error) => assert!(error.to_string().contains("serves once"), "{error}"),
        }
    }
    assert_eq!(joined.len(), 1);
    let status = control.storage().status();
    assert_eq!(status.voters.len() + status.learners.len(), 2);
    assert_eq!(control.storage().view().count("members.coracle.dev"), 2);
    for control in joined.into_iter().chain([control]) {
        control.shutdown().await;
    }
}

/// An unmodified client with nothing but a bearer token.
async fn client_with(control: &Control, token: &str) -> Client {
    let mut kubeconfig = Kubeconfig::read_from(control.kubeconfig_path()).unwrap();
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() });
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn code(client: &Client, method: &str, path: &str) -> u16 {
    let request =
        http::Request::builder().method(method).uri(path).body(kube::client::Body::empty()).unwrap();
    client.send(request).await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_asks_hears_that_metrics_are_for_readers() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "nonResourceAttributes": { "path": "/metrics", "verb": "get" } } });
    for (role, expected) in [(Role::Reader, Ok(true)), (Role::Pusher, Ok(false)), (Role::Node, Err(401))] {
        let token = control.create_token(role, 60).await.unwrap().proof();
        let client = client_with(&control, &token).await;
        let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
        let request = request.body(review.to_string().into_bytes()).unwrap();
        let told = match client.request::<serde_json::Value>(request).await {
            Ok(told) => Ok(told["status"]["allowed"].as_bool().unwrap()),
            Err(kube::Error::Api(status)) => Err(status.code),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(told, expected, "{role:?}");
    }
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_all_but_secrets_until_the_token_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let mut admin = administration(&control);
    let create = CreateTokenRequest { role: "reader".into(), ttl_seconds: 90, node: String::new() };
    let token = admin.create_token(create).await.unwrap().into_inner().token;
    assert!(token.chars().all(|char| char.is_ascii_alphanumeric() || char == '.'), "a bearer token: {token}");
    let reader = client_with(&control, &token).await;
    for (method, path, expected) in [
        ("GET", "/metrics", 200),
        ("GET", "/api/v1/pods", 200),
        ("GET", "/apis", 200),
        ("GET", "/v2/", 200),
        ("GET", "/api/v1/secrets", 403),
        ("GET", "/api/v1/namespaces/kube-system/secrets/x", 403),
        ("DELETE", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", 403),
        ("POST", "/v2/app/blobs/uploads/", 403),
    ] {
        assert_eq!(code(&reader, method, path).await, expected, "{method} {path}");
    }
    let review = json!({ "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1" }).to_string();
    let request =
        http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews").body(review.into_bytes());
    let told: serde_json::Value = reader.request(request.unwrap()).await.unwrap();
    let id = token.split_once('.').unwrap().0;
    assert_eq!(told["status"]["userInfo"]["username"], format!("coracle:token:{id}"));
    // It joins nothing, and a token of another role reads nothing.
    let joins = JoinToken { role: Role::Node, ..control.create_token(Role::Reader, 60).await.unwrap() };
    let refused = join(&[control.address()], &joins, "n1", "127.0.0.1:1").await.err().unwrap();
    assert!(refused.to_string().contains("it is for a reader"), "{refused}");
    let of_node = control.create_token(Role::Node, 60).await.unwrap();
    for wrong in [of_node.proof(), format!("{id}.0"), "x".to_owned()] {
        let other = client_with(&control, &wrong).await;
        assert_eq!(code(&other, "GET", "/api/v1/pods").await, 401, "{wrong}");
        assert_eq!(code(&other, "GET", "/readyz").await, 401, "{wrong}");
    }
    admin.revoke_token(RevokeTokenRequest { id: id.to_owned() }).await.unwrap();
    assert_eq!(code(&reader, "GET", "/api/v1/pods").await, 401);
    control.shutdown().await;
}
