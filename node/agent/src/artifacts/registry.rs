//! The cluster's own registry, as a client: the OCI distribution API on the control nodes.

use std::{fs::File, io::Write, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use coracle_objects::image::{Content, MANIFEST_TYPES, MANIFESTS_MAX, content};
use coracle_proto::tls::{self, ClientTls};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use sha2::{Digest, Sha256, Sha512};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Name, PullError};

/// The largest manifest that is read, in bytes. Source: registries cap them at 4 MiB.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Until a registry must have begun to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the next piece of a blob must have come.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// The control nodes to ask, and how.
#[derive(Clone)]
pub struct Registry {
    addresses: Arc<RwLock<Vec<String>>>,
    tls: Option<ClientTls>,
    /// Asked without TLS.
    #[cfg(test)]
    plain: bool,
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Of the manifest that the image's name means: itself, or the index that it is in.
    pub digest: String,
    pub layer_digest: String,
    pub layer_size: u64,
}

impl Registry {
    /// `addresses` (`host:port`) may change at any time; `tls` shows this node's certificate.
    pub fn new(addresses: Arc<RwLock<Vec<String>>>, tls: ClientTls) -> Self {
        Self {
            addresses,
            tls: Some(tls),
            #[cfg(test)]
            plain: false,
        }
    }

    /// A registry that nobody serves.
    #[cfg(test)]
    pub fn without_addresses() -> Self {
        Self { addresses: Arc::default(), tls: None, plain: false }
    }

    /// A registry that is served here.
    #[cfg(test)]
    pub fn plain(address: String) -> Self {
        Self { addresses: Arc::new(RwLock::new(vec![address])), tls: None, plain: true }
    }

    /// Fetches and reads the manifest of an image; where its name means an index, that of the image in it for WebAssembly.
    pub async fn manifest(&self, image: &str, name: &Name) -> Result<Manifest, PullError> {
        let mut reference = name.reference().to_owned();
        let mut meant = None;
        for _ in 0..MANIFESTS_MAX {
            let bytes = self.manifest_bytes(image, name, &reference).await?;
            let digest = digest_as(&reference, &bytes);
            if reference.contains(':') && reference != digest {
                let (image, expected) = (image.to_owned(), reference);
                return Err(PullError::WrongDigest { image, expected, found: digest });
            }
            let meant = meant.get_or_insert(digest).clone();
            match content(&bytes).map_err(|reason| bad(image, reason))? {
                Content::Image(layer) => {
                    return Ok(Manifest {
                        digest: meant,
                        layer_digest: layer.digest,
                        layer_size: layer.size,
                    });
                }
                Content::Index { chosen } => reference = chosen,
            }
        }
        Err(bad(image, "its indexes are in each other too deeply".to_owned()))
    }

    async fn manifest_bytes(&self, image: &str, name: &Name, reference: &str) -> Result<Bytes, PullError> {
        let path = format!("/v2/{}/manifests/{reference}", name.repository);
        let response = self.get(image, &path).await?;
        let body = Limited::new(response.into_body(), MANIFEST_BYTES_MAX);
        match tokio::time::timeout(PIECE_TIMEOUT, body.collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(bad(image, format!("the manifest could not be read: {error}"))),
            Err(_) => Err(bad(image, "the manifest did not come in time".into())),
        }
    }

    /// Streams the artifact into `file` and verifies size and digest. Returns its size in bytes. It blocks where the disk
    /// does: for a thread of its own.
    pub async fn blob(
        &self,
        image: &str,
        name: &Name,
        manifest: &Manifest,
        file: &Path,
    ) -> Result<u64, PullError> {
        let disk = |source| PullError::Disk { image: image.to_owned(), source };
        let path = format!("/v2/{}/blobs/{}", name.repository, manifest.layer_digest);
        let mut body = self.get(image, &path).await?.into_body();
        let mut out = File::create(file).map_err(disk)?;
        let mut hasher = Sha256::new();
        let mut size = 0;
        loop {
            let piece = match tokio::time::timeout(PIECE_TIMEOUT, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(bad(image, format!("the transfer broke off: {error}"))),
                Err(_) => return Err(bad(image, "the transfer stalled".into())),
            };
            size += piece.len() as u64;
            if size > manifest.layer_size {
                return Err(PullError::TooLarge { image: image.to_owned(), size });
            }
            hasher.update(&piece);
            out.write_all(&piece).map_err(disk)?;
        }
        out.sync_all().map_err(disk)?;
        let found = format!("sha256:{}", hex::encode(hasher.finalize()));
        if found != manifest.layer_digest {
            let (image, expected) = (image.to_owned(), manifest.layer_digest.clone());
            return Err(PullError::WrongDigest { image, expected, found });
        }
        Ok(size)
    }

    /// Asks one control node after the other. Not found counts once all have said so: one may lag behind.
    async fn get(&self, image: &str, path: &str) -> Result<Response<Incoming>, PullError> {
        let addresses = self.addresses.read().clone();
        let mut tried = Vec::new();
        let mut missing = 0;
        for address in &addresses {
            match tokio::time::timeout(ANSWER_TIMEOUT, self.ask(address, path)).await {
                Ok(Ok(response)) if response.status().is_success() => {
                    self.prefer(address);
                    return Ok(response);
                }
                Ok(Ok(response)) if response.status() == StatusCode::NOT_FOUND => {
                    missing += 1;
                    tried.push(format!("{address} (not found)"));
                }
                Ok(Ok(response)) => tried.push(format!("{address} ({})", response.status())),
                Ok(Err(error)) => tried.push(format!("{address} ({error})")),
                Err(_) => tried.push(format!("{address} (no answer in time)")),
            }
        }
        let image = image.to_owned();
        if missing > 0 && missing == addresses.len() {
            return Err(PullError::NotFound { image });
        }
        let tried = if tried.is_empty() { "none is known".to_owned() } else { tried.join(", ") };
        Err(PullError::Unreachable { image, tried })
    }

    /// The one that answered is asked first the next time.
    fn prefer(&self, address: &str) {
        let mut addresses = self.addresses.write();
        if let Some(at) = addresses.iter().position(|known| known == address) {
            addresses[..=at].rotate_right(1);
        }
    }

    async fn ask(
        &self,
        address: &str,
        path: &str,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        #[cfg(test)]
        if self.plain {
            return Self::ask_over(tokio::net::TcpStream::connect(address).await?, address, path).await;
        }
        let tls = self.tls.as_ref().ok_or("this node has no certificate")?;
        let stream = tls::connect(address, tls::with_alpn(&tls.get(), b"http/1.1")).await?;
        Self::ask_over(stream, address, path).await
    }

    async fn ask_over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: &str,
        path: &str,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the response's body, or when that is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "registry connection ended");
            }
        });
        let request = Request::get(path)
            .header("host", address)
            .header("accept", MANIFEST_TYPES.join(", "))
            .body(Empty::<Bytes>::new())?;
        Ok(sender.send_request(request).await?)
    }
}

fn bad(image: &str, reason: String) -> PullError {
    PullError::BadManifest { image: image.to_owned(), reason }
}

/// The digest of content by the algorithm of a reference; by SHA-256 where that is a tag.
fn digest_as(reference: &str, content: &[u8]) -> String {
    match reference.starts_with("sha512:") {
        true => format!("sha512:{}", hex::encode(Sha512::digest(content))),
        false => format!("sha256:{}", hex::encode(Sha256::digest(content))),
    }
}
