//! The byte streams of an open file. Each has at most one read or write under way.

use std::io;
use std::mem;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::files::transfer::{self, Place, TRANSFER_BYTES_MAX};
use crate::files::{Account, BYTES_SQUEEZED, OpenDescriptor};
use crate::ledger::{Charge, HeldBytes};
use crate::pool::{Call, NotDone};

/// What is read where a guest waits for bytes without having said how many.
const READ_AHEAD: usize = 4 << 10;

/// What an operation came to, those that were not done among the failed ones.
fn flat<T>(done: Result<io::Result<T>, NotDone>) -> io::Result<T> {
    done.unwrap_or_else(|error| {
        let kind = match error {
            NotDone::Full => io::ErrorKind::ResourceBusy,
            NotDone::Lost => io::ErrorKind::Other,
        };
        Err(io::Error::new(kind, error))
    })
}

/// Reads a file from an offset on.
pub(super) struct Reading {
    account: Arc<Account>,
    of: OpenDescriptor,
    offset: u64,
    state: ReadState,
}

enum ReadState {
    Idle,
    Waiting(Call<io::Result<BytesMut>>, Option<Charge>),
    Ready(Bytes),
    Failed(io::Error),
    Closed,
}

impl Reading {
    pub(super) fn new(account: &Arc<Account>, of: OpenDescriptor, offset: u64) -> Self {
        Self { account: Arc::clone(account), of, offset, state: ReadState::Idle }
    }

    fn begin(&mut self, size: usize) {
        let (of, offset) = (Arc::clone(&self.of), self.offset);
        let (size, charge) = self.account.hold_some(size.min(TRANSFER_BYTES_MAX));
        let read = self.account.call(move || transfer::read(&of, BytesMut::new(), size, offset));
        self.state = ReadState::Waiting(read, charge);
    }

    async fn finish(&mut self) {
        if let ReadState::Waiting(read, charge) = &mut self.state {
            let read = flat(read.await);
            let charge = charge.take();
            self.state = match read {
                Ok(bytes) if bytes.is_empty() => ReadState::Closed,
                Ok(bytes) => ReadState::Ready(match charge {
                    Some(charge) => HeldBytes::new(bytes.freeze(), charge).into(),
                    None => bytes.freeze(),
                }),
                Err(error) => ReadState::Failed(error),
            };
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Reading {
    async fn ready(&mut self) {
        if matches!(self.state, ReadState::Idle) {
            self.begin(READ_AHEAD);
        }
        self.finish().await;
    }
}

#[wasmtime_wasi::async_trait]
impl InputStream for Reading {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match &mut self.state {
            ReadState::Idle => {
                if size > 0 {
                    self.begin(size);
                }
                Ok(Bytes::new())
            }
            ReadState::Waiting(..) => Ok(Bytes::new()),
            ReadState::Ready(bytes) => {
                let part = bytes.split_to(bytes.len().min(size));
                if bytes.is_empty() {
                    self.state = ReadState::Idle;
                }
                self.offset = self.offset.saturating_add(part.len() as u64);
                Ok(part)
            }
            ReadState::Failed(_) => match mem::replace(&mut self.state, ReadState::Closed) {
                ReadState::Failed(error) => Err(StreamError::LastOperationFailed(error.into())),
                _ => Err(StreamError::Closed),
            },
            ReadState::Closed => Err(StreamError::Closed),
        }
    }

    /// As many bytes as are asked for, in one read, rather than those that [`Pollable::ready`] reads ahead.
    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size > 0 && matches!(self.state, ReadState::Idle) {
            self.begin(size);
        }
        self.finish().await;
        self.read(size)
    }

    /// A read that has begun is waited for: a guest that lets go of streams has no more reads under way than streams.
    async fn cancel(&mut self) {
        if let ReadState::Waiting(mut read, _) = mem::replace(&mut self.state, ReadState::Closed)
            && !read.withdraw()
        {
            let _ = read.await;
        }
    }
}

/// Writes a file from an offset on, or at its end.
pub(super) struct Writing {
    account: Arc<Account>,
    of: OpenDescriptor,
    place: Place,
    state: WriteState,
}

enum WriteState {
    /// With the bytes that the next write may have.
    Ready {
        permit: usize,
    },
    /// With the place after it.
    Waiting(Call<io::Result<()>>, Place),
    Failed(io::Error),
    Closed,
}

impl Writing {
    pub(super) fn new(account: &Arc<Account>, of: OpenDescriptor, place: Place) -> Self {
        Self { account: Arc::clone(account), of, place, state: WriteState::Ready { permit: 0 } }
    }

    fn begin(&mut self, bytes: Bytes) -> StreamResult<()> {
        let (of, place) = (Arc::clone(&self.of), self.place);
        let after = place.after(bytes.len());
        // It was permitted before others took what there was: few bytes are taken nevertheless.
        let bytes = match self.account.hold(bytes.len()) {
            Ok(charge) => HeldBytes::new(bytes, charge).into(),
            Err(_) if bytes.len() <= BYTES_SQUEEZED => self.account.ledger.hold_bytes(bytes),
            Err(_) => return Err(StreamError::LastOperationFailed(io::Error::from(Errno::NOMEM).into())),
        };
        let write = self.account.call(move || transfer::write(&of, bytes, place));
        self.state = WriteState::Waiting(write, after);
        Ok(())
    }

