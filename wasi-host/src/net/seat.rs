//! What a pod's sockets cost: a count of them, and a sum of the bytes they hold.

use super::NetError;
use super::buffers::Standing;
use super::callers::{Caller, Callers};
use super::pipe::Pipe;
use crate::ledger::{Account, Bound, Charge, Holding, Refused};
use crate::refusals::What;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Bytes of the host that a socket takes beside what it buffers: its pipes, its place in tables.
const SOCKET_BYTES: u64 = 2 * 1024;

/// Sockets of a pod, beyond the most that others can open, for what its node opens.
const FOR_NODE_MAX: usize = 16;

/// Bytes in which a namespace's buffers are charged to its pod.
const BUFFER_BLOCK: usize = 16 * 1024;

/// Bytes that every pipe and mailbox may hold even when its pod's budget is spent, and those of who has his share.
pub(super) const SQUEEZED_BYTES: usize = 4 * 1024;

/// Bytes that a pipe of a caller may hold where most of what the pod may buffer is: all that its sockets allow of them fit
/// into the rest.
const LEAST_BYTES: usize = 1024;

/// The quarters of what a pod may buffer, and of all that it may have the host hold, that callers share; and those beyond
/// which none of them gets more than the least.
const SHARED_QUARTERS: u64 = 2;
const LAST_QUARTERS: u64 = 3;

