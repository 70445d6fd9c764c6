//! What a refusal says: which bound was met, whose it is and how much that admits, in one vocabulary for all that is bounded
//! on account of pods; and how who looks after the pod learns of it.
//!
//! Who is refused gets the error that it knows (WASI's, errno's, a status of HTTP). That error says little, so whoever refuses
//! notes a [`Refused`] beside it, and the node tells the pod's owner ([`Refusals::next`]). A guest can be refused as often as it
//! likes: what is told is bounded. The same is told of a pod once in [`SAID_EVERY`], of a namespace so many things in that time
//! ([`SAID_MAX`]), and what nobody takes does not pile up ([`WAITING_MAX`]). What is granted costs nothing here.

mod words;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::shares::Holder;

/// The same is told of the same pod once in this time.
pub const SAID_EVERY: Duration = Duration::from_secs(300);

/// Different things that are told of the pods of one namespace in that time.
pub const SAID_MAX: usize = 32;

/// Namespaces of which it is remembered what was told. Beyond that nothing is told of others until the time of some is over.
pub const NAMESPACES_MAX: usize = 1024;

/// What waits to be told.
pub const WAITING_MAX: usize = 256;

/// What is held of what is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Bytes of linear memories and tables.
    Memory,
    /// Bytes of the host's own memory.
    Heap,
    /// Open files, directories included.
    Files,
    /// Bytes of the disk.
    Disk,
    /// Live instances.
    Instances,
    /// Sockets of a pod.
    Sockets,
    /// Connections to pods of another node.
    Streams,
    /// Datagrams that wait for another node.
    Datagrams,
    /// UDP flows to services.
    Flows,
    /// Connections to beyond the cluster.
    Outside,
    /// The process' descriptors for such.
    OutsideDescriptors,
    /// The process' descriptors for clients.
    ClientDescriptors,
    /// The process' descriptors for tunnels of other nodes.
    TunnelDescriptors,
    /// Lookups of names beyond the cluster.
    Lookups,
    /// File calls that run.
    Calls,
    /// File calls that wait for their turn.
    WaitingCalls,
    /// HTTP requests that a component or listener has under way.
    Requests,
    /// HTTP requests that the gateway has under way.
    GatewayRequests,
    /// HTTP requests that an instance has sent.
    OutgoingRequests,
    /// Blocks of log lines that wait for the disk.
    LogBlocks,
    /// Logs that are read.
    LogReaders,
    /// What is remembered so that it need not be found again, and is done without where there is no room.
    Remembered,
}

/// Whose bound it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// The volume's.
    Volume,
    /// The container's own.
    Container,
    /// The pod's, for all its containers.
    Pod,
    /// The pod's share of what all pods of the node have.
    PodShare,
    /// The share of the Kubernetes namespace.
    Namespace,
    /// The part of one who calls: a client, a pod, or the pods of another namespace together.
    Caller,
    /// The port's where something comes in.
    Port,
    /// The node's.
    Node,
}

/// More was asked for than may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub what: What,
    pub bound: Bound,
    /// What is held within that bound.
    pub held: u64,
    /// How much more was asked for.
    pub asked: u64,
    /// How much that bound admits in all, at this time.
    pub limit: u64,
    /// How much there is for all; the limit where that is not a share of something.
    pub all: u64,
}

impl Refused {
    /// One more was asked for of what is bounded by itself, and is no share of something.
    pub fn full(what: What, bound: Bound, limit: usize) -> Refused {
        let limit = limit as u64;
        Refused { what, bound, held: limit, asked: 1, limit, all: limit }
    }

    /// One more was asked for of a share of what `all` have.
    pub fn of_share(what: What, bound: Bound, held: usize, limit: usize, all: usize) -> Refused {
        Refused { what, bound, held: held as u64, asked: 1, limit: limit as u64, all: all as u64 }
    }

