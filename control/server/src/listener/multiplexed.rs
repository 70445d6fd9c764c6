//! An HTTP/2 connection as one task. Its requests are polled beside it instead of in tasks of their own, and what they
//! all have to say leaves in one write when none of them can go on.
//!
//! Hyper gives each request a task, which wakes the connection's for each frame, on another core perhaps; and h2 flushes
//! behind each larger DATA frame, so that an answer of a header, an object and trailers is two TLS records and two system
//! calls. Under load that costs more than the answer itself.

#[cfg(test)]
mod tests;

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered, task::AtomicWaker};
use hyper::{
    body::{Body, Incoming},
    rt::{Executor, bounds::Http2ServerConnExec},
    server::conn::http2::{Builder, Connection},
    service::HttpService,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::unconstrained,
};

/// So many bytes are gathered before the connection waits for the network.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

/// A larger buffer is given back when it is empty.
const GATHERED_BYTES_KEPT: usize = 4 * 1024;

/// The connection goes on so often in a row before other tasks have their turn.
const ROUNDS_MAX: usize = 16;

/// Serves one connection. When it ends, so do its requests.
pub struct Multiplexed<S, V: HttpService<Incoming>> {
    connection: Pin<Box<Http2<S, V>>>,
    requests: FuturesUnordered<Request>,
    /// Requests that were not polled yet.
    arrived: Arc<Mutex<Vec<Request>>>,
    outlet: Arc<Mutex<Outlet<S>>>,
    alarm: Arc<Alarm>,
    /// Rings the alarm.
    waker: Waker,
}

type Http2<S, V> = Connection<TokioIo<Gathering<S>>, V, Beside>;

type Request = BoxFuture<'static, ()>;

/// Why a connection has ended before its time.
type Broken = Box<dyn std::error::Error + Send + Sync>;

impl<S, V> Multiplexed<S, V>
where
    S: AsyncRead + AsyncWrite + Unpin,
    V: HttpService<Incoming>,
    V::Error: Into<Broken>,
    V::ResBody: Body<Error: Into<Broken>> + 'static,
    Beside: Http2ServerConnExec<V::Future, V::ResBody>,
{
    /// `configure` sets the bounds of the connection.
    pub fn new(stream: S, service: V, configure: impl FnOnce(&mut Builder<Beside>)) -> Self {
        let arrived = Arc::<Mutex<Vec<_>>>::default();
        let outlet = Outlet { stream, gathered: Vec::new(), written: 0, refused: None };
        let outlet = Arc::new(Mutex::new(outlet));
        let mut builder = Builder::new(Beside { arrived: Arc::downgrade(&arrived) });
        configure(&mut builder);
        let gathering = TokioIo::new(Gathering(outlet.clone()));
        let connection = builder.serve_connection(gathering, service);
        let alarm = Arc::<Alarm>::default();
        Self {
            connection: Box::pin(connection),
            requests: FuturesUnordered::new(),
            arrived,
            outlet,
            waker: alarm.clone().into(),
            alarm,
        }
    }

    /// Takes no further requests; the connection ends when those under way have ended.
    pub fn graceful_shutdown(&mut self) {
        self.connection.as_mut().graceful_shutdown();
    }

    /// Ready when the connection has ended, pending when neither it nor a request can go on, or others have their turn.
    fn poll_rounds(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        for _ in 0..ROUNDS_MAX {
            self.alarm.rung.store(false, SeqCst);
            if let Poll::Ready(ended) = self.connection.as_mut().poll(context) {
                return Poll::Ready(ended);
            }
            self.requests.extend(self.arrived.lock().drain(..));
            while let Poll::Ready(Some(())) = self.requests.poll_next_unpin(context) {}
            if !self.alarm.rung.load(SeqCst) {
                break;
            }
        }
        Poll::Pending
    }
}

impl<S, V> Future for Multiplexed<S, V>
where
    S: AsyncRead + AsyncWrite + Unpin,
    V: HttpService<Incoming>,
    V::Error: Into<Broken>,
    V::ResBody: Body<Error: Into<Broken>> + 'static,
    Beside: Http2ServerConnExec<V::Future, V::ResBody>,
{
    type Output = Result<(), Broken>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.alarm.enter(context.waker());
        let waker = this.waker.clone();
        let mut inner = Context::from_waker(&waker);
        if let Poll::Ready(ended) = this.poll_rounds(&mut inner) {
            return Poll::Ready(ended.map_err(Into::into));
        }
        // The requests may have used up this task's share of the runtime, but what they say must not wait for the next.
        let flushed = pin!(unconstrained(poll_fn(|context| this.outlet.lock().poll_flush(context))));
        if let Poll::Ready(Err(error)) = flushed.poll(&mut inner) {
            return Poll::Ready(Err(error.into()));
        }
        this.alarm.leave();
        Poll::Pending
    }
}

/// Takes a connection's requests to be polled beside it. A panic ends the request that it is in.
///
/// Each request holds one of these: it must not keep the others alive when the connection has ended.
#[derive(Clone)]
pub struct Beside {
    arrived: Weak<Mutex<Vec<Request>>>,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Beside {
    fn execute(&self, request: F) {
        if let Some(arrived) = self.arrived.upgrade() {
            let request = AssertUnwindSafe(request).catch_unwind().map(|_panicked| ());
            arrived.lock().push(request.boxed());
        }
    }
}

/// What wakes the connection and its requests. While they are polled it does not wake the task: they are polled again.
#[derive(Default)]
struct Alarm {
    task: AtomicWaker,
    polling: AtomicBool,
    rung: AtomicBool,
}

impl Alarm {
    fn enter(&self, task: &Waker) {
        self.task.register(task);
        self.polling.store(true, SeqCst);
    }

    fn leave(&self) {
        self.polling.store(false, SeqCst);
        if self.rung.load(SeqCst) {
            self.task.wake();
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, SeqCst);
        if !self.polling.load(SeqCst) {
            self.task.wake();
        }
    }
}

/// The network, and what is on its way there.
struct Outlet<S> {
    stream: S,
    gathered: Vec<u8>,
    /// So many of the gathered bytes are written.
    written: usize,
    /// Who could not write because too much was gathered.
    refused: Option<Waker>,
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.len() - self.written < GATHERED_BYTES_MAX {
            return Poll::Ready(Ok(()));
        }
        let flushed = self.poll_flush(context);
        if flushed.is_pending() {
            self.refused = Some(context.waker().clone());
        }
        flushed
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.gathered.len() {
            let written =
                ready!(Pin::new(&mut self.stream).poll_write(context, &self.gathered[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.written = 0;
        self.gathered.clear();
        if self.gathered.capacity() > GATHERED_BYTES_KEPT {
            self.gathered = Vec::new();
        }
        if let Some(refused) = self.refused.take() {
            refused.wake();
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

/// The stream that hyper reads and writes. What it writes leaves when [`Multiplexed`] has polled everything.
struct Gathering<S>(Arc<Mutex<Outlet<S>>>);

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut outlet = self.0.lock();
        ready!(outlet.poll_room(context))?;
        slices.iter().for_each(|slice| outlet.gathered.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// [`Multiplexed`] does it.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outlet = self.0.lock();
        ready!(outlet.poll_flush(context))?;
        Pin::new(&mut outlet.stream).poll_shutdown(context)
    }
}
