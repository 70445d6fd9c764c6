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
use coracle_proto::node::{LogCancel, LogChunk, LogRequest, NodeDown, node_down::Body};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, WeakSender, error::SendTimeoutError};
use tonic::Status;

use super::links::Links;

/// Log streams of one node at a time.
const REQUESTS_MAX: usize = 256;

/// Chunks of one stream that may wait for their reader.
const CHUNKS_MAX: usize = 1024;

/// For how long a slow reader may hold up its node's link. Well below the time after which a silent node counts as
/// dead.
const READER_PATIENCE: Duration = Duration::from_secs(2);

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
#[derive(Default)]
pub struct LogRequests {
    readers: Mutex<Readers>,
}

#[derive(Default)]
struct Readers {
    last: u64,
    by_request: BTreeMap<u64, mpsc::Sender<Chunk>>,
    /// Why a log ended early, until its reader has dropped it.
    cut: BTreeMap<u64, &'static str>,
    /// The link has ended: no more readers.
    closed: bool,
}

impl LogRequests {
    /// Hands a chunk to its reader, waiting a moment for a slow one.
    pub async fn deliver(&self, chunk: LogChunk) {
        let reader = {
            let mut readers = self.readers.lock();
            match chunk.end {
                true => readers.by_request.remove(&chunk.request),
                false => readers.by_request.get(&chunk.request).cloned(),
            }
        };
        let Some(reader) = reader else { return };
        if !chunk.data.is_empty()
            && let Err(error) = reader.send_timeout(Ok(chunk.data), READER_PATIENCE).await
        {
            let mut readers = self.readers.lock();
            let open = readers.by_request.remove(&chunk.request).is_some();
            if open && matches!(error, SendTimeoutError::Timeout(_)) {
                readers.cut.insert(chunk.request, TOO_SLOW);
            }
            return;
        }
        if !chunk.error.is_empty() {
            // A reader that has gone away needs no reason.
            let _ = reader.send_timeout(Err(chunk.error), READER_PATIENCE).await;
        }
    }

    /// Ends every log with an error and takes no more.
    pub fn close(&self) {
        let mut readers = self.readers.lock();
        readers.closed = true;
        // What waits for a reader still comes to it, and then the error.
        let Readers { by_request, cut, .. } = &mut *readers;
        cut.extend(std::mem::take(by_request).into_keys().map(|request| (request, LINK_ENDED)));
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
            if readers.by_request.len() >= REQUESTS_MAX {
                return Err(NodeError::Other(format!("node {node} serves too many logs at present")));
            }
            readers.last += 1;
            let request = readers.last;
            readers.by_request.insert(request, reader);
            request
        };
        let options_json =
            serde_json::to_vec(&options).map_err(|error| NodeError::Other(error.to_string()))?.into();
        let container = options.container;
        let message = LogRequest { request, pod_uid: pod_uid.into(), container, options_json };
        let mut stream = LogStream {
            request,
            chunks,
            down: session.down.downgrade(),
            logs: session.logs.clone(),
            first: None,
            done: false,
        };
        let sent = tokio::select! {
            sent = session.down.send(Ok(NodeDown { body: Some(Body::LogRequest(message)) })) => sent.is_ok(),
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
                Some(Ok(data)) => stream.first = Some(data),
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
    down: WeakSender<Result<NodeDown, Status>>,
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
            Some(Ok(data)) => Some(Ok(data)),
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
            readers.by_request.remove(&self.request).is_some()
        };
        if open && let Some(down) = self.down.upgrade() {
            let cancel = NodeDown { body: Some(Body::LogCancel(LogCancel { request: self.request })) };
            // Where the link is full the node finds out by itself: its chunks find no reader.
            let _ = down.try_send(Ok(cancel));
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::View;
    use futures::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_open_log_ends_with_its_link_and_does_not_keep_it() {
        let links = Links::default();
        links.open(&View::default());
        let (down, mut messages) = mpsc::channel(4);
        let session = links.begin("n1", &down).unwrap();
        drop(down);
        let mut log = links.logs("n1", "uid", LogOptions::default()).await.unwrap();
        assert!(messages.recv().await.is_some());
        session.logs.deliver(LogChunk { request: 1, data: "a".into(), ..LogChunk::default() }).await;
        links.end("n1", &session);
        drop(session);
        assert!(messages.recv().await.is_none(), "nothing keeps the link's sender");
        assert_eq!(log.next().await.unwrap().unwrap(), "a");
        assert_eq!(log.next().await.unwrap().unwrap_err().to_string(), LINK_ENDED);
        assert!(log.next().await.is_none());
        assert!(matches!(
            links.logs("n1", "uid", LogOptions::default()).await,
            Err(NodeError::Unreachable { .. })
        ));
    }
}
