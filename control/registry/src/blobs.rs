//! The registry's content: files by their digest, verified when they come and fsynced before they count.

mod copies;
mod hidden;
mod removal;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use coracle_raft::durable;
use futures::Stream;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    sync::{Mutex, Semaphore},
    task::spawn_blocking,
};

pub use self::{copies::Members, removal::Removed};
use crate::digest::{Algorithm, Digest};

/// The largest blob, in bytes.
pub const BLOB_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Bytes read from a file at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Blobs fetched from other members at a time.
const FETCHES_MAX: usize = 4;

/// All of a blob, however large it is.
pub const WHOLE: Range<u64> = 0..u64::MAX;

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
    /// Held while a file is removed, or is kept from it.
    removal: Arc<parking_lot::Mutex<()>>,
    fetches: Semaphore,
    /// One fetch of one blob at a time, so that many readers of a new artifact cause one copy.
    fetching: parking_lot::Mutex<BTreeMap<Digest, Weak<Mutex<()>>>>,
}

/// Whether the disk may take more. The log is on it too, and dies where there is no room.
type HasRoom = Arc<dyn Fn() -> bool + Send + Sync>;

/// A file that grows and is not a blob yet. Removed when it is dropped before it was kept.
pub struct Unfinished {
    path: PathBuf,
    file: tokio::fs::File,
    has_room: HasRoom,
    pub size: u64,
    /// A piece was being written when its request ended: behind `size` there may be some of it.
    is_torn: bool,
}

impl Blobs {
    /// What is here is given always; more is taken only while `has_room`.
    pub fn open(folder: &Path, has_room: impl Fn() -> bool + Send + Sync + 'static) -> io::Result<Self> {
        let unfinished = folder.join("unfinished");
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        durable::create_dirs(&unfinished)?;
        for algorithm in Algorithm::ALL {
            durable::create_dirs(&folder.join(algorithm.as_str()))?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            unfinished,
            has_room: Arc::new(has_room),
            removal: Arc::default(),
            fetches: Semaphore::new(FETCHES_MAX),
            fetching: parking_lot::Mutex::default(),
        })
    }

    /// Whether the disk may take more.
    pub fn have_room(&self) -> bool {
        (self.has_room)()
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// The size in bytes where the blob is here.
    pub async fn size(&self, digest: &Digest) -> Option<u64> {
        tokio::fs::metadata(self.path(digest)).await.ok().map(|metadata| metadata.len())
    }

    pub async fn begin(&self) -> Result<Unfinished, BlobError> {
        if !self.have_room() {
            return Err(BlobError::NoSpace);
        }
        let path = self.unfinished.join(format!("{:032x}", rand::random::<u128>()));
        let mut options = tokio::fs::File::options();
        options.create_new(true).append(true).mode(durable::PRIVATE_FILE);
        let file = options.open(&path).await?;
        Ok(Unfinished { path, file, has_room: self.has_room.clone(), size: 0, is_torn: false })
    }

    /// Verifies what was written and makes it a blob. After it the blob survives a crash.
    pub async fn keep(&self, mut unfinished: Unfinished, digest: &Digest) -> Result<u64, BlobError> {
        unfinished.mend().await?;
        unfinished.file.sync_all().await?;
        let (target, expected, size) = (self.path(digest), digest.clone(), unfinished.size);
        let removal = self.removal.clone();
        spawn_blocking(move || {
            let found = hash_file(&unfinished.path, expected.algorithm())?;
            if found != expected {
                let (expected, found) = (expected.to_string(), found.to_string());
                return Err(BlobError::WrongDigest { expected, found });
            }
            // What is there by this name may be about to be removed.
            let _none_is_removed = removal.lock();
            fs::rename(&unfinished.path, &target)?;
            durable::sync_parent(&target)?;
            Ok(size)
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Keeps content that is in memory, and has this digest.
    pub async fn put(&self, digest: &Digest, content: &[u8]) -> Result<(), BlobError> {
        if self.hold(digest).await?.is_none() {
            let mut unfinished = self.begin().await?;
            unfinished.append(content).await?;
            self.keep(unfinished, digest).await?;
        }
        Ok(())
    }

    /// The whole of a small blob.
    pub async fn read(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        Ok(tokio::fs::read(self.path(digest)).await?)
    }

    /// Whether the blob is here. Waits for the disk.
    pub fn is_here(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// The whole of a blob that is here and no larger than this. Waits for the disk.
    pub fn read_small(&self, digest: &Digest, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(digest);
        let content = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > bytes_max as u64 => return Ok(None),
            Ok(_) => fs::read(path),
            Err(error) => Err(error),
        };
        match content {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A part of the content, or [`WHOLE`], in pieces.
    pub async fn stream(
        &self,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<>, BlobError> {
        let mut file = tokio::fs::File::open(self.path(digest)).await?;
        if part.start > 0 {
            file.seek(io::SeekFrom::Start(part.start)).await?;
        }
        let file = file.take(part.end.saturating_sub(part.start));
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
}

impl Unfinished {
    pub async fn append(&mut self, content: &[u8]) -> Result<(), BlobError> {
        self.takes(content.len() as u64)?;
        if !(self.has_room)() {
            return Err(BlobError::NoSpace);
        }
        self.mend().await?;
        self.is_torn = true;
        self.file.write_all(content).await?;
        self.file.flush().await?;
        self.size += content.len() as u64;
        self.is_torn = false;
        Ok(())
    }

    /// Whether so many bytes more are not too many.
    pub fn takes(&self, bytes: u64) -> Result<(), BlobError> {
        if self.size.saturating_add(bytes) > BLOB_BYTES_MAX {
            return Err(BlobError::TooLarge);
        }
        Ok(())
    }

    /// Takes away what a request left half-written that broke off.
    async fn mend(&mut self) -> Result<(), BlobError> {
        if std::mem::take(&mut self.is_torn) {
            self.file.set_len(self.size).await?;
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Where it was kept, it has another name by now.
        let _ = fs::remove_file(&self.path);
    }
}

fn hash_file(path: &Path, algorithm: Algorithm) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = algorithm.hasher();
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&piece[..length]),
        }
    }
}

#[cfg(test)]
mod tests;
