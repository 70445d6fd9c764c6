//! Whether who opened a connection may still call.
//!
//! TLS looks at a certificate once, when a connection begins. A connection may outlive what made it good: the
//! certificate ends, its authority is replaced, the node is deleted. So every request is judged anew, and a connection
//! whose ground is gone is closed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use coracle_api::Storage;
use coracle_leader::node_object::{is_certified, node_gone};
use coracle_objects::{EventKind, Object, ObjectKey, View};
use coracle_storage::ReplicatedStorage;
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    certificates::Credentials,
    identity::{Caller, Peer, Shown},
    membership,
};

const NODES: &str = "nodes";

/// So long before its certificate ends a connection takes its last request, so that the client opens another with the
/// certificate that it has by then. Of a short life it is a tenth.
const TURNOVER_BEFORE: Duration = Duration::from_secs(30);

/// How long is slept at most: a clock that was set meanwhile is noticed after so long.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// How long a refusal may wait for this member to catch up: it may not know yet of a node that has just joined.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(2);

/// Why a caller is no longer who it was.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Lost {
    #[error("the client certificate has ended; show one that is good over a new connection")]
    Ended,
    #[error("the authority that signed the client certificate is no longer trusted; get a new certificate")]
    IssuerGone,
    #[error("{}", node_gone(.0))]
    NodeGone(String),
}

/// Judges callers by what this member knows now.
pub struct Judge {
    credentials: Arc<Credentials>,
    storage: ReplicatedStorage,
    /// Counts up when a node is gone.
    gone: watch::Sender<u64>,
}

impl Judge {
    pub fn new(credentials: Arc<Credentials>, storage: ReplicatedStorage) -> Self {
        Self { credentials, storage, gone: watch::Sender::new(0) }
    }

    /// The caller as of this moment, or why it is none any more.
    pub fn judge(&self, peer: &Peer) -> Result<Caller, Lost> {
        let Some(shown) = &peer.certificate else { return Ok(peer.caller.clone()) };
        if shown.ends <= SystemTime::now() {
            return Err(Lost::Ended);
        }
        if !self.credentials.callers().trusts(shown) {
            return Err(Lost::IssuerGone);
        }
        if let Some(node) = peer.caller.node() {
            judge_node(&self.storage.view(), node, shown)?;
        }
        Ok(match &peer.caller {
            Caller::Member(id) if membership::is_former(&self.storage, *id) => Caller::FormerMember(*id),
            caller => caller.clone(),
        })
    }

    /// The same, once this member has caught up where it does not know of the node.
    pub async fn judge_surely(&self, peer: &Peer) -> Result<Caller, Lost> {
        match self.judge(peer) {
            Err(Lost::NodeGone(_)) => {
                // Without a leader the refusal stands; the node asks again.
                let _ = timeout(CATCH_UP_PATIENCE, self.storage.linearizable()).await;
                self.judge(peer)
            }
            judged => judged,
        }
    }

    /// Resolves when a connection should take no more requests, because its certificate ends soon.
    pub async fn turnover(&self, peer: &Peer) {
        let Some(shown) = &peer.certificate else { return std::future::pending().await };
        let left = shown.ends.duration_since(SystemTime::now()).unwrap_or_default();
        let turnover = shown.ends - TURNOVER_BEFORE.min(left / 10);
        loop {
            let wait = turnover.duration_since(SystemTime::now()).unwrap_or_default();
            if wait.is_zero() {
                return;
            }
            sleep(wait.min(SLEEP_MAX)).await;
        }
    }

    /// Resolves when a connection must end, because its caller is none any more.
    pub async fn gone(&self, peer: &Peer) {
        let (mut gone, mut news) = (self.gone.subscribe(), self.credentials.news());
        loop {
            tokio::select! {
                // The senders live as long as this.
                _ = gone.changed() => {}
                _ = news.changed() => {}
            }
            if matches!(self.judge(peer), Err(Lost::IssuerGone | Lost::NodeGone(_))) {
                return;
            }
        }
    }

    /// Has connections judged anew whenever a node is gone, for as long as the process lives.
    pub async fn follow(&self) {
        loop {
            let (_, mut events) = self.storage.hub().follow();
            self.gone.send_modify(|count| *count += 1);
            // After a gap everybody is judged anew.
            while let Ok(happened) = events.next().await {
                let gone = happened.iter().any(|event| {
                    let other = |previous: &Arc<Object>| previous.meta.uid != event.object.meta.uid;
                    event.object.key.resource.as_str() == NODES
                        && (event.kind == EventKind::Deleted || event.previous.as_ref().is_some_and(other))
                });
                if gone {
                    self.gone.send_modify(|count| *count += 1);
                }
            }
        }
    }
}

fn judge_node(view: &View, node: &str, shown: &Shown) -> Result<(), Lost> {
    let object = view.get(&ObjectKey::new(NODES, "", node));
    match object.is_some_and(|object| is_certified(object, shown.bound_to.as_ref())) {
        true => Ok(()),
        false => Err(Lost::NodeGone(node.to_owned())),
    }
}
