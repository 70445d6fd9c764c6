//! Control nodes in temporary directories, and clients of them.

use std::{collections::BTreeMap, future::Future, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_proto::tls;
use coracle_server::{Control, ControlConfig, Mode, ServerError};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::ClientConfig;

/// Long enough for a loaded machine; nothing here waits for so long when it works.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn config(dir: &Path, name: &str, mode: Mode) -> ControlConfig {
    let mut config = ControlConfig::new(dir.join(name), name, "127.0.0.1:0".parse().unwrap(), mode);
    config.learner_healthy = Duration::from_millis(100);
    config.snapshot_entries = 40;
    config
}

pub async fn start(dir: &Path, name: &str, mode: Mode) -> Result<Control, ServerError> {
    coracle_server::start(config(dir, name, mode)).await
}

pub async fn init(dir: &Path) -> Control {
    start(dir, "a", Mode::Init).await.unwrap()
}

/// One voter and two joiners, once all three vote.
pub async fn three(dir: &Path) -> Vec<Control> {
    let first = init(dir).await;
    let mut controls = vec![first];
    for name in ["b", "c"] {
        let token = controls[0].create_token(coracle_proto::join::Role::Control, 60).await.unwrap();
        let mode = Mode::Join { addresses: vec![controls[0].address()], token: token.to_string() };
        controls.push(start(dir, name, mode).await.unwrap());
    }
    for control in &controls {
        until("three voters", || async { control.storage().status().voters.len() == 3 }).await;
    }
    controls
}

/// An administrator's client of one control node.
pub async fn client(control: &Control) -> Client {
    let kubeconfig = Kubeconfig::read_from(control.kubeconfig_path()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// An administrator's TLS settings for gRPC and the registry.
pub fn admin(control: &Control) -> ClientConfig {
    let text = std::fs::read_to_string(control.kubeconfig_path()).unwrap();
    let kubeconfig: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
    let field = |pointer: &str| {
        let base64 = kubeconfig.pointer(pointer).and_then(|value| value.as_str()).unwrap();
        String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap()
    };
    let ca = field("/clusters/0/cluster/certificate-authority-data");
    let certificate = field("/users/0/user/client-certificate-data");
    tls::client_config(&ca, &certificate, &field("/users/0/user/client-key-data")).unwrap()
}

/// One request over its own connection.
pub async fn send(
    address: &str,
    config: &ClientConfig,
    method: Method,
    path: &str,
    body: &[u8],
) -> Response<Bytes> {
    let stream = tls::connect(address, config.clone().into()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address)
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap();
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

pub async fn config_maps(control: &Control) -> Api<ConfigMap> {
    Api::namespaced(client(control).await, "default")
}

pub fn config_map(name: &str, value: &str) -> ConfigMap {
    let mut object =
        ConfigMap { data: Some(BTreeMap::from([("k".into(), value.into())])), ..ConfigMap::default() };
    object.metadata.name = Some(name.into());
    object
}

/// Waits until something is so.
pub async fn until<F, R>(what: &str, mut is_so: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for: {what}"));
}
