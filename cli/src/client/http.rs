//! One HTTP/1.1 request over a connection of its own to a control node.

use std::{io, sync::Arc};

use bytes::Bytes;
use coracle_proto::tls::{self, TlsError};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use thiserror::Error;

use super::access::Access;

/// What a request carries. It may be sent again.
pub type Body = Full<Bytes>;

/// A control node that can be asked.
pub struct Server {
    /// `host:port`
    address: String,
    /// Of its certificate.
    name: ServerName<'static>,
    /// What stands before all paths, where the API is not at the root.
    prefix: String,
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
    /// It may have seen all of it.
    #[error("no answer within {0} s")]
    Silent(u64),
}

impl Server {
    /// `address` is one of `access.addresses`.
    pub fn new(address: &str, access: &Access) -> Result<Self, TlsError> {
        let (address, prefix) = address.split_at(address.find('/').unwrap_or(address.len()));
        Ok(Self {
            address: address.to_owned(),
            name: access.server_name.clone().unwrap_or_else(tls::server_name),
            prefix: prefix.to_owned(),
            tls: tls::with_alpn(&access.tls()?, b"http/1.1"),
        })
    }

    /// Sends a request whose URI is a path and a query.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let unsendable = |error: http::Error| SendError::NotSent(io::Error::other(error));
        if !self.prefix.is_empty() {
            let uri = format!("{}{}", self.prefix, request.uri()).parse::<Uri>();
            *request.uri_mut() = uri.map_err(|error| unsendable(error.into()))?;
        }
        let host = HeaderValue::from_str(&self.address).map_err(|error| unsendable(error.into()))?;
        request.headers_mut().entry(header::HOST).or_insert(host);
        let stream = tls::connect_named(&self.address, self.name.clone(), self.tls.clone());
        let stream = stream.await.map_err(SendError::NotSent)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer's body, or with whoever reads it.
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }
}
