//! The cluster's own registry, as a client: the OCI distribution API on the control nodes.

use std::{fs::File, io::Write, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use coracle_proto::tls::{self, ClientTls};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Name, PullError, reference::is_digest};

/// The largest manifest that is read, in bytes. Source: registries cap them at 4 MiB.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Until a registry must have begun to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the next piece of a blob must have come.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

const MANIFEST_TYPES: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// Layers that hold WebAssembly: of the present format and of the one before it.
const WASM_TYPES: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

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
    /// Of the manifest itself.
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

    /// Fetches and reads the manifest of an image.
    pub async fn manifest(&self, image: &str, name: &Name) -> Result<Manifest, PullError> {
        let path = format!("/v2/{}/manifests/{}", name.repository, name.reference());
        let response = self.get(image, &path).await?;
        let body = Limited::new(response.into_body(), MANIFEST_BYTES_MAX);
        let bytes = match tokio::time::timeout(PIECE_TIMEOUT, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(bad(image, format!("the manifest could not be read: {error}"))),
            Err(_) => return Err(bad(image, "the manifest did not come in time".into())),
        };
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        if let Some(expected) = name.digest.as_ref().filter(|expected| **expected != digest) {
            let (image, expected) = (image.to_owned(), expected.clone());
            return Err(PullError::WrongDigest { image, expected, found: digest });
        }
        read_manifest(&bytes, digest).map_err(|reason| bad(image, reason))
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
            .header("accept", MANIFEST_TYPES)
            .body(Empty::<Bytes>::new())?;
        Ok(sender.send_request(request).await?)
    }
}

fn bad(image: &str, reason: String) -> PullError {
    PullError::BadManifest { image: image.to_owned(), reason }
}

fn read_manifest(bytes: &[u8], digest: String) -> Result<Manifest, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        media_type: String,
        digest: String,
        size: u64,
    }
    #[derive(Deserialize)]
    struct Raw {
        layers: Vec<Layer>,
    }
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    let mut wasm = raw.layers.iter().filter(|layer| WASM_TYPES.contains(&layer.media_type.as_str()));
    let Some(layer) = wasm.next() else {
        let types: Vec<&str> = raw.layers.iter().map(|layer| layer.media_type.as_str()).collect();
        return Err(format!(
            "it holds no WebAssembly (its layers are {types:?}); build the program for wasm32-wasip2 and push the \
             .wasm file with `coracle push`"
        ));
    };
    if wasm.next().is_some() {
        return Err("it holds more than one WebAssembly layer".to_owned());
    }
    if !is_digest(&layer.digest) {
        return Err(format!("its layer has the digest {:?}, which is no sha256", layer.digest));
    }
    Ok(Manifest { digest, layer_digest: layer.digest.clone(), layer_size: layer.size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_or_refused_with_a_reason() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let manifest = |media_type: &str, digest: &str| {
            format!(r#"{{"layers":[{{"mediaType":"{media_type}","digest":"{digest}","size":7}}]}}"#)
        };
        let read = |text: &str| read_manifest(text.as_bytes(), "sha256:11".into());
        for media_type in WASM_TYPES {
            let expected =
                Manifest { digest: "sha256:11".into(), layer_digest: digest.clone(), layer_size: 7 };
            assert_eq!(read(&manifest(media_type, &digest)), Ok(expected));
        }
        let tar = read(&manifest("application/vnd.oci.image.layer.v1.tar+gzip", &digest)).unwrap_err();
        assert!(tar.contains("holds no WebAssembly"), "{tar}");
        assert!(read(&manifest("application/wasm", "../../etc/passwd")).unwrap_err().contains("no sha256"));
        assert!(read("nonsense").is_err());
    }
}
