//! Fetching the leader's snapshot: the transport brings the bytes, this puts them into a file and tells the raft thread.

use std::io;
use std::sync::Arc;

use crossbeam_channel::Sender;
use raft::eraftpb::Message;

use super::member::{Event, Fetch};
use crate::snapshot::Header;
use crate::snapshot::incoming::Incoming;
use crate::transport::{SnapshotSink, Transport};
use crate::wal::Disk;

/// What the raft thread calls for a message that announces a snapshot.
pub fn fetcher<D: Disk, O: Send + 'static>(
    disk: D,
    cluster_id: String,
    transport: Arc<dyn Transport>,
    events: Sender<Event<O>>,
) -> Fetch {
    Box::new(move |message, marker| {
        let (from, index) = (message.from, marker.index);
        let header = Header { cluster_id: cluster_id.clone(), marker };
        match Incoming::create(disk.clone(), header) {
            Ok(incoming) => {
                tracing::info!(index, from, "fetching a snapshot of the leader");
                let arrival = Arrival { incoming, message, index, events: events.clone() };
                transport.fetch(from, index, Box::new(arrival));
            }
            Err(error) => {
                tracing::warn!(index, %error, "there is no place for a snapshot of the leader");
                // The raft thread itself is here, and must not wait for its own queue.
                let _ = events.try_send(Event::Fetched(Err(index)));
            }
        }
    })
}

struct Arrival<D: Disk, O> {
    incoming: Incoming<D>,
    message: Message,
    index: u64,
    events: Sender<Event<O>>,
}

impl<D: Disk, O: Send + 'static> SnapshotSink for Arrival<D, O> {
    fn offset(&self) -> u64 {
        self.incoming.offset()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.incoming.write(bytes)
    }

    fn end(self: Box<Self>, arrived: Result<(), String>) {
        let Arrival { incoming, message, index, events } = *self;
        let kept = match arrived {
            Ok(()) => incoming.finish().map_err(|error| error.to_string()),
            Err(error) => {
                incoming.discard();
                Err(error)
            }
        };
        if let Err(error) = &kept {
            tracing::warn!(index, %error, "fetching a snapshot failed");
        }
        // The member may have stopped.
        let _ = events.send(Event::Fetched(kept.map(|()| message).map_err(|_| index)));
    }
}
