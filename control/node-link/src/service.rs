//! The gRPC service that nodes call.

use std::{pin::Pin, sync::Arc};

use coracle_api::{Admission, Storage, UserInfo};
use coracle_leader::node_object::{self, BoundTo, is_certified, node_gone};
use coracle_objects::View;
use coracle_proto::node::{NodeDown, NodeUp, node_link_server::NodeLink};
use coracle_storage::ReplicatedStorage;
use futures::Stream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{down, events::EventSink, links::Links, session};

/// The gRPC service. Its calls have their caller's [`UserInfo`] in their extensions, and its [`BoundTo`] where its
/// certificate has one.
#[derive(Clone)]
pub struct NodeLinkService {
    pub storage: ReplicatedStorage,
    /// What nodes report is written through it, in their names.
    pub admission: Admission,
    pub links: Arc<Links>,
    pub events: Arc<dyn EventSink>,
    pub cluster_id: String,
    /// The ids that the cluster of a state had before it was recovered: nodes that joined then still belong to it.
    pub former_ids: fn(&View) -> Vec<String>,
    /// The generation of the authorities by which everybody should go, as a state has it.
    pub trust_generation: fn(&View) -> u64,
}

#[async_trait]
impl NodeLink for NodeLinkService {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<NodeDown, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<NodeUp>>) -> Result<Response<Self::LinkStream>, Status> {
        let caller = request.extensions().get::<UserInfo>();
        let Some(name) = caller.and_then(UserInfo::as_node).map(str::to_owned) else {
            return Err(Status::unauthenticated(
                "only nodes may link; join with `coracle node --join` first",
            ));
        };
        let bound = request.extensions().get::<BoundTo>();
        // The call was taken on the word of a view that may be older than this leader's.
        let object = self.storage.view().get(&node_object::key(&name)).cloned();
        if self.storage.leads() && !object.is_some_and(|object| is_certified(&object, bound)) {
            return Err(Status::permission_denied(node_gone(&name)));
        }
        let bound = bound.is_some();
        let (down, messages) = down::channel();
        tokio::spawn(session::run(self.clone(), name, bound, request.into_inner(), down));
        Ok(Response::new(Box::pin(messages)))
    }
}
