//! The cluster's own registry, as a client: the OCI distribution API on the control nodes.

use std::{fs::File, io::Write, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use coracle_proto::tls::{self, ClientTls};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use serde::Deserialize;
use sha2::{Digest, Sha256, Sha512};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Name, PullError, reference::is_digest};

/// The largest manifest that is read, in bytes. Source: registries cap them at 4 MiB.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Until a registry must have begun to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the next piece of a blob must have come.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Manifests that are read of one image: an index names an image, or another index.
const MANIFESTS_MAX: usize = 4;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.oci.image.index.v1+json, \
                              application/vnd.docker.distribution.manifest.v2+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json";
/// What images for WebAssembly call their platform, the one that is taken first in front. The architecture is `wasm`, or
/// begins with it.
const SYSTEMS: [&str; 4] = ["wasip2", "wasip3", "wasi", "wasip1"];
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
            match read_manifest(&bytes, meant).map_err(|reason| bad(image, reason))? {
                Read::Image(manifest) => return Ok(manifest),
                Read::Index { chosen } => reference = chosen,
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
            .header("accept", MANIFEST_TYPES)
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

/// What a manifest is.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Image(Manifest),
    /// With the digest of the one that is for WebAssembly.
    Index {
        chosen: String,
    },
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// The manifest of an index that is for WebAssembly. One that is alone and says no platform is taken for it.
fn choose(listed: &[Listed]) -> Result<String, String> {
    let rank = |listed: &&Listed| {
        let platform =
            listed.platform.as_ref().filter(|platform| platform.architecture.starts_with("wasm"))?;
        Some(SYSTEMS.iter().position(|system| *system == platform.os).unwrap_or(SYSTEMS.len()))
    };
    let best = listed.iter().filter(|listed| rank(listed).is_some()).min_by_key(rank);
    let alone = listed.first().filter(|only| listed.len() == 1 && only.platform.is_none());
    let Some(found) = best.or(alone) else {
        let names = |platform: &Platform| format!("{}/{}", platform.os, platform.architecture);
        let platforms: Vec<String> =
            listed.iter().map(|listed| listed.platform.as_ref().map_or("none".to_owned(), names)).collect();
        return Err(format!("its index holds no image for wasi/wasm (its platforms are {platforms:?})"));
    };
    let hex = |prefix: &str, length: usize| {
        let digits = found.digest.strip_prefix(prefix);
        digits.is_some_and(|hex| hex.len() == length && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if !hex("sha256:", 64) && !hex("sha512:", 128) {
        return Err(format!("its index names {:?}, which is no digest", found.digest));
    }
    Ok(found.digest.clone())
}

fn read_manifest(bytes: &[u8], digest: String) -> Result<Read, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        media_type: String,
        digest: String,
        size: u64,
    }
    #[derive(Deserialize)]
    struct Raw {
        #[serde(default)]
        layers: Option<Vec<Layer>>,
        #[serde(default)]
        manifests: Option<Vec<Listed>>,
    }
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    if let Some(listed) = raw.manifests {
        return Ok(Read::Index { chosen: choose(&listed)? });
    }
    let layers = raw.layers.unwrap_or_default();
    let mut wasm = layers.iter().filter(|layer| WASM_TYPES.contains(&layer.media_type.as_str()));
    let Some(layer) = wasm.next() else {
        let types: Vec<&str> = layers.iter().map(|layer| layer.media_type.as_str()).collect();
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
    Ok(Read::Image(Manifest { digest, layer_digest: layer.digest.clone(), layer_size: layer.size }))
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
            assert_eq!(read(&manifest(media_type, &digest)), Ok(Read::Image(expected)));
        }
        let tar = read(&manifest("application/vnd.oci.image.layer.v1.tar+gzip", &digest)).unwrap_err();
        assert!(tar.contains("holds no WebAssembly"), "{tar}");
        assert!(read(&manifest("application/wasm", "../../etc/passwd")).unwrap_err().contains("no sha256"));
        assert!(read("nonsense").is_err());
    }

    #[test]
    fn an_index_gives_the_image_for_webassembly() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let listed = |letter: &str, os: &str, architecture: &str| {
            format!(
                r#"{{"digest":"{}","platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#,
                digest(letter)
            )
        };
        let bare = |letter: &str| format!(r#"{{"digest":"{}"}}"#, digest(letter));
        let chosen = |entries: &[String]| {
            let index = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
            match read_manifest(index.as_bytes(), "sha256:11".into()) {
                Ok(Read::Index { chosen }) => Ok(chosen[7..8].to_owned()),
                Ok(Read::Image(image)) => panic!("{image:?}"),
                Err(reason) => Err(reason),
            }
        };
        let linux = || listed("a", "linux", "amd64");
        assert_eq!(chosen(&[linux(), listed("b", "wasi", "wasm")]).as_deref(), Ok("b"));
        assert_eq!(
            chosen(&[listed("b", "wasip1", "wasm"), listed("c", "wasip2", "wasm")]).as_deref(),
            Ok("c")
        );
        assert_eq!(chosen(&[linux(), listed("b", "js", "wasm32")]).as_deref(), Ok("b"));
        assert_eq!(chosen(&[bare("d")]).as_deref(), Ok("d"));
        for without in [vec![], vec![linux()], vec![bare("a"), bare("b")], vec![linux(), bare("b")]] {
            let reason = chosen(&without).expect_err("it has none");
            assert!(reason.contains("no image for wasi/wasm"), "{reason}");
        }
        let wrong = chosen(&[r#"{"digest":"../x"}"#.to_owned()]).expect_err("that is no digest");
        assert!(wrong.contains("is no digest"), "{wrong}");
    }
}
