//! An administrator's clients of one control node, by the kubeconfig that it writes: REST and gRPC.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use bytes::Bytes;
use coracle_objects::Transaction;
use coracle_proto::{
    MESSAGE_BYTES_MAX,
    cluster::{StatusRequest, StatusResponse, cluster_client::ClusterClient},
    store::{TxnRequest, store_client::StoreClient},
    tls,
};
use coracle_store::{FIRST_LEVEL, Levels, Outcome, Request, RequestId, decode_outcome, encode_transaction};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::Channel;

/// How to reach one control node.
#[derive(Clone)]
pub struct Client {
    address: String,
    ca: String,
    tls: rustls::ClientConfig,
}

impl Client {
    /// Certificates from the kubeconfig, but another address than it names.
    pub fn of(kubeconfig: &Path, address: &str) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig)
            .with_context(|| format!("reading {}", kubeconfig.display()))?;
        let config: Value = serde_yaml_ng::from_str(&text)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let ca = decode(&cluster["certificate-authority-data"])?;
        let tls = tls::client_config(
            &ca,
            &decode(&user["client-certificate-data"])?,
            &decode(&user["client-key-data"])?,
        )?;
        Ok(Self { address: address.to_owned(), ca, tls })
    }

    /// The same door for who has no certificate.
    pub fn anonymous(&self) -> Result<Self> {
        let builder = rustls::ClientConfig::builder_with_provider(tls::provider());
        let builder = builder.with_safe_default_protocol_versions()?;
        let tls = builder.with_root_certificates(tls::roots(&self.ca)?).with_no_client_auth();
        Ok(Self { tls, ..self.clone() })
    }

    pub fn channel(&self) -> Channel {
        tls::channel(&self.address, self.tls.clone())
    }

    pub fn store(&self) -> Store {
        let client = StoreClient::new(self.channel());
        Store { client: client.max_decoding_message_size(MESSAGE_BYTES_MAX) }
    }

    pub async fn status(&self) -> Result<StatusResponse> {
        Ok(ClusterClient::new(self.channel()).status(StatusRequest::default()).await?.into_inner())
    }

    /// A bare connection that speaks HTTP/1.1.
    pub async fn raw(&self) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>> {
        Ok(tls::connect(&self.address, tls::with_alpn(&self.tls, b"http/1.1")).await?)
    }

    pub async fn rest(&self) -> Result<Rest> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tls::connect(&self.address, Arc::new(tls)).await?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(2 << 20).initial_connection_window_size(16 << 20);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Rest { sender })
    }
}

fn decode(field: &Value) -> Result<String> {
    let text = field.as_str().context("the kubeconfig lacks a field")?;
    Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Rest {
    sender: SendRequest<Full<Bytes>>,
}

impl Rest {
    pub async fn call(&self, method: &str, path: &str, body: Vec<u8>) -> Result<(u16, Bytes)> {
        let (status, body) = self.send(method, path, body).await?;
        Ok((status, body.collect().await?.to_bytes()))
    }

    /// A GET that must succeed, as JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.call("GET", path, Vec::new()).await?;
        ensure!(status == 200, "GET {path}: HTTP {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// What `/metrics` says of a metric that has no labels.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let (_, metrics) = self.call("GET", "/metrics", Vec::new()).await?;
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name} in /metrics"))?.trim().parse()?)
    }

    /// The status, and a body that may never end.
    pub async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> Result<(u16, Incoming)> {
        self.send_as("application/json", method, path, body).await
    }

    /// The same with a body of another type.
    pub async fn send_as(
        &self,
        content_type: &str,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<(u16, Incoming)> {
        let mut sender = self.sender.clone();
        let request = http::Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", tls::SERVER_NAME))
            .header("content-type", content_type)
            .body(Full::new(body.into()))?;
        let response = sender.send_request(request).await?;
        Ok((response.status().as_u16(), response.into_body()))
    }
}

/// The highest sequence that this process has used for a request or heard of from a store.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// The identity of a new request of this client: its sequence is above all that the stores have told this process of.
pub fn new_request(client: u64) -> RequestId {
    RequestId { client, sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed) + 1 }
}

/// The store's gRPC door.
#[derive(Clone)]
pub struct Store {
    pub client: StoreClient<Channel>,
}

impl Store {
    /// The outcome of a transaction. With the same id it may be tried again, at any member.
    pub async fn txn(&self, id: RequestId, transaction: Transaction) -> Result<Outcome, tonic::Status> {
        let transaction = encode_transaction(&Request { id, transaction }, FIRST_LEVEL);
        let answer = match self.client.clone().txn(TxnRequest { transaction }).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let clock = status
                    .metadata()
                    .get("coracle-clock")
                    .and_then(|clock| clock.to_str().ok()?.parse().ok());
                SEQUENCE.fetch_max(clock.unwrap_or(0), Ordering::Relaxed);
                return Err(status);
            }
        };
        SEQUENCE.fetch_max(answer.clock, Ordering::Relaxed);
        decode_outcome(&answer.outcome, Levels::default())
            .map_err(|error| tonic::Status::internal(error.to_string()))
    }
}