    /// Whether others hold what was wanted: within its own limits it would have been admitted.
    pub fn is_of_all(&self) -> bool {
        matches!(self.bound, Bound::PodShare | Bound::Namespace | Bound::Node)
    }

    /// The same bound as that of one who is no pod of this node: a client of a service.
    #[must_use]
    pub fn of_client(self) -> Refused {
        let bound = if self.bound == Bound::PodShare { Bound::Caller } else { self.bound };
        Refused { bound, ..self }
    }
}

impl std::error::Error for Refused {}

/// Something that is to be told of a pod, or of what comes to a namespace's services where it names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Who was refused.
    pub holder: Holder,
    /// What it was.
    pub refused: Refused,
    /// How often the same was refused since it was told last.
    pub untold: u64,
}

/// What was refused on a node, for who tells of it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    said: Mutex<Said>,
    noted: Notify,
}

#[derive(Debug, Default)]
struct Said {
    namespaces: HashMap<Arc<str>, HashMap<Key, Last>>,
    waiting: VecDeque<Told>,
}

/// What is told once in a while: of which pod, what, and whose bound.
type Key = (Option<IpAddr>, What, Bound);

#[derive(Debug)]
struct Last {
    at: Instant,
    untold: u64,
}

impl Last {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.at) >= SAID_EVERY
    }
}

impl Refusals {
    /// Somebody was refused something. It is told soon, unless that was told a short time ago.
    pub fn note(&self, holder: &Holder, refused: Refused) {
        if self.shared.said.lock().note(holder, refused, Instant::now()) {
            self.shared.noted.notify_one();
        }
    }

    /// What is to be told, the oldest first; waits until there is something. For one who asks.
    pub async fn next(&self) -> Vec<Told> {
        loop {
            let noted = self.shared.noted.notified();
            let waiting = std::mem::take(&mut self.shared.said.lock().waiting);
            if !waiting.is_empty() {
                return waiting.into();
            }
            noted.await;
        }
    }

    /// What waits to be told, and what is remembered of what was.
    pub fn held(&self) -> (usize, usize) {
        let said = self.shared.said.lock();
        (said.waiting.len(), said.namespaces.values().map(HashMap::len).sum())
    }
}

impl Said {
    /// True where it is to be told.
    fn note(&mut self, holder: &Holder, refused: Refused, now: Instant) -> bool {
        let key = (holder.pod, refused.what, refused.bound);
        let is_full = self.waiting.len() >= WAITING_MAX;
        let known = self.namespaces.get_mut(&holder.namespace);
        let mut untold = 0;
        if let Some(last) = known.and_then(|of_namespace| of_namespace.get_mut(&key)) {
            if is_full || !last.is_over(now) {
                last.untold = last.untold.saturating_add(1);
                return false;
            }
            last.at = now;
            untold = std::mem::take(&mut last.untold);
        } else if is_full || !self.remember(holder, key, now) {
            return false;
        }
        self.waiting.push_back(Told { holder: holder.clone(), refused, untold });
        true
    }

    /// False where there is no room for it.
    fn remember(&mut self, holder: &Holder, key: Key, now: Instant) -> bool {
        let is_new = !self.namespaces.contains_key(&holder.namespace);
        if is_new && self.namespaces.len() >= NAMESPACES_MAX {
            self.namespaces.retain(|_, of_namespace| of_namespace.values().any(|last| !last.is_over(now)));
            if self.namespaces.len() >= NAMESPACES_MAX {
                return false;
            }
        }
        let of_namespace = self.namespaces.entry(Arc::clone(&holder.namespace)).or_default();
        if of_namespace.len() >= SAID_MAX {
            of_namespace.retain(|_, last| !last.is_over(now));
            if of_namespace.len() >= SAID_MAX {
                return false;
            }
        }
        of_namespace.insert(key, Last { at: now, untold: 0 });
        true
    }
}

#[cfg(test)]
mod tests;
