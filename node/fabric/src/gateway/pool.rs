//! HTTP/1.1 connections to endpoints, kept for the next request.

use coracle_wasi_host::net::HttpBody;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Idle connections kept to one endpoint.
const IDLE_MAX: usize = 64;

/// Endpoints that connections are kept to; the others' are closed after use.
const ENDPOINTS_MAX: usize = 4096;

/// How long a connection is kept without a request; below the keep-alive time of common servers.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);

/// Idle connections by endpoint.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<HashMap<SocketAddr, Vec<Idle>>>,
}

struct Idle {
    sender: SendRequest<HttpBody>,
    since: Instant,
}

impl Idle {
    fn is_usable(&self) -> bool {
        self.sender.is_ready() && self.since.elapsed() < IDLE_TIME_MAX
    }
}

impl Pool {
    /// The connection to an endpoint that was used last, if one is still open.
    pub(super) fn take(&self, endpoint: SocketAddr) -> Option<SendRequest<HttpBody>> {
        let mut idle = self.idle.lock();
        let kept = idle.get_mut(&endpoint)?;
        while let Some(connection) = kept.pop() {
            if connection.is_usable() {
                return Some(connection.sender);
            }
        }
        idle.remove(&endpoint);
        None
    }

    /// Keeps a connection whose last response has been read. Beyond the bounds it is closed.
    pub(super) fn keep(&self, endpoint: SocketAddr, sender: SendRequest<HttpBody>) {
        let mut idle = self.idle.lock();
        if idle.len() >= ENDPOINTS_MAX && !idle.contains_key(&endpoint) {
            idle.retain(|_, kept| {
                kept.retain(Idle::is_usable);
                !kept.is_empty()
            });
        }
        if idle.len() >= ENDPOINTS_MAX && !idle.contains_key(&endpoint) {
            return;
        }
        let kept = idle.entry(endpoint).or_default();
        if kept.len() >= IDLE_MAX {
            kept.retain(Idle::is_usable);
        }
        if kept.len() < IDLE_MAX {
            kept.push(Idle { sender, since: Instant::now() });
        }
    }
}
