//! Joining a cluster: the token, and the one exchange that turns it into a certificate.
//!
//! The token pins the public key of the cluster's serving CA. The joiner checks the pin within the TLS handshake,
//! so a wrong server never sees the secret.

use std::{
    fmt, io,
    str::FromStr,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::{Code, Status};

use crate::{
    PROTOCOL_RANGE,
    cluster::{JoinRequest, JoinResponse, join_client::JoinClient},
    tls,
};

/// In front of every token; the digit is the version of the format.
const TOKEN_PREFIX: &str = "C1";

/// Rounds over all addresses before giving up, and the pause between two rounds: about ten seconds in all.
const ROUNDS_MAX: u32 = 20;
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// Until a control node must have answered. It waits for a write of the cluster.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The response metadata that says why a join was refused: one of the `REASON_` values.
pub const REASON_KEY: &str = "coracle-reason";
pub const REASON_TOKEN: &str = "token";
pub const REASON_CLOCK: &str = "clock";
pub const REASON_PROTOCOL: &str = "protocol";

/// What a token is for: what a joiner becomes, or what it lets do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Control,
    Node,
    /// Joins nothing: its part `id.secret` is a bearer token.
    Reader,
    /// The same, for the registry.
    Pusher,
}

/// Everything a joiner needs to know of a cluster: `C1<pin>::<role>:<id>.<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the SubjectPublicKeyInfo (DER) of the cluster's serving CA.
    pub ca_pin: [u8; 32],
    pub role: Role,
    pub id: String,
    pub secret: String,
}

/// What a joining control node tells of its build. Nodes tell nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// As `1.2.3`.
    pub version: String,
    /// The newest level that it knows: of entries, snapshots, decisions and hashes.
    pub entry_format: u32,
}

/// What joining gave.
pub struct Joined {
    /// The private key (PEM) that the certificates of the response are for. It never left this process.
    pub key_pem: String,
    pub response: JoinResponse,
}

/// Why joining did not succeed. Each says what to do.
#[derive(Debug, Error)]
pub enum JoinError {
    #[error("this is not a join token ({reason}); `coracle token create` prints one")]
    BadToken { reason: &'static str },
    #[error(
        "{address} belongs to another cluster: its CA has the public key {found}, the token was made for {expected}; \
         check the address, or get a token from this cluster with `coracle token create`"
    )]
    WrongCa { address: String, expected: String, found: String },
    #[error("the token was refused: {message}")]
    Token { message: String },
    #[error("the clocks differ: {message}; set both clocks (NTP) and try again")]
    Clock { message: String },
    #[error("no common protocol version: {message}")]
    Protocol { message: String },
    #[error("joining was refused: {message}")]
    Refused { message: String },
    #[error(
        "no control node could be reached: {tried}; check the addresses and that a control node is running"
    )]
    Unreachable { tried: String },
    #[error("no address to join was given; name a control node as host:port")]
    NoAddress,
    #[error("a key for this machine could not be made")]
    Key(#[from] rcgen::Error),
    #[error("the TLS settings for joining could not be made")]
    Tls(#[from] tls::TlsError),
}

impl Role {
    /// Whether one joins with a token of this role. The others are shown with each request.
    pub fn joins(self) -> bool {
        matches!(self, Role::Control | Role::Node)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Control => "control",
            Role::Node => "node",
            Role::Reader => "reader",
            Role::Pusher => "pusher",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        match text {
            "control" => Ok(Role::Control),
            "node" => Ok(Role::Node),
            "reader" => Ok(Role::Reader),
            "pusher" => Ok(Role::Pusher),
            _ => Err(JoinError::BadToken { reason: "its role is not control, node, reader or pusher" }),
        }
    }
}

impl JoinToken {
    /// What is shown to the cluster: the part behind the role.
    pub fn proof(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_PREFIX}{}::{}:{}.{}", hex::encode(self.ca_pin), self.role, self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, {})", self.role, self.id)
    }
}

