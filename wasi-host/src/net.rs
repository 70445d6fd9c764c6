//! A pod's virtual network: addresses, ports, pipes, names, and one trait for what lies beyond the pod.
//!
//! Nothing here knows wasmtime. Guests reach it through [`crate::sockets`], native code (probes, the gateway,
//! tunnels) through [`Conn`], which is a tokio stream.
//! Where Linux' behaviour is visible to a program, this network has the same: refused, reset, half-close,
//! address in use, the first write after the peer closed.

mod buffers;
mod callers;
mod conn;
mod error;
mod http_service;
mod listener;
mod mailbox;
mod namespace;
mod pipe;
mod ports;
mod request_id;
mod seat;
mod turns;
mod udp;
mod uplink;
mod waker_set;

#[cfg(test)]
mod tests;

pub use buffers::{Buffers, TenantBuffers, Unread};
pub use conn::Conn;
pub use error::NetError;
pub use http_service::{
    BoxError, Client, HttpBody, HttpError, HttpService, UNSEEN, Unanswered, announce_body, empty_body,
    full_body,
};
pub use listener::{Bound, Listener};
pub use namespace::{Namespace, NamespaceConfig};
pub use pipe::{Gone, PIPE_CAPACITY};
pub use request_id::{REQUEST_ID, REQUEST_ID_BYTES_MAX, RequestId};
pub use udp::{DATAGRAM_BYTES_MAX, UdpSocket};
#[cfg(test)]
pub(crate) use uplink::Known;
pub use uplink::{Isolated, Uplink};

use std::time::Duration;

/// Bytes that one read or write of a guest moves at most, and the permit that a writer is given.
pub const TRANSFER_BYTES_MAX: usize = 64 * 1024;

/// What one pod may take of its node's memory through its network.
#[derive(Debug, Clone)]
pub struct NetLimits {
    /// Listeners, bound sockets, connection ends and datagram sockets that exist at once.
    pub sockets_max: usize,
    /// Bytes that one direction of a connection holds.
    pub pipe_bytes: usize,
    /// Bytes that all pipes and mailboxes of the pod hold before each is squeezed to a few KiB, as the kernel does under pressure.
    pub buffered_bytes_max: usize,
    /// Connections that wait for an accept at one listener, whatever backlog the guest asks for.
    pub backlog_max: usize,
    /// Bytes of datagrams that wait at one socket; more are dropped, as datagrams are.
    pub datagram_bytes: usize,
    /// How long a connect may take before it ends as timed out.
    pub connect_timeout: Duration,
}

impl Default for NetLimits {
    fn default() -> Self {
        Self {
            sockets_max: 4096,
            pipe_bytes: PIPE_CAPACITY,
            buffered_bytes_max: 64 * 1024 * 1024,
            backlog_max: 4096,
            datagram_bytes: 256 * 1024,
            connect_timeout: Duration::from_secs(30),
        }
    }
}
