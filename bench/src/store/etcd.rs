//! Three etcd members on the loopback, with TLS for clients and peers.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use tonic::transport::Channel;

use super::{Arrived, CONNECTIONS, Door, object};
use crate::process::{Running, free_port, peer, wait_port};

pub mod api {
    tonic::include_proto!("etcdserverpb");
}

use api::{kv_client::KvClient, maintenance_client::MaintenanceClient, watch_client::WatchClient};

/// Until a leader must be there.
const LEADER_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

pub struct EtcdCluster {
    binary: PathBuf,
    folder: tempfile::TempDir,
    certificate: String,
    key: String,
    members: Vec<Member>,
}

struct Member {
    client: u16,
    peer: u16,
    running: Option<Running>,
}

impl EtcdCluster {
    /// `None` where etcd is not installed.
    pub async fn start() -> Result<Option<Self>> {
        let Some(binary) = peer("ETCD", "etcd", "apt-get install etcd-server") else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let (certificate, key) = certificate(folder.path())?;
        let mut members = Vec::new();
        for _ in 0..3 {
            members.push(Member { client: free_port()?, peer: free_port()?, running: None });
        }
        let mut cluster = Self { binary, folder, certificate, key, members };
        for number in 0..3 {
            cluster.spawn(number)?;
        }
        for member in &cluster.members {
            wait_port(member.client)?;
        }
        cluster.leader().await?;
        Ok(Some(cluster))
    }

    fn spawn(&mut self, number: usize) -> Result<()> {
        let all: Vec<String> =
            self.members.iter().map(|member| format!("m{0}=https://127.0.0.1:{0}", member.peer)).collect();
        let Member { client, peer, .. } = &self.members[number];
        let mut command = Command::new(&self.binary);
        command
            .args(["--name", &format!("m{peer}"), "--data-dir"])
            .arg(self.folder.path().join(format!("m{peer}")));
        command.args(["--initial-cluster", &all.join(","), "--log-level", "error"]);
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
            command.arg(flag).arg(self.folder.path().join(file));
        }
        let running = Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        self.members[number].running = Some(running);
        Ok(())
    }

    pub fn kill(&mut self, number: usize) {
        if let Some(mut running) = self.members[number].running.take() {
            running.kill();
        }
    }

    /// Starts a member again that was killed; returns once it listens.
    pub fn resume(&mut self, number: usize) -> Result<()> {
        self.spawn(number)?;
        wait_port(self.members[number].client)
    }

    pub fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.members.len()).filter(|number| self.members[*number].running.is_some())
    }

    fn channel(&self, number: usize) -> Result<Channel> {
        let tls = coracle_proto::tls::client_config(&self.certificate, &self.certificate, &self.key)?;
        Ok(coracle_proto::tls::channel(&format!("127.0.0.1:{}", self.members[number].client), tls))
    }

    pub fn door(&self, number: usize) -> Result<EtcdDoor> {
        Ok(EtcdDoor { channels: (0..CONNECTIONS).map(|_| self.channel(number)).collect::<Result<_>>()? })
    }

    /// Which member leads, as soon as one does.
    pub async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + LEADER_WITHIN;
        loop {
            for number in self.alive() {
                let status =
                    MaintenanceClient::new(self.channel(number)?).status(api::StatusRequest {}).await;
                if let Ok(status) = status.map(tonic::Response::into_inner)
                    && status.leader != 0
                    && status.header.is_some_and(|header| header.member_id == status.leader)
                {
                    return Ok(number);
                }
            }
            if Instant::now() > deadline {
                bail!("no etcd member leads");
            }
            tokio::time::sleep(POLL).await;
        }
    }
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

pub struct EtcdDoor {
    channels: Vec<Channel>,
}

impl EtcdDoor {
    fn channel(&self, client: usize) -> Channel {
        self.channels[client % self.channels.len()].clone()
    }
}

impl Door for EtcdDoor {
    fn name(&self) -> &'static str {
        "etcd, gRPC"
    }

    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let mut kv = KvClient::new(self.channel(client));
        Box::pin(async move {
            let value = Bytes::from(object(key));
            kv.put(api::PutRequest { key: format!("/bench/{key}").into(), value }).await?;
            Ok(())
        })
    }

    fn get(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let mut kv = KvClient::new(self.channel(client));
        Box::pin(async move {
            let answer = kv.range(api::RangeRequest { key: format!("/bench/{key}").into() }).await?;
            ensure!(answer.into_inner().kvs.len() == 1, "etcd lost key {key}");
            Ok(())
        })
    }

    fn watch(&self, watcher: usize) -> BoxFuture<'static, Result<BoxStream<'static, Result<Arrived>>>> {
        let mut watch = WatchClient::new(self.channel(watcher));
        Box::pin(async move {
            let create = api::WatchCreateRequest {
                key: "/bench/".into(),
                range_end: "/bench0".into(),
                start_revision: 0,
            };
            let union = api::watch_request::RequestUnion::CreateRequest(create);
            let create = api::WatchRequest { request_union: Some(union) };
            // The stream of requests stays open, or etcd ends the watch.
            let requests = futures::stream::iter([create]).chain(futures::stream::pending());
            let mut answers = watch.watch(requests).await?.into_inner();
            let first = answers.message().await?.context("the watch ended before it began")?;
            ensure!(first.created, "etcd did not make the watch");
            let arrived = answers.filter_map(async |answer| match answer {
                Ok(answer) => {
                    let first = answer.events.first()?.kv.as_ref()?.value.clone();
                    Some(Ok(Arrived { events: answer.events.len() as u64, first }))
                }
                Err(status) => Some(Err(status.into())),
            });
            Ok(arrived.boxed())
        })
    }
}
