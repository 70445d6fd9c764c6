//! What the other control nodes ask of the leader: to write, to read, and for logs of the nodes linked to it.

use std::pin::Pin;

use coracle_node_link::{Links, nodes};
use coracle_objects::LogOptions;
use coracle_proto::cluster::{
    HealthRequest, HealthResponse, PodLogsChunk, PodLogsRequest, ProposeRequest, ProposeResponse,
    ReadIndexRequest, ReadIndexResponse, leader_server::Leader,
};
use coracle_raft::ProposeError;
use coracle_storage::{NotProposed, ReplicatedStorage, forgotten, health, not_done};
use coracle_store::{decode_transaction, encode_outcome, level_of};
use futures::{Stream, StreamExt};
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

use crate::identity::members_only;

pub struct LeaderService {
    pub storage: ReplicatedStorage,
    pub links: Arc<Links>,
}

#[async_trait]
impl Leader for LeaderService {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        members_only(&request)?;
        let encoded = request.into_inner().transaction;
        let request = decode_transaction(&encoded, self.storage.level().known())
            .map_err(|error| not_done(Status::invalid_argument(error.to_string())))?;
        match self.storage.propose_here(request).await {
            Ok(done) => Ok(Response::new(ProposeResponse {
                outcome: encode_outcome(&done.outcome, level_of(&encoded)),
                applied_index: done.index,
            })),
            Err(NotProposed::NoSpace) => {
                Err(not_done(Status::resource_exhausted("too many disks are nearly full")))
            }
            Err(NotProposed::Forgotten) => Err(forgotten(self.storage.hub().clock())),
            Err(NotProposed::Raft(error @ ProposeError::Unknown)) => {
                Err(Status::unavailable(error.to_string()))
            }
            Err(NotProposed::Raft(error)) => Err(not_done(Status::unavailable(error.to_string()))),
        }
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        members_only(&request)?;
        let index = self.storage.raft().read_index().await;
        let index = index.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ReadIndexResponse { index }))
    }

    async fn health(&self, request: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        members_only(&request)?;
        Ok(Response::new(health::report(&self.storage)))
    }

    type PodLogsStream = Pin<Box<dyn Stream<Item = Result<PodLogsChunk, Status>> + Send>>;

    async fn pod_logs(
        &self,
        request: Request<PodLogsRequest>,
    ) -> Result<Response<Self::PodLogsStream>, Status> {
        members_only(&request)?;
        let request = request.into_inner();
        let options: LogOptions = serde_json::from_slice(&request.options_json)
            .map_err(|error| Status::invalid_argument(format!("the log options cannot be read: {error}")))?;
        let stream =
            self.links.logs(&request.node, &request.pod_uid, options).await.map_err(nodes::to_status)?;
        let chunks = stream.map(|chunk| match chunk {
            Ok(data) => Ok(PodLogsChunk { data }),
            Err(error) => Err(Status::aborted(error.to_string())),
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
