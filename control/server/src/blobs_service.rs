//! Blobs between control nodes. Members only.

use std::{pin::Pin, sync::Arc};

use coracle_proto::cluster::{
    BlobChunk, GetBlobRequest, HideBlobRequest, HideBlobResponse, PutBlobResponse,
    blobs_server::Blobs as BlobsRpc,
};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait, transport::Channel};

use coracle_registry::{
    blobs::{BlobError, Blobs, Members, WHOLE},
    digest::Digest,
};
use coracle_storage::peers::Peers;

use crate::identity::members_only;

pub struct BlobsService {
    pub blobs: Arc<Blobs>,
}

#[async_trait]
impl BlobsRpc for BlobsService {
    async fn put(&self, request: Request<Streaming<BlobChunk>>) -> Result<Response<PutBlobResponse>, Status> {
        members_only(&request)?;
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("an empty stream"))?;
        let digest = parse(&first.digest)?;
        if let Some(size) = self.blobs.hold(&digest).await.map_err(status)? {
            return Ok(Response::new(PutBlobResponse { size }));
        }
        let mut unfinished = self.blobs.begin().await.map_err(status)?;
        unfinished.append(&first.data).await.map_err(status)?;
        while let Some(chunk) = chunks.message().await? {
            unfinished.append(&chunk.data).await.map_err(status)?;
        }
        let size = self.blobs.keep(unfinished, &digest).await.map_err(status)?;
        Ok(Response::new(PutBlobResponse { size }))
    }

    type GetStream = Pin<Box<dyn Stream<Item = Result<BlobChunk, Status>> + Send>>;

    async fn get(&self, request: Request<GetBlobRequest>) -> Result<Response<Self::GetStream>, Status> {
        members_only(&request)?;
        let digest = parse(&request.into_inner().digest)?;
        if self.blobs.size(&digest).await.is_none() {
            return Err(Status::not_found(format!("this member does not have {digest}")));
        }
        let pieces = self.blobs.stream(&digest, WHOLE).await.map_err(status)?;
        let chunks = pieces.map(|piece| match piece {
            Ok(data) => Ok(BlobChunk { digest: String::new(), data }),
            Err(error) => Err(Status::data_loss(error.to_string())),
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn hide(&self, request: Request<HideBlobRequest>) -> Result<Response<HideBlobResponse>, Status> {
        members_only(&request)?;
        let HideBlobRequest { repository, digest } = request.into_inner();
        self.blobs.hide(&repository, &parse(&digest)?).await.map_err(status)?;
        Ok(Response::new(HideBlobResponse {}))
    }
}

/// The members beside this one.
pub struct Others {
    pub peers: Arc<Peers>,
    pub me: u64,
}

impl Members for Others {
    fn others(&self) -> Vec<(u64, Channel)> {
        let others = self.peers.addresses().into_keys().filter(|id| *id != self.me);
        others.filter_map(|id| Some((id, self.peers.channel(id)?))).collect()
    }
}

#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
fn parse(digest: &str) -> Result<Digest, Status> {
    Digest::parse(digest)
        .ok_or_else(|| Status::invalid_argument(format!("{digest:?} is no digest of sha256 or sha512")))
}

fn status(error: BlobError) -> Status {
    match error {
        BlobError::WrongDigest { .. } => Status::data_loss(error.to_string()),
        BlobError::TooLarge | BlobError::NoSpace => Status::resource_exhausted(error.to_string()),
        BlobError::Missing(_) => Status::not_found(error.to_string()),
        BlobError::Io(_) | BlobError::NoMajority { .. } => Status::unavailable(error.to_string()),
    }
}
