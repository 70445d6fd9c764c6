//! Images: from a name in a pod to a file with WebAssembly in it, verified, kept by digest.
//!
//! The cluster's own registry is asked over HTTPS on the control nodes, with this node's certificate.

mod reference;
mod registry;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use coracle_core::{observe::Fetched, spec::PullPolicy};
use coracle_wasi_host::{
    digests::{DigestError, Digests},
    pool::Pool,
    shares::Holder,
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub use reference::{ImageRef, InvalidImage, Name, parse};
pub use registry::Registry;

/// The largest artifact that is fetched, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Downloads at the same time. A namespace has at most half of them.
const DOWNLOADS_MAX: usize = 4;
/// Local files that are hashed at the same time; the same.
const HASHES_MAX: usize = 4;
/// Pods that start together share one look at the registry: an answer this old is as good as a new one.
const RESOLVED_FOR: Duration = Duration::from_secs(1);

/// Why an image could not be made present. `reason` is what the container's status says.
#[derive(Debug, Error)]
pub enum PullError {
    #[error("couldn't parse image name {image:?}: {source}")]
    InvalidName { image: String, source: InvalidImage },
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull { image: String },
    #[error(
        "failed to resolve reference {image:?}: {registry} is a remote registry, and this version pulls from none yet; \
         push the file into the cluster's own registry with `coracle push FILE.wasm {repository}` and name the image \
         {repository:?}"
    )]
    Remote { image: String, registry: String, repository: String },
    #[error(
        "{image:?} is a file, and this node does not run local files; start it with --allow-local-artifacts, or push \
         the file with `coracle push`"
    )]
    LocalForbidden { image: String },
    #[error("failed to read {path}: {source}")]
    Local { path: PathBuf, source: io::Error },
    #[error(
        "failed to resolve reference {image:?}: {image}: not found in the cluster's registry; push it with `coracle \
         push FILE.wasm {image}`"
    )]
    NotFound { image: String },
    #[error("failed to pull {image:?}: no control node could serve it: {tried}")]
    Unreachable { image: String, tried: String },
    #[error("failed to pull {image:?}: {reason}")]
    BadManifest { image: String, reason: String },
    #[error("failed to pull {image:?}: it has {size} bytes, and at most {ARTIFACT_BYTES_MAX} are taken")]
    TooLarge { image: String, size: u64 },
    #[error("failed to pull {image:?}: unexpected digest: expected {expected}, found {found}")]
    WrongDigest { image: String, expected: String, found: String },
    #[error("failed to keep {image:?} on this node's disk: {source}")]
    Disk { image: String, source: io::Error },
}

impl PullError {
    /// The reason in `state.waiting`.
    pub fn reason(&self) -> &'static str {
        match self {
            PullError::InvalidName { .. } => "InvalidImageName",
            PullError::NeverPull { .. } => "ErrImageNeverPull",
            _ => "ErrImagePull",
        }
    }
}

/// An image that is on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// `name@sha256:...`, the manifest's digest; of local files the content's.
    pub image_id: String,
    /// The file.
    pub path: PathBuf,
    /// What was fetched for it now, if anything was.
    pub fetched: Option<Fetched>,
}

/// The images of a node.
pub struct Artifacts {
    /// `<root>/sha256/<hex>.wasm`, and `<root>/images/<hex of the name's digest>` with the id and the file of a name.
    root: PathBuf,
    allow_local: bool,
    registry: Registry,
    /// By image name.
    known: Mutex<BTreeMap<String, Known>>,
    /// By image id: what a name meant when its container was told to start.
    files: Mutex<BTreeMap<String, PathBuf>>,
    /// One pull of a name at a time in each namespace: none waits in another's line.
    pulls: Pulls,
    /// Threads of which each fetches, verifies and writes one file.
    downloads: Arc<Pool>,
    digests: Arc<Digests>,
}

/// (namespace, image)
type PullKey = (Arc<str>, String);
type Pulls = Mutex<BTreeMap<PullKey, Arc<tokio::sync::Mutex<()>>>>;

