//! `wasi:sockets` 0.3: streams and futures over the pod's sockets.

mod names;
mod streams;
mod tcp;
mod udp;

use super::SocketCtxView;
use wasmtime_wasi::p3::bindings::sockets::types::{self, ErrorCode};
use wasmtime_wasi::p3::sockets::SocketError;

impl types::Host for SocketCtxView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}
