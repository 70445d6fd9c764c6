//! The guests' end of a log: lines go into a bounded queue, and a thread of the node writes them down.

use std::{
    io::Write,
    mem,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use coracle_wasi_host::{
    LogSink,
    shares::{Holder, Permit},
};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;

use super::{file::LogFile, writer::WriterQueue};

/// Bytes of one log that wait for the disk, about: a guest that writes faster waits, and nobody else does.
pub const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Those of them that may wait whatever other logs have; a line more than that, as with every bound here.
const QUEUE_BYTES_CERTAIN: usize = 4 * 1024;

/// The bytes beyond are taken so many at a time from what all logs of the node have.
pub(super) const BLOCK_BYTES: usize = 16 * 1024;

/// Bytes of a record beside its text, about.
const RECORD_HEAD_BYTES: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What readers of a log wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that are no longer in the queue.
    pub done: u64,
    pub ended: bool,
}

/// The log of one attempt of one container, open for writing.
pub struct ContainerLog {
    path: PathBuf,
    /// On whose account its bytes wait, and in whose turn they are written.
    holder: Holder,
    queue: Mutex<Queue>,
    /// Only the writing thread uses it.
    file: Mutex<LogFile>,
    /// Held while files change their names: who looks for files sees each of them once.
    names: RwLock<()>,
    progress: watch::Sender<Progress>,
    writer: Arc<WriterQueue>,
}

#[derive(Default)]
struct Queue {
    /// Records, whole, as they will be in the file.
    records: Vec<u8>,
    /// Bytes that the writing thread has taken out and not written yet.
    in_hand: usize,
    /// For the bytes beyond those that may wait in any case.
    blocks: Vec<Permit>,
    /// Of all records that ever came.
    accepted: u64,
    /// The writing thread knows that there is something.
    scheduled: bool,
    state: State,
    /// The disk has taken nothing for so long that lines are given up, so that it is not the guests that stop.
    giving_up: bool,
    /// Lines that found no room since.
    lost: u64,
    waiting: Vec<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The container is over: its log ends with what is in the queue.
    Ending,
    /// The log is being removed: nothing may be written any more.
    Removed,
}

impl Queue {
    fn bytes(&self) -> usize {
        self.records.len() + self.in_hand
    }

    /// Bytes that may wait with the blocks that it has.
    fn bytes_max(&self) -> usize {
        QUEUE_BYTES_MAX.min(QUEUE_BYTES_CERTAIN + self.blocks.len() * BLOCK_BYTES)
    }

    /// Whether a line more may wait. Takes the blocks for what waits already.
    fn has_room(&mut self, writer: &WriterQueue, holder: &Holder) -> bool {
        while self.bytes() >= self.bytes_max() {
            if self.bytes() >= QUEUE_BYTES_MAX {
                return false;
            }
            let Ok(block) = writer.blocks.take(holder) else { return false };
            self.blocks.push(block);
        }
        true
    }

