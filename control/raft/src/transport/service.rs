//! The receiving half of the gRPC transport.

use std::sync::Arc;

use coracle_proto::raft as wire;
use coracle_proto::raft::raft_transport_server::{RaftTransport, RaftTransportServer};
use tonic::{Request, Response, Status, Streaming};

use crate::driver::Raft;

/// Takes other members' messages. Who may connect at all, TLS decides before.
#[derive(Clone)]
pub struct RaftService {
    id: u64,
    cluster_id: String,
    receive: Arc<dyn Fn(Vec<wire::Message>) + Send + Sync>,
}

impl RaftService {
    pub fn new<O: Send + 'static>(raft: &Raft<O>, cluster_id: impl Into<String>) -> RaftService {
        RaftService { id: raft.id(), cluster_id: cluster_id.into(), receive: raft.receiver() }
    }

    /// The service to route to, with the limits that the sending half keeps to.
    pub fn into_server(self) -> RaftTransportServer<RaftService> {
        RaftTransportServer::new(self).max_decoding_message_size(coracle_proto::MESSAGE_BYTES_MAX)
    }

    fn check(&self, batch: &wire::MessageBatch) -> Result<(), Status> {
        if batch.cluster_id != self.cluster_id {
            return Err(Status::failed_precondition("the sender belongs to another cluster"));
        }
        if batch.to != self.id {
            return Err(Status::failed_precondition(format!(
                "the messages are for member {}, but this is member {}",
                batch.to, self.id
            )));
        }
        if batch.messages.iter().any(|message| message.from != batch.from) {
            return Err(Status::invalid_argument("a message claims another sender than its batch"));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl RaftTransport for RaftService {
    async fn send(
        &self,
        request: Request<Streaming<wire::MessageBatch>>,
    ) -> Result<Response<wire::SendSummary>, Status> {
        let mut stream = request.into_inner();
        let mut batches = 0;
        while let Some(batch) = stream.message().await? {
            self.check(&batch)?;
            (self.receive)(batch.messages);
            batches += 1;
        }
        Ok(Response::new(wire::SendSummary { batches }))
    }
}
