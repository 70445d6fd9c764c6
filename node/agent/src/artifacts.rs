//! Images: from a name in a pod to a file with WebAssembly in it, verified, kept by digest as long as pods use it. It is the
//! first stage of an artifact's way, the pull; the file goes on to the runtime, which checks, compiles and loads it
//! (`wasi-host/src/artifact/pipeline.rs`).
//!
//! A file that a pod names is run where it lies, if it is within the folders that the node was given for that, with all links
//! followed. What a file has in it is in no message.
//!
//! The cluster's own registry is asked over HTTPS on the control nodes, with this node's certificate. The files are in
//! [`store`], and how much of the disk they may take is in [`room`].

mod error;
mod reference;
mod registry;
mod room;
mod store;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Component, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use coracle_core::{observe::Fetched, spec::PullPolicy};
use coracle_wasi_host::{
    digests::{DigestError, Digests},
    pool::{NotDone, Pool},
    shares::Holder,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use room::Space;
use store::{Look, Lookup, Meaning, Pin, SETTLED_AFTER, Store, name_key};

pub use error::PullError;
pub use reference::{ImageRef, InvalidImage, Name, parse};
pub use registry::Registry;

/// The largest artifact that is fetched, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Downloads at the same time. A namespace has at most half of them.
const DOWNLOADS_MAX: usize = 4;
/// Files that are hashed, read, written and removed at the same time; the same.
const FILES_AT_WORK_MAX: usize = 4;
/// Pods that start together share one look at the registry: an answer this old is as good as a new one.
const RESOLVED_FOR: Duration = Duration::from_secs(1);

/// An image that is on this node, and stays there as long as this lives.
pub struct Image {
    /// `name@sha256:...`, the manifest's digest; of local files the content's.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// None for local files, which are not the node's.
    _pin: Option<Pin>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("id", &self.id).field("path", &self.path).finish_non_exhaustive()
    }
}

/// What a pull came to.
#[derive(Clone, Debug)]
pub struct Present {
    pub image: Arc<Image>,
    /// What was fetched for it now, if anything was.
    pub fetched: Option<Fetched>,
}

impl Present {
    fn new(id: String, pin: Pin, fetched: Option<Fetched>) -> Self {
        Self { image: Arc::new(Image { id, path: pin.path(), _pin: Some(pin) }), fetched }
    }
}

/// The images of a node.
pub struct Artifacts {
    store: Arc<Store>,
    /// Folders of which files may be run.
    local: Vec<PathBuf>,
    registry: Registry,
    /// One pull of a name at a time in each namespace: none waits in another's line.
    pulls: Pulls,
    /// Threads of which each fetches, verifies and writes one file.
    downloads: Arc<Pool>,
    /// Where local files are hashed, and where the store works.
    files: Arc<Pool>,
    local_digests: Arc<Digests>,
    /// The store is looked after at this time.
    is_tending: Arc<AtomicBool>,
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

/// The store is looked after until this goes, however that ends.
struct Tending(Arc<AtomicBool>);

impl Drop for Tending {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Artifacts {
    pub fn new(root: PathBuf, local: Vec<PathBuf>, registry: Registry) -> io::Result<Self> {
        let disk = root.clone();
        let look = move || {
            let found = rustix::fs::statvfs(&disk).ok()?;
            let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
            Some(Space { bytes: bytes(found.f_blocks), bytes_free: bytes(found.f_bavail) })
        };
        Self::with(root, local, registry, Box::new(look), SETTLED_AFTER)
    }

    fn with(
        root: PathBuf,
        local: Vec<PathBuf>,
        registry: Registry,
        look: Look,
        settled_after: Duration,
    ) -> io::Result<Self> {
        let files = Pool::new("image-files", FILES_AT_WORK_MAX, 0);
        Ok(Self {
            store: Store::open(root, look, settled_after, files.clone(), ARTIFACT_BYTES_MAX)?,
            local,
            registry,
            pulls: Mutex::default(),
            downloads: Pool::new("downloads", DOWNLOADS_MAX, 0),
            local_digests: Digests::new(files.clone(), ARTIFACT_BYTES_MAX),
            files,
            is_tending: Arc::default(),
        })
    }