    /// Gives the blocks back that nothing waits in any more.
    fn give_back(&mut self) {
        let needed = self.bytes().saturating_sub(QUEUE_BYTES_CERTAIN).div_ceil(BLOCK_BYTES);
        self.blocks.truncate(needed);
        if self.blocks.is_empty() {
            self.blocks = Vec::new();
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    fn push(&mut self, stream: Stream, line: &[u8]) {
        let (text, tag) = line.strip_suffix(b"\n").map_or((line, 'P'), |text| (text, 'F'));
        let stream = if stream == Stream::Stdout { "stdout" } else { "stderr" };
        let before = self.records.len();
        let more = text.len() + RECORD_HEAD_BYTES;
        if self.records.capacity() - before < more {
            // Not twice as much as there is: what is counted is what is there, give or take a block.
            self.records.reserve_exact(more.max(before.min(BLOCK_BYTES)));
        }
        // Writing to memory does not fail.
        let _ = write!(self.records, "{:.9} {stream} {tag} ", Timestamp::now());
        self.records.extend_from_slice(text);
        self.records.push(b'\n');
        self.accepted += (self.records.len() - before) as u64;
    }
}

impl ContainerLog {
    pub(super) fn new(file: LogFile, writer: Arc<WriterQueue>, holder: Holder) -> Self {
        Self {
            path: file.path().to_owned(),
            holder,
            queue: Mutex::default(),
            file: Mutex::new(file),
            names: RwLock::new(()),
            progress: watch::Sender::new(Progress::default()),
            writer,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// On whose account it is.
    pub(super) fn holder(&self) -> &Holder {
        &self.holder
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// While this is held the files of the log keep their names.
    pub(super) fn names(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read()
    }

    /// Waits until what has come so far is in the files, or is given up.
    pub(super) async fn flushed(&self) {
        let accepted = self.queue.lock().accepted;
        // The sender is this log's own: it does not go away meanwhile.
        let _ = self.watch().wait_for(|progress| progress.done >= accepted || progress.ended).await;
    }

    /// Waits until the log has come to its end.
    pub(super) async fn ended(&self) {
        let _ = self.watch().wait_for(|progress| progress.ended).await;
    }

    /// Nothing more will come: the log ends once its queue is written down.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        if queue.state == State::Open {
            queue.state = State::Ending;
        }
        if queue.is_empty() {
            drop(queue);
            self.progress.send_modify(|progress| progress.ended = true);
        }
    }

    /// Ends the log at once; returns when the writing thread is done with its files, and will not touch them again.
    pub(super) fn remove(&self) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.state = State::Removed;
            queue.records = Vec::new();
            mem::take(&mut queue.waiting)
        };
        self.file.lock().forget();
        {
            let mut queue = self.queue.lock();
            queue.in_hand = 0;
            queue.give_back();
        }
        waiting.into_iter().for_each(Waker::wake);
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Takes a line in. False where there is no room.
    fn append(self: &Arc<Self>, stream: Stream, line: &[u8], last: bool) -> bool {
        let mut queue = self.queue.lock();
        if queue.state == State::Removed {
            return true;
        }
        if !queue.has_room(&self.writer, &self.holder) && !last {
            queue.lost += u64::from(queue.giving_up);
            return queue.giving_up;
        }
        queue.push(stream, line);
        let news = !mem::replace(&mut queue.scheduled, true);
        drop(queue);
        if news {
            self.writer.push(self.clone());
        }
        true
    }

    fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.queue.lock();
        let is_over = queue.giving_up || queue.state == State::Removed;
        if is_over || queue.has_room(&self.writer, &self.holder) {
            return Poll::Ready(());
        }
        // Something of its own waits, or there would be room: once that is written there is.
        if !queue.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            queue.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Writes down what waits. What is due then: more, nothing, or another try at that time.
    pub(super) fn write_down(&self, now: Instant) -> Next {
        // First the file: who removes the log waits for it, having said so in the queue.
        let mut file = self.file.lock();
        let records = {
            let mut queue = self.queue.lock();
            if queue.state == State::Removed {
                queue.scheduled = false;
                return Next::Idle;
            }
            let records = mem::take(&mut queue.records);
            file.lost += mem::take(&mut queue.lost);
            queue.in_hand += records.len();
            records
        };
        let done = file.write(records, now, &self.names);
        let retry = file.retry_at();
        drop(file);
        let (next, waiting, ended) = {
            let mut queue = self.queue.lock();
            queue.in_hand = queue.in_hand.saturating_sub(done.bytes);
            queue.giving_up = done.giving_up;
            let next = match retry {
                Some(at) => Next::At(at),
                None if !queue.records.is_empty() => Next::Now,
                None => Next::Idle,
            };
            queue.scheduled = next != Next::Idle;
            queue.give_back();
            let room = queue.bytes() < queue.bytes_max() || queue.giving_up;
            let waiting = if room { mem::take(&mut queue.waiting) } else { Vec::new() };
            (next, waiting, queue.state != State::Open && queue.is_empty())
        };
        waiting.into_iter().for_each(Waker::wake);
        self.progress.send_modify(|progress| {
            progress.done += done.bytes as u64;
            progress.ended |= ended;
        });
        next
    }
}

#[cfg(test)]
impl ContainerLog {
    /// Bytes that wait, and those that are allocated for it.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let left = self.file.lock().allocated();
        let queue = self.queue.lock();
        (queue.bytes(), queue.records.capacity() + left)
    }
}

/// What the writing thread does next for a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Idle,
    Now,
    At(Instant),
}

/// One of the two streams of a container, as the sandbox writes to it.
pub struct StreamSink {
    log: Arc<ContainerLog>,
    stream: Stream,
}

impl StreamSink {
    pub fn new(log: Arc<ContainerLog>, stream: Stream) -> Self {
        Self { log, stream }
    }
}

impl LogSink for StreamSink {
    fn write(&self, line: &[u8]) -> usize {
        if self.log.append(self.stream, line, false) { line.len() } else { 0 }
    }

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        self.log.poll_room(context)
    }

    fn finish(&self, line: &[u8]) {
        self.log.append(self.stream, line, true);
    }
}
