//! Standard input that says nothing until the container is asked to stop, and ends then.
//!
//! WASI has no signals: a program that reads its input learns from its end that it shall finish. A container has such an input
//! only where its author asked for it; that of others is at its end from the start, and they learn of it by their listeners.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// Open and silent until its token is cancelled.
pub(crate) struct OpenStdin {
    until: CancellationToken,
}

impl OpenStdin {
    pub(crate) fn new(until: CancellationToken) -> OpenStdin {
        OpenStdin { until }
    }
}

impl IsTerminal for OpenStdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for OpenStdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(Reader { ended: Box::pin(self.until.clone().cancelled_owned()) })
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(OpenStdin::new(self.until.clone()))
    }
}

#[async_trait::async_trait]
impl Pollable for OpenStdin {
    async fn ready(&mut self) {
        self.until.cancelled().await;
    }
}

#[async_trait::async_trait]
impl InputStream for OpenStdin {
    fn read(&mut self, _size: usize) -> StreamResult<Bytes> {
        if self.until.is_cancelled() { Err(StreamError::Closed) } else { Ok(Bytes::new()) }
    }
}

struct Reader {
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ended.as_mut().poll(context).map(Ok)
    }
}
