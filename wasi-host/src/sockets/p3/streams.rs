//! The streams of 0.3: accepted sockets, received bytes, sent bytes.
//!
//! A read or write of no bytes asks whether one of some bytes would wait.

use super::tcp::Socket;
use crate::net::{Conn, Listener, NetError, TRANSFER_BYTES_MAX};
use crate::sockets::SocketCtxView;
use crate::sockets::tcp::{TcpOptions, poll_accept};
use bytes::BytesMut;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use wasmtime::component::{Destination, Resource, Source, StreamConsumer, StreamProducer, StreamResult};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::p3::bindings::sockets::types::{ErrorCode, TcpSocket};

type Polled = Poll<wasmtime::Result<StreamResult>>;

/// The listener's connections as sockets.
pub(super) struct Accepted<T> {
    pub(super) listener: Arc<Listener>,
    pub(super) options: TcpOptions,
    pub(super) getter: for<'a> fn(&'a mut T) -> SocketCtxView<'a>,
}

impl<T: 'static> StreamProducer<T> for Accepted<T> {
    type Item = Resource<TcpSocket>;
    type Buffer = Option<Self::Item>;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Polled {
        if destination.remaining(&mut store) == Some(0) {
            return or_cancelled(self.listener.poll_acceptable(cx).map(|()| StreamResult::Completed), finish);
        }
        match poll_accept(&self.listener, &self.options, cx) {
            Poll::Pending => or_cancelled(Poll::Pending, finish),
            // The pod's network is down: nothing will ever come.
            Poll::Ready(Err(_)) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(Ok(socket)) => {
                let view = (self.getter)(store.data_mut());
                let handle = view.table.push(Socket::new(socket))?;
                destination.set_buffer(Some(Resource::new_own(handle.rep())));
                Poll::Ready(Ok(StreamResult::Completed))
            }
        }
    }
}

/// One direction of a connection and where its end is told.
pub(super) struct Half {
    conn: Arc<Conn>,
    direction: Shutdown,
    told: Option<oneshot::Sender<Result<(), ErrorCode>>>,
}

impl Half {
    /// The half of `conn` that `direction` names, and the future of its end.
    pub(super) fn new(
        conn: Arc<Conn>,
        direction: Shutdown,
    ) -> (Self, oneshot::Receiver<Result<(), ErrorCode>>) {
        let (told, end) = oneshot::channel();
        (Self { conn, direction, told: Some(told) }, end)
    }

    fn end(&mut self, result: Result<(), NetError>) -> Polled {
        if let Some(told) = self.told.take() {
            // Nobody need listen.
            let _ = told.send(result.map_err(ErrorCode::from));
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

impl Drop for Half {
    /// The guest let go of the stream: this direction is shut down.
    fn drop(&mut self) {
        self.conn.shutdown(self.direction);
        let _ = self.end(Ok(()));
    }
}

/// What arrives on a connection.
pub(super) struct Received(pub(super) Half);

impl<T> StreamProducer<T> for Received {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Polled {
        let half = &mut self.0;
        if half.told.is_none() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        if destination.remaining(store.as_context_mut()) == Some(0) {
            return or_cancelled(half.conn.poll_readable(cx).map(|()| StreamResult::Completed), finish);
        }
        let mut destination = destination.as_direct(store, TRANSFER_BYTES_MAX);
        match half.conn.poll_read_into(cx, destination.remaining()) {
            Poll::Pending => or_cancelled(Poll::Pending, finish),
            Poll::Ready(Ok(0)) => half.end(Ok(())),
            Poll::Ready(Ok(read)) => {
                destination.mark_written(read);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(Err(error)) => half.end(Err(error)),
        }
    }
}

/// What is sent on a connection.
pub(super) struct Sent(pub(super) Half);

impl<T> StreamConsumer<T> for Sent {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, T>,
        source: Source<'_, Self::Item>,
        finish: bool,
    ) -> Polled {
        let half = &mut self.0;
        if half.told.is_none() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let mut source = source.as_direct(store);
        if source.remaining().is_empty() {
            return or_cancelled(half.conn.poll_writable(cx).map(|()| StreamResult::Completed), finish);
        }
        match half.conn.poll_write_from(cx, source.remaining()) {
            Poll::Pending => or_cancelled(Poll::Pending, finish),
            Poll::Ready(Ok(written)) => {
                source.mark_read(written);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(Err(error)) => half.end(Err(error)),
        }
    }
}

/// A wait that the guest has called off ends as cancelled.
fn or_cancelled(poll: Poll<StreamResult>, finish: bool) -> Polled {
    match poll {
        Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
        poll => poll.map(Ok),
    }
}
