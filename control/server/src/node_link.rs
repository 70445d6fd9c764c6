//! The node link at the leader: nodes report here and learn here what they shall run.
//!
//! Heartbeats stay in the leader's memory; only what changes for others is written. A member that does not lead sends
//! nodes on to the one that does. What is made of all this is decided in `coracle_leader`, without I/O.

mod session;

mod acknowledgements;
mod description;
mod down;
mod pod_status;

mod links;
mod logs;
mod monitor;
mod routing;

mod pod_blocks;

use std::{pin::Pin, sync::Arc};

use coracle_proto::node::{NodeDown, NodeUp, node_link_server::NodeLink};
use coracle_storage::ReplicatedStorage;
use futures::Stream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{
    events::EventRecorder,
    identity::caller,
    standing::{BoundTo, Lost, is_certified},
};
use coracle_api::{Admission, Storage};

pub use coracle_leader::{node_object, references::node_of};
pub use links::Links;
pub use monitor::monitor;

/// The gRPC service.
#[derive(Clone)]
pub struct NodeLinkService {
    pub storage: ReplicatedStorage,
    pub admission: Admission,
    pub links: Arc<Links>,
    pub recorder: EventRecorder,
    pub cluster_id: String,
}

#[async_trait]
impl NodeLink for NodeLinkService {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<NodeDown, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<NodeUp>>) -> Result<Response<Self::LinkStream>, Status> {
        let caller = caller(&request);
        let Some(name) = caller.node().map(str::to_owned) else {
            return Err(Status::unauthenticated(
                "only nodes may link; join with `coracle node --join` first",
            ));
        };
        let bound = request.extensions().get::<BoundTo>();
        // The call was taken on the word of a view that may be older than this leader's.
        let object = self.storage.view().get(&node_object::key(&name)).cloned();
        if self.storage.leads() && !object.is_some_and(|object| is_certified(&object, bound)) {
            return Err(Status::permission_denied(Lost::NodeGone(name).to_string()));
        }
        let bound = bound.is_some();
        let (down, messages) = down::channel();
        tokio::spawn(session::run(self.clone(), name, bound, request.into_inner(), down));
        Ok(Response::new(Box::pin(messages)))
    }
}
