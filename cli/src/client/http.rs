//! One HTTP/1.1 request over a connection of its own to a control node.

use std::{io, sync::Arc};

use bytes::Bytes;
use coracle_proto::tls::{self, TlsError};
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use thiserror::Error;

use super::access::Access;

/// What a request carries. It may be sent again.
pub type Body = Full<Bytes>;

/// A control node that can be asked.
pub struct Server {
    /// `host:port`
    address: String,
    tls: Arc<ClientConfig>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum SendError {
    /// The server has certainly seen nothing of the request.
    #[error("connecting")]
    NotSent(#[source] io::Error),
    #[error("sending the request")]
    Broken(#[from] hyper::Error),
}

impl Server {
    pub fn new(address: &str, access: &Access) -> Result<Self, TlsError> {
        let config = tls::client_config(&access.ca_pem, &access.certificate_pem, &access.key_pem)?;
        let tls = tls::with_alpn(&config, b"http/1.1");
        Ok(Self { address: address.to_owned(), tls })
    }

    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let stream = tls::connect(&self.address, self.tls.clone()).await.map_err(SendError::NotSent)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer's body, or with whoever reads it.
        tokio::spawn(connection);
        let host = HeaderValue::from_str(&self.address);
        let host = host.map_err(|error| SendError::NotSent(io::Error::other(error)))?;
        request.headers_mut().entry(header::HOST).or_insert(host);
        Ok(sender.send_request(request).await?)
    }
}