impl FromStr for JoinToken {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let bad = |reason| JoinError::BadToken { reason };
        let rest = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(bad("it does not begin with C1"))?;
        let (pin, rest) = rest.split_once("::").ok_or(bad("it has no `::`"))?;
        let mut ca_pin = [0; 32];
        hex::decode_to_slice(pin, &mut ca_pin).map_err(|_| bad("its CA pin is not 64 hexadecimal digits"))?;
        let (role, proof) = rest.split_once(':').ok_or(bad("it has no role"))?;
        let (id, secret) = proof.split_once('.').ok_or(bad("it has no secret"))?;
        if id.is_empty() || secret.is_empty() {
            return Err(bad("its id or its secret is empty"));
        }
        Ok(Self { ca_pin, role: role.parse()?, id: id.into(), secret: secret.into() })
    }
}

/// Joins the cluster of `token` through one of `addresses` (`host:port`). `name` is the node's or member's name, a
/// DNS label; `advertise` the `host:port` under which others will reach it.
///
/// Tries all addresses for about ten seconds while none answers; a refusal ends it at once.
pub async fn join(
    addresses: &[String],
    token: &JoinToken,
    name: &str,
    advertise: &str,
) -> Result<Joined, JoinError> {
    join_as(addresses, token, name, advertise, &Build::default()).await
}

/// As [`join`], for a control node, which the cluster must know to be no older than itself.
pub async fn join_as(
    addresses: &[String],
    token: &JoinToken,
    name: &str,
    advertise: &str,
    build: &Build,
) -> Result<Joined, JoinError> {
    if addresses.is_empty() {
        return Err(JoinError::NoAddress);
    }
    let (key_pem, csr_pem) = signing_request()?;
    let mut tried = Vec::new();
    for round in 0..ROUNDS_MAX {
        if round > 0 {
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        tried.clear();
        for address in addresses {
            let request = JoinRequest {
                role: token.role.to_string(),
                token: token.proof(),
                csr_pem: csr_pem.clone(),
                name: name.to_owned(),
                advertise: advertise.to_owned(),
                protocol_min: *PROTOCOL_RANGE.start(),
                protocol_max: *PROTOCOL_RANGE.end(),
                clock_unix_ms: unix_ms(),
                version: build.version.clone(),
                entry_format: build.entry_format,
            };
            match attempt(address, token, request).await {
                Ok(response) => return Ok(Joined { key_pem, response }),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(reason)) => tried.push(format!("{address} ({reason})")),
            }
        }
    }
    Err(JoinError::Unreachable { tried: tried.join(", ") })
}

/// A new key (PEM) and a request that it be certified. The server chooses everything else.
pub fn signing_request() -> Result<(String, String), JoinError> {
    let key = rcgen::KeyPair::generate()?;
    let csr_pem = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), csr_pem))
}

/// Why one attempt at one address failed.
enum Attempt {
    Final(JoinError),
    Again(String),
}

async fn attempt(address: &str, token: &JoinToken, request: JoinRequest) -> Result<JoinResponse, Attempt> {
    let stream = connect_pinned(address, token).await?;
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let once = tower::service_fn(move |_| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted)) }
    });
    let channel = tls::endpoint(address)
        .timeout(ANSWER_TIMEOUT)
        .connect_with_connector(once)
        .await
        .map_err(|error| Attempt::Again(error.to_string()))?;
    match JoinClient::new(channel).join(request).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(refusal(&status)),
    }
}

