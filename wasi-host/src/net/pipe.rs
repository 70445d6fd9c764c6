//! One direction of a connection: a bounded byte pipe between exactly one writing and one reading end.
//!
//! Large writes travel as they are, by reference count; small ones are gathered, so that a peer who writes byte
//! by byte costs no more memory than the bytes.

use super::NetError;
use super::seat::{Budget, SQUEEZED_BYTES, Seat};
use super::waker_set::WakerSet;
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Bytes that a pipe holds unless its namespace says otherwise.
pub const PIPE_CAPACITY: usize = 256 * 1024;

/// Writes up to this size are gathered in the tail.
const GATHERED_WRITE_MAX: usize = 2 * 1024;

/// Bytes that are gathered before they become a chunk.
const TAIL_BYTES_MAX: usize = 16 * 1024;

/// How an end of a connection has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Closed: what it wrote last is still to be delivered.
    Closed,
    /// In disorder, as the ends of a pod whose network was taken down: nothing more is owed to anybody.
    Reset,
}

/// A bounded byte pipe. All methods take `&self`; each end calls its own half of them.
#[derive(Debug)]
pub(crate) struct Pipe {
    state: Mutex<State>,
    capacity: usize,
    budget: Option<Arc<Budget>>,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Bytes that were taken off the first of them since it came here, or was moved.
    front_taken: usize,
    tail: BytesMut,
    buffered: usize,
    /// The pipe was full and has not been emptied to the half since: the writer sleeps on, so that both ends
    /// do not wake each other for every few bytes.
    throttled: bool,
    writer: Writer,
    reader: Reader,
    readers: WakerSet,
    writers: WakerSet,
    /// The writer's, who has gone: it is his until what he wrote has been read.
    seat: Option<Seat>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Writer {
    #[default]
    Open,
    /// Ended in order: the reader gets what is buffered, then the end.
    Finished,
    /// Went away in disorder: the reader gets what is buffered, then one reset, then the end.
    Reset,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Reader {
    #[default]
    Open,
    /// Reading was shut down: what is written is swallowed, as on Linux.
    Deaf,
    /// Closed: one more write succeeds (the packet that is answered with a reset), then the pipe is broken.
    Gone,
    /// Went away in disorder: the writer gets one reset, then the pipe is broken.
    Reset,
    Broken,
}

impl Pipe {
    pub(crate) fn new(capacity: usize, budget: Option<Arc<Budget>>) -> Self {
        Self { state: Mutex::default(), capacity: capacity.max(1), budget }
    }

    pub(super) fn budget(&self) -> Option<&Arc<Budget>> {
        self.budget.as_ref()
    }

    /// Bytes that it may hold where nothing is scarce.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    // The reading end.

    /// Ready when a read would give bytes, the end or an error.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.readable() {
            return Poll::Ready(());
        }
        state.readers.register(cx.waker());
        Poll::Pending
    }

    /// Takes at most `max` bytes, without copying. Empty means the end; `WouldBlock` means not now.
    pub(crate) fn try_read(&self, max: usize) -> Result<Bytes, NetError> {
        let mut state = self.state.lock();
        if let Some(end) = state.ended() {
            return end.map(|()| Bytes::new());
        }
        let bytes = state.take_front(max);
        self.after_read(state, bytes.len());
        Ok(bytes)
    }

    /// Fills as much of `buffer` as there is. Zero means the end, unless the buffer is empty.
    pub(crate) fn try_read_into(&self, buffer: &mut [u8]) -> Result<usize, NetError> {
        let mut state = self.state.lock();
        if let Some(end) = state.ended() {
            return end.map(|()| 0);
        }
        let mut filled = 0;
        while filled < buffer.len() && state.buffered > 0 {
            let mut chunk = state.take_front(buffer.len() - filled);
            let length = chunk.len();
            chunk.copy_to_slice(&mut buffer[filled..filled + length]);
            filled += length;
        }
        self.after_read(state, filled);
        Ok(filled)
    }

    /// [`Pipe::try_read_into`] that leaves the waker when there is nothing yet.
    pub(crate) fn poll_read_into(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, NetError>> {
        loop {
            match self.try_read_into(buffer) {
                Err(NetError::WouldBlock) => ready!(self.poll_readable(cx)),
                done => return Poll::Ready(done),
            }
        }
    }

    /// Whether bytes wait to be read.
    pub(crate) fn has_unread(&self) -> bool {
        self.state.lock().buffered > 0
    }

    /// The reader shuts reading down: it may take what is buffered; what comes later is swallowed.
    pub(crate) fn deafen(&self) {
        self.change(|state| {
            if state.reader == Reader::Open {
                state.reader = Reader::Deaf;
            }
        });
    }

    /// The reader closed.
    pub(crate) fn close_reader(&self) {
        self.change(|state| {
            if matches!(state.reader, Reader::Open | Reader::Deaf) {
                state.reader = Reader::Gone;
            }
        });
    }

    /// The reader went away with bytes unread.
    pub(crate) fn reset_reader(&self) {
        let mut dropped = 0;
        self.change(|state| {
            if !matches!(state.reader, Reader::Reset | Reader::Broken) {
                state.reader = Reader::Reset;
            }
            dropped = state.discard();
        });
        self.give_back(dropped);
    }

    /// Whether the writer has gone away in disorder. Otherwise the waker is told of the next change.
    pub(crate) fn poll_writer_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.writer == Writer::Reset {
            return Poll::Ready(());
        }
        state.readers.register(cx.waker());
        Poll::Pending
    }

