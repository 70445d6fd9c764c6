//! Fetching the leader's snapshot: the transport brings the bytes, this puts them into a file and tells the raft thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::Sender;

use super::member::{Arrived, Event, Fetch};
use crate::snapshot::fetching::Begin;
use crate::snapshot::incoming::Incoming;
use crate::snapshot::{Header, Look};
use crate::transport::{SnapshotSink, Transport};
use crate::wal::Disk;

/// What the raft thread and a fetch tell each other. When the raft thread drops its end, the fetch is given up.
#[derive(Default)]
pub struct Progress {
    offset: AtomicU64,
    /// All bytes are here and are being checked, which no other member can hold up.
    checking: AtomicBool,
    given_up: AtomicBool,
}

impl Progress {
    /// Another number as long as the fetch moves; `now` is another at each look.
    pub fn sign(&self, now: u64) -> u64 {
        match self.checking.load(Ordering::Relaxed) {
            true => u64::MAX - now,
            false => self.offset.load(Ordering::Relaxed),
        }
    }
}

/// The raft thread's end of a fetch.
pub struct Hold(Arc<Progress>);

impl std::ops::Deref for Hold {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.given_up.store(true, Ordering::Relaxed);
    }
}

/// Where a snapshot goes, and who looks at it first.
pub struct Place<D> {
    pub disk: D,
    pub cluster_id: String,
    pub look: Look,
}

/// What the raft thread calls for a snapshot that is to be fetched.
pub fn fetcher<D: Disk, O: Send + 'static>(
    place: Place<D>,
    transport: Arc<dyn Transport>,
    events: Sender<Event<O>>,
) -> Fetch {
    Box::new(move |begin| {
        let Begin { number, from, marker } = begin;
        let index = marker.index;
        let header = Header { cluster_id: place.cluster_id.clone(), marker };
        let incoming = Incoming::create_numbered(place.disk.clone(), header, number).inspect_err(
            |error| tracing::warn!(index, %error, "there is no place for a snapshot of the leader"),
        );
        let progress = Arc::new(Progress::default());
        let arrival = Arrival {
            incoming: Some(incoming.ok()?.looked_at(place.look.clone())),
            told: false,
            number,
            index,
            progress: progress.clone(),
            events: events.clone(),
        };
        tracing::info!(index, from, "fetching a snapshot of the leader");
        transport.fetch(from, index, Box::new(arrival));
        Some(Hold(progress))
    })
}

struct Arrival<D: Disk, O> {
    /// None at its end.
    incoming: Option<Incoming<D>>,
    /// Whether the raft thread was told the end.
    told: bool,
    number: u64,
    index: u64,
    progress: Arc<Progress>,
    events: Sender<Event<O>>,
}

impl<D: Disk, O: Send + 'static> SnapshotSink for Arrival<D, O> {
    fn offset(&self) -> u64 {
        self.incoming.as_ref().map_or(0, Incoming::offset)
    }

    fn is_wanted(&self) -> bool {
        !self.progress.given_up.load(Ordering::Relaxed)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.is_wanted() {
            return Err(io::Error::other("another one is fetched by now"));
        }
        let Some(incoming) = &mut self.incoming else { return Ok(()) };
        incoming.write(bytes)?;
        self.progress.offset.store(incoming.offset(), Ordering::Relaxed);
        Ok(())
    }

    fn end(mut self: Box<Self>, arrived: Result<(), String>) {
        let (wanted, Some(incoming)) = (self.is_wanted(), self.incoming.take()) else { return };
        let kept = match arrived {
            Ok(()) if wanted => {
                self.progress.checking.store(true, Ordering::Relaxed);
                incoming.finish()
            }
            Ok(()) => return incoming.discard(),
            Err(error) => {
                incoming.discard();
                Err(io::Error::other(error))
            }
        };
        if let Err(error) = &kept {
            tracing::warn!(index = self.index, %error, "fetching a snapshot failed");
        }
        let arrived = match kept {
            Ok(()) => Arrived::Whole,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Arrived::Newer(error.to_string()),
            Err(_) => Arrived::Not,
        };
        self.told = true;
        // The member may have stopped.
        let _ = self.events.send(Event::Fetched(self.number, arrived));
    }
}

impl<D: Disk, O> Drop for Arrival<D, O> {
    /// Whoever had it was lost on the way, in a panic or with its runtime.
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            incoming.discard();
        }
        if !self.told {
            // This may be any thread, which must not wait. Where there is no room the raft thread sees that nothing moves.
            let _ = self.events.try_send(Event::Fetched(self.number, Arrived::Not));
        }
    }
}