/// TLS up to the end of the handshake, with the CA checked against the token's pin and nothing sent yet.
async fn connect_pinned(address: &str, token: &JoinToken) -> Result<TlsStream<TcpStream>, Attempt> {
    let verifier = Arc::new(PinnedCa { pin: token.ca_pin, found: OnceLock::new() });
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Attempt::Final(JoinError::Tls(error.into())))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    tls::connect(address, config.into()).await.map_err(|error| {
        if let Some(found) = verifier.found.get() {
            let expected = hex::encode(token.ca_pin);
            return Attempt::Final(JoinError::WrongCa {
                address: address.into(),
                expected,
                found: found.clone(),
            });
        }
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>());
        match inner {
            Some(RustlsError::InvalidCertificate(
                CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
                | CertificateError::Expired
                | CertificateError::ExpiredContext { .. },
            )) => Attempt::Final(JoinError::Clock {
                message: format!("by this machine's clock the certificate of {address} is not valid now"),
            }),
            _ => Attempt::Again(error.to_string()),
        }
    })
}

fn refusal(status: &Status) -> Attempt {
    let message = status.message().to_owned();
    let reason = status.metadata().get(REASON_KEY).and_then(|reason| reason.to_str().ok());
    match (reason, status.code()) {
        (Some(REASON_TOKEN), _) => Attempt::Final(JoinError::Token { message }),
        (Some(REASON_CLOCK), _) => Attempt::Final(JoinError::Clock { message }),
        (Some(REASON_PROTOCOL), _) => Attempt::Final(JoinError::Protocol { message }),
        (_, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded) => {
            Attempt::Again(message)
        }
        _ => Attempt::Final(JoinError::Refused { message }),
    }
}

/// A refusal as a gRPC status that [`join`] tells apart by its reason.
pub fn refuse(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(REASON_KEY, tonic::metadata::MetadataValue::from_static(reason));
    status
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Trusts exactly the CA with the pinned public key, which the server sends along in its chain.
#[derive(Debug)]
struct PinnedCa {
    pin: [u8; 32],
    /// The public key that a server without the pinned CA showed at the root end of its chain, in hexadecimal.
    found: OnceLock<String>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let pinned = intermediates.iter().find(|ca| tls::public_key_pin(ca).is_ok_and(|pin| pin == self.pin));
        let Some(ca) = pinned else {
            let shown = intermediates.last().unwrap_or(end_entity);
            let found = tls::public_key_pin(shown).map_or_else(|_| "no readable key".into(), hex::encode);
            // A second handshake of the same verifier would find the first one's answer, which is as true.
            let _ = self.found.set(found);
            return Err(RustlsError::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), tls::provider())
            .build()
            .map_err(|error| RustlsError::General(error.to_string()))?;
        let name = ServerName::try_from(tls::SERVER_NAME).expect("the fixed name is a DNS name");
        verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, cert, dss, &tls::provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, cert, dss, &tls::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form() {
        let token =
            JoinToken { ca_pin: [7; 32], role: Role::Node, id: "ab12".into(), secret: "s3cret".into() };
        let text = token.to_string();
        assert_eq!(text, format!("C1{}::node:ab12.s3cret", "07".repeat(32)));
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn a_bad_token_says_what_is_wrong_with_it() {
        let pin = "07".repeat(32);
        for (text, reason) in [
            ("K10abc".to_owned(), "it does not begin with C1"),
            ("C1abc".into(), "it has no `::`"),
            ("C1abc::node:a.b".into(), "its CA pin is not 64 hexadecimal digits"),
            (format!("C1{pin}::a.b"), "it has no role"),
            (format!("C1{pin}::king:a.b"), "its role is not control, node, reader or pusher"),
            (format!("C1{pin}::node:ab"), "it has no secret"),
            (format!("C1{pin}::node:.b"), "its id or its secret is empty"),
        ] {
            let error = text.parse::<JoinToken>().unwrap_err();
            assert!(
                matches!(&error, JoinError::BadToken { reason: found } if *found == reason),
                "{text}: {error}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_without_a_server_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let token = JoinToken { ca_pin: [7; 32], role: Role::Node, id: "a".into(), secret: "b".into() };
        let error = join(std::slice::from_ref(&address), &token, "n", "127.0.0.1:1").await.err().unwrap();
        assert!(matches!(&error, JoinError::Unreachable { tried } if tried.contains(&address)), "{error}");
    }
}