    fn after_read(&self, mut state: parking_lot::MutexGuard<'_, State>, length: usize) {
        let half_empty = state.buffered <= self.capacity_now() / 2;
        let writers = half_empty.then(|| {
            state.throttled = false;
            state.writers.take()
        });
        let seat = if state.buffered == 0 { state.seat.take() } else { None };
        drop(state);
        drop(seat);
        self.give_back(length);
        if let Some(writers) = writers {
            writers.wake();
        }
    }

    // The writing end.

    /// Ready when a write would take bytes or give an error.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.room(self.capacity_now()) != Some(0) {
            return Poll::Ready(());
        }
        state.writers.register(cx.waker());
        Poll::Pending
    }

    /// How the reader has gone. Otherwise the waker is told of the next change.
    pub(crate) fn poll_reader_gone(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        let mut state = self.state.lock();
        match state.reader {
            Reader::Gone | Reader::Broken => return Poll::Ready(Gone::Closed),
            Reader::Reset => return Poll::Ready(Gone::Reset),
            Reader::Open | Reader::Deaf => {}
        }
        state.writers.register(cx.waker());
        Poll::Pending
    }

    /// Whether the reader has gone: nobody will ever take what is written.
    pub(crate) fn is_unread(&self) -> bool {
        matches!(self.state.lock().reader, Reader::Gone | Reader::Reset | Reader::Broken)
    }

    /// Bytes that the next write takes whole; 0 while the pipe is full; an error once writing has ended.
    /// [`Pipe::write_permitted`] redeems it.
    pub(crate) fn permit(&self) -> Result<usize, NetError> {
        let mut state = self.state.lock();
        state.writing_ended(false)?;
        Ok(state.room(self.capacity_now()).unwrap_or(self.capacity))
    }

    /// Copies as much of `data` as there is room for. `WouldBlock` when there is none.
    pub(crate) fn try_write(&self, data: &[u8]) -> Result<usize, NetError> {
        self.write_with(data.len(), false, |state, length| {
            if state.gathers(length) {
                state.tail.extend_from_slice(&data[..length]);
            } else {
                state.push(Bytes::copy_from_slice(&data[..length]));
            }
        })
    }

    /// Takes as much of the front of `data` as there is room for, large pieces without copying.
    pub(crate) fn try_write_bytes(&self, data: &mut Bytes) -> Result<usize, NetError> {
        let written = self.write_with(data.len(), false, |state, length| state.put(data, length))?;
        data.advance(written);
        Ok(written)
    }

    /// Takes all of `data`, which is no longer than the last [`Pipe::permit`], even where the pod's budget
    /// has been spent by another pipe since. `NoBuffers` where many such permits have spent more than a part beyond it.
    pub(crate) fn write_permitted(&self, data: Bytes) -> Result<(), NetError> {
        self.write_with(data.len(), true, |state, length| state.put(&data, length)).map(|_| ())
    }

    /// [`Pipe::try_write`] that leaves the waker when there is no room.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, NetError>> {
        loop {
            match self.try_write(data) {
                Err(NetError::WouldBlock) => ready!(self.poll_writable(cx)),
                done => return Poll::Ready(done),
            }
        }
    }

    /// The writer ends in order.
    pub(crate) fn finish(&self) {
        self.change(|state| {
            if state.writer == Writer::Open {
                state.writer = Writer::Finished;
            }
        });
    }

    /// The writer goes away in disorder.
    pub(crate) fn reset_writer(&self) {
        self.change(|state| {
            if state.writer == Writer::Open {
                state.writer = Writer::Reset;
            }
        });
    }

    /// The writer has gone. Its seat is kept as long as the reader leaves what it wrote here.
    pub(crate) fn keep(&self, seat: Seat) {
        let mut state = self.state.lock();
        let unread = state.buffered > 0 && matches!(state.reader, Reader::Open | Reader::Deaf);
        let over = if unread { state.seat.replace(seat) } else { Some(seat) };
        drop(state);
        drop(over);
    }

    fn write_with(
        &self,
        available: usize,
        permitted: bool,
        put: impl FnOnce(&mut State, usize),
    ) -> Result<usize, NetError> {
        let mut state = self.state.lock();
        state.writing_ended(true)?;
        if available == 0 {
            return Ok(0);
        }
        let capacity = self.capacity_now();
        let length = match state.room(capacity) {
            // Swallowed, as much as a send buffer would have taken.
            None => return Ok(available.min(self.capacity)),
            Some(_) if permitted => match &self.budget {
                Some(budget) if available > SQUEEZED_BYTES && budget.is_overdrawn() => {
                    return Err(NetError::NoBuffers);
                }
                _ => available,
            },
            Some(0) => return Err(NetError::WouldBlock),
            Some(room) => room.min(available),
        };
        if let Some(budget) = &self.budget {
            budget.add(length);
        }
        put(&mut state, length);
        state.buffered += length;
        state.throttled = state.buffered >= capacity;
        let readers = state.readers.take();
        drop(state);
        readers.wake();
        Ok(length)
    }

    // Both.

    /// Changes how an end stands and wakes both, who then look for themselves.
    fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        how(&mut state);
        let (readers, writers) = (state.readers.take(), state.writers.take());
        let unread = matches!(state.reader, Reader::Open | Reader::Deaf);
        let seat = if unread { None } else { state.seat.take() };
        drop(state);
        drop(seat);
        readers.wake();
        writers.wake();
    }

    fn capacity_now(&self) -> usize {
        self.budget.as_ref().map_or(self.capacity, |budget| budget.room(self.capacity))
    }

    fn give_back(&self, length: usize) {
        if let Some(budget) = &self.budget {
            budget.remove(length);
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let left = self.state.get_mut().buffered;
        self.give_back(left);
    }
}

