//! Standard output and error of guests: lines into a sink.
//!
//! A guest writes bytes as they come; the sink gets whole lines, so that they can be stamped and rotated, and pieces
//! of lines that are too long. A sink that is full holds the guest up: no task and no thread is needed for a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::ledger::{Account, Charge, Holding};
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Bytes after which a line is handed on in pieces, as container runtimes do.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Bytes that a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// The same where the host's memory is scarce.
const WRITE_BYTES_SQUEEZED: usize = 4 * 1024;

/// Pending bytes of all streams that a guest has on one output. It may have been permitted more over many of them.
const PENDING_BYTES_MAX: usize = 4 * WRITE_BYTES_MAX;

/// Pending bytes that are not counted, and the step in which more are.
const PENDING_BYTES_FREE: usize = 1024;
const PENDING_BYTES_STEP: usize = 4 * 1024;

/// Lines that one call of a guest hands on: short lines cost the most, and what runs here cannot be interrupted. The
/// rest stays pending, and other guests come first.
const LINES_PER_CALL_MAX: usize = 256;

/// Where a container's output goes. Called from guest threads: it must not block.
pub trait LogSink: Send + Sync + 'static {
    /// Takes one line with its newline, or a piece of a line of more than [`LINE_BYTES_MAX`] bytes, or at a stream's
    /// end the last line without a newline.
    ///
    /// Returns `line.len()` where it was taken (also where the sink chose to drop it), 0 where it has no room: then
    /// the guest waits for [`LogSink::poll_ready`], and the line is offered again.
    fn write(&self, line: &[u8]) -> usize;

    /// Takes a line at the end of its stream, whether there is room or not: nobody is there any more who could wait. No
    /// more than one write of the guest comes this way from a stream.
    fn finish(&self, line: &[u8]) {
        self.write(line);
    }

    /// Whether what is written goes on at once, be it a line or not: for output that somebody sits before.
    fn takes_pieces(&self) -> bool {
        false
    }

    /// Ready where [`LogSink::write`] takes at least one line.
    fn poll_ready(&self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// One guest's standard output or error. All streams that the guest opens on it share the line that is begun.
pub(crate) struct LogStream {
    lines: Arc<Mutex<Lines>>,
    /// Bytes that the next write may have.
    permit: usize,
}

impl LogStream {
    pub(crate) fn new(sink: Arc<dyn LogSink>, account: &Arc<Account>) -> LogStream {
        let charge = Charge::nothing(account, Holding::Heap);
        LogStream { lines: Arc::new(Mutex::new(Lines { sink, pending: Vec::new(), charge })), permit: 0 }
    }

    /// Another stream on the same output.
    pub(crate) fn another(&self) -> LogStream {
        LogStream { lines: Arc::clone(&self.lines), permit: 0 }
    }

    /// Ready where some bytes would be taken.
    pub(crate) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        self.lines.lock().poll_drained(context)
    }

    /// Takes some of the bytes.
    pub(crate) fn poll_take(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<usize> {
        let mut lines = self.lines.lock();
        std::task::ready!(lines.poll_drained(context));
        let taken = bytes.len().min(lines.room());
        lines.accept(&bytes[..taken]);
        Poll::Ready(taken)
    }
}

/// Bytes that the sink has not taken yet: at most one line begun and what all streams were permitted.
struct Lines {
    sink: Arc<dyn LogSink>,
    pending: Vec<u8>,
    /// For what is pending.
    charge: Charge,
}

impl Lines {
    /// Takes all of `bytes`; the caller has seen that [`Lines::drain`] left no whole line behind.
    fn accept(&mut self, bytes: &[u8]) {
        let (mut rest, mut left) = (bytes, LINES_PER_CALL_MAX);
        // Whole lines go by without a copy where nothing waits before them.
        while left > 0
            && self.pending.is_empty()
            && let Some(end) = rest.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n')
        {
            let (line, after) = rest.split_at(end + 1);
            if self.sink.write(line) == 0 {
                break;
            }
            rest = after;
            left -= 1;
        }
        self.pending.extend_from_slice(rest);
        self.drain(&mut left);
    }

    /// Hands whole lines and full pieces on, at most as many as are left, which is counted down.
    fn drain(&mut self, left: &mut usize) -> Drained {
        let mut start = 0;
        let drained = loop {
            let rest = &self.pending[start..];
            let piece = || (!rest.is_empty() && self.sink.takes_pieces()).then_some(rest.len());
            let Some(length) = next_line(rest).or_else(piece) else {
                break Drained::All;
            };
            if *left == 0 {
                break Drained::Enough;
            }
            if self.sink.write(&self.pending[start..start + length]) == 0 {
                break Drained::Refused;
            }
            *left -= 1;
            start += length;
        };
        self.pending.drain(..start);
        self.count();
        drained
    }

    /// Charges for what is pending: it is there already, and more is taken only where there is room for it.
    fn count(&mut self) {
        let pending = self.pending.len();
        if pending <= PENDING_BYTES_FREE && self.pending.capacity() > PENDING_BYTES_STEP {
            self.pending.shrink_to(PENDING_BYTES_FREE);
        }
        let counted =
            if pending <= PENDING_BYTES_FREE { 0 } else { pending.next_multiple_of(PENDING_BYTES_STEP) };
        self.charge.set_held(counted as u64);
    }

    /// Bytes that may be written at once.
    fn room(&self) -> usize {
        let scarce = self.charge.account().is_pressed(Holding::Heap);
        if scarce { WRITE_BYTES_SQUEEZED } else { WRITE_BYTES_MAX }
    }

    fn poll_drained(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut left = LINES_PER_CALL_MAX;
        loop {
            match self.drain(&mut left) {
                Drained::All => return Poll::Ready(()),
                Drained::Enough => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // A sink may be ready and refuse once more where another stream took its room: it is asked again.
                Drained::Refused => std::task::ready!(self.sink.poll_ready(context)),
            }
        }
    }
}

/// How far pending lines were handed on.
#[derive(PartialEq, Eq)]
enum Drained {
    /// No whole line is left.
    All,
    /// The call has handed on as many as it may.
    Enough,
    /// The sink has no room.
    Refused,
}

impl Drop for Lines {
    fn drop(&mut self) {
        let mut rest = &*self.pending;
        while !rest.is_empty() {
            // The last line may have no end.
            let (line, after) = rest.split_at(next_line(rest).unwrap_or(rest.len()));
            self.sink.finish(line);
            rest = after;
        }
    }
}

/// The length of the first line, or piece of a line, that is to be handed on.
fn next_line(pending: &[u8]) -> Option<usize> {
    let window = &pending[..pending.len().min(LINE_BYTES_MAX)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some(end + 1),
        None => (pending.len() >= LINE_BYTES_MAX).then_some(LINE_BYTES_MAX),
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.another())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.another())
    }
}

