//! Blobs between members: fetched where they are needed, copied until a majority has them.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use coracle_proto::cluster::{BlobChunk, GetBlobRequest, HideBlobRequest, blobs_client::BlobsClient};
use tokio::{
    io::AsyncReadExt,
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{BlobError, Blobs, CHUNK_BYTES};
use crate::digest::Digest;

/// Chunks that are read ahead of their sending.
const CHUNKS_AHEAD: usize = 4;

/// Until a blob must have been copied to or from another member.
const COPY_TIMEOUT: Duration = Duration::from_secs(120);

/// Until another member must have hidden a blob. One that is away hides nothing.
const HIDE_TIMEOUT: Duration = Duration::from_secs(2);

/// The other members of the control plane, each with a channel to it.
pub trait Members: Send + Sync {
    fn others(&self) -> Vec<(u64, Channel)>;
}

impl Blobs {
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
    pub(super) fn fetch_lock(&self, digest: &Digest) -> Arc<Mutex<()>> {
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
            let files = digests.iter().map(|digest| (digest.clone(), self.path(digest))).collect();
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

    /// Hides a blob in a repository, here and at all members that answer.
    pub async fn hide_everywhere(
        &self,
        repository: &str,
        digest: &Digest,
        members: &dyn Members,
    ) -> Result<(), BlobError> {
        self.hide(repository, digest).await?;
        let request = HideBlobRequest { repository: repository.to_owned(), digest: digest.to_string() };
        let mut told = JoinSet::new();
        for (id, channel) in members.others() {
            let request = request.clone();
            told.spawn(async move {
                let hidden = timeout(HIDE_TIMEOUT, BlobsClient::new(channel).hide(request)).await;
                if !matches!(hidden, Ok(Ok(_))) {
                    tracing::debug!(peer = id, "blob not hidden at a member");
                }
            });
        }
        told.join_all().await;
        Ok(())
    }
}

/// Answers whether the member has all of them now.
async fn copy_all(id: u64, channel: Channel, files: Vec<(Digest, PathBuf)>) -> bool {
    let mut client = BlobsClient::new(channel);
    for (digest, path) in files {
        let file = match tokio::fs::File::open(path).await {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%digest, %error, "blob not read for a member");
                return false;
            }
        };
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