/// The turn to pull a name. Out of the table when nobody waits for one any more, however the pull ended.
struct PullTurn<'a> {
    pulls: &'a Pulls,
    key: PullKey,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> PullTurn<'a> {
    fn of(pulls: &'a Pulls, key: PullKey) -> Self {
        let lock = pulls.lock().entry(key.clone()).or_default().clone();
        Self { pulls, key, lock }
    }
}

impl Drop for PullTurn<'_> {
    fn drop(&mut self) {
        let mut pulls = self.pulls.lock();
        // Nobody else waits: this one and the table hold it.
        if Arc::strong_count(&self.lock) == 2 {
            pulls.remove(&self.key);
        }
    }
}

/// A file that is being fetched, removed where it did not get its name.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // One that cannot be removed now is removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

#[derive(Clone)]
struct Known {
    image_id: String,
    path: PathBuf,
    resolved_at: Option<Instant>,
}

impl Artifacts {
    pub fn new(root: PathBuf, allow_local: bool, registry: Registry) -> io::Result<Self> {
        for dir in [root.clone(), root.join("sha256"), root.join("images")] {
            crate::private::create_dir(&dir)?;
        }
        // What interrupted downloads left behind.
        crate::removal::remove_dir(&root.join("tmp"))?;
        crate::private::create_dir(&root.join("tmp"))?;
        Ok(Self {
            root,
            allow_local,
            registry,
            known: Mutex::default(),
            files: Mutex::default(),
            pulls: Mutex::default(),
            downloads: Pool::new("downloads", DOWNLOADS_MAX, 0),
            digests: Digests::new(Pool::new("image-digests", HASHES_MAX, 0), ARTIFACT_BYTES_MAX),
        })
    }

    /// The file of an image that was pulled, by its id.
    pub fn path(&self, image_id: &str) -> Option<PathBuf> {
        self.files.lock().get(image_id).cloned()
    }

    /// How many there are of what is remembered.
    pub fn held(&self) -> [(&'static str, usize); 3] {
        [
            ("names of images", self.known.lock().len()),
            ("images", self.files.lock().len()),
            ("pulls", self.pulls.lock().len()),
        ]
    }

    fn note(&self, image: &str, known: Known) {
        self.files.lock().insert(known.image_id.clone(), known.path.clone());
        self.known.lock().insert(image.to_owned(), known);
    }

    /// Makes an image present on account of `namespace`. `begun` is called where something has to be asked of a registry.
    pub async fn pull(
        &self,
        image: &str,
        namespace: &str,
        policy: PullPolicy,
        begun: impl FnOnce(),
    ) -> Result<Present, PullError> {
        let parsed =
            parse(image).map_err(|source| PullError::InvalidName { image: image.to_owned(), source })?;
        let namespace: Arc<str> = namespace.into();
        let name = match parsed {
            ImageRef::Local(path) => return self.local(image, path, &namespace).await,
            ImageRef::Remote { registry, name } => {
                let (image, repository) = (image.to_owned(), name.short());
                return Err(PullError::Remote { image, registry, repository });
            }
            ImageRef::Cluster(name) => name,
        };
        // A digest names the same bytes for ever.
        let fixed = policy != PullPolicy::Always || name.digest.is_some();
        if fixed && let Some(known) = self.recall(image) {
            return Ok(Present { image_id: known.image_id, path: known.path, fetched: None });
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NeverPull { image: image.to_owned() });
        }
        let turn = PullTurn::of(&self.pulls, (namespace.clone(), image.to_owned()));
        let _taken = turn.lock.lock().await;
        let recent = |known: &Known| known.resolved_at.is_some_and(|at| at.elapsed() < RESOLVED_FOR);
        let known = self.recall(image).filter(|known| fixed || recent(known));
        match known {
            Some(known) => Ok(Present { image_id: known.image_id, path: known.path, fetched: None }),
            None => {
                begun();
                match self.fetch(image, &name, namespace).await {
                    // Without a control plane pods run on, and start again, with what there is.
                    Err(PullError::Unreachable { tried, .. }) if let Some(known) = self.recall(image) => {
                        tracing::warn!(
                            image,
                            tried,
                            "no registry answers: the image is taken as it was last"
                        );
                        Ok(Present { image_id: known.image_id, path: known.path, fetched: None })
                    }
                    fetched => fetched,
                }
            }
        }
    }

