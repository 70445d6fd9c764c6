//! Three control processes on the loopback, loaded at the REST door and at the peers' gRPC door.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::cluster::{ProposeRequest, leader_client::LeaderClient};
use coracle_store::{Request, RequestId};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tonic::transport::Channel;

use super::{CONNECTIONS, Door, VALUE_BYTES};
use crate::process::{Running, coracle, free_port};

/// Until three control processes are three voters.
const VOTERS_WITHIN: Duration = Duration::from_secs(60);

pub struct Cluster {
    _members: Vec<Running>,
    folder: tempfile::TempDir,
    leader: String,
}

impl Cluster {
    pub async fn start() -> Result<Self> {
        let binary = coracle()?;
        let folder = tempfile::tempdir()?;
        let mut members = Vec::new();
        let first = format!("127.0.0.1:{}", free_port()?);
        for number in 1..=3 {
            let mut command = Command::new(&binary);
            command
                .args(["--log", "error", "control", "--data-dir"])
                .arg(folder.path().join(format!("control-{number}")));
            if number == 1 {
                command.args(["--listen", &first, "--init"]);
            } else {
                let token = cli(&binary, folder.path(), &["token", "create", "--role", "control"])?;
                command.args(["--listen", &format!("127.0.0.1:{}", free_port()?), "--join", &first]);
                command.args(["--token", token.trim()]);
            }
            members.push(Running::start_until(&mut command, "control node at")?);
        }
        let leader = wait_voters(&binary, folder.path()).await?;
        Ok(Self { _members: members, folder, leader })
    }

    pub async fn doors(&self) -> Result<Vec<Arc<dyn Door>>> {
        Ok(vec![Arc::new(self.rest().await?), Arc::new(self.grpc()?)])
    }

    async fn rest(&self) -> Result<RestDoor> {
        let text = std::fs::read_to_string(self.folder.path().join("control-1/kubeconfig"))?;
        let config: Value = serde_yaml_ng::from_str(&text)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let mut tls = coracle_proto::tls::client_config(
            &decode(&cluster["certificate-authority-data"])?,
            &decode(&user["client-certificate-data"])?,
            &decode(&user["client-key-data"])?,
        )?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = Arc::new(tls);
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = coracle_proto::tls::connect(&self.leader, tls.clone()).await?;
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            senders.push(sender);
        }
        Ok(RestDoor { senders })
    }

    /// A member's certificate of the bench's own, signed with the CA key of the data dir.
    fn grpc(&self) -> Result<GrpcDoor> {
        let pki = self.folder.path().join("control-1/pki");
        let read =
            |name: &str| std::fs::read_to_string(pki.join(name)).with_context(|| format!("reading {name}"));
        let issuer = rcgen::Issuer::from_ca_cert_pem(
            &read("peer-ca.crt")?,
            rcgen::KeyPair::from_pem(&read("peer-ca.key")?)?,
        )?;
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "coracle:control");
        params.distinguished_name.push(rcgen::DnType::CommonName, "bench");
        let certificate = params.signed_by(&key, &issuer)?.pem();
        let tls =
            coracle_proto::tls::client_config(&read("serving-ca.crt")?, &certificate, &key.serialize_pem())?;
        let channels = (0..CONNECTIONS).map(|_| coracle_proto::tls::channel(&self.leader, tls.clone()));
        Ok(GrpcDoor { clients: channels.map(LeaderClient::new).collect() })
    }
}

fn cli(binary: &Path, folder: &Path, arguments: &[&str]) -> Result<String> {
    let kubeconfig = folder.join("control-1/kubeconfig");
    let output = Command::new(binary).args(arguments).arg("--kubeconfig").arg(kubeconfig).output()?;
    if !output.status.success() {
        bail!("coracle {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Waits until all three are voters; answers the leader's address.
async fn wait_voters(binary: &Path, folder: &Path) -> Result<String> {
    let deadline = std::time::Instant::now() + VOTERS_WITHIN;
    loop {
        let members = cli(binary, folder, &["cluster", "members"])?;
        let rows: Vec<Vec<&str>> =
            members.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let voting = rows.iter().filter(|row| matches!(row.get(3), Some(&"leader" | &"voter"))).count();
        let leader = rows.iter().find(|row| row.get(3) == Some(&"leader"));
        if let (3, Some(leader)) = (voting, leader) {
            return Ok(leader[2].to_string());
        }
        if std::time::Instant::now() > deadline {
            bail!("three control nodes did not become voters:\n{members}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn decode(field: &Value) -> Result<String> {
    use base64::Engine;
    let text = field.as_str().context("the kubeconfig lacks a field")?;
    Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
}

fn config_map(key: u64) -> Vec<u8> {
    let value = "x".repeat(VALUE_BYTES);
    format!(
        r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"bench-{key}","namespace":"default"}},"data":{{"value":"{value}","at":"{}"}}}}"#,
        std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()
    )
    .into_bytes()
}

struct RestDoor {
    senders: Vec<SendRequest<Full<Bytes>>>,
}

impl RestDoor {
    fn call(
        &self,
        client: usize,
        method: &'static str,
        path: String,
        body: Vec<u8>,
    ) -> BoxFuture<'static, Result<u16>> {
        let mut sender = self.senders[client % self.senders.len()].clone();
        Box::pin(async move {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("https://{}{path}", coracle_proto::tls::SERVER_NAME))
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body)))?;
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::ensure!(
                status < 300 || status == 404,
                "HTTP {status}: {}",
                String::from_utf8_lossy(&body)
            );
            Ok(status)
        })
    }
}

const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";

impl Door for RestDoor {
    fn name(&self) -> &'static str {
        "coracle, REST"
    }

    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let put = self.call(client, "PUT", format!("{COLLECTION}/bench-{key}"), config_map(key));
        let post = self.call(client, "POST", COLLECTION.into(), config_map(key));
        Box::pin(async move {
            if put.await? == 404 {
                post.await?;
            }
            Ok(())
        })
    }

    fn get(&self, client: usize, key: u64) -> Option<BoxFuture<'static, Result<()>>> {
        let get = self.call(client, "GET", format!("{COLLECTION}/bench-{key}"), Vec::new());
        Some(Box::pin(async move {
            anyhow::ensure!(get.await? == 200, "coracle lost key {key}");
            Ok(())
        }))
    }
}

/// The bench is one client of the store; its requests are told apart by their sequence.
static SEQUENCE: AtomicU64 = AtomicU64::new(1);

fn client_id() -> u64 {
    u64::from(std::process::id())
}

struct GrpcDoor {
    clients: Vec<LeaderClient<Channel>>,
}

impl Door for GrpcDoor {
    fn name(&self) -> &'static str {
        "coracle, gRPC"
    }

    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let mut leader = self.clients[client % self.clients.len()].clone();
        Box::pin(async move {
            let number = key;
            let key = ObjectKey::new("configmaps", "bench", &format!("bench-{key}"));
            let draft = config_map(number).into();
            let transaction =
                Transaction { preconditions: Vec::new(), writes: vec![Write::Put { key, draft }] };
            let id = RequestId { client: client_id(), sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed) };
            let transaction = coracle_store::encode_transaction(&Request { id, transaction });
            let answer = leader.propose(ProposeRequest { transaction }).await?.into_inner();
            let outcome = coracle_store::decode_outcome(&answer.outcome)?;
            anyhow::ensure!(outcome.is_ok(), "refused: {outcome:?}");
            Ok(())
        })
    }

    fn get(&self, _client: usize, _key: u64) -> Option<BoxFuture<'static, Result<()>>> {
        None
    }
}
