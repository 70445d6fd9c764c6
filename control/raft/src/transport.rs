//! How messages get to the other members.

mod grpc;
mod service;
mod writing;

use std::io;
use std::sync::Arc;

use coracle_proto::raft as wire;

pub use grpc::{Connector, GrpcTransport};
pub use service::{RaftSender, RaftService};

/// Called with the id of a member that a message did not get to.
pub type Unreachable = Arc<dyn Fn(u64) + Send + Sync>;

/// The sending half, called by the raft and log threads and by those who propose, read or receive.
pub trait Transport: Send + Sync + 'static {
    /// Sends messages to one member, in order. Never waits; what cannot be sent is dropped, and raft sends it again. One
    /// within this process holds no lock while it delivers: the receiver may answer before it returns.
    fn send(&self, to: u64, messages: Vec<wire::Message>);

    /// Called once, before the first message: whom to tell that a member cannot be reached.
    fn attach(&self, _unreachable: Unreachable) {}

    /// Brings the file of the snapshot that member `from` has as of entry `index`. Returns at once; the sink is told the
    /// end in any case, on a thread that may wait.
    fn fetch(&self, from: u64, index: u64, sink: Box<dyn SnapshotSink>);
}

/// Takes the bytes of a snapshot's file, in order and without gaps.
pub trait SnapshotSink: Send {
    /// How many bytes it has: after an interruption the next begin there.
    fn offset(&self) -> u64;
    /// False where nobody waits for it any more.
    fn is_wanted(&self) -> bool {
        true
    }
    /// After an error the snapshot is given up.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// All bytes were given, or no more will come. Waits for the disk.
    fn end(self: Box<Self>, arrived: Result<(), String>);
}
