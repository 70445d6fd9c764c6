//! The receiving half of the gRPC transport.

use std::sync::Arc;

use coracle_proto::raft as wire;
use coracle_proto::raft::raft_transport_server::{RaftTransport, RaftTransportServer};
use futures::stream::{BoxStream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{Raft, ServeSnapshot};
use crate::snapshot::patient_parts;

/// The member that a call comes from, as its certificate says. In the extensions of a call where whoever ended TLS knows
/// it; then no call may claim to be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftSender(pub u64);

/// Takes other members' messages. Who may connect at all, TLS decides before.
#[derive(Clone)]
pub struct RaftService {
    id: u64,
    cluster_id: String,
    receive: Arc<dyn Fn(Vec<wire::Message>) + Send + Sync>,
    snapshots: ServeSnapshot,
}

impl RaftService {
    pub fn new<O: Send + 'static>(raft: &Raft<O>, cluster_id: impl Into<String>) -> RaftService {
        RaftService {
            id: raft.id(),
            cluster_id: cluster_id.into(),
            receive: raft.receiver(),
            snapshots: raft.serve_snapshot(),
        }
    }

    /// The service to route to, with the limits that the sending half keeps to.
    pub fn into_server(self) -> RaftTransportServer<RaftService> {
        RaftTransportServer::new(self).max_decoding_message_size(coracle_proto::MESSAGE_BYTES_MAX)
    }

    fn check_addressee(&self, cluster_id: &str, to: u64) -> Result<(), Status> {
        if cluster_id != self.cluster_id {
            return Err(Status::failed_precondition("the sender belongs to another cluster"));
        }
        if to != self.id {
            return Err(Status::failed_precondition(format!(
                "the call is for member {to}, but this is member {}",
                self.id
            )));
        }
        Ok(())
    }

    fn check(&self, batch: &wire::MessageBatch, sender: Option<RaftSender>) -> Result<(), Status> {
        self.check_addressee(&batch.cluster_id, batch.to)?;
        check_sender(batch.from, sender)?;
        if batch.messages.iter().any(|message| message.from != batch.from) {
            return Err(Status::invalid_argument("a message claims another sender than its batch"));
        }
        Ok(())
    }
}

fn check_sender(from: u64, sender: Option<RaftSender>) -> Result<(), Status> {
    match sender {
        Some(RaftSender(id)) if id != from => Err(Status::permission_denied(format!(
            "the call claims to be of member {from}, its certificate is of member {id}"
        ))),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl RaftTransport for RaftService {
    type FetchSnapshotStream = BoxStream<'static, Result<wire::SnapshotPart, Status>>;

    async fn fetch_snapshot(
        &self,
        request: Request<wire::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let sender = request.extensions().get().copied();
        let request = request.into_inner();
        self.check_addressee(&request.cluster_id, request.to)?;
        check_sender(request.from, sender)?;
        let source = (self.snapshots.open)(request.index, request.offset).map_err(|error| {
            Status::not_found(format!("the snapshot of entry {} is not here: {error}", request.index))
        })?;
        let (served, to) = (self.snapshots.served.clone(), request.from);
        let parts = patient_parts(source).map(move |part| {
            served(to);
            let data =
                part.map_err(|error| Status::internal(format!("the snapshot cannot be read: {error}")))?;
            Ok(wire::SnapshotPart { data })
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn send(
        &self,
        request: Request<Streaming<wire::MessageBatch>>,
    ) -> Result<Response<wire::SendSummary>, Status> {
        let sender = request.extensions().get().copied();
        let mut stream = request.into_inner();
        let mut batches = 0;
        while let Some(batch) = stream.message().await? {
            self.check(&batch, sender)?;
            (self.receive)(batch.messages);
            batches += 1;
        }
        Ok(Response::new(wire::SendSummary { batches }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_speaks_for_another_member() {
        check_sender(2, None).unwrap();
        check_sender(2, Some(RaftSender(2))).unwrap();
        let refused = check_sender(2, Some(RaftSender(3))).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    }
}
