//! `wasi:sockets` 0.2: readiness and finish calls over the pod's sockets.

mod names;
mod network;
mod streams;
mod tcp;
mod udp;

pub(crate) use streams::Incoming;

use std::task::{Context, Waker};

/// A context for operations that only ask whether something can be done now.
fn no_wait() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
