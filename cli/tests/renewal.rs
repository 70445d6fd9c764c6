//! A node whose certificate lives for seconds.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_agent::{JoinWith, Node, NodeConfig};
use coracle_proto::{
    join::Role,
    security::{
        AuthoritiesRequest, AuthoritiesResponse, RotateAuthoritiesRequest, security_client::SecurityClient,
    },
    tls,
};
use coracle_server::{Control, ControlConfig, Mode};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIFE: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(120);

/// The kubeconfig is read anew: its certificate is renewed as well.
async fn nodes(control: &Control) -> Api<NodeObject> {
    let kubeconfig = Kubeconfig::read_from(control.kubeconfig_path()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Api::all(Client::try_from(config).unwrap())
}

async fn is_ready(control: &Control) -> bool {
    let Ok(node) = nodes(control).await.get("n1").await else { return false };
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for: {what}"));
}

fn kept(dir: &Path) -> (String, String) {
    let node: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("node.json")).unwrap()).unwrap();
    (node["certificatePem"].to_string(), node["keyFile"].to_string())
}

async fn start(dir: &Path, join: Option<JoinWith>) -> Node {
    let config = NodeConfig {
        name: "n1".into(),
        join,
        guest_threads: 1,
        max_instances: 8,
        metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
        ..NodeConfig::new(dir)
    };
    coracle_agent::start(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_outlives_its_first_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (listen, node_dir) = ("127.0.0.1:0".parse().unwrap(), dir.path().join("n1"));
    let mut config = ControlConfig::new(dir.path().join("a"), "a", listen, Mode::Init);
    config.certificate_life = LIFE;
    let control = coracle_server::start(config).await.unwrap();
    let token = control.create_token(Role::Node, 60).await.unwrap();
    let with = JoinWith { addresses: vec![control.address()], token: Some(token.to_string()) };
    let node = start(&node_dir, Some(with)).await;
    until("the node is ready", || is_ready(&control)).await;
    let first = kept(&node_dir);
    let joined = std::time::Instant::now();
    until("another certificate and key", || async { kept(&node_dir) != first }).await;
    while joined.elapsed() < 2 * LIFE {
        assert!(is_ready(&control).await, "the link goes on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // One that was just renewed, so that it lives until the node is back.
    let last = kept(&node_dir);
    until("yet another certificate and key", || async { kept(&node_dir) != last }).await;
    node.shutdown().await;
    until("the node is gone", || async { !is_ready(&control).await }).await;
    let node = start(&node_dir, None).await;
    until("the node is ready with what it has kept", || is_ready(&control)).await;
    node.shutdown().await;
    control.shutdown().await;
}

/// A client with the present kubeconfig's certificate.
fn security(control: &Control) -> SecurityClient<tonic::transport::Channel> {
    let text = std::fs::read_to_string(control.kubeconfig_path()).unwrap();
    let kubeconfig: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
    let pem = |pointer: &str| {
        let base64 = kubeconfig.pointer(pointer).and_then(|value| value.as_str()).unwrap();
        String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap()
    };
    let (ca, user) = ("/clusters/0/cluster/certificate-authority-data", "/users/0/user");
    let (certificate, key) =
        (pem(&format!("{user}/client-certificate-data")), pem(&format!("{user}/client-key-data")));
    let config = tls::client_config(&pem(ca), &certificate, &key).unwrap();
    SecurityClient::new(tls::channel(&control.address(), config))
}

async fn authorities(control: &Control) -> Option<AuthoritiesResponse> {
    security(control).authorities(AuthoritiesRequest {}).await.ok().map(tonic::Response::into_inner)
}

/// What the node's metrics are answered to who shows a new reader's token, and trusts the present client authority.
async fn scrape(control: &Control, data_dir: &Path, node: &Node) -> String {
    let ca = std::fs::read_to_string(data_dir.join("pki/client-ca.crt")).unwrap();
    let trusting = Arc::new(tls::anonymous_client_config(&ca).unwrap());
    let address = node.metrics_address().unwrap().to_string();
    let name = ServerName::try_from("n1").unwrap();
    let mut stream = tls::connect_named(&address, name, trusting).await.unwrap();
    let token = control.create_token(Role::Reader, 60).await.unwrap().proof();
    let head = format!("host: n1\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    stream.write_all(format!("GET /metrics HTTP/1.1\r\n{head}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_along_with_a_change_of_authorities() {
    let dir = tempfile::tempdir().unwrap();
    let (listen, node_dir) = ("127.0.0.1:0".parse().unwrap(), dir.path().join("n1"));
    let config = |mode| ControlConfig::new(dir.path().join("a"), "a", listen, mode);
    let control = coracle_server::start(config(Mode::Init)).await.unwrap();
    let token = control.create_token(Role::Node, 60).await.unwrap();
    let with = JoinWith { addresses: vec![control.address()], token: Some(token.to_string()) };
    let node = start(&node_dir, Some(with)).await;
    until("the node is ready", || is_ready(&control)).await;
    let all = RotateAuthoritiesRequest { peer: true, serving: true, client: true, grace_seconds: 0 };
    security(&control).rotate_authorities(all).await.unwrap();
    let done = || async {
        authorities(&control).await.is_some_and(|state| state.generation == 3 && state.changing.is_empty())
    };
    until("all steps are done", done).await;
    let generation = || {
        let text = std::fs::read(node_dir.join("node.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["generation"].as_u64()
    };
    until("the node trusts the new ones only", || async { generation() == Some(3) }).await;
    assert!(is_ready(&control).await);
    let answer = scrape(&control, &dir.path().join("a"), &node).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 "),
        "by a certificate of the new one, as it trusts control nodes: {answer}"
    );
    node.shutdown().await;
    control.shutdown().await;
    let control = coracle_server::start(config(Mode::Resume)).await.unwrap();
    let node = start(&node_dir, None).await;
    until("both have kept it", || is_ready(&control)).await;
    node.shutdown().await;
    control.shutdown().await;
}
