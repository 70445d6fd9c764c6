//! What a pod's sockets cost: a count of them, and a sum of the bytes they hold.

use super::NetError;
use super::pipe::Pipe;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// The bytes that all pipes of a namespace hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn spent(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.limit
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// All sockets of a namespace, so that they can be counted and, when the pod ends, reset.
#[derive(Debug)]
pub(crate) struct Seats {
    taken: AtomicUsize,
    sockets_max: usize,
    next_id: AtomicUsize,
    connections: Mutex<BTreeMap<usize, Ends>>,
}

/// The two pipes of a connection end.
#[derive(Debug)]
struct Ends {
    rx: Weak<Pipe>,
    tx: Weak<Pipe>,
}

impl Seats {
    pub(crate) fn new(sockets_max: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicUsize::new(0),
            sockets_max,
            next_id: AtomicUsize::new(0),
            connections: Mutex::default(),
        })
    }

    /// Takes a seat for one more socket, or says that there is none.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Seat, NetError> {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
                (taken < self.sockets_max).then_some(taken + 1)
            })
            .map_err(|_| NetError::TooManySockets)?;
        Ok(Seat { seats: self.clone(), connection: None })
    }

    /// How many sockets there are.
    pub(crate) fn count(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Resets every connection that has a seat.
    pub(crate) fn reset_all(&self) {
        let connections = std::mem::take(&mut *self.connections.lock());
        for ends in connections.into_values() {
            if let Some(rx) = ends.rx.upgrade() {
                rx.reset_reader();
            }
            if let Some(tx) = ends.tx.upgrade() {
                tx.reset_writer();
            }
        }
    }
}

/// One socket's place in its namespace, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    connection: Option<usize>,
}

impl Seat {
    /// Enters the pipes of the connection that this seat is for.
    pub(crate) fn seat_connection(&mut self, rx: &Arc<Pipe>, tx: &Arc<Pipe>) {
        let id = self.seats.next_id.fetch_add(1, Ordering::Relaxed);
        let ends = Ends { rx: Arc::downgrade(rx), tx: Arc::downgrade(tx) };
        self.seats.connections.lock().insert(id, ends);
        self.connection = Some(id);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(id) = self.connection {
            self.seats.connections.lock().remove(&id);
        }
        self.seats.taken.fetch_sub(1, Ordering::AcqRel);
    }
}
