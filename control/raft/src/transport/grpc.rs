//! The transport in production: one long gRPC stream to each member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coracle_proto::raft as wire;
use coracle_proto::raft::raft_transport_client::RaftTransportClient;
use futures::stream::{self, Stream};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::{SnapshotSink, Transport, Unreachable, writing::Writing};
use crate::config::SNAPSHOT_STREAM_IDLE;

/// Opens a connection to `host:port`, lazily: errors show in the calls.
pub type Connector = Arc<dyn Fn(String) -> Channel + Send + Sync>;

/// How many hand-overs may wait for one member.
const QUEUE_MAX: usize = 4096;
/// How many bytes of entries may wait for one member.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A batch is closed when its entries have reached this many bytes, and so is a hand-over: with one more message on top
/// of the one and of the other, a batch stays below `coracle_proto::MESSAGE_BYTES_MAX`.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// What an entry or a message takes up beside its data, at most, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 64;
/// The pause before the second connection attempt. It doubles up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(1);

/// Tries in a row that brought nothing of a snapshot, after which it is given up.
const FETCH_TRIES_MAX: u32 = 10;

/// Sends to the members of an address book that is set from outside. Clones share it.
#[derive(Clone)]
pub struct GrpcTransport {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    cluster_id: String,
    connector: Connector,
    runtime: Handle,
    peers: RwLock<BTreeMap<u64, Peer>>,
    unreachable: RwLock<Option<Unreachable>>,
}

struct Peer {
    address: String,
    queue: mpsc::Sender<Queued>,
    queued_bytes: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    fn enqueue(&self, queued: Queued) -> Result<(), QueueFull> {
        let bytes = queued.bytes;
        let waiting = self.queued_bytes.load(Ordering::Relaxed);
        if waiting > 0 && waiting + bytes > QUEUE_BYTES_MAX {
            return Err(QueueFull);
        }
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.try_send(queued).map_err(|_| {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            QueueFull
        })
    }
}

/// Too much waits for a member already, or the connection to it is given up.
struct QueueFull;

struct Queued {
    messages: Vec<wire::Message>,
    bytes: usize,
}

/// Cuts one round's messages, which may be all that a member lacks, into parts that fit into a batch.
fn hand_overs(messages: Vec<wire::Message>) -> impl Iterator<Item = Queued> {
    let mut messages = messages.into_iter();
    std::iter::from_fn(move || {
        let mut queued = Queued { messages: Vec::new(), bytes: 0 };
        while queued.bytes < BATCH_BYTES_MAX
            && let Some(message) = messages.next()
        {
            queued.bytes += weight(&message);
            queued.messages.push(message);
        }
        (!queued.messages.is_empty()).then_some(queued)
    })
}

impl GrpcTransport {
    /// Its tasks run on the runtime that this is called on.
    pub fn new(id: u64, cluster_id: impl Into<String>, connector: Connector) -> GrpcTransport {
        let inner = Inner {
            id,
            cluster_id: cluster_id.into(),
            connector,
            runtime: Handle::current(),
            peers: RwLock::default(),
            unreachable: RwLock::default(),
        };
        GrpcTransport { inner: Arc::new(inner) }
    }

    /// Replaces the address book: `host:port` by raft id. Connections whose address stays are kept. Messages to members
    /// that are not in it are dropped.
    pub fn set_peers(&self, addresses: BTreeMap<u64, String>) {
        let mut peers = self.inner.peers.write();
        peers.retain(|id, peer| addresses.get(id) == Some(&peer.address));
        for (id, address) in addresses {
            if id != self.inner.id && !peers.contains_key(&id) {
                peers.insert(id, self.connect(id, address));
            }
        }
    }

    fn connect(&self, id: u64, address: String) -> Peer {
        let (queue, queue_out) = mpsc::channel(QUEUE_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let link = Link {
            transport: Arc::downgrade(&self.inner),
            id,
            address: address.clone(),
            queue: Arc::new(Mutex::new(queue_out)),
            queued_bytes: queued_bytes.clone(),
        };
        let task = self.inner.runtime.spawn(link.run()).abort_handle();
        Peer { address, queue, queued_bytes, task }
    }
}

impl Transport for GrpcTransport {
    fn send(&self, to: u64, messages: Vec<wire::Message>) {
        let peers = self.inner.peers.read();
        let Some(peer) = peers.get(&to) else {
            tracing::debug!(to, "no address for a raft message");
            return;
        };
        let taken = hand_overs(messages).try_for_each(|queued| peer.enqueue(queued));
        drop(peers);
        if taken.is_err() {
            self.inner.report(to);
        }
    }

    fn attach(&self, unreachable: Unreachable) {
        *self.inner.unreachable.write() = Some(unreachable);
    }

    fn fetch(&self, from: u64, index: u64, sink: Box<dyn SnapshotSink>) {
        let transport = self.clone();
        self.inner.runtime.spawn(async move {
            let mut writing = Writing::new(sink);
            let arrived = transport.fetch_all(from, index, &mut writing).await;
            writing.end(arrived);
        });
    }
}

impl GrpcTransport {
    /// Brings the whole file, going on behind what is there when a stream breaks.
    async fn fetch_all(&self, from: u64, index: u64, sink: &mut Writing) -> Result<(), String> {
        let mut backoff = BACKOFF_FIRST;
        let mut tries = 0;
        loop {
            let before = sink.offset();
            let broken = match self.fetch_rest(from, index, sink).await {
                Ok(()) => return Ok(()),
                Err(status) if status.code() == tonic::Code::NotFound => return Err(status.to_string()),
                Err(status) => status,
            };
            if sink.offset() > before {
                (tries, backoff) = (0, BACKOFF_FIRST);
            }
            tries += 1;
            if tries == FETCH_TRIES_MAX || !sink.is_wanted() {
                return Err(broken.to_string());
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_LONGEST);
        }
    }

