//! Logs through the link: a request down, chunks up.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use coracle_api::NodeError;
use coracle_objects::LogOptions;
use coracle_proto::node::{LogCancel, LogChunk, LogGrant, LogRequest, node_down::Body};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{down::WeakDown, links::Links};

/// Log streams of one node at a time.
const REQUESTS_MAX: usize = 256;

/// What the readers of one pod's logs may have of those that are free. However many read the logs of some pods, another's
/// can be read.
const POD_PART: usize = 4;

/// Chunks of one stream that may be on their way or wait for their reader, where the node sends no more than it is granted.
const CHUNKS_GRANTED: u32 = 16;

/// Chunks of one stream that may wait for their reader in any case, and their bytes.
const CHUNKS_MAX: usize = 1024;
const READER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that may wait for all readers of one node's logs.
const NODE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long the first chunk is waited for, so that an error of the node becomes the answer and not the end of a stream.
const FIRST_CHUNK: Duration = Duration::from_millis(500);

/// What a node puts in front of an error that is of this kind.
const NOT_FOUND: &str = "not found: ";
const WAITING: &str = "waiting: ";

/// What a reader is told whose log ended before its node said so.
const LINK_ENDED: &str = "the node's link ended";
const TOO_SLOW: &str = "the log was read too slowly";

type Chunk = Result<Bytes, String>;

/// The log streams of one link.
pub struct LogRequests {
    flow_control: bool,
    readers: Mutex<Readers>,
    /// Wakes who sends grants.
    taken: Notify,
}

#[derive(Default)]
struct Readers {
    last: u64,
    by_request: BTreeMap<u64, Reader>,
    /// Why a log ended early, until its reader has dropped it.
    cut: BTreeMap<u64, &'static str>,
    /// Chunks that readers have taken since the node was told.
    owed: BTreeMap<u64, u32>,
    /// Of all readers.
    bytes: usize,
    /// The link has ended: no more readers.
    closed: bool,
}

struct Reader {
    pod_uid: String,
    chunks: mpsc::Sender<Chunk>,
    /// That wait.
    bytes: usize,
}

impl LogRequests {
    /// For a node that sends no more than it is granted, or one of a version before there was that.
    pub fn new(flow_control: bool) -> Self {
        Self { flow_control, readers: Mutex::default(), taken: Notify::new() }
    }

    /// Hands a chunk to its reader. Nobody waits for one that is slow: what is more than it was granted ends its log.
    pub fn deliver(&self, chunk: LogChunk) {
        let readers = &mut *self.readers.lock();
        let all = readers.bytes;
        let Some(reader) = readers.by_request.get_mut(&chunk.request) else { return };
        let bytes = chunk.data.len();
        let room = reader.bytes + bytes <= READER_BYTES_MAX && all + bytes <= NODE_BYTES_MAX;
        let sent = chunk.data.is_empty() || (room && reader.chunks.try_send(Ok(chunk.data)).is_ok());
        if sent {
            reader.bytes += bytes;
            readers.bytes += bytes;
        }
        // Of a reader that has gone away nobody asks for the reason.
        let told = chunk.error.is_empty() || reader.chunks.try_send(Err(chunk.error)).is_ok();
        if !sent || !told {
            readers.remove(chunk.request);
            readers.cut.insert(chunk.request, TOO_SLOW);
        } else if chunk.end {
            readers.remove(chunk.request);
        }
    }

    /// A reader has taken a chunk.
    fn take(&self, request: u64, bytes: usize) {
        let readers = &mut *self.readers.lock();
        let Some(reader) = readers.by_request.get_mut(&request) else { return };
        reader.bytes = reader.bytes.saturating_sub(bytes);
        readers.bytes = readers.bytes.saturating_sub(bytes);
        if self.flow_control {
            let owed = readers.owed.entry(request).or_default();
            *owed += 1;
            if *owed >= CHUNKS_GRANTED / 2 {
                self.taken.notify_one();
            }
        }
    }

