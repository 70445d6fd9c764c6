//! Requests in flight, bounded; and those that take long to think about, on threads of their own.
//!
//! The I/O threads are shared by all connections of a control node. What a request costs there must not grow with what
//! its sender chose to send: decoding, patching and checking a body of megabytes, or a walk over a long table, is done
//! beside them, and few such at once.

use std::{num::NonZeroUsize, thread};

use axum::{body::Body, response::Response};
use http::Method;
use http_body::Body as _;
use tokio::runtime::Handle;

use crate::{
    error::ApiError,
    lane::{Lane, Turn},
    request::Request,
    storage::Storage,
};

/// Requests under way that read, and that write. Kubernetes' defaults. Watches and logs, which go on, do not count.
const READS_MAX: usize = 400;
const WRITES_MAX: usize = 200;
/// The part of these that one user may have is a half; so many times that may be there, most of them waiting.
const PRESENT_TIMES: usize = 10;
/// A body, a stored object or an answer beyond this is large, in bytes.
const LARGE_BYTES: usize = 64 * 1024;
/// A table of more objects than this takes long to walk over.
const LONG_TABLE: usize = 1000;
/// Heavy requests of one user that may be there, most of them waiting.
const HEAVY_PRESENT_MAX: usize = 100;

/// What bounds the requests of a control node.
pub struct Bounds {
    reads: Lane,
    writes: Lane,
    heavy: Lane,
}

impl Default for Bounds {
    fn default() -> Self {
        let shared = |turns: usize| Lane::new(turns, turns / 2, turns / 2 * PRESENT_TIMES);
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).max(2);
        Self {
            reads: shared(READS_MAX),
            writes: shared(WRITES_MAX),
            heavy: Lane::new(cores, cores / 2, HEAVY_PRESENT_MAX),
        }
    }
}

impl Bounds {
    /// Waits until the user may have one more request under way.
    pub async fn enter(&self, user: &str, writes: bool) -> Result<Turn, ApiError> {
        let lane = if writes { &self.writes } else { &self.reads };
        lane.enter(user).await
    }

    /// Carries out a request that is heavy on a thread where it is in nobody's way. It is finished also where its
    /// client goes away meanwhile, and keeps its turn until then.
    pub async fn carry_out<F>(
        &self,
        user: &str,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Response, ApiError>
    where
        F: Future<Output = Result<Response, ApiError>>,
    {
        let turn = self.heavy.enter(user).await?;
        let runtime = Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let answer = runtime.block_on(work());
            drop(turn);
            answer
        });
        done.await
            .unwrap_or_else(|ended| Err(ApiError::Internal(format!("the request was not finished: {ended}"))))
    }
}

/// Whether a request, or what it is about, is so large that it takes long to think about.
pub fn is_heavy(request: &Request, storage: &impl Storage) -> bool {
    if request.body.len() > LARGE_BYTES {
        return true;
    }
    let reads = matches!(request.method, Method::GET | Method::HEAD);
    match request.key() {
        Ok(_) if reads => false,
        Ok(key) => storage.view().get(&key).is_some_and(|object| object.json.len() > LARGE_BYTES),
        Err(_) if request.method == Method::POST => false,
        Err(_) => {
            let view = storage.view();
            let table = view.tables.get(request.kind().storage_resource().as_str());
            table.is_some_and(|table| table.len() > LONG_TABLE)
        }
    }
}

/// Lets a large answer keep its request's turn until it is sent: those that nobody fetches are bounded too.
pub fn until_sent(response: Response, turn: Turn) -> Response {
    if response.body().size_hint().upper().is_some_and(|bytes| bytes <= LARGE_BYTES as u64) {
        return response;
    }
    response.map(|body| Body::new(Sending { body, _turn: turn }))
}

/// A body that is being sent.
struct Sending {
    body: Body,
    _turn: Turn,
}

impl http_body::Body for Sending {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
