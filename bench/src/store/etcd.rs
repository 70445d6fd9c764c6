//! Three etcd members on the loopback, with TLS for clients and peers.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use tonic::transport::Channel;

use super::{CONNECTIONS, Door, VALUE_BYTES};
use crate::process::{Running, free_port, peer, wait_port};

mod api {
    tonic::include_proto!("etcdserverpb");
}

use api::kv_client::KvClient;

pub struct Cluster {
    _members: Vec<Running>,
    _folder: tempfile::TempDir,
    channels: Vec<Channel>,
}

impl Cluster {
    /// `None` where etcd is not installed.
    pub async fn start() -> Result<Option<Self>> {
        let Some(etcd) = peer("ETCD", "etcd", "apt-get install etcd-server") else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let (certificate, key) = certificate(folder.path())?;
        let mut ports = Vec::new();
        for _ in 0..3 {
            ports.push((free_port()?, free_port()?));
        }
        let cluster: Vec<String> =
            ports.iter().map(|(_, peer)| format!("m{peer}=https://127.0.0.1:{peer}")).collect();
        let mut members = Vec::new();
        for (client, peer) in &ports {
            let mut command = Command::new(&etcd);
            command
                .args(["--name", &format!("m{peer}"), "--data-dir"])
                .arg(folder.path().join(format!("m{peer}")));
            command.args(["--initial-cluster", &cluster.join(","), "--log-level", "error"]);
            for (flag, port) in [
                ("--listen-client-urls", client),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer),
                ("--initial-advertise-peer-urls", peer),
            ] {
                command.args([flag, &format!("https://127.0.0.1:{port}")]);
            }
            for (flag, file) in [
                ("--cert-file", "cert.pem"),
                ("--key-file", "key.pem"),
                ("--trusted-ca-file", "cert.pem"),
                ("--peer-cert-file", "cert.pem"),
                ("--peer-key-file", "key.pem"),
                ("--peer-trusted-ca-file", "cert.pem"),
            ] {
                command.arg(flag).arg(folder.path().join(file));
            }
            members.push(Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?);
        }
        for (client, _) in &ports {
            wait_port(*client)?;
        }
        let leader = leader(&certificate, &key, &ports).await?;
        let tls = coracle_proto::tls::client_config(&certificate, &certificate, &key)?;
        let channels = (0..CONNECTIONS).map(|_| coracle_proto::tls::channel(&leader, tls.clone())).collect();
        Ok(Some(Self { _members: members, _folder: folder, channels }))
    }

    pub fn door(&self) -> Arc<dyn Door> {
        Arc::new(EtcdDoor { clients: self.channels.iter().cloned().map(KvClient::new).collect() })
    }
}

/// The member that answers a write soonest is taken for the leader: a follower forwards.
async fn leader(certificate: &str, key: &str, ports: &[(u16, u16)]) -> Result<String> {
    let tls = coracle_proto::tls::client_config(certificate, certificate, key)?;
    let mut best: Option<(std::time::Duration, String)> = None;
    for (port, _) in ports {
        let address = format!("127.0.0.1:{port}");
        let mut client = KvClient::new(coracle_proto::tls::channel(&address, tls.clone()));
        let request = || api::PutRequest { key: "probe".into(), value: "x".into() };
        client.put(request()).await.context("the first write to etcd")?;
        let begun = std::time::Instant::now();
        for _ in 0..20 {
            client.put(request()).await?;
        }
        if best.as_ref().is_none_or(|(time, _)| begun.elapsed() < *time) {
            best = Some((begun.elapsed(), address));
        }
    }
    Ok(best.context("etcd has no members")?.1)
}

/// A self-signed certificate for the loopback and the fixed name that our connector checks.
fn certificate(folder: &Path) -> Result<(String, String)> {
    let names = vec!["127.0.0.1".to_string(), coracle_proto::tls::SERVER_NAME.to_string()];
    let made = rcgen::generate_simple_self_signed(names)?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    std::fs::write(folder.join("cert.pem"), &certificate)?;
    std::fs::write(folder.join("key.pem"), &key)?;
    Ok((certificate, key))
}

struct EtcdDoor {
    clients: Vec<KvClient<Channel>>,
}

impl Door for EtcdDoor {
    fn name(&self) -> &'static str {
        "etcd, gRPC"
    }

    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let mut kv = self.clients[client % self.clients.len()].clone();
        Box::pin(async move {
            let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
            kv.put(api::PutRequest { key: format!("/bench/{key}").into(), value }).await?;
            Ok(())
        })
    }

    fn get(&self, client: usize, key: u64) -> Option<BoxFuture<'static, Result<()>>> {
        let mut kv = self.clients[client % self.clients.len()].clone();
        Some(Box::pin(async move {
            let answer = kv.range(api::RangeRequest { key: format!("/bench/{key}").into() }).await?;
            anyhow::ensure!(answer.into_inner().kvs.len() == 1, "etcd lost key {key}");
            Ok(())
        }))
    }
}