    /// What the node is granted beyond what it was, once that is worth a message.
    pub async fn next_grants(&self) -> Vec<LogGrant> {
        loop {
            {
                let readers = &mut *self.readers.lock();
                let open = &readers.by_request;
                readers.owed.retain(|request, _| open.contains_key(request));
                let due = readers.owed.extract_if(.., |_, chunks| *chunks >= CHUNKS_GRANTED / 2);
                let grants: Vec<LogGrant> =
                    due.map(|(request, chunks)| LogGrant { request, chunks }).collect();
                if !grants.is_empty() {
                    return grants;
                }
            }
            self.taken.notified().await;
        }
    }

    /// Ends every log with an error and takes no more.
    pub fn close(&self) {
        let mut readers = self.readers.lock();
        readers.closed = true;
        // What waits for a reader still comes to it, and then the error.
        let Readers { by_request, cut, .. } = &mut *readers;
        cut.extend(std::mem::take(by_request).into_keys().map(|request| (request, LINK_ENDED)));
        readers.bytes = 0;
    }
}

impl Readers {
    /// Whether there was such a reader. What waits for it still comes to it.
    fn remove(&mut self, request: u64) -> bool {
        let reader = self.by_request.remove(&request);
        self.bytes = self.bytes.saturating_sub(reader.as_ref().map_or(0, |reader| reader.bytes));
        reader.is_some()
    }
}

impl Links {
    /// A container's log from the node linked here.
    pub async fn logs(&self, node: &str, pod_uid: &str, options: LogOptions) -> Result<LogStream, NodeError> {
        let unreachable = |reason: &str| NodeError::Unreachable { node: node.into(), reason: reason.into() };
        let session = self.session(node).ok_or_else(|| unreachable("it is not connected"))?;
        let (reader, chunks) = mpsc::channel(CHUNKS_MAX);
        let request = {
            let mut readers = session.logs.readers.lock();
            if readers.closed {
                return Err(unreachable(LINK_ENDED));
            }
            let free = REQUESTS_MAX.saturating_sub(readers.by_request.len());
            let of_pod = readers.by_request.values().filter(|reader| reader.pod_uid == pod_uid).count();
            if of_pod >= free / POD_PART {
                return Err(NodeError::TooMany);
            }
            readers.last += 1;
            let request = readers.last;
            let reader = Reader { pod_uid: pod_uid.to_owned(), chunks: reader, bytes: 0 };
            readers.by_request.insert(request, reader);
            request
        };
        let options_json =
            serde_json::to_vec(&options).map_err(|error| NodeError::Other(error.to_string()))?.into();
        let container = options.container;
        let granted = if session.logs.flow_control { CHUNKS_GRANTED } else { 0 };
        let message =
            LogRequest { request, pod_uid: pod_uid.into(), container, options_json, chunks: granted };
        let mut stream = LogStream {
            request,
            chunks,
            down: session.down.downgrade(),
            logs: session.logs.clone(),
            first: None,
            done: false,
        };
        let sent = tokio::select! {
            sent = session.down.send(Body::LogRequest(message)) => sent.is_ok(),
            () = session.ended.cancelled() => false,
        };
        // A reader must not keep the link open.
        drop(session);
        if !sent {
            return Err(unreachable(LINK_ENDED));
        }
        if let Ok(first) = tokio::time::timeout(FIRST_CHUNK, stream.chunks.recv()).await {
            match first {
                Some(Err(error)) => return Err(node_error(error)),
                Some(Ok(data)) => {
                    stream.logs.take(request, data.len());
                    stream.first = Some(data);
                }
                None => match stream.cut() {
                    Some(reason) => return Err(unreachable(reason)),
                    None => stream.done = true,
                },
            }
        }
        Ok(stream)
    }
}

fn node_error(error: String) -> NodeError {
    if let Some(message) = error.strip_prefix(NOT_FOUND) {
        NodeError::NotFound(message.into())
    } else if let Some(message) = error.strip_prefix(WAITING) {
        NodeError::Waiting(message.into())
    } else {
        NodeError::Other(error)
    }
}

/// A log as it comes from the node. Dropping it tells the node to stop.
pub struct LogStream {
    request: u64,
    chunks: mpsc::Receiver<Chunk>,
    /// Weak, as a reader must not keep a link open that has ended.
    down: WeakDown,
    logs: std::sync::Arc<LogRequests>,
    first: Option<Bytes>,
    done: bool,
}

impl LogStream {
    /// Why the log ended early, once.
    fn cut(&self) -> Option<&'static str> {
        self.logs.readers.lock().cut.remove(&self.request)
    }
}

