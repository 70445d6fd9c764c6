//! What a pod's sockets cost: a count of them, and a sum of the bytes they hold.

use super::NetError;
use super::buffers::Standing;
use super::pipe::Pipe;
use crate::ledger::{Account, Charge, Holding, Refused};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Bytes of the host that a socket takes beside what it buffers: its pipes, its place in tables.
const SOCKET_BYTES: u64 = 2 * 1024;

/// Bytes in which a namespace's buffers are charged to its pod.
const BUFFER_BLOCK: usize = 16 * 1024;

/// The bytes that all pipes of a namespace hold together, and the account of the pod that they are on.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
    account: OnceLock<Arc<Account>>,
    /// Those whose bytes stand still.
    pub(super) standing: Mutex<Standing>,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit, account: OnceLock::new(), standing: Mutex::default() }
    }

    /// Has the pod answer for it, from before the first of its containers on. The first pod of a namespace is the one.
    pub(crate) fn charge_to(&self, account: &Arc<Account>) {
        if self.account.set(Arc::clone(account)).is_ok() {
            let used = self.used.load(Ordering::Relaxed);
            account.burden(Holding::Heap, blocks(used));
        }
    }

    /// Bytes that are buffered from now on. Those who ask [`Budget::spent`] before keep it within the bounds.
    pub(crate) fn add(&self, bytes: usize) {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if let Some(account) = self.account.get() {
            account.burden(Holding::Heap, blocks(before + bytes) - blocks(before));
        }
    }

    pub(crate) fn remove(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(account) = self.account.get() {
            account.give_back(Holding::Heap, blocks(before) - blocks(before - bytes));
        }
    }

    pub(crate) fn spent(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.limit
            || self.account.get().is_some_and(|account| account.is_pressed(Holding::Heap))
    }

    /// Something of so many bytes that is kept for the pod and is not in a pipe; a charge of nothing before there is a pod.
    pub(crate) fn hold(&self, bytes: u64) -> Result<Option<Charge>, Refused> {
        self.account.get().map(|account| account.charge(Holding::Heap, bytes)).transpose()
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Depends on what is buffered alone: what is added and removed, in whatever order, comes to nothing in the end.
fn blocks(buffered: usize) -> u64 {
    buffered.next_multiple_of(BUFFER_BLOCK) as u64
}

/// All sockets of a namespace, so that they can be counted and, when the pod ends, reset.
#[derive(Debug)]
pub(crate) struct Seats {
    taken: AtomicUsize,
    sockets_max: usize,
    budget: Arc<Budget>,
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
    pub(crate) fn new(sockets_max: usize, budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicUsize::new(0),
            sockets_max,
            budget,
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
        let mut seat = Seat { seats: self.clone(), connection: None, charge: None };
        seat.charge = self.budget.hold(SOCKET_BYTES).map_err(|_| NetError::TooManySockets)?;
        Ok(seat)
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
    charge: Option<Charge>,
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
