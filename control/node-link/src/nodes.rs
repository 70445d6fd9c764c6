//! What only a pod's node can answer, from any member: directly where the node is linked here, else through the leader.

use std::{io, pin::Pin, sync::Arc};

use bytes::Bytes;
use coracle_api::{NodeError, Nodes};
use coracle_objects::LogOptions;
use coracle_proto::cluster::PodLogsRequest;
use coracle_storage::{ReplicatedStorage, leader_client};
use futures::{Stream, StreamExt};
use tonic::{Code, Status};

use crate::links::Links;

/// The way to the nodes.
#[derive(Clone)]
pub struct LinkedNodes {
    pub storage: ReplicatedStorage,
    pub links: Arc<Links>,
}

type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl Nodes for LinkedNodes {
    async fn logs(
        &self,
        node: &str,
        pod_uid: &str,
        options: LogOptions,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, NodeError> {
        if self.links.connected(node) || self.storage.leads() {
            let stream: LogStream = self.links.logs(node, pod_uid, options).await?.boxed();
            return Ok(stream);
        }
        let unreachable = |reason: &str| NodeError::Unreachable { node: node.into(), reason: reason.into() };
        let leader = self.storage.leader_logs_channel().ok_or_else(|| unreachable("no leader is known"))?;
        let request = PodLogsRequest {
            node: node.into(),
            pod_uid: pod_uid.into(),
            container: options.container.clone(),
            options_json: serde_json::to_vec(&options)
                .map_err(|error| NodeError::Other(error.to_string()))?
                .into(),
        };
        let answer =
            leader_client(leader).pod_logs(request).await.map_err(|status| from_status(node, &status))?;
        let chunks = answer.into_inner().map(|chunk| match chunk {
            Ok(chunk) => Ok(chunk.data),
            Err(status) => Err(io::Error::other(status.message().to_owned())),
        });
        Ok(chunks.boxed())
    }
}

/// For the way from the leader to another member.
pub fn to_status(error: NodeError) -> Status {
    match error {
        NodeError::Unreachable { reason, .. } => Status::unavailable(reason),
        NodeError::NotFound(message) => Status::not_found(message),
        NodeError::Waiting(message) => Status::failed_precondition(message),
        NodeError::TooMany => Status::resource_exhausted(error.to_string()),
        NodeError::Other(message) => Status::unknown(message),
    }
}

fn from_status(node: &str, status: &Status) -> NodeError {
    let message = status.message().to_owned();
    match status.code() {
        Code::NotFound => NodeError::NotFound(message),
        Code::FailedPrecondition => NodeError::Waiting(message),
        Code::Unavailable => NodeError::Unreachable { node: node.into(), reason: message },
        Code::ResourceExhausted => NodeError::TooMany,
        _ => NodeError::Other(message),
    }
}