    async fn local(&self, image: &str, path: PathBuf, namespace: &Arc<str>) -> Result<Present, PullError> {
        if !self.allow_local {
            return Err(PullError::LocalForbidden { image: image.to_owned() });
        }
        let digest = self.digests.of(&path, namespace).await.map_err(|error| match error {
            DigestError::Io(source) => {
                PullError::Local { path: path.clone(), source: io::Error::new(source.kind(), source) }
            }
            DigestError::TooLarge { bytes: size, .. } => {
                PullError::TooLarge { image: image.to_owned(), size }
            }
            DigestError::NotDone(why) => {
                PullError::Local { path: path.clone(), source: io::Error::other(why) }
            }
        })?;
        let image_id = format!("{image}@sha256:{digest}");
        let known = Known { image_id: image_id.clone(), path: path.clone(), resolved_at: None };
        self.note(image, known);
        Ok(Present { image_id, path, fetched: None })
    }

    async fn fetch(&self, image: &str, name: &Name, namespace: Arc<str>) -> Result<Present, PullError> {
        let begun = Instant::now();
        let disk = |source| PullError::Disk { image: image.to_owned(), source };
        let manifest = self.registry.manifest(image, name).await?;
        let path = self.blob_path(&manifest.layer_digest);
        let image_id = format!("{}@{}", name.repository, manifest.digest);
        let mut bytes = manifest.layer_size;
        if !path.exists() {
            let partial = self.root.join("tmp").join(hex::encode(rand::random::<[u8; 8]>()));
            let download = Download {
                registry: self.registry.clone(),
                image: image.to_owned(),
                name: name.clone(),
                manifest,
                partial: Partial(partial),
                path: path.clone(),
            };
            // A pod that ends meanwhile ends it.
            let given_up = CancellationToken::new();
            let _here = given_up.clone().drop_guard();
            let runtime = tokio::runtime::Handle::current();
            let holder = Holder { namespace, pod: None };
            let downloaded = self
                .downloads
                .call(&holder, move || runtime.block_on(given_up.run_until_cancelled(download.run())))
                .await;
            bytes = match downloaded {
                Ok(Some(downloaded)) => downloaded?,
                Ok(None) => return Err(disk(io::ErrorKind::Interrupted.into())),
                Err(not_done) => return Err(disk(io::Error::other(not_done))),
            };
        }
        self.remember(image, &image_id, &path).map_err(disk)?;
        let fetched = Some(Fetched { took: begun.elapsed(), bytes });
        Ok(Present { image_id, path, fetched })
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.root.join("sha256").join(format!("{hex}.wasm"))
    }

    fn image_file(&self, image: &str) -> PathBuf {
        self.root.join("images").join(hex::encode(Sha256::digest(image.as_bytes())))
    }

    fn remember(&self, image: &str, image_id: &str, path: &Path) -> io::Result<()> {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        fs::write(self.image_file(image), format!("{image_id}\n{file}\n"))?;
        let resolved_at = Some(Instant::now());
        let known = Known { image_id: image_id.to_owned(), path: path.to_owned(), resolved_at };
        self.note(image, known);
        Ok(())
    }

    /// What is known of an image in memory or, after a restart, on disk.
    fn recall(&self, image: &str) -> Option<Known> {
        if let Some(known) = self.known.lock().get(image) {
            return Some(known.clone());
        }
        let text = fs::read_to_string(self.image_file(image)).ok()?;
        let (image_id, file) = text.trim_end().split_once('\n')?;
        let path = self.root.join("sha256").join(file);
        let known = Known { image_id: image_id.to_owned(), path, resolved_at: None };
        if !known.path.exists() {
            return None;
        }
        self.note(image, known.clone());
        Some(known)
    }
}

/// A file of the registry on its way to this node's disk.
struct Download {
    registry: Registry,
    image: String,
    name: Name,
    manifest: registry::Manifest,
    partial: Partial,
    path: PathBuf,
}

