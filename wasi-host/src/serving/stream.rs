//! A client's connection as bytes: one that takes nothing is cut off, and so are a flood of HTTP/2 frames and large heads that
//! there is no room for.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::frames::FrameMeter;
use super::heads::Messages;
use super::pace::Pace;
use super::places::Place;
use super::{CLIENT_BYTES_PER_SECOND_MIN, CLIENT_PATIENCE, HEAD_BYTES_MAX};
use crate::net::Conn;

/// Bytes of a head of HTTP/1.1 that are not counted: as many as are read ahead in any case.
const HEAD_BYTES_FREE: usize = 8 * 1024;

/// How long what is left of a body that nobody reads is taken once all is answered, and how many bytes of it: a client that is
/// cut off while it sends may not hear the answer (RFC 9112, 9.6).
const LINGER_MAX: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: usize = 64 << 20;

/// Pieces of it that are taken before others have their turn.
const PIECES_A_TURN: usize = 64;

/// A connection that can be ended in disorder.
pub trait BreakOff {
    /// Has its peer see, once it is dropped, that something is missing of what it was sent.
    fn break_off(&self);
}

impl BreakOff for Conn {
    fn break_off(&self) {
        self.reset();
    }
}

impl BreakOff for TcpStream {
    fn break_off(&self) {
        // One that refuses ends in order.
        let _ = self.set_zero_linger();
    }
}

pub(super) struct ServedStream<S: BreakOff> {
    /// Until it is handed on.
    stream: Option<S>,
    pace: Pace,
    meter: FrameMeter,
    head: HeadMeter,
    linger: Option<Linger>,
}

/// Until when what comes is thrown away, and how much of it.
struct Linger {
    until: Pin<Box<Sleep>>,
    left: usize,
}

/// Counts what a client has sent of a head that is not whole.
struct HeadMeter {
    place: Place,
    /// Of HTTP/1.1.
    messages: Messages,
    counted: usize,
}

impl HeadMeter {
    /// Takes note of bytes of HTTP/1.1; false where there is no room for a head that large.
    fn received(&mut self, bytes: &[u8]) -> bool {
        self.messages.received(bytes);
        self.look()
    }

    /// The same of those that came already: what came behind a request is a head under way when that has ended.
    fn look(&mut self) -> bool {
        let large = self.messages.head_bytes().min(HEAD_BYTES_MAX).saturating_sub(HEAD_BYTES_FREE);
        // While a request is under way its client is not cut off for what it sends ahead.
        if large > self.counted && self.place.is_busy() {
            return true;
        }
        self.count(large)
    }

    /// Takes note of whether a head of HTTP/2 goes on in another frame. As many bytes as there may be: a few can stand for
    /// many (RFC 7541).
    fn goes_on(&mut self, goes_on: bool) -> bool {
        self.count(if goes_on { HEAD_BYTES_MAX } else { 0 })
    }

    fn count(&mut self, bytes: usize) -> bool {
        if bytes == self.counted {
            return true;
        }
        self.counted = bytes;
        self.place.hold_head(bytes)
    }
}

impl<S: BreakOff> ServedStream<S> {
    pub(super) fn new(stream: S, place: Place) -> Self {
        let pace = Pace::new(CLIENT_PATIENCE, Some(CLIENT_BYTES_PER_SECOND_MIN));
        let head = HeadMeter { place, messages: Messages::default(), counted: 0 };
        Self { stream: Some(stream), pace, meter: FrameMeter::default(), head, linger: None }
    }

    /// The stream itself. Nothing of it is kept back here.
    pub(super) fn into_inner(mut self) -> S {
        let Some(stream) = self.stream.take() else { unreachable!("it goes with the whole") };
        stream
    }

    /// Takes the rest of a body, for a while, and throws it away.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()>
    where
        S: AsyncRead + Unpin,
    {
        let Self { stream, head, linger, .. } = self;
        let mut stream = pinned(stream);
        let linger = linger.get_or_insert_with(|| Linger {
            until: Box::pin(tokio::time::sleep(LINGER_MAX)),
            left: LINGER_BYTES_MAX,
        });
        let mut piece = [MaybeUninit::uninit(); 4096];
        let mut turn = 0..PIECES_A_TURN;
        while head.messages.is_in_body()
            && linger.left > 0
            && linger.until.as_mut().poll(context).is_pending()
        {
            if turn.next().is_none() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut piece = ReadBuf::uninit(&mut piece);
            let read = std::task::ready!(stream.as_mut().poll_read(context, &mut piece));
            if read.is_err() || piece.filled().is_empty() {
                break;
            }
            linger.left = linger.left.saturating_sub(piece.filled().len());
            head.messages.received(piece.filled());
        }
        Poll::Ready(())
    }

    fn written(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Ok(bytes)) => {
                self.pace.moved(bytes);
                self.meter.sent(bytes);
                polled
            }
            Poll::Ready(Err(_)) => polled,
            Poll::Pending => {
                std::task::ready!(self.pace.poll_waiting(context));
                self.head.place.break_off();
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
            }
        }
    }
}

fn pinned<S: Unpin>(stream: &mut Option<S>) -> Pin<&mut S> {
    let Some(stream) = stream else { unreachable!("it goes with the whole") };
    Pin::new(stream)
}

/// Not before: what came of an answer that breaks off may still be on its way.
impl<S: BreakOff> Drop for ServedStream<S> {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.as_ref().filter(|_| self.head.place.is_broken_off()) {
            stream.break_off();
        }
    }
}

impl<S: AsyncRead + BreakOff + Unpin> AsyncRead for ServedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let Self { stream, meter, head, .. } = &mut *self;
        if !meter.is_http2() && !head.look() {
            return Poll::Ready(Err(no_room()));
        }
        std::task::ready!(pinned(stream).poll_read(context, buffer))?;
        let received = &buffer.filled()[before..];
        if !meter.received(received) {
            let flood = io::Error::new(io::ErrorKind::InvalidData, "a flood of HTTP/2 control frames");
            return Poll::Ready(Err(flood));
        }
        let has_room =
            if meter.is_http2() { head.goes_on(meter.head_goes_on()) } else { head.received(received) };
        if has_room {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(no_room()))
    }
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "there is no room for a head that large")
}

impl<S: AsyncRead + AsyncWrite + BreakOff + Unpin> AsyncWrite for ServedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = pinned(&mut self.stream).poll_write(context, data);
        self.written(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = pinned(&mut self.stream).poll_write_vectored(context, pieces);
        self.written(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(S::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pinned(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(pinned(&mut self.stream).poll_shutdown(context))?;
        if !self.meter.is_http2() {
            std::task::ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}