    /// How many there are of what is remembered.
    pub fn held(&self) -> [(&'static str, usize); 3] {
        let (names, files) = self.store.held();
        [("names of images", names), ("images", files), ("pulls", self.pulls.lock().len())]
    }

    /// Has images go that nobody uses, where they take more of the disk than they may. Call it from time to time; it
    /// waits for nothing.
    pub fn tend(&self) {
        if !self.is_tending.swap(true, Ordering::AcqRel) {
            let (store, tending) = (self.store.clone(), Tending(self.is_tending.clone()));
            self.files.post(&Holder::default(), move || {
                let _tending = tending;
                store.tend();
            });
        }
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
        if fixed && let Some(present) = self.recall(image, &namespace, None).await? {
            return Ok(present);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NeverPull { image: image.to_owned() });
        }
        let turn = PullTurn::of(&self.pulls, (namespace.clone(), image.to_owned()));
        let _taken = turn.lock.lock().await;
        let recent = (!fixed).then_some(RESOLVED_FOR);
        if let Some(present) = self.recall(image, &namespace, recent).await? {
            return Ok(present);
        }
        begun();
        match self.fetch(image, &name, &namespace).await {
            // Without a control plane pods run on, and start again, with what there is.
            Err(PullError::Unreachable { image: of, tried }) => {
                let Some(present) = self.recall(image, &namespace, None).await? else {
                    return Err(PullError::Unreachable { image: of, tried });
                };
                tracing::warn!(image, tried, "no registry answers: the image is taken as it was last");
                Ok(present)
            }
            fetched => fetched,
        }
    }

