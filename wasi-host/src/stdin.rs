//! Standard input: at its end, silent until the container is asked to stop, or what somebody sends.
//!
//! WASI has no signals: a program that reads its input learns from its end that it shall finish. A container has such an input
//! only where its author asked for it; that of others is at its end from the start, and they learn of it by their listeners.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use crate::net::Conn;
use crate::sockets::Incoming;

/// What a program finds at its standard input.
#[derive(Debug, Clone, Default)]
pub enum Stdin {
    /// Its end.
    #[default]
    AtEnd,
    /// Nothing, until the container is asked to stop: then its end.
    UntilStop,
    /// What arrives on this end of a connection, until its other end closes.
    Sent(Arc<Conn>),
}

impl Stdin {
    /// The input of a container that is asked to stop by `stop`.
    pub(crate) fn input(&self, stop: &CancellationToken) -> Input {
        match self {
            Stdin::AtEnd => Input::AtEnd,
            Stdin::UntilStop => Input::Until(stop.clone()),
            Stdin::Sent(conn) => Input::Sent(Arc::clone(conn)),
        }
    }
}

/// The same, of one container.
#[derive(Clone)]
pub(crate) enum Input {
    AtEnd,
    /// Open and silent until the token is cancelled.
    Until(CancellationToken),
    Sent(Arc<Conn>),
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        match self {
            Input::AtEnd => Box::new(tokio::io::empty()),
            Input::Until(until) => Box::new(Silent { ended: Box::pin(until.clone().cancelled_owned()) }),
            Input::Sent(conn) => Box::new(Sent(Arc::clone(conn))),
        }
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        match self {
            Input::AtEnd => Box::new(wasmtime_wasi::p2::pipe::ClosedInputStream),
            Input::Until(until) => Box::new(SilentInput(until.clone())),
            Input::Sent(conn) => Box::new(Incoming::new(Arc::clone(conn))),
        }
    }
}

/// Says nothing until its token is cancelled.
struct SilentInput(CancellationToken);

#[async_trait::async_trait]
impl Pollable for SilentInput {
    async fn ready(&mut self) {
        self.0.cancelled().await;
    }
}

#[async_trait::async_trait]
impl InputStream for SilentInput {
    fn read(&mut self, _size: usize) -> StreamResult<Bytes> {
        if self.0.is_cancelled() { Err(StreamError::Closed) } else { Ok(Bytes::new()) }
    }
}

struct Silent {
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Silent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ended.as_mut().poll(context).map(Ok)
    }
}

struct Sent(Arc<Conn>);

impl AsyncRead for Sent {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = ready!(self.0.poll_read_into(context, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}