    /// Bytes that may be written now: none while others are.
    fn room(&mut self) -> StreamResult<usize> {
        match &self.state {
            WriteState::Ready { .. } => {
                let permit = self.account.room();
                self.state = WriteState::Ready { permit };
                Ok(permit)
            }
            WriteState::Waiting(..) => Ok(0),
            WriteState::Closed => Err(StreamError::Closed),
            WriteState::Failed(_) => match mem::replace(&mut self.state, WriteState::Closed) {
                WriteState::Failed(error) => Err(StreamError::LastOperationFailed(error.into())),
                _ => Err(StreamError::Closed),
            },
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Writing {
    async fn ready(&mut self) {
        if let WriteState::Waiting(write, after) = &mut self.state {
            let done = flat(write.await);
            self.place = *after;
            self.state = match done {
                Ok(()) => WriteState::Ready { permit: 0 },
                Err(error) => WriteState::Failed(error),
            };
        }
    }
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Writing {
    fn check_write(&mut self) -> StreamResult<usize> {
        self.room()
    }

    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match self.state {
            WriteState::Ready { permit } if bytes.len() <= permit => self.begin(bytes),
            WriteState::Closed => Err(StreamError::Closed),
            WriteState::Ready { .. } | WriteState::Waiting(..) | WriteState::Failed(_) => {
                Err(StreamError::trap("write without a permit of check-write"))
            }
        }
    }

    /// Nothing is gathered here.
    fn flush(&mut self) -> StreamResult<()> {
        self.room().map(drop)
    }

    /// All bytes in one write.
    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.ready().await;
        self.room()?;
        self.begin(bytes)?;
        self.ready().await;
        self.room().map(drop)
    }

    /// A write that has begun is waited for: a guest that lets go of streams has no more writes under way than streams.
    async fn cancel(&mut self) {
        if let WriteState::Waiting(mut write, _) = mem::replace(&mut self.state, WriteState::Closed)
            && !write.withdraw()
        {
            let _ = write.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi::filesystem::{Descriptor, File};
    use wasmtime_wasi::{FsPerms, OpenMode};

    use super::*;
    use crate::files::{Opened, Pools, Reserve};
    use crate::ledger::{Holding, Ledger, NodeBounds};
    use crate::pool::Pool;
    use crate::shares::Holder;

    #[tokio::test]
    async fn what_streams_hold_is_counted_and_little_where_memory_is_scarce() {
        let bounds = NodeBounds { memory: None, heap: 1 << 20, files: 100, files_guaranteed: 1 };
        let node = Ledger::new(bounds);
        let ledger = node.pod(&"default".into(), None);
        let pools = Pools { calls: Pool::new("files", 1, 0), ..Pools::new() };
        let account = Account::new(
            pools.clone(),
            Holder::default(),
            Arc::clone(&ledger),
            Arc::new(Reserve::with(|| None, node)),
        );
        let file = File::new(
            tempfile::tempfile().expect("a file"),
            FsPerms::ReadWrite,
            OpenMode::READ | OpenMode::WRITE,
            true,
        );
        let of = Arc::new(Opened::new(Descriptor::File(file), &account, None));
        let held = || ledger.held(Holding::Heap);

        // The only thread is busy, so that what is to be written waits.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let busy = account.call(move || wait.recv());
        let mut writing = Writing::new(&account, Arc::clone(&of), Place::At(0));
        let unpermitted = |written: StreamResult<()>| matches!(written, Err(StreamError::Trap(_)));
        assert!(unpermitted(writing.write(vec![7].into())));
        let mut late = Writing::new(&account, Arc::clone(&of), Place::At(0));
        for stream in [&mut writing, &mut late] {
            assert_eq!(stream.check_write().expect("open"), TRANSFER_BYTES_MAX);
            assert!(unpermitted(stream.write(vec![7; TRANSFER_BYTES_MAX + 1].into())));
        }
        writing.write(vec![7; TRANSFER_BYTES_MAX].into()).expect("room");
        assert_eq!(held(), TRANSFER_BYTES_MAX as u64);
        go.send(()).expect("it waits for this");
        let _ = busy.await;
        writing.ready().await;
        assert_eq!(held(), 0);

        let mut reading = Reading::new(&account, of, 0);
        let read = reading.blocking_read(10_000).await.expect("bytes");
        assert_eq!((read.len(), held()), (10_000, 10_000));
        drop(read);
        assert_eq!(held(), 0);

        let mut others = Charge::nothing(&ledger, Holding::Heap);
        others.set_held(1 << 30);
        assert_eq!(writing.check_write().expect("open"), BYTES_SQUEEZED);
        let too_late = late.write(vec![7; TRANSFER_BYTES_MAX].into());
        assert!(
            matches!(too_late, Err(StreamError::LastOperationFailed(_))),
            "others have taken what there was"
        );
        late.write(vec![7; BYTES_SQUEEZED].into()).expect("a little goes");
        assert_eq!(reading.blocking_read(10_000).await.expect("bytes").len(), BYTES_SQUEEZED);
    }
}