    async fn local(&self, image: &str, path: PathBuf, namespace: &Arc<str>) -> Result<Present, PullError> {
        let path = self.allowed(image, path, namespace).await?;
        let digest = self.local_digests.of(&path, namespace).await.map_err(|error| match error {
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
        let image = Arc::new(Image { id: format!("{image}@sha256:{digest}"), path, _pin: None });
        Ok(Present { image, fetched: None })
    }

    /// The file itself that a path leads to, if it may be run. Of one outside the folders not even this is told, whether it
    /// exists.
    async fn allowed(&self, image: &str, path: PathBuf, namespace: &Arc<str>) -> Result<PathBuf, PullError> {
        let forbidden = || PullError::LocalForbidden { image: image.to_owned() };
        let climbs = path.components().any(|part| part == Component::ParentDir);
        if climbs || !self.local.iter().any(|folder| path.starts_with(folder)) {
            return Err(forbidden());
        }
        let (folders, named) = (self.local.clone(), path.clone());
        let look = move || {
            let file = named.canonicalize()?;
            let within =
                |folder: &PathBuf| folder.canonicalize().is_ok_and(|folder| file.starts_with(folder));
            Ok(folders.iter().any(within).then_some(file))
        };
        let holder = Holder { namespace: namespace.clone(), pod: None };
        let looked: io::Result<Option<PathBuf>> =
            self.files.call(&holder, look).await.map_err(not_done(image))?;
        looked.map_err(|source| PullError::Local { path, source })?.ok_or_else(forbidden)
    }

    /// What is here of an image, if it is whole, and was resolved within this time where one is given.
    async fn recall(
        &self,
        image: &str,
        namespace: &Arc<str>,
        within: Option<Duration>,
    ) -> Result<Option<Present>, PullError> {
        let key = name_key(image);
        let known = match (self.store.lookup(&key), within) {
            (Lookup::Nothing, _) | (Lookup::Unread, Some(_)) => None,
            (Lookup::Known(_, resolved_at), Some(within))
                if resolved_at.is_none_or(|at| at.elapsed() >= within) =>
            {
                None
            }
            (Lookup::Known(meaning, _), _) => Some(meaning),
            (Lookup::Unread, None) => {
                let name = key.clone();
                let read = self.store.call(namespace, move |store| store.read_name(&name)).await;
                read.map_err(not_done(image))?
            }
        };
        let Some(Meaning { image_id, file }) = known else { return Ok(None) };
        let pin = self.whole(image, &file, namespace).await?;
        Ok(pin.map(|pin| Present::new(image_id, pin.named(&key), None)))
    }

    /// A file that is here, if it is what its name says.
    async fn whole(&self, image: &str, file: &str, namespace: &Arc<str>) -> Result<Option<Pin>, PullError> {
        let Some(pin) = self.store.pin(file, namespace) else { return Ok(None) };
        let is_whole = self.store.is_whole(file, namespace).await.map_err(not_done(image))?;
        Ok(is_whole.then_some(pin))
    }

    async fn fetch(&self, image: &str, name: &Name, namespace: &Arc<str>) -> Result<Present, PullError> {
        let begun = Instant::now();
        let manifest = self.registry.manifest(image, name).await?;
        let hex = manifest.layer_digest.strip_prefix("sha256:").unwrap_or(&manifest.layer_digest);
        let meaning =
            Meaning { image_id: format!("{}@{}", name.repository, manifest.digest), file: hex.to_owned() };
        let bytes = manifest.layer_size;
        let pin = match self.whole(image, &meaning.file, namespace).await? {
            Some(pin) => pin,
            None => {
                let download = Download {
                    store: self.store.clone(),
                    registry: self.registry.clone(),
                    image: image.to_owned(),
                    name: name.clone(),
                    manifest,
                    file: meaning.file.clone(),
                    namespace: namespace.clone(),
                };
                self.download(image, download).await?
            }
        };
        let (key, id) = (name_key(image), meaning.image_id.clone());
        let written = self.store.call(namespace, move |store| {
            store.write_name(&key, &meaning)?;
            Ok(pin.named(&key))
        });
        let pin = written.await.map_err(not_done(image))?.map_err(disk(image))?;
        Ok(Present::new(id, pin, Some(Fetched { took: begun.elapsed(), bytes })))
    }

    async fn download(&self, image: &str, download: Download) -> Result<Pin, PullError> {
        // A pod that ends meanwhile ends it.
        let given_up = CancellationToken::new();
        let _here = given_up.clone().drop_guard();
        let runtime = tokio::runtime::Handle::current();
        let holder = Holder { namespace: download.namespace.clone(), pod: None };
        let downloading = self
            .downloads
            .call(&holder, move || runtime.block_on(given_up.run_until_cancelled(download.run())));
        let downloaded = downloading.await.map_err(not_done(image))?;
        downloaded.unwrap_or_else(|| Err(disk(image)(io::ErrorKind::Interrupted.into())))
    }
}

fn disk(image: &str) -> impl FnOnce(io::Error) -> PullError {
    move |source| PullError::Disk { image: image.to_owned(), source }
}

fn not_done(image: &str) -> impl FnOnce(NotDone) -> PullError {
    move |error| disk(image)(io::Error::other(error))
}

/// A file of the registry on its way to this node's disk.
struct Download {
    store: Arc<Store>,
    registry: Registry,
    image: String,
    name: Name,
    manifest: registry::Manifest,
    file: String,
    namespace: Arc<str>,
}

impl Download {
    /// Fetches it, on a thread that may block.
    async fn run(self) -> Result<Pin, PullError> {
        let Self { store, registry, image, name, manifest, file, namespace } = self;
        // Another name, or namespace, may have brought it meanwhile.
        if let Some(pin) = store.pin(&file, &namespace)
            && store.is_known_whole(&file)
        {
            return Ok(pin);
        }
        let size = manifest.layer_size;
        if size > ARTIFACT_BYTES_MAX {
            return Err(PullError::TooLarge { image, size });
        }
        let room = store.make_room(size, &namespace);
        let _room = room.map_err(|source| PullError::NoRoom { image: image.clone(), size, source })?;
        let partial = store.scratch();
        let bytes = registry.blob(&image, &name, &manifest, &partial.0).await?;
        store.place(&partial.0, &file, bytes, &namespace).map_err(disk(&image))
    }
}
