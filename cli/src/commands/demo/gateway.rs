//! One HTTP request through the gateway, on a connection of its own.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Answers (status, body).
pub async fn call(gateway: SocketAddr, host: &str, method: &str, body: &str) -> Result<(u16, String)> {
    let stream =
        TcpStream::connect(gateway).await.with_context(|| format!("connecting to the gateway {gateway}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri("/")
        .header("host", host)
        .body(Full::new(bytes::Bytes::from(body.to_string())))?;
    let response = sender.send_request(request).await.context("sending a request to the gateway")?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.context("reading the gateway's answer")?.to_bytes();
    driver.abort();
    Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
}