    async fn fetch_rest(&self, from: u64, index: u64, sink: &mut Writing) -> Result<(), tonic::Status> {
        let address = self.inner.peers.read().get(&from).map(|peer| peer.address.clone());
        let address = address.ok_or_else(|| tonic::Status::unavailable("its address is not known"))?;
        let mut client = RaftTransportClient::new((self.inner.connector)(address))
            .max_decoding_message_size(coracle_proto::MESSAGE_BYTES_MAX);
        let request = wire::FetchSnapshotRequest {
            cluster_id: self.inner.cluster_id.clone(),
            from: self.inner.id,
            to: from,
            index,
            offset: sink.offset(),
        };
        let mut parts = in_time(client.fetch_snapshot(request)).await?.into_inner();
        while let Some(part) = in_time(parts.message()).await? {
            sink.write(part.data).await.map_err(|error| tonic::Status::not_found(error.to_string()))?;
        }
        Ok(())
    }
}

/// What another member does not do within this time, it does not do at all: it may stand still with its sockets open.
async fn in_time<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, tonic::Status> {
    let silent = || tonic::Status::deadline_exceeded("nothing came for too long");
    tokio::time::timeout(SNAPSHOT_STREAM_IDLE, call).await.unwrap_or_else(|_| Err(silent()))
}

impl Inner {
    fn report(&self, id: u64) {
        if let Some(unreachable) = &*self.unreachable.read() {
            unreachable(id);
        }
    }
}

/// About what a message takes up on the wire, in bytes.
fn weight(message: &wire::Message) -> usize {
    let entries = message.entries.iter().map(|entry| entry.data.len() + ENTRY_OVERHEAD_BYTES);
    ENTRY_OVERHEAD_BYTES + entries.sum::<usize>()
}

/// The connection to one member, again and again.
struct Link {
    transport: std::sync::Weak<Inner>,
    id: u64,
    address: String,
    queue: Arc<Mutex<mpsc::Receiver<Queued>>>,
    queued_bytes: Arc<AtomicUsize>,
}

impl Link {
    async fn run(self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let began = Instant::now();
            let Some(transport) = self.transport.upgrade() else { return };
            let channel = (transport.connector)(self.address.clone());
            let identity = wire::MessageBatch {
                cluster_id: transport.cluster_id.clone(),
                from: transport.id,
                to: self.id,
                messages: Vec::new(),
            };
            drop(transport);
            let ended = self.stream(channel, identity).await;
            let Some(transport) = self.transport.upgrade() else { return };
            match ended {
                Ok(()) => tracing::debug!(peer = self.id, "raft stream ended"),
                Err(status) => {
                    tracing::debug!(peer = self.id, address = %self.address, %status, "raft stream broke");
                }
            }
            transport.report(self.id);
            drop(transport);
            if began.elapsed() > BACKOFF_LONGEST {
                backoff = BACKOFF_FIRST;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_LONGEST);
            self.forget_queued().await;
        }
    }

    /// Sends from the queue until the stream ends.
    async fn stream(&self, channel: Channel, identity: wire::MessageBatch) -> Result<(), tonic::Status> {
        let mut client =
            RaftTransportClient::new(channel).max_encoding_message_size(coracle_proto::MESSAGE_BYTES_MAX);
        // Dropped with this call: the request's stream may outlive it for a while, but must not take messages then.
        let (_alive, dead) = oneshot::channel();
        let queue = self.queue.clone().lock_owned().await;
        let batches = batches(queue, dead, self.queued_bytes.clone(), identity);
        client.send(batches).await.map(|_| ())
    }

    /// What waited while there was no connection is outdated; raft begins anew with the member.
    async fn forget_queued(&self) {
        let mut queue = self.queue.lock().await;
        while let Ok(queued) = queue.try_recv() {
            self.queued_bytes.fetch_sub(queued.bytes, Ordering::Relaxed);
        }
    }
}

fn batches(
    queue: OwnedMutexGuard<mpsc::Receiver<Queued>>,
    dead: oneshot::Receiver<()>,
    queued_bytes: Arc<AtomicUsize>,
    identity: wire::MessageBatch,
) -> impl Stream<Item = wire::MessageBatch> + Send + 'static {
    stream::unfold((queue, dead), move |(mut queue, mut dead)| {
        let queued_bytes = queued_bytes.clone();
        let mut batch = identity.clone();
        async move {
            let first = tokio::select! {
                first = queue.recv() => first?,
                _ = &mut dead => return None,
            };
            let mut bytes = first.bytes;
            batch.messages = first.messages;
            while bytes < BATCH_BYTES_MAX
                && let Ok(next) = queue.try_recv()
            {
                bytes += next.bytes;
                batch.messages.extend(next.messages);
            }
            queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            Some((batch, (queue, dead)))
        }
    })
}