impl Stream for LogStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.done {
            return Poll::Ready(None);
        }
        self.chunks.poll_recv(context).map(|chunk| match chunk {
            Some(Ok(data)) => {
                self.logs.take(self.request, data.len());
                Some(Ok(data))
            }
            Some(Err(error)) => Some(Err(io::Error::other(error))),
            None => self.cut().map(|reason| Err(io::Error::other(reason))),
        })
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        let open = {
            let mut readers = self.logs.readers.lock();
            readers.cut.remove(&self.request);
            readers.remove(self.request)
        };
        if open && let Some(down) = self.down.upgrade() {
            // Where the link is full the node finds out by itself: its chunks find no reader.
            let _ = down.try_send(Body::LogCancel(LogCancel { request: self.request }));
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::View;
    use futures::StreamExt;

    use super::*;
    use crate::down;

    #[tokio::test(start_paused = true)]
    async fn an_open_log_ends_with_its_link_and_does_not_keep_it() {
        let links = Links::default();
        links.open(&View::default());
        let (down, mut messages) = down::channel();
        let session = links.begin("n1", &down, true).unwrap();
        drop(down);
        let mut log = links.logs("n1", "uid", LogOptions::default()).await.unwrap();
        assert!(messages.next().await.is_some());
        session.logs.deliver(LogChunk { request: 1, data: "a".into(), ..LogChunk::default() });
        links.end("n1", &session);
        drop(session);
        assert!(messages.next().await.is_none(), "nothing keeps the link's sender");
        assert_eq!(log.next().await.unwrap().unwrap(), "a");
        assert_eq!(log.next().await.unwrap().unwrap_err().to_string(), LINK_ENDED);
        assert!(log.next().await.is_none());
        assert!(matches!(
            links.logs("n1", "uid", LogOptions::default()).await,
            Err(NodeError::Unreachable { .. })
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_of_some_pods_leave_others_theirs() {
        let links = Links::default();
        links.open(&View::default());
        let (down, mut messages) = down::channel();
        let _session = links.begin("n1", &down, true).unwrap();
        let _taking = tokio::spawn(async move { while messages.next().await.is_some() {} });
        let mut open = Vec::new();
        for pod in 0..16 {
            loop {
                match links.logs("n1", &format!("pod-{pod}"), LogOptions::default()).await {
                    Ok(log) => open.push(log),
                    Err(error) => break assert!(matches!(error, NodeError::TooMany), "{error}"),
                }
            }
        }
        assert!(open.len() > REQUESTS_MAX / 2, "{}", open.len());
        open.push(links.logs("n1", "another", LogOptions::default()).await.unwrap());
        open.clear();
        links.logs("n1", "pod-0", LogOptions::default()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slow_holds_up_nobody_and_is_granted_what_it_takes() {
        let links = Links::default();
        links.open(&View::default());
        let (down, mut messages) = down::channel();
        let session = links.begin("n1", &down, true).unwrap();
        let mut log = links.logs("n1", "uid", LogOptions::default()).await.unwrap();
        let asked = messages.next().await.unwrap().unwrap().body;
        assert!(matches!(asked, Some(Body::LogRequest(asked)) if asked.chunks == CHUNKS_GRANTED));
        let chunk =
            |bytes: usize| LogChunk { request: 1, data: vec![7; bytes].into(), ..LogChunk::default() };
        (0..CHUNKS_GRANTED).for_each(|_| session.logs.deliver(chunk(1000)));
        for _ in 0..CHUNKS_GRANTED / 2 {
            assert!(futures::FutureExt::now_or_never(session.logs.next_grants()).is_none());
            log.next().await.unwrap().unwrap();
        }
        let grant = LogGrant { request: 1, chunks: CHUNKS_GRANTED / 2 };
        assert_eq!(session.logs.next_grants().await, [grant]);
        // One that is sent more than that ends, and what it left is given back.
        (0..5).for_each(|_| session.logs.deliver(chunk(READER_BYTES_MAX / 4)));
        assert_eq!(session.logs.readers.lock().bytes, 0);
        let mut last = None;
        while let Some(chunk) = log.next().await {
            last = Some(chunk);
        }
        assert_eq!(last.unwrap().unwrap_err().to_string(), TOO_SLOW);
    }
}