impl Download {
    /// Fetches it, on a thread that may block. Returns its bytes.
    async fn run(self) -> Result<u64, PullError> {
        let Self { registry, image, name, manifest, partial, path } = self;
        // Another name, or namespace, may have brought it meanwhile.
        if path.exists() {
            return Ok(manifest.layer_size);
        }
        let bytes = registry.blob(&image, &name, &manifest, &partial.0).await?;
        fs::rename(&partial.0, &path).map_err(|source| PullError::Disk { image, source })?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifacts(allow_local: bool) -> (tempfile::TempDir, Artifacts) {
        let dir = tempfile::tempdir().unwrap();
        let artifacts =
            Artifacts::new(dir.path().join("a"), allow_local, Registry::without_addresses()).unwrap();
        (dir, artifacts)
    }

    async fn error(artifacts: &Artifacts, image: &str, policy: PullPolicy) -> (String, &'static str) {
        let error = artifacts.pull(image, "d", policy, || {}).await.unwrap_err();
        (error.to_string(), error.reason())
    }

    #[tokio::test]
    async fn what_cannot_be_pulled_says_why_and_what_to_do() {
        let (_dir, artifacts) = artifacts(false);
        let always = PullPolicy::Always;
        let (text, reason) = error(&artifacts, "Hello World", always).await;
        assert_eq!(text, "couldn't parse image name \"Hello World\": invalid reference format");
        assert_eq!(reason, "InvalidImageName");
        let (text, _) = error(&artifacts, "ghcr.io/x/hello:1", always).await;
        assert!(text.contains("coracle push FILE.wasm hello:1"), "{text}");
        let (text, _) = error(&artifacts, "file:///x.wasm", always).await;
        assert!(text.contains("--allow-local-artifacts"), "{text}");
        let (text, reason) = error(&artifacts, "hello:1", PullPolicy::Never).await;
        assert_eq!(text, "Container image \"hello:1\" is not present with pull policy of Never");
        assert_eq!(reason, "ErrImageNeverPull");
        let (text, reason) = error(&artifacts, "hello:1", always).await;
        assert!(text.contains("no control node") && reason == "ErrImagePull", "{text}");
    }

    #[tokio::test]
    async fn local_files_are_used_where_they_are_allowed() {
        let (dir, artifacts) = artifacts(true);
        let path = dir.path().join("x.wasm");
        fs::write(&path, b"\0asm").unwrap();
        let image = format!("file://{}", path.display());
        let present = artifacts.pull(&image, "d", PullPolicy::IfNotPresent, || {}).await.unwrap();
        assert_eq!(present.path, path);
        assert!(present.image_id.contains("@sha256:") && present.fetched.is_none());
        assert_eq!(artifacts.path(&present.image_id), Some(path));
        let (text, _) = error(&artifacts, "file:///no/such.wasm", PullPolicy::Always).await;
        assert!(text.contains("failed to read /no/such.wasm"), "{text}");
    }

    #[test]
    fn a_local_file_waits_for_no_blocking_thread_of_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (dir, artifacts) = artifacts(true);
            let (end, ended) = std::sync::mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || {
                let _ = ended.recv();
            });
            let path = dir.path().join("x.wasm");
            fs::write(&path, b"\0asm").unwrap();
            let image = format!("file://{}", path.display());
            let pulling = artifacts.pull(&image, "d", PullPolicy::Always, || {});
            let pulled = tokio::time::timeout(Duration::from_secs(60), pulling).await;
            drop(end);
            assert_eq!(pulled.expect("in time").unwrap().path, path);
        });
    }

    #[tokio::test]
    async fn what_was_pulled_is_remembered_over_a_restart() {
        let (dir, artifacts) = artifacts(false);
        let path = artifacts.blob_path("sha256:00");
        fs::write(&path, b"\0asm").unwrap();
        artifacts.remember("hello:1", "hello@sha256:11", &path).unwrap();
        let again = Artifacts::new(dir.path().join("a"), false, Registry::without_addresses()).unwrap();
        let begun = std::cell::Cell::new(false);
        let present = again.pull("hello:1", "d", PullPolicy::IfNotPresent, || begun.set(true)).await.unwrap();
        assert_eq!((present.image_id.as_str(), present.path), ("hello@sha256:11", path));
        assert!(!begun.get());
    }
}
