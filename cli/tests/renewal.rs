//! A node whose certificate lives for seconds.

use std::{path::Path, time::Duration};

use coracle_agent::{JoinWith, Node, NodeConfig};
use coracle_proto::join::Role;
use coracle_server::{Control, ControlConfig, Mode};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

const LIFE: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(60);

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
    let config =
        NodeConfig { name: "n1".into(), join, guest_threads: 1, max_instances: 8, ..NodeConfig::new(dir) };
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
    let with = JoinWith { addresses: vec![control.address()], token: token.to_string() };
    let node = start(&node_dir, Some(with)).await;
    until("the node is ready", || is_ready(&control)).await;
    let first = kept(&node_dir);
    let joined = std::time::Instant::now();
    until("another certificate and key", || async { kept(&node_dir) != first }).await;
    while joined.elapsed() < LIFE + LIFE / 3 {
        assert!(is_ready(&control).await, "the link goes on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    node.shutdown().await;
    let node = start(&node_dir, None).await;
    until("the node is ready with what it has kept", || is_ready(&control)).await;
    node.shutdown().await;
    control.shutdown().await;
}