impl State {
    fn readable(&self) -> bool {
        self.buffered > 0 || self.writer != Writer::Open || self.reader != Reader::Open
    }

    /// What a read says when there are no bytes; none when there are.
    fn ended(&mut self) -> Option<Result<(), NetError>> {
        if self.buffered > 0 {
            return None;
        }
        if self.reader == Reader::Reset {
            return Some(Err(NetError::ConnectionAborted));
        }
        Some(match self.writer {
            Writer::Reset => {
                self.writer = Writer::Finished;
                Err(NetError::ConnectionReset)
            }
            Writer::Finished => Ok(()),
            Writer::Open if self.reader != Reader::Open => Ok(()),
            Writer::Open => Err(NetError::WouldBlock),
        })
    }

    /// Room for a writer; none when everything is swallowed or refused, so that it never waits.
    fn room(&self, capacity: usize) -> Option<usize> {
        if self.reader != Reader::Open || self.writer != Writer::Open {
            None
        } else if self.throttled {
            Some(0)
        } else {
            Some(capacity.saturating_sub(self.buffered))
        }
    }

    /// The error of a write that can no longer succeed. `counts` tells a write from a question: the one write
    /// after the peer's close that still succeeds, and the one reset, are used up by writes alone.
    fn writing_ended(&mut self, counts: bool) -> Result<(), NetError> {
        if self.writer != Writer::Open {
            return Err(NetError::BrokenPipe);
        }
        let (result, next) = match self.reader {
            Reader::Open | Reader::Deaf => return Ok(()),
            Reader::Gone => (Ok(()), Reader::Broken),
            Reader::Reset => (Err(NetError::ConnectionReset), Reader::Broken),
            Reader::Broken => (Err(NetError::BrokenPipe), Reader::Broken),
        };
        if counts {
            self.reader = next;
        }
        result
    }

    fn gathers(&self, length: usize) -> bool {
        length <= GATHERED_WRITE_MAX && self.tail.len() + length <= TAIL_BYTES_MAX
    }

    fn put(&mut self, data: &Bytes, length: usize) {
        if self.gathers(length) {
            self.tail.extend_from_slice(&data[..length]);
        } else {
            self.push(data.slice(..length));
        }
    }

    fn push(&mut self, chunk: Bytes) {
        self.seal_tail();
        self.chunks.push_back(chunk);
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.chunks.push_back(tail);
        }
    }

    /// Takes at most `max` bytes off the front chunk. Call it only while bytes are buffered.
    fn take_front(&mut self, max: usize) -> Bytes {
        if self.chunks.is_empty() {
            self.seal_tail();
        }
        let Some(front) = self.chunks.front_mut() else { return Bytes::new() };
        let taken = if front.len() <= max {
            self.front_taken = 0;
            self.chunks.pop_front().unwrap_or_default()
        } else {
            self.front_taken += max;
            let taken = front.split_to(max);
            // What is left keeps all that it came in: where that is more than twice as much, it moves.
            if self.front_taken > front.len() {
                *front = Bytes::copy_from_slice(front);
                self.front_taken = 0;
            }
            taken
        };
        self.buffered -= taken.len();
        taken
    }

    fn discard(&mut self) -> usize {
        self.chunks.clear();
        self.front_taken = 0;
        self.tail = BytesMut::new();
        self.throttled = false;
        std::mem::take(&mut self.buffered)
    }
}
