//! The registry's content: files by their SHA-256, verified when they come and fsynced before they count.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use coracle_proto::cluster::{BlobChunk, GetBlobRequest, blobs_client::BlobsClient};
use coracle_raft::durable;
use futures::Stream;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Mutex, Semaphore, mpsc},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// The largest blob, in bytes.
pub const BLOB_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Bytes read from a file and sent to another member at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that are read ahead of their sending.
const CHUNKS_AHEAD: usize = 4;

/// Until a blob must have been copied to or from another member.
const COPY_TIMEOUT: Duration = Duration::from_secs(120);

/// Blobs fetched from other members at a time.
const FETCHES_MAX: usize = 4;

/// `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    const PREFIX: &str = "sha256:";

    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(Self::PREFIX)?;
        let digits = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        digits.then(|| Self(text.to_owned()))
    }

    pub fn of(content: &[u8]) -> Self {
        Self(format!("{}{}", Self::PREFIX, hex::encode(Sha256::digest(content))))
    }

    fn file_name(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a blob was not kept or not given.
#[derive(Debug, Error)]
pub enum BlobError {
    #[error("the content has the digest {found}, not {expected}")]
    WrongDigest { expected: String, found: String },
    #[error("the content is larger than {BLOB_BYTES_MAX} bytes")]
    TooLarge,
    #[error("no control node has the blob {0}")]
    Missing(String),
    #[error("the disk of the control node failed: {0}")]
    Io(#[from] io::Error),
    #[error("the disk of the control node is nearly full; make room there")]
    NoSpace,
    #[error("only {have} of {need} control nodes have the content; try again when more are up")]
    NoMajority { have: usize, need: usize },
}

/// The blobs of this member.
pub struct Blobs {
    folder: PathBuf,
    /// Uploads and copies that are not finished. Emptied at start.
    unfinished: PathBuf,
    has_room: HasRoom,
    fetches: Semaphore,
    /// One fetch of one blob at a time, so that many readers of a new artifact cause one copy.
    fetching: parking_lot::Mutex<BTreeMap<Digest, Weak<Mutex<()>>>>,
}

/// The other members of the control plane, each with a channel to it.
pub trait Members: Send + Sync {
    fn others(&self) -> Vec<(u64, Channel)>;
}

/// Whether the disk may take more. The log is on it too, and dies where there is no room.
type HasRoom = Arc<dyn Fn() -> bool + Send + Sync>;

/// A file that grows and is not a blob yet. Removed when it is dropped before it was kept.
pub struct Unfinished {
    path: PathBuf,
    file: tokio::fs::File,
    has_room: HasRoom,
    pub size: u64,
}

impl Blobs {
    /// What is here is given always; more is taken only while `has_room`.
    pub fn open(folder: &Path, has_room: impl Fn() -> bool + Send + Sync + 'static) -> io::Result<Self> {
        let unfinished = folder.join("unfinished");
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&unfinished)?;
        durable::create_dirs(&folder.join("sha256"))?;
        Ok(Self {
            folder: folder.to_owned(),
            unfinished,
            has_room: Arc::new(has_room),
            fetches: Semaphore::new(FETCHES_MAX),
            fetching: parking_lot::Mutex::default(),
        })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("sha256").join(digest.file_name())
    }

    /// The size in bytes where the blob is here.
    pub async fn size(&self, digest: &Digest) -> Option<u64> {
        tokio::fs::metadata(self.path(digest)).await.ok().map(|metadata| metadata.len())
    }

    pub async fn begin(&self) -> Result<Unfinished, BlobError> {
        if !(self.has_room)() {
            return Err(BlobError::NoSpace);
        }
        let path = self.unfinished.join(format!("{:032x}", rand::random::<u128>()));
        let file = tokio::fs::File::options().create_new(true).append(true).open(&path).await?;
        Ok(Unfinished { path, file, has_room: self.has_room.clone(), size: 0 })
    }

    /// Verifies what was written and makes it a blob. After it the blob survives a crash.
    pub async fn keep(&self, unfinished: Unfinished, digest: &Digest) -> Result<u64, BlobError> {
        unfinished.file.sync_all().await?;
        let (target, expected, size) = (self.path(digest), digest.clone(), unfinished.size);
        spawn_blocking(move || {
            let found = hash_file(&unfinished.path)?;
            if found != expected {
                let (expected, found) = (expected.to_string(), found.to_string());
                return Err(BlobError::WrongDigest { expected, found });
            }
            fs::rename(&unfinished.path, &target)?;
            durable::sync_parent(&target)?;
            Ok(size)
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Keeps content that is in memory.
    pub async fn put(&self, content: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(content);
        if self.size(&digest).await.is_none() {
            let mut unfinished = self.begin().await?;
            unfinished.append(content).await?;
            self.keep(unfinished, &digest).await?;
        }
        Ok(digest)
    }

    /// The whole of a small blob.
    pub async fn read(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        Ok(tokio::fs::read(self.path(digest)).await?)
    }

    /// The content in pieces.
    pub async fn stream(
        &self,
        digest: &Digest,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>, BlobError> {
        let file = tokio::fs::File::open(self.path(digest)).await?;
        Ok(futures::stream::unfold(Some(file), |file| async move {
            let mut file = file?;
            let mut piece = vec![0; CHUNK_BYTES];
            match file.read(&mut piece).await {
                Ok(0) => None,
                Ok(length) => {
                    piece.truncate(length);
                    Some((Ok(piece.into()), Some(file)))
                }
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    /// Makes sure that the blob is here, fetching it from another member where needed. Answers its size.
    pub async fn obtain(&self, digest: &Digest, members: &dyn Members) -> Result<u64, BlobError> {
        if let Some(size) = self.size(digest).await {
            return Ok(size);
        }
        let lock = self.fetch_lock(digest);
        let _one = lock.lock().await;
        if let Some(size) = self.size(digest).await {
            return Ok(size);
        }
        let _permit = self.fetches.acquire().await.map_err(io::Error::other)?;
        for (id, channel) in members.others() {
            match timeout(COPY_TIMEOUT, self.fetch(digest, channel)).await {
                Ok(Ok(size)) => return Ok(size),
                Ok(Err(error)) => tracing::debug!(peer = id, %digest, %error, "blob not fetched"),
                Err(_) => tracing::debug!(peer = id, %digest, "blob not fetched in time"),
            }
        }
        Err(BlobError::Missing(digest.to_string()))
    }

    /// The lock of one blob, shared by all who want it now.
    fn fetch_lock(&self, digest: &Digest) -> Arc<Mutex<()>> {
        let mut locks = self.fetching.lock();
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }

    async fn fetch(&self, digest: &Digest, channel: Channel) -> Result<u64, BlobError> {
        let request = GetBlobRequest { digest: digest.to_string() };
        let mut chunks = BlobsClient::new(channel).get(request).await.map_err(io::Error::other)?.into_inner();
        let mut unfinished = self.begin().await?;
        while let Some(chunk) = chunks.message().await.map_err(io::Error::other)? {
            unfinished.append(&chunk.data).await?;
        }
        self.keep(unfinished, digest).await
    }

    /// Copies blobs that are here to other members until a majority of all members has each.
    pub async fn replicate(&self, digests: &[Digest], members: &dyn Members) -> Result<(), BlobError> {
        let others = members.others();
        let need = others.len().div_ceil(2) + 1;
        let mut copies = JoinSet::new();
        for (id, channel) in others {
            let mut files = vec![];
            for digest in digests {
                files.push((digest.clone(), tokio::fs::File::open(self.path(digest)).await?));
            }
            copies.spawn(timeout(COPY_TIMEOUT, copy_all(id, channel, files)));
        }
        let mut have = 1;
        while have < need {
            match copies.join_next().await {
                Some(Ok(Ok(true))) => have += 1,
                Some(_) => {}
                None => return Err(BlobError::NoMajority { have, need }),
            }
        }
        // The others go on copying while the caller is answered.
        copies.detach_all();
        Ok(())
    }
}

/// Answers whether the member has all of them now.
async fn copy_all(id: u64, channel: Channel, files: Vec<(Digest, tokio::fs::File)>) -> bool {
    let mut client = BlobsClient::new(channel);
    for (digest, file) in files {
        let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
        let reader = tokio::spawn(send_chunks(file, digest.to_string(), chunks));
        let sent = client.put(ReceiverStream::new(stream)).await;
        reader.abort();
        if let Err(status) = sent {
            tracing::warn!(peer = id, %digest, reason = status.message(), "blob not copied to a member");
            return false;
        }
    }
    true
}

/// The first chunk names the blob. Where the file cannot be read on, the stream ends, and its receiver finds that the
/// digest is wrong.
async fn send_chunks(mut file: tokio::fs::File, digest: String, chunks: mpsc::Sender<BlobChunk>) {
    let mut next = BlobChunk { digest, data: Bytes::new() };
    while chunks.send(next).await.is_ok() {
        let mut piece = vec![0; CHUNK_BYTES];
        match file.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => piece.truncate(length),
        }
        next = BlobChunk { digest: String::new(), data: piece.into() };
    }
}

impl Unfinished {
    pub async fn append(&mut self, content: &[u8]) -> Result<(), BlobError> {
        if self.size + content.len() as u64 > BLOB_BYTES_MAX {
            return Err(BlobError::TooLarge);
        }
        if !(self.has_room)() {
            return Err(BlobError::NoSpace);
        }
        self.file.write_all(content).await?;
        self.file.flush().await?;
        self.size += content.len() as u64;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Where it was kept, it has another name by now.
        let _ = fs::remove_file(&self.path);
    }
}

fn hash_file(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Digest(format!("{}{}", Digest::PREFIX, hex::encode(hasher.finalize())))),
            length => hasher.update(&piece[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn content_is_kept_by_its_digest_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), || true).unwrap();
        let digest = blobs.put(b"hello").await.unwrap();
        assert_eq!(blobs.read(&digest).await.unwrap(), b"hello");
        let pieces: Vec<Bytes> = blobs.stream(&digest).await.unwrap().try_collect().await.unwrap();
        assert_eq!(pieces.concat(), b"hello");
        let mut wrong = blobs.begin().await.unwrap();
        wrong.append(b"other").await.unwrap();
        assert!(matches!(blobs.keep(wrong, &digest).await, Err(BlobError::WrongDigest { .. })));
        assert_eq!(fs::read_dir(&blobs.unfinished).unwrap().count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn a_disk_without_room_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let room = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let seen = room.clone();
        let blobs = Blobs::open(dir.path(), move || seen.load(std::sync::atomic::Ordering::Relaxed)).unwrap();
        let digest = blobs.put(b"hello").await.unwrap();
        let mut begun = blobs.begin().await.unwrap();
        begun.append(b"first").await.unwrap();
        room.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(begun.append(b"more").await, Err(BlobError::NoSpace)));
        assert!(matches!(blobs.put(b"other").await, Err(BlobError::NoSpace)));
        assert_eq!(blobs.read(&digest).await.unwrap(), b"hello", "what is here is given");
    }

    #[tokio::test]
    async fn blobs_are_fetched_beside_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), || true).unwrap();
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let lock = blobs.fetch_lock(&one);
        let _held = lock.lock().await;
        assert!(blobs.fetch_lock(&one).try_lock().is_err());
        assert!(blobs.fetch_lock(&other).try_lock().is_ok());
        blobs.fetch_lock(&other);
        assert!(blobs.fetching.lock().len() <= 2);
    }

    #[test]
    fn only_digests_are_taken_for_digests() {
        let hex = "a".repeat(64);
        assert!(Digest::parse(&format!("sha256:{hex}")).is_some());
        for wrong in [
            hex.clone(),
            format!("sha256:{}", "A".repeat(64)),
            "sha256:../../x".into(),
            format!("sha512:{hex}"),
        ] {
            assert!(Digest::parse(&wrong).is_none(), "{wrong}");
        }
    }
}
