//! Requests in flight, bounded; and those that take long to think about, on threads of their own.
//!
//! The I/O threads are shared by all connections of a control node. What a request costs there must not grow with what
//! its sender chose to send: decoding, patching and checking a body of megabytes, or a walk over a long table, is done
//! beside them, and few such at once.

use std::{io, num::NonZeroUsize, thread};

use axum::response::Response;
use http::Method;
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
/// A body or a stored object beyond this is large, in bytes.
pub const LARGE_BYTES: usize = 64 * 1024;
/// A table of more objects than this takes long to walk over.
const LONG_TABLE: usize = 1000;
/// Answers that are made anew in another encoding, from when they are gathered until they are sent: each is in memory whole. A
/// user has a half, and so many that may be there.
const ENCODED_MAX: usize = 16;
const ENCODED_PRESENT_MAX: usize = 100;
/// Watches whose events are made anew in another encoding, each for itself. A user has a half, and so many that may wait.
const ENCODED_WATCHES_MAX: usize = 256;
/// Heavy requests of one user that may be there, most of them waiting.
const HEAVY_PRESENT_MAX: usize = 100;

/// What bounds the requests of a control node.
pub struct Bounds {
    reads: Lane,
    writes: Lane,
    heavy: Lane,
    encoded: Lane,
    encoded_watches: Lane,
}

impl Default for Bounds {
    fn default() -> Self {
        let shared = |turns: usize| Lane::new(turns, turns / 2, turns / 2 * PRESENT_TIMES);
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).max(2);
        Self {
            reads: shared(READS_MAX),
            writes: shared(WRITES_MAX),
            heavy: Lane::new(cores, cores / 2, HEAVY_PRESENT_MAX),
            encoded: Lane::new(ENCODED_MAX, ENCODED_MAX / 2, ENCODED_PRESENT_MAX),
            encoded_watches: Lane::new(ENCODED_WATCHES_MAX, ENCODED_WATCHES_MAX / 2, ENCODED_WATCHES_MAX),
        }
    }
}

impl Bounds {
    /// Waits until the user may have one more request under way.
    pub async fn enter(&self, user: &str, writes: bool) -> Result<Turn, ApiError> {
        let lane = if writes { &self.writes } else { &self.reads };
        lane.enter(user).await
    }

    /// Waits until one more of the user's answers may be encoded.
    pub async fn enter_encoded(&self, user: &str) -> Result<Turn, ApiError> {
        self.encoded.enter(user).await
    }

    /// Waits until the user may have one more watch in another encoding.
    pub async fn enter_encoded_watch(&self, user: &str) -> Result<Turn, ApiError> {
        self.encoded_watches.enter(user).await
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

    /// Does a part of what a user's answer costs, as soon as it is the user's turn. Answers under way are bounded
    /// themselves: they wait as long as it takes.
    pub async fn work<T: Send + 'static>(
        &self,
        user: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.heavy.wait(user).await;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(io::Error::other)
    }
}

/// Whether a request, or what it is about, is so large that it takes long to think about.
pub fn is_heavy(request: &Request, storage: &impl Storage) -> bool {
    if request.body.len() > LARGE_BYTES {
        return true;
    }
    let reads = matches!(request.method, Method::GET | Method::HEAD);
    // A past state is made anew.
    let past = request.query.get("resourceVersionMatch") == Some("Exact");
    if past || request.query.get("continue").is_some() {
        return true;
    }
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
