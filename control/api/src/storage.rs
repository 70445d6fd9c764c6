//! The boundaries of the API server: where objects are kept, and who answers for a pod's node.

use std::{future::Future, io, pin::Pin, sync::Arc};

use bytes::Bytes;
use coracle_objects::{Applied, Event, LogOptions, Refusal, ResourceName, Revision, Transaction, View};
use futures::Stream;
use thiserror::Error;

use crate::error::ApiError;

/// The replicated store, as one control node sees it.
pub trait Storage: Clone + Send + Sync + 'static {
    /// The local state: consistent, perhaps a moment old.
    fn view(&self) -> Arc<View>;

    /// A state at least as new as any write that was acknowledged, by any member, before the call.
    fn linearizable(&self) -> impl Future<Output = Result<Arc<View>, Unavailable>> + Send;

    /// The objects of one resource as they were at a revision, where that is still known here; the view has no other
    /// resource. The same revision gives the same objects at every member.
    fn view_at(&self, _resource: &ResourceName, _revision: Revision) -> Option<Arc<View>> {
        None
    }

    /// Whether a leader is heard at this moment. Without one the local state may be old, and nobody knows how old.
    fn is_led(&self) -> bool {
        true
    }

    /// Proposes a transaction. Returns once the local view has it as well, so that its proposer reads its own write.
    fn propose(
        &self,
        transaction: Transaction,
    ) -> impl Future<Output = Result<Result<Applied, Refusal>, ProposeError>> + Send;

    /// The changes of one resource after a revision, in order, each once.
    fn watch(&self, resource: &ResourceName, after: Revision) -> Result<WatchStream, Expired>;
}

/// What a watch of the storage gives. It ends with an overflow, with the process, or where the storage has been without a
/// leader for some seconds: then it may go on elsewhere.
pub type WatchStream = Pin<Box<dyn Stream<Item = WatchItem> + Send>>;

/// One item of a [`WatchStream`].
#[derive(Clone, Debug)]
pub enum WatchItem {
    Event(Arc<Event>),
    /// Every event up to and including this revision has been given.
    Progress(Revision),
    /// The reader was too slow and has missed events: it must list anew.
    Overflow,
}

/// No quorum answers for the time being. The text says what is missing.
#[derive(Clone, Debug, Error)]
#[error("the control plane has no quorum at present: {0}")]
pub struct Unavailable(pub String);

/// The revision lies before the watch window.
#[derive(Clone, Copy, Debug, Error)]
#[error("the revision is older than the watch window, which begins after {oldest}")]
pub struct Expired {
    /// The oldest revision that a watch can start after.
    pub oldest: Revision,
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, Error)]
pub enum ProposeError {
    /// Certainly not done.
    #[error("the control plane cannot take writes at present: {0}")]
    Unavailable(String),
    /// It may or may not have been done.
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
    /// The disks are nearly full: only deletes are taken.
    #[error("the control plane's disk is full: only deletes are taken until there is room again")]
    NoSpace,
    /// Certainly not done: admission refuses it.
    #[error(transparent)]
    Denied(Box<ApiError>),
    /// Certainly not done, now or ever. Sizes in bytes.
    #[error("the transaction takes {bytes} bytes; the limit is {limit}")]
    TooLarge { bytes: u64, limit: u64 },
}

/// What only a pod's node can answer.
pub trait Nodes: Clone + Send + Sync + 'static {
    /// A container's log as the node has it, in whole lines where they are short enough.
    fn logs(
        &self,
        node: &str,
        pod_uid: &str,
        options: LogOptions,
    ) -> impl Future<Output = Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, NodeError>> + Send;
}

/// Why a node gave no answer.
#[derive(Clone, Debug, Error)]
pub enum NodeError {
    #[error("node \"{node}\" cannot be reached: {reason}")]
    Unreachable { node: String, reason: String },
    /// The node does not have that pod or that container (yet).
    #[error("{0}")]
    NotFound(String),
    /// The container has not started.
    #[error("{0}")]
    Waiting(String),
    /// The node's logs have too many readers, or this pod's have.
    #[error("too many logs of the node are being read")]
    TooMany,
    /// Anything else, in words for the user.
    #[error("{0}")]
    Other(String),
}
