//! The streams of 0.3: bytes of files, entries of directories. Each has at most one call under way.

use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p3::bindings::filesystem::types::{DirectoryEntry, ErrorCode};

use crate::files::convert;
use crate::files::listing::Listing;
use crate::files::transfer::{self, Place, TRANSFER_BYTES_MAX};
use crate::files::{Account, OpenDescriptor, not_done};
use crate::ledger::Charge;
use crate::pool::{Call, NotDone};

type Polled = Poll<wasmtime::Result<StreamResult>>;

/// How a stream ended.
type Ending = Result<(), ErrorCode>;

/// Where the end of a stream is told, once. A stream that the guest lets go of has ended well.
struct Teller(Option<oneshot::Sender<Ending>>);

impl Teller {
    fn new() -> (Self, oneshot::Receiver<Ending>) {
        let (told, end) = oneshot::channel();
        (Self(Some(told)), end)
    }

    fn end(&mut self, ending: Ending) -> Polled {
        if let Some(told) = self.0.take() {
            // Nobody need listen.
            let _ = told.send(ending);
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }

    fn has_ended(&self) -> bool {
        self.0.is_none()
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let _ = self.end(Ok(()));
    }
}

/// What an operation came to, in the words of 0.3.
fn flat<T>(done: Result<io::Result<T>, NotDone>) -> Result<T, ErrorCode> {
    match done {
        Ok(done) => done.map_err(ErrorCode::from),
        Err(error) => Err(convert::code(not_done(error))),
    }
}

/// Reads a file from an offset on.
pub(super) struct Reading {
    account: Arc<Account>,
    of: OpenDescriptor,
    offset: u64,
    call: Option<Call<io::Result<BytesMut>>>,
    /// For what was read and not taken yet.
    charge: Option<Charge>,
    told: Teller,
}

impl Reading {
    pub(super) fn new(
        account: Arc<Account>,
        of: OpenDescriptor,
        offset: u64,
    ) -> (Self, oneshot::Receiver<Ending>) {
        let (told, end) = Teller::new();
        (Self { account, of, offset, call: None, charge: None, told }, end)
    }
}

impl<T> StreamProducer<T> for Reading {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _store: StoreContextMut<'a, T>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Polled {
        let me = &mut *self;
        if me.told.has_ended() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let call = me.call.get_or_insert_with(|| {
            let (of, offset, buffer) = (Arc::clone(&me.of), me.offset, destination.take_buffer());
            let (size, charge) = me.account.hold_some(TRANSFER_BYTES_MAX);
            me.charge = charge;
            me.account.call(move || transfer::read(&of, buffer, size, offset))
        });
        let read = match Pin::new(call).poll(cx) {
            // It goes on, and the next read of the stream has what it comes to.
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => flat(read),
        };
        me.call = None;
        match read {
            Ok(bytes) if bytes.is_empty() => me.told.end(Ok(())),
            Ok(bytes) => {
                me.offset = me.offset.saturating_add(bytes.len() as u64);
                destination.set_buffer(bytes);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(code) => me.told.end(Err(code)),
        }
    }
}

/// Writes a file from an offset on, or at its end.
pub(super) struct Writing {
    account: Arc<Account>,
    of: OpenDescriptor,
    place: Place,
    /// With the number of its bytes.
    call: Option<(Call<io::Result<()>>, usize)>,
    told: Teller,
}

impl Writing {
    pub(super) fn new(
        account: Arc<Account>,
        of: OpenDescriptor,
        place: Place,
    ) -> (Self, oneshot::Receiver<Ending>) {
        let (told, end) = Teller::new();
        (Self { account, of, place, call: None, told }, end)
    }
}

impl<T> StreamConsumer<T> for Writing {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, T>,
        source: Source<'_, Self::Item>,
        finish: bool,
    ) -> Polled {
        let me = &mut *self;
        if me.told.has_ended() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        let mut source = source.as_direct(store);
        if source.remaining().is_empty() && me.call.is_none() {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let (call, len) = me.call.get_or_insert_with(|| {
            let bytes = me.account.take_some(source.remaining());
            let len = bytes.len();
            let (of, place) = (Arc::clone(&me.of), me.place);
            (me.account.call(move || transfer::write(&of, bytes, place)), len)
        });
        let written = match Pin::new(&mut *call).poll(cx) {
            Poll::Pending if finish && call.withdraw() => {
                me.call = None;
                return Poll::Ready(Ok(StreamResult::Cancelled));
            }
            // What has begun is written: how much of the stream is used up is known only then.
            Poll::Pending => return Poll::Pending,
            Poll::Ready(written) => flat(written),
        };
        let len = mem::take(len);
        me.call = None;
        match written {
            Ok(()) => {
                source.mark_read(len);
                me.place = me.place.after(len);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(code) => me.told.end(Err(code)),
        }
    }
}

/// The entries of a directory.
pub(super) struct Entries {
    state: State,
    told: Teller,
}

enum State {
    Opening(Pin<Box<dyn Future<Output = FsResult<Listing>> + Send>>),
    Open(Listing),
}

impl Entries {
    pub(super) fn new(account: Arc<Account>, of: OpenDescriptor) -> (Self, oneshot::Receiver<Ending>) {
        let (told, end) = Teller::new();
        (Self { state: State::Opening(Box::pin(Listing::open(account, of))), told }, end)
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<wasmtime::Result<Option<Result<DirectoryEntry, ErrorCode>>>> {
        loop {
            match &mut self.state {
                State::Opening(opening) => match std::task::ready!(opening.as_mut().poll(cx)) {
                    Ok(listing) => self.state = State::Open(listing),
                    Err(error) => {
                        return Poll::Ready(error.downcast().map(|code| Some(Err(convert::code(code)))));
                    }
                },
                State::Open(listing) => {
                    return listing.poll_next(cx).map(|entry| {
                        Ok(entry.map(|entry| entry.map(convert::entry).map_err(convert::code)))
                    });
                }
            }
        }
    }
}

impl<T> StreamProducer<T> for Entries {
    type Item = DirectoryEntry;
    type Buffer = Option<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Polled {
        let me = &mut *self;
        if me.told.has_ended() {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        // Whether an entry is there is told by taking it.
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match me.poll_next(cx) {
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(Some(Ok(entry)))) => {
                destination.set_buffer(Some(entry));
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(Ok(Some(Err(code)))) => me.told.end(Err(code)),
            Poll::Ready(Ok(None)) => me.told.end(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}