#[async_trait::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll_room(context)).await;
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > self.permit {
            let (asked, permit) = (bytes.len(), self.permit);
            return Err(StreamError::Trap(wasmtime::format_err!(
                "write of {asked} bytes with a permit for {permit}"
            )));
        }
        self.permit -= bytes.len();
        let mut lines = self.lines.lock();
        if lines.pending.len() + bytes.len() > PENDING_BYTES_MAX {
            return Err(StreamError::LastOperationFailed(io::Error::from(Errno::NOBUFS).into()));
        }
        lines.accept(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let mut left = LINES_PER_CALL_MAX;
        let mut lines = self.lines.lock();
        self.permit = if lines.drain(&mut left) == Drained::All { lines.room() } else { 0 };
        Ok(self.permit)
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_take(context, bytes).map(Ok)
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{HEAP_GUARANTEED, Ledger, NodeBounds};

    /// Takes `room` lines, then none.
    struct Narrow {
        room: Mutex<usize>,
        lines: Mutex<Vec<Vec<u8>>>,
    }

    impl LogSink for Narrow {
        fn write(&self, line: &[u8]) -> usize {
            let mut room = self.room.lock();
            if *room == 0 {
                return 0;
            }
            *room -= 1;
            self.lines.lock().push(line.to_vec());
            line.len()
        }

        fn poll_ready(&self, _context: &mut Context<'_>) -> Poll<()> {
            if *self.room.lock() == 0 { Poll::Pending } else { Poll::Ready(()) }
        }
    }

    fn stream(sink: Arc<dyn LogSink>) -> LogStream {
        LogStream::new(sink, &account(1 << 30))
    }

    /// A pod's, where so many bytes of the host are to be had beside what is certain.
    fn account(heap: u64) -> Arc<Account> {
        let bounds = NodeBounds { memory: None, heap, files: 0, files_guaranteed: 0 };
        Ledger::new(bounds).pod(&"default".into(), None)
    }

    #[test]
    fn what_is_pending_is_counted_and_little_is_taken_where_memory_is_scarce() {
        let account = account(0);
        let sink = narrow(0);
        let mut stream = LogStream::new(sink.clone(), &account);
        put(&mut stream, &[b'x'; 60 << 10]);
        assert_eq!(account.held(Holding::Heap), 60 << 10);
        *sink.room.lock() = 100;
        assert_eq!(stream.check_write().expect("open"), WRITE_BYTES_MAX);
        assert_eq!(account.held(Holding::Heap), 12 << 10, "the line that is begun");
        let mut others = account.charge(Holding::Heap, HEAP_GUARANTEED - (12 << 10)).expect("certain");
        others.set_held(HEAP_GUARANTEED);
        assert_eq!(stream.check_write().expect("open"), WRITE_BYTES_SQUEEZED);
        drop((stream, others));
        assert_eq!(account.held(Holding::Heap), 0);
    }

    #[test]
    fn who_sits_before_the_output_sees_pieces_of_lines_at_once() {
        struct Seen(Mutex<Vec<Vec<u8>>>);
        impl LogSink for Seen {
            fn write(&self, line: &[u8]) -> usize {
                self.0.lock().push(line.to_vec());
                line.len()
            }
            fn takes_pieces(&self) -> bool {
                true
            }
        }
        let seen = Arc::new(Seen(Mutex::default()));
        let mut stream = stream(seen.clone());
        for piece in [&b"name? "[..], b"one\ntwo\nand", b"\n"] {
            put(&mut stream, piece);
        }
        assert_eq!(*seen.0.lock(), [&b"name? "[..], b"one\n", b"two\n", b"and", b"\n"]);
    }

    fn put(stream: &mut LogStream, bytes: &[u8]) {
        assert!(stream.check_write().expect("open") >= bytes.len());
        stream.write(Bytes::copy_from_slice(bytes)).expect("taken");
    }

    #[test]
    fn no_more_is_written_than_was_permitted_and_over_many_streams_not_all_of_that() {
        let sink = narrow(0);
        let output = stream(sink);
        let pending = || output.lines.lock().pending.len();
        let write = |stream: &mut LogStream, bytes: usize| stream.write(vec![b'x'; bytes].into());
        let mut one = output.another();
        assert!(matches!(write(&mut one, 1), Err(StreamError::Trap(_))), "nobody has permitted it");
        let permit = one.check_write().expect("open");
        assert!(matches!(write(&mut one, permit + 1), Err(StreamError::Trap(_))));
        assert_eq!(pending(), 0);
        let mut many: Vec<_> = (0..100).map(|_| output.another()).collect();
        for stream in &mut many {
            assert_eq!(stream.check_write().expect("open"), WRITE_BYTES_MAX);
        }
        let taken = many.iter_mut().filter_map(|stream| write(stream, WRITE_BYTES_MAX).ok()).count();
        assert_eq!((taken, pending()), (4, PENDING_BYTES_MAX));
    }

    fn narrow(room: usize) -> Arc<Narrow> {
        Arc::new(Narrow { room: Mutex::new(room), lines: Mutex::new(Vec::new()) })
    }

    #[test]
    fn lines_are_joined_across_writes_and_long_ones_cut() {
        let sink = narrow(usize::MAX);
        let mut stream = stream(sink.clone());
        put(&mut stream, b"one\ntw");
        put(&mut stream, b"o\n");
        put(&mut stream, &[b'x'; LINE_BYTES_MAX + 3]);
        assert_eq!(sink.lines.lock().len(), 3);
        drop(stream);
        let lines = sink.lines.lock();
        assert_eq!(lines[..2], [b"one\n".to_vec(), b"two\n".to_vec()]);
        assert_eq!((lines[2].len(), lines[3].as_slice()), (LINE_BYTES_MAX, &b"xxx"[..]));
    }

    #[tokio::test]
    async fn a_flood_of_lines_gives_way_and_loses_nothing() {
        let sink = narrow(usize::MAX);
        let mut stream = stream(sink.clone());
        put(&mut stream, &[b'\n'; 1000]);
        assert_eq!(sink.lines.lock().len(), LINES_PER_CALL_MAX);
        assert_eq!(stream.check_write().expect("open"), 0);
        let mut polls = 0;
        let mut ready = std::pin::pin!(stream.ready());
        std::future::poll_fn(|context| {
            polls += 1;
            ready.as_mut().poll(context)
        })
        .await;
        assert_eq!((polls, sink.lines.lock().len()), (2, 1000));
    }

    #[test]
    fn a_stream_that_ends_at_a_full_sink_loses_nothing() {
        struct Full(Mutex<Vec<u8>>);
        impl LogSink for Full {
            fn write(&self, _line: &[u8]) -> usize {
                0
            }

            fn finish(&self, line: &[u8]) {
                self.0.lock().extend_from_slice(line);
            }
        }
        let sink = Arc::new(Full(Mutex::default()));
        let mut stream = stream(sink.clone());
        put(&mut stream, b"a\nb\nbegun");
        drop(stream);
        assert_eq!(*sink.0.lock(), b"a\nb\nbegun");
    }

    #[test]
    fn a_full_sink_holds_the_guest_up_and_loses_nothing() {
        let sink = narrow(1);
        let mut stream = stream(sink.clone());
        put(&mut stream, b"a\nb\nc\n");
        assert_eq!(stream.check_write().expect("open"), 0);
        *sink.room.lock() = 5;
        assert_eq!(stream.check_write().expect("open"), WRITE_BYTES_MAX);
        assert_eq!(sink.lines.lock().concat(), b"a\nb\nc\n");
    }
}
