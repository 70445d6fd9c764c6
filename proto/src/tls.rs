//! TLS between Coracle's own processes: configurations, and gRPC channels over them.
//!
//! All control nodes serve one fixed name, [`SERVER_NAME`], beside their addresses. Clients of ours check that name
//! and the serving CA, so a control node may change its address without a new certificate.

use std::{
    io,
    sync::{Arc, Once},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

/// In the certificate of every control node.
pub const SERVER_NAME: &str = "control.coracle.internal";

/// Until a TCP connection and a TLS handshake must have come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How soon a channel finds out that the other side has fallen silent and closed nothing.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// Without a byte for so long, an HTTP/2 ping is sent.
    pub interval: Duration,
    /// Until it must be answered.
    pub timeout: Duration,
}

/// What holds where nothing else is said.
const KEEP_ALIVE: KeepAlive = KeepAlive { interval: Duration::from_secs(2), timeout: Duration::from_secs(2) };

/// Bytes that a peer may send ahead on one stream and on one connection.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// The same of streams whose readers may be slow, and of how many of them together.
const SLOW_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const SLOW_STREAMS: u32 = 1024;

/// Certificates begin this much before they are made, for clocks that are behind.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// Why keys and certificates do not make a TLS configuration.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("the {what} is not valid PEM")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("there is no certificate in the {what}")]
    Empty { what: &'static str },
    #[error("the certificate, its key and the CA do not fit together")]
    Config(#[from] rustls::Error),
    #[error("the {what} cannot be read")]
    Unreadable { what: &'static str },
    #[error("the CA cannot verify client certificates")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// A TLS configuration that may be replaced: each connection takes the one of its moment, and goes on with it. So
/// certificates are renewed without a restart. Clones share it.
#[derive(Debug)]
pub struct Current<C>(Arc<ArcSwap<C>>);

/// For connections that are opened.
pub type ClientTls = Current<ClientConfig>;

/// For connections that are accepted.
pub type ServerTls = Current<ServerConfig>;

impl<C> Current<C> {
    /// The configuration for a connection that begins now.
    pub fn get(&self) -> Arc<C> {
        self.0.load_full()
    }

    /// Takes effect with the next connection.
    pub fn set(&self, config: C) {
        self.0.store(Arc::new(config));
    }

    /// What is shared, for who knows nothing of this type.
    pub fn shared(&self) -> Arc<ArcSwap<C>> {
        self.0.clone()
    }
}

impl<C> Clone for Current<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C> From<C> for Current<C> {
    fn from(config: C) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }
}

/// The one cryptography provider of all our TLS. Also made the process' default, for libraries that ask for it.
pub fn provider() -> Arc<CryptoProvider> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // Another part of the process may have installed one already; ours does not depend on it.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a PEM text, in order; at least one.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if certificates.is_empty() { Err(TlsError::Empty { what }) } else { Ok(certificates) }
}

/// The private key of a PEM text.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|source| TlsError::Pem { what: "private key", source })
}

/// A store that trusts the certificates of a PEM text.
pub fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "CA")? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER): what a join token pins.
pub fn public_key_pin(certificate: &CertificateDer<'_>) -> Result<[u8; 32], TlsError> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    Ok(Sha256::digest(parsed.subject_public_key_info()).into())
}

/// When the first certificate of a PEM text is to be renewed: when two thirds of its life are over.
pub fn renewal_due(pem: &str) -> Result<SystemTime, TlsError> {
    let (issued, ends) = life(pem)?;
    Ok(issued + ends.duration_since(issued).unwrap_or_default() * 2 / 3)
}

/// When the first certificate of a PEM text was issued by us, and when it ends.
pub fn life(pem: &str) -> Result<(SystemTime, SystemTime), TlsError> {
    let what = "certificate";
    let certificate = certificates(pem, what)?.remove(0);
    let parsed = x509_parser::parse_x509_certificate(&certificate);
    let (_, parsed) = parsed.map_err(|_| TlsError::Unreadable { what })?;
    let moment = |unix: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(unix.max(0) as u64);
    let validity = parsed.validity();
    Ok((moment(validity.not_before.timestamp()) + BACKDATED, moment(validity.not_after.timestamp())))
}

/// A client that trusts `ca_pem` and shows `cert_pem`. Without ALPN: the user of it sets what it speaks.
pub fn client_config(ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_auth_cert(certificates(cert_pem, "client certificate")?, private_key(key_pem)?)?)
}

/// A client that trusts `ca_pem` and shows no certificate. Without ALPN.
pub fn anonymous_client_config(ca_pem: &str) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth())
}

/// A server that shows `cert_pem` and accepts client certificates of any of `client_ca_pems`. Where `required` is
/// false a client may come without one. Without ALPN.
pub fn server_config(
    cert_pem: &str,
    key_pem: &str,
    client_ca_pems: &[&str],
    required: bool,
) -> Result<ServerConfig, TlsError> {
    let mut trusted = RootCertStore::empty();
    for ca_pem in client_ca_pems {
        trusted.roots.extend(roots(ca_pem)?.roots);
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted.into(), provider());
    let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
    Ok(ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(certificates(cert_pem, "serving certificate")?, private_key(key_pem)?)?)
}

/// Opens a TLS connection to a control node at `host:port`, within [`CONNECT_TIMEOUT`].
pub async fn connect(address: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    connect_named(address, server_name(), config).await
}

/// The name that all control nodes' certificates have.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("the fixed name is a DNS name")
}

/// As [`connect`], to who has a certificate of this name.
pub async fn connect_named(
    address: &str,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, tcp).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {address} in time"))),
    }
}

/// A gRPC channel to a control node at `host:port`: connects at the first call and again after each loss.
///
/// An address that is not `host:port` gives a channel whose calls fail as unavailable.
pub fn channel(address: &str, tls: impl Into<ClientTls>) -> Channel {
    attentive_channel(address, tls, KEEP_ALIVE)
}

/// As [`channel`], with its own idea of how long the other side may be silent.
pub fn attentive_channel(address: &str, tls: impl Into<ClientTls>, keep_alive: KeepAlive) -> Channel {
    let KeepAlive { interval, timeout } = keep_alive;
    let endpoint = endpoint(address).http2_keep_alive_interval(interval).keep_alive_timeout(timeout);
    lazy(address, endpoint, tls.into())
}

/// As [`channel`], for streams whose readers may be slow, logs say: each is held up by itself, and has little on its way.
pub fn streaming_channel(address: &str, tls: impl Into<ClientTls>) -> Channel {
    let endpoint = endpoint(address)
        .initial_stream_window_size(SLOW_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(SLOW_STREAM_WINDOW_BYTES * SLOW_STREAMS);
    lazy(address, endpoint, tls.into())
}

fn lazy(address: &str, endpoint: Endpoint, tls: ClientTls) -> Channel {
    let target = address.to_owned();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (target, config) = (target.clone(), with_alpn(&tls.get(), b"h2"));
        async move { connect(&target, config).await.map(TokioIo::new) }
    }))
}

/// The configuration for connections that speak this protocol.
pub fn with_alpn(config: &ClientConfig, protocol: &[u8]) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// The HTTP/2 settings of all our channels.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    // The connector does TLS and ignores the URI, which only fills the `:authority` of requests.
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap_or_else(|_| Endpoint::from_static("http://address.invalid"))
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE.interval)
        .keep_alive_timeout(KEEP_ALIVE.timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}
