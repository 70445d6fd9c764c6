//! Nodes on the loopback, and HTTP to what they serve.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coracle_proto::tls;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    cluster::Cluster,
    process::{Running, free_port},
};

/// One node of a cluster.
pub struct Node {
    pub name: String,
    pub running: Running,
    pub gateway: String,
    pub metrics: String,
    pub data_dir: PathBuf,
}

impl Node {
    /// Starts a node whose gateway and node ports are on `ip`. Returns once it listens.
    pub fn start(cluster: &Cluster, name: &str, ip: &str, more: &[String]) -> Result<Self> {
        let data_dir = cluster.path().join(name);
        let gateway = format!("{ip}:{}", free_port()?);
        let metrics = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(cluster.binary());
        command.args(["--log", "error", "node", "--name", name, "--data-dir"]).arg(&data_dir);
        command.args(["--fabric", "127.0.0.1:0", "--gateway", &gateway, "--metrics", &metrics]);
        command.args(["--join", cluster.address(0)]).args(more);
        let token = cluster.cli(&["token", "create", "--role", "node"])?;
        command.env("CORACLE_TOKEN", token.trim());
        let running = Running::start_until(&mut command, "gateway http")?;
        Ok(Self { name: name.into(), running, gateway, metrics, data_dir })
    }
}

/// Pushes a sample workload under this name.
pub fn push(cluster: &Cluster, wasm: &Path, image: &str) -> Result<()> {
    let wasm = wasm.to_str().context("the path of the sample is not UTF-8")?;
    cluster.cli(&["push", wasm, image]).map(drop)
}

/// Reads the metrics of a cluster's nodes.
pub struct Scraper {
    tls: Arc<ClientConfig>,
    token: String,
}

impl Scraper {
    /// With a token that lasts as long as any run.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let path = cluster.data_dir(0).join("pki/client-ca.crt");
        let ca = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let tls = Arc::new(tls::anonymous_client_config(&ca)?);
        let token = cluster.cli(&["token", "create", "--role", "reader", "--ttl", "7d"])?;
        Ok(Self { tls, token: token.trim().to_owned() })
    }

    /// The page of a node, over a connection of its own.
    pub async fn scrape(&self, node: &Node) -> Result<Bytes> {
        let name = ServerName::try_from(node.name.clone())?;
        let stream = tls::connect_named(&node.metrics, name, self.tls.clone()).await?;
        let request = http::Request::get("/metrics")
            .header("host", &node.name)
            .header("authorization", format!("Bearer {}", self.token))
            .body(Empty::new())?;
        let (status, page) = ask(stream, request).await?;
        ensure!(status == 200, "/metrics of {}: HTTP {status}", node.name);
        Ok(page)
    }
}

/// The status and body of one GET, over a connection of its own.
pub async fn get(address: &str, host: &str, path: &str) -> Result<(u16, Bytes)> {
    let request = http::Request::get(path).header("host", host).body(Empty::new())?;
    ask(TcpStream::connect(address).await?, request).await
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Empty<Bytes>>,
) -> Result<(u16, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let answer = match response {
        Ok(response) => {
            let status = response.status().as_u16();
            response.into_body().collect().await.map(|body| (status, body.to_bytes()))
        }
        Err(error) => Err(error),
    };
    connection.abort();
    Ok(answer?)
}
