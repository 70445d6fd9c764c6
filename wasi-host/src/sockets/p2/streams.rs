//! The byte streams of a connection.

use crate::net::{Conn, NetError, TRANSFER_BYTES_MAX};
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// What arrives on a connection.
pub(crate) struct Incoming {
    conn: Arc<Conn>,
    ended: bool,
}

impl Incoming {
    pub(crate) fn new(conn: Arc<Conn>) -> Self {
        Self { conn, ended: false }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        if !self.ended {
            poll_fn(|cx| self.conn.poll_readable(cx)).await;
        }
    }
}

#[wasmtime_wasi::async_trait]
impl InputStream for Incoming {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.ended {
            return Err(StreamError::Closed);
        }
        if size == 0 {
            return Ok(Bytes::new());
        }
        match self.conn.try_read(size.min(TRANSFER_BYTES_MAX)) {
            Ok(bytes) if bytes.is_empty() => {
                self.ended = true;
                Err(StreamError::Closed)
            }
            Ok(bytes) => Ok(bytes),
            Err(NetError::WouldBlock) => Ok(Bytes::new()),
            Err(error) => {
                self.ended = true;
                Err(failed(error))
            }
        }
    }
}

/// What is sent on a connection.
pub(super) struct Outgoing {
    conn: Arc<Conn>,
    permit: usize,
}

impl Outgoing {
    pub(super) fn new(conn: Arc<Conn>) -> Self {
        Self { conn, permit: 0 }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        poll_fn(|cx| self.conn.poll_writable(cx)).await;
    }
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Outgoing {
    fn check_write(&mut self) -> StreamResult<usize> {
        match self.conn.write_permit() {
            Ok(permit) => {
                self.permit = permit;
                Ok(permit)
            }
            Err(error) => {
                // The guest has been told: the next attempt is a broken pipe, as on Linux.
                let _ = self.conn.try_write(&[]);
                Err(failed(error))
            }
        }
    }

    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > self.permit {
            let (asked, permit) = (bytes.len(), self.permit);
            return Err(StreamError::Trap(wasmtime::format_err!(
                "write of {asked} bytes with a permit for {permit}"
            )));
        }
        self.permit -= bytes.len();
        self.conn.write_permitted(bytes).map_err(failed)
    }

    /// What was written is with the peer already.
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
}

fn failed(error: NetError) -> StreamError {
    match error {
        NetError::BrokenPipe => StreamError::Closed,
        error => StreamError::LastOperationFailed(error.into()),
    }
}