/// The bytes that all pipes of a namespace hold together, and the account of the pod that they are on.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
    account: OnceLock<Arc<Account>>,
    /// The pod's, where this is what one of its callers has of it.
    pod: Option<Arc<Budget>>,
    /// Those whose bytes stand still.
    pub(super) standing: Mutex<Standing>,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        let (used, account, standing) = Default::default();
        Self { used, limit, account, pod: None, standing }
    }

    /// What a caller has of the pod's.
    pub(crate) fn of_caller(pod: &Arc<Budget>) -> Self {
        Self { pod: Some(pod.clone()), ..Self::new(pod.limit) }
    }

    /// Has the pod answer for it, from before the first of its containers on. The first pod of a namespace is the one.
    pub(crate) fn charge_to(&self, account: &Arc<Account>) {
        if self.account.set(Arc::clone(account)).is_ok() {
            let used = self.used.load(Ordering::Relaxed);
            account.burden(Holding::Heap, blocks(used));
        }
    }

    /// Bytes that are buffered from now on. Those who ask [`Budget::room`] before keep it within the bounds.
    pub(crate) fn add(&self, bytes: usize) {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if let Some(pod) = &self.pod {
            pod.add(bytes);
        }
        if let Some(account) = self.account.get() {
            account.burden(Holding::Heap, blocks(before + bytes) - blocks(before));
        }
    }

    /// Bytes that are buffered now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn remove(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(pod) = &self.pod {
            pod.remove(bytes);
        }
        if let Some(account) = self.account.get() {
            account.give_back(Holding::Heap, blocks(before) - blocks(before - bytes));
        }
    }

    /// Bytes that a pipe of so many may hold now.
    pub(crate) fn room(&self, capacity: usize) -> usize {
        match &self.pod {
            Some(pod) => pod.room_of_caller(self.used.load(Ordering::Relaxed), capacity),
            None if self.spent() => capacity.min(SQUEEZED_BYTES),
            None => capacity,
        }
    }

    /// The same of a mailbox, into which anybody may send. One that is empty takes a large datagram for longer.
    pub(crate) fn room_of_mailbox(&self, capacity: usize, is_empty: bool) -> usize {
        let quarters = if is_empty { LAST_QUARTERS } else { SHARED_QUARTERS };
        if self.free(quarters) == 0 { capacity.min(SQUEEZED_BYTES) } else { capacity }
    }

    /// The same of a pipe of a caller who has so many bytes in all.
    fn room_of_caller(&self, held: usize, capacity: usize) -> usize {
        if self.free(LAST_QUARTERS) == 0 {
            capacity.min(LEAST_BYTES)
        } else if held as u64 >= self.free(SHARED_QUARTERS) {
            capacity.min(SQUEEZED_BYTES)
        } else {
            capacity
        }
    }

    /// Bytes that are free of so many quarters.
    fn free(&self, quarters: u64) -> u64 {
        let part = |limit: u64, held: u64| (limit / 4 * quarters).saturating_sub(held);
        let of_buffers = part(self.limit as u64, self.used.load(Ordering::Relaxed) as u64);
        match self.account.get() {
            Some(account) if account.is_pressed(Holding::Heap) => 0,
            Some(account) => of_buffers.min(part(account.limit(Holding::Heap), account.held(Holding::Heap))),
            None => of_buffers,
        }
    }

    /// Whether a quarter more is held than may be: what was permitted while there was room has its bound too.
    pub(super) fn is_overdrawn(&self) -> bool {
        if let Some(pod) = &self.pod {
            return pod.is_overdrawn();
        }
        let beyond = |held: u64, limit: u64| held > limit.saturating_add(limit / 4);
        beyond(self.used.load(Ordering::Relaxed) as u64, self.limit as u64)
            || self
                .account
                .get()
                .is_some_and(|account| beyond(account.held(Holding::Heap), account.limit(Holding::Heap)))
    }

    /// Whether it has all that it may have: a caller his part of the pod's.
    pub(super) fn has_its_share(&self) -> bool {
        match &self.pod {
            Some(pod) => pod.room_of_caller(self.used.load(Ordering::Relaxed), usize::MAX) < usize::MAX,
            None => self.spent(),
        }
    }

    fn spent(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.limit
            || self.account.get().is_some_and(|account| account.is_pressed(Holding::Heap))
    }

    /// Has the owner of the pod told of what it was refused, where there is one.
    #[cold]
    fn note(&self, refused: Refused) {
        if let Some(account) = self.account.get() {
            account.note(refused);
        }
    }

    /// Something of so many bytes that is kept for the pod and is not in a pipe; a charge of nothing before there is a pod.
    pub(crate) fn hold(&self, bytes: u64) -> Result<Option<Charge>, Refused> {
        self.account.get().map(|account| account.charge(Holding::Heap, bytes)).transpose()
    }

    /// The same for somebody from elsewhere, who leaves a part to the pod's own.
    fn hold_for_other(&self, bytes: u64) -> Result<Option<Charge>, Refused> {
        self.account.get().map(|account| account.charge_for_other(Holding::Heap, bytes)).transpose()
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
    callers: Mutex<Callers>,
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
            callers: Mutex::default(),
        })
    }

    /// Takes a seat for one more socket, or says that there is none.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Seat, NetError> {
        let charge = self.budget.hold(SOCKET_BYTES).map_err(|_| NetError::TooManySockets)?;
        self.seat(self.sockets_max, charge)
    }

    fn seat(self: &Arc<Self>, sockets_max: usize, charge: Option<Charge>) -> Result<Seat, NetError> {
        let one_more = |taken| (taken < sockets_max).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more);
        taken.map_err(|_| {
            self.budget.note(Refused::full(What::Sockets, Bound::Pod, sockets_max));
            NetError::TooManySockets
        })?;
        Ok(Seat { seats: self.clone(), connection: None, caller: Caller::Own, _charge: charge })
    }

    /// Takes a seat for a connection that `caller` opens to the pod, and says where its bytes are counted. There is room and
    /// memory for what the node itself opens beyond what others can take.
    pub(crate) fn take_for(self: &Arc<Self>, caller: &Caller) -> Result<(Seat, Arc<Budget>), NetError> {
        let seat = match caller {
            Caller::Node => {
                let account = self.budget.account.get();
                let charge = account.and_then(|account| account.try_charge(Holding::Heap, SOCKET_BYTES).ok());
                self.seat(self.sockets_max + FOR_NODE_MAX, charge)?
            }
            Caller::Own => self.take()?,
            Caller::Kin(_) | Caller::Other { .. } => return self.take_counted(caller),
        };
        Ok((seat, self.budget.clone()))
    }

    fn take_counted(self: &Arc<Self>, caller: &Caller) -> Result<(Seat, Arc<Budget>), NetError> {
        let charge = if caller.is_other() {
            self.budget.hold_for_other(SOCKET_BYTES)
        } else {
            self.budget.hold(SOCKET_BYTES)
        };
        let charge = charge.map_err(|_| NetError::TooManySockets)?;
        let mut callers = self.callers.lock();
        let free = self.sockets_max.saturating_sub(self.count());
        if let Err(refused) = callers.admit(caller, self.sockets_max, free) {
            drop(callers);
            self.budget.note(refused);
            return Err(NetError::TooManySockets);
        }
        match self.seat(self.sockets_max, charge) {
            Ok(mut seat) => {
                seat.caller = caller.clone();
                Ok((seat, callers.budget(caller, &self.budget)))
            }
            Err(error) => {
                callers.leave(caller);
                Err(error)
            }
        }
    }

    /// How many sockets there are.
    pub(crate) fn count(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn has_callers(&self) -> bool {
        !self.callers.lock().is_empty()
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
    caller: Caller,
    _charge: Option<Charge>,
}

impl Seat {
    /// Who opened the connection; the pod itself where it is any other socket of its own.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

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
        self.seats.callers.lock().leave(&self.caller);
    }
}
