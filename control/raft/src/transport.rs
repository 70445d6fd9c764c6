//! How messages get to the other members.

mod grpc;
mod service;

use std::sync::Arc;

use coracle_proto::raft as wire;

pub use grpc::{Connector, GrpcTransport};
pub use service::RaftService;

/// Called with the id of a member that a message did not get to.
pub type Unreachable = Arc<dyn Fn(u64) + Send + Sync>;

/// The sending half, called by the raft and log threads.
pub trait Transport: Send + Sync + 'static {
    /// Sends messages to one member, in order. Never waits; what cannot be sent is dropped, and raft sends it again.
    fn send(&self, to: u64, messages: Vec<wire::Message>);

    /// Called once, before the first message: whom to tell that a member cannot be reached.
    fn attach(&self, _unreachable: Unreachable) {}
}
