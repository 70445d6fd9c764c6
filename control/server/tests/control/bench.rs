//! Control nodes in temporary directories, and clients of them.

use std::{collections::BTreeMap, future::Future, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction};
use coracle_proto::{cluster::cluster_client::ClusterClient, join::Role, tls};
use coracle_server::{Control, ControlConfig, Mode, ServerError};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::ClientConfig;

/// Long enough for a loaded machine; nothing here waits for so long when it works.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn config(dir: &Path, name: &str, mode: Mode) -> ControlConfig {
    let mut config = ControlConfig::new(dir.join(name), name, "127.0.0.1:0".parse().unwrap(), mode);
    config.learner_healthy = Duration::from_millis(100);
    config.snapshot_entries = 40;
    config
}

/// A control node that joins through another one, with a fresh token.
pub async fn join(through: &Control, config: impl FnOnce(Mode) -> ControlConfig) -> Control {
    let token = through.create_token(Role::Control, 60).await.unwrap();
    let mode = Mode::Join { addresses: vec![through.address()], token: token.to_string() };
    coracle_server::start(config(mode)).await.unwrap()
}

/// The cluster's administration at one control node, as the administrator of its kubeconfig.
pub fn administration(control: &Control) -> ClusterClient<tonic::transport::Channel> {
    let text = std::fs::read_to_string(control.kubeconfig_path()).unwrap();
    let kubeconfig: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
    let pem = |place: &str| {
        let text = kubeconfig.pointer(place).and_then(serde_json::Value::as_str).unwrap();
        String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
    };
    let ca = pem("/clusters/0/cluster/certificate-authority-data");
    let (certificate, key) =
        (pem("/users/0/user/client-certificate-data"), pem("/users/0/user/client-key-data"));
    let tls = tls::client_config(&ca, &certificate, &key).unwrap();
    ClusterClient::new(tls::channel(&control.address(), tls))
}

/// Creates ConfigMaps `NAME-000000` and so on, one after the other, until told to stop; answers how many, all of which
/// were acknowledged.
pub fn write_on(control: &Control, name: &'static str) -> Writer {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let storage = control.storage().clone();
    let task = tokio::spawn(async move {
        let mut written = 0;
        while stopped.try_recv().is_err() {
            let key = ObjectKey::new("configmaps", "default", &format!("{name}-{written:06}"));
            let draft = format!(r#"{{"metadata":{{"name":"{name}-{written:06}","namespace":"default"}}}}"#);
            storage.propose(Transaction::create(key, draft.into())).await.unwrap().unwrap();
            written += 1;
        }
        written
    });
    Writer { stop, task }
}

pub struct Writer {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<usize>,
}

impl Writer {
    pub async fn stop(self) -> usize {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

/// How many of a writer's ConfigMaps a control node has.
pub fn written(control: &Control, name: &str) -> usize {
    let view = control.storage().view();
    view.list("configmaps", Some("default")).filter(|object| object.name().starts_with(name)).count()
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

/// TLS settings that trust a cluster and show no certificate.
pub fn stranger(control: &Control) -> ClientConfig {
    let ca = std::fs::read_to_string(control.kubeconfig_path().with_file_name("pki/serving-ca.crt")).unwrap();
    ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(tls::roots(&ca).unwrap())
        .with_no_client_auth()
}

/// One request over its own connection.
pub async fn send(
    address: &str,
    config: &ClientConfig,
    method: Method,
    path: &str,
    body: &[u8],
) -> Response<Bytes> {
    send_with(address, config, method, path, &[], body).await
}

/// The same, with headers.
pub async fn send_with(
    address: &str,
    config: &ClientConfig,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response<Bytes> {
    let mut sender = connect(address, config).await;
    ask(&mut sender, address, method, path, headers, body).await
}

/// A connection that takes one request after the other.
pub async fn connect(address: &str, config: &ClientConfig) -> SendRequest<Full<Bytes>> {
    let stream = tls::connect(address, config.clone().into()).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// One request over a connection.
pub async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    address: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response<Bytes> {
    let request = Request::builder().method(method).uri(path).header("host", address);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
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

/// Waits until a member that has started answers reads with what the others have written.
pub async fn up_to_date(control: &Control) {
    until("the member to catch up", || async { control.storage().linearizable().await.is_ok() }).await;
}

/// Waits until the namespace `default` has the ConfigMap that each has: from then on only the test writes there.
pub async fn settled(control: &Control) {
    let gift = ObjectKey::new("configmaps", "default", "kube-root-ca.crt");
    until("the ConfigMap of each namespace", || async { control.storage().view().get(&gift).is_some() })
        .await;
}

/// Waits until one of these leads: which.
pub async fn leading(controls: &[Control]) -> usize {
    let mut leader = None;
    until("somebody to lead", || {
        leader = controls.iter().position(|control| control.storage().leads());
        std::future::ready(leader.is_some())
    })
    .await;
    leader.expect("it was waited for")
}

/// All files below a folder, with their bytes.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
    found
}
