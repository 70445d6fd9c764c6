//! Places for live instances, given out so that nobody takes them all.
//!
//! A container that runs has the seats of one instance from its start to its end: a program's only one, an HTTP
//! component's first. So whatever others do, what runs can go on. Further instances of HTTP components come and go with
//! the requests; they get of what is left, but for a few seats that are kept for containers that are about to start.
//!
//! A namespace gets more while it holds no more than a number of times what stays free, a pod and a container while they
//! hold no more than a part of that: however many take all that they can get, something stays free for who comes next.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::refusals::{Bound, Refused, What};

/// The part of all seats that only requests get, so that a node full of programs still serves.
const REQUESTS_PART: u32 = 8;

/// The part of all seats that requests leave free for containers that are about to start, as long as more may start.
const STARTS_PART: u32 = 8;

/// What the containers of one namespace may hold, as a multiple of what stays free for containers: three quarters of all
/// where it is alone. A node offers as many pods as that is: so many, of one seat each, find theirs in whatever
/// namespaces they are.
const NAMESPACE_TIMES: u32 = 3;

/// What the requests of one pod, and of one container, may hold, as a part of what stays free for requests. Those of a
/// namespace may hold as much as that.
const POD_PART: u32 = 2;
const CONTAINER_PART: u32 = 3;

/// The seats of a host. A seat is one memory and two tables of a pool; large components take several.
pub(crate) struct Seats {
    all: u32,
    held: Mutex<Held>,
    /// Seats of instances that are there.
    live: AtomicU32,
    /// How often a request or a start found no seat.
    refusals: AtomicU64,
    /// Counts how often seats got free that a container waited for.
    freed: watch::Sender<u64>,
}

#[derive(Default)]
struct Held {
    lasting: u32,
    passing: u32,
    namespaces: HashMap<Arc<str>, Weak<Account>>,
    awaited: Awaited,
}

/// What a container that found no seat waits for.
#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Awaited {
    #[default]
    Nothing,
    /// The end of another container.
    Lasting,
    /// The end of any instance.
    Any,
}

/// Who has all that he may have, and what is to be waited for.
struct Sated {
    bound: Bound,
    held: u32,
    limit: u32,
    until: Awaited,
}

/// What a namespace or a pod holds. Changed under the lock of [`Held`] only.
#[derive(Default)]
struct Account {
    lasting: AtomicU32,
    passing: AtomicU32,
}

/// A pod's account.
pub(crate) struct PodSeats {
    seats: Arc<Seats>,
    namespace: (Arc<str>, Arc<Account>),
    own: Account,
}

/// What a container holds from its start on, and what its requests may take beyond that.
pub(crate) struct Share {
    pod: Arc<PodSeats>,
    weight: u32,
    passing: AtomicU32,
    /// The first instance is there ([`USED`]), the container is over ([`CLOSED`]).
    first: AtomicU8,
    /// Told when an instance of the container is gone.
    gone: Notify,
}

const USED: u8 = 1;
const CLOSED: u8 = 2;

/// One live instance's seats, free again when dropped.
pub(crate) struct Seat {
    share: Arc<Share>,
    is_first: bool,
}

/// There is no seat now for an instance; there may be one as soon as others end. What is asked for is as how many of them an
/// instance of the component counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoSeat(pub Refused);

impl Seats {
    pub(crate) fn new(all: u32) -> Arc<Seats> {
        let (live, refusals) = (AtomicU32::new(0), AtomicU64::new(0));
        Arc::new(Seats { all, held: Mutex::default(), live, refusals, freed: watch::Sender::new(0) })
    }

    /// A new pod's account.
    pub(crate) fn pod(self: &Arc<Self>, namespace: &Arc<str>) -> Arc<PodSeats> {
        let mut held = self.held.lock();
        let known = held.namespaces.get(namespace).and_then(Weak::upgrade);
        let account = known.unwrap_or_else(|| {
            let account = Arc::new(Account::default());
            held.namespaces.insert(Arc::clone(namespace), Arc::downgrade(&account));
            account
        });
        drop(held);
        let namespace = (Arc::clone(namespace), account);
        Arc::new(PodSeats { seats: Arc::clone(self), namespace, own: Account::default() })
    }

    /// Seats that containers may hold.
    fn lasting_max(&self) -> u32 {
        self.all - self.all / REQUESTS_PART
    }

    /// Pods of one container with one seat that surely find their seats, all in one namespace or not.
    pub(crate) fn pods_max(&self) -> u32 {
        let (max, times) = (u64::from(self.lasting_max()), u64::from(NAMESPACE_TIMES));
        u32::try_from(max * times / (times + 1)).unwrap_or(u32::MAX)
    }

    /// Seats of instances that are there now.
    pub(crate) fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// How often somebody found no seat so far.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Changes when seats get free after a container has found none.
    pub(crate) fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    fn refusal(&self, sated: Sated, weight: u32) -> NoSeat {
        self.refusals.fetch_add(1, Ordering::Relaxed);
        let (held, limit, all) = (sated.held.into(), sated.limit.into(), self.all.into());
        NoSeat(Refused { what: What::Instances, bound: sated.bound, held, asked: weight.into(), limit, all })
    }

    /// Who has too much for `weight` more lasting seats.
    fn admits_lasting(&self, held: &Held, pod: &PodSeats, weight: u32) -> Result<(), Sated> {
        let left = self.lasting_max().checked_sub(held.lasting.saturating_add(weight));
        let left = left.ok_or(Sated {
            bound: Bound::Node,
            held: held.lasting,
            limit: self.lasting_max(),
            until: Awaited::Lasting,
        })?;
        let of_share = |bound, held, limit| Err(Sated { bound, held, limit, until: Awaited::Lasting });
        let (of_namespace, of_pod) = (pod.namespace.1.lasting(), pod.own.lasting());
        if of_namespace + weight > left.saturating_mul(NAMESPACE_TIMES) {
            return of_share(Bound::Namespace, of_namespace, left.saturating_mul(NAMESPACE_TIMES));
        }
        // A pod's first container is no reason to spread it.
        if of_pod > 0 && of_pod + weight > left {
            return of_share(Bound::PodShare, of_pod, left);
        }
        let of_all = held.lasting + held.passing;
        if of_all + weight > self.all {
            // Requests that are being served hold the rest.
            return Err(Sated { bound: Bound::Node, held: of_all, limit: self.all, until: Awaited::Any });
        }
        Ok(())
    }

    /// Who has too much for `weight` more passing seats.
    fn admits_passing(&self, held: &Held, share: &Share) -> Result<(), Sated> {
        let weight = share.weight;
        let sated = |bound, held, limit| Err(Sated { bound, held, limit, until: Awaited::Any });
        let Some(left) = self.left_for_requests(held).checked_sub(weight) else {
            return sated(Bound::Node, held.lasting + held.passing, self.all);
        };
        let parts = [
            (Bound::Container, share.passing.load(Ordering::Relaxed), left / CONTAINER_PART),
            (Bound::PodShare, share.pod.own.passing(), left / POD_PART),
            (Bound::Namespace, share.pod.namespace.1.passing(), left),
        ];
        for (bound, holds, may) in parts {
            if holds + weight > may {
                return sated(bound, holds, may);
            }
        }
        Ok(())
    }

    fn left_for_requests(&self, held: &Held) -> u32 {
        let kept = (self.all / STARTS_PART).min(self.lasting_max().saturating_sub(held.lasting));
        let taken = held.lasting.saturating_add(held.passing).saturating_add(kept);
        self.all.saturating_sub(taken)
    }

    /// Tells those who wait for what got free.
    fn tell(&self, mut held: parking_lot::MutexGuard<'_, Held>, free: Awaited) {
        if held.awaited < free || held.awaited == Awaited::Nothing {
            return;
        }
        held.awaited = Awaited::Nothing;
        drop(held);
        self.freed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Account {
    fn lasting(&self) -> u32 {
        self.lasting.load(Ordering::Relaxed)
    }

    fn passing(&self) -> u32 {
        self.passing.load(Ordering::Relaxed)
    }
}

impl PodSeats {
    /// The seats of a container whose instances have this weight, now or not at all.
    pub(crate) fn admit(self: &Arc<Self>, weight: u32) -> Result<Arc<Share>, NoSeat> {
        let seats = &self.seats;
        let mut held = seats.held.lock();
        if let Err(sated) = seats.admits_lasting(&held, self, weight) {
            held.awaited = held.awaited.max(sated.until);
            return Err(seats.refusal(sated, weight));
        }
        held.lasting += weight;
        self.namespace.1.lasting.fetch_add(weight, Ordering::Relaxed);
        self.own.lasting.fetch_add(weight, Ordering::Relaxed);
        drop(held);
        let (passing, first) = (AtomicU32::new(0), AtomicU8::new(0));
        Ok(Arc::new(Share { pod: Arc::clone(self), weight, passing, first, gone: Notify::new() }))
    }
}

impl Drop for PodSeats {
    fn drop(&mut self) {
        let mut held = self.seats.held.lock();
        // The table's own is a weak one, and becomes another's under this lock only.
        if Arc::strong_count(&self.namespace.1) == 1 {
            held.namespaces.remove(&self.namespace.0);
        }
    }
}

impl Share {
    /// Seats for one instance more, now or not at all. The first is always there; one whose first is there is an HTTP
    /// component's.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Seat, NoSeat> {
        match self.take_first() {
            Some(seat) => Ok(seat),
            None => self.take_passing(),
        }
    }

    /// [`Share::take`] that leaves the first to others, as long as there is another instance or may be one.
    pub(crate) fn take_beside_first(self: &Arc<Self>) -> Result<Seat, NoSeat> {
        match self.take_passing() {
            Err(full) if self.passing.load(Ordering::Relaxed) == 0 => self.take_first().ok_or(full),
            taken => taken,
        }
    }

    /// [`Share::take`] that waits for an instance of the container to go where there is no seat.
    pub(crate) async fn take_when_free(self: &Arc<Self>) -> Seat {
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            if let Ok(seat) = self.take() {
                return seat;
            }
            gone.await;
        }
    }

    fn take_first(self: &Arc<Self>) -> Option<Seat> {
        self.first.compare_exchange(0, USED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Some(self.seat(true))
    }

    fn take_passing(self: &Arc<Self>) -> Result<Seat, NoSeat> {
        let seats = &self.pod.seats;
        let mut held = seats.held.lock();
        if let Err(sated) = seats.admits_passing(&held, self) {
            drop(held);
            return Err(seats.refusal(sated, self.weight));
        }
        held.passing += self.weight;
        for count in [&self.pod.namespace.1.passing, &self.pod.own.passing, &self.passing] {
            count.fetch_add(self.weight, Ordering::Relaxed);
        }
        Ok(self.seat(false))
    }

    fn seat(self: &Arc<Self>, is_first: bool) -> Seat {
        self.pod.seats.live.fetch_add(self.weight, Ordering::Relaxed);
        Seat { share: Arc::clone(self), is_first }
    }

    /// How many instances it may have, if nobody else takes any more.
    pub(crate) fn instances_max(&self) -> u32 {
        let seats = &self.pod.seats;
        let held = seats.held.lock();
        let left = seats.left_for_requests(&held);
        let own = self.passing.load(Ordering::Relaxed);
        // What it takes is taken from what is left, of which it may hold a part.
        let within = |holds: u32, part: u32| left.saturating_sub(holds.saturating_mul(part)) / (part + 1);
        let more = within(own, CONTAINER_PART).min(within(self.pod.own.passing(), POD_PART));
        // The first is always there.
        1 + (own + more.min(within(self.pod.namespace.1.passing(), 1))) / self.weight
    }

    /// The container is over: what it held is free, as soon as its first instance is gone.
    pub(crate) fn close(&self) {
        if self.first.fetch_or(CLOSED, Ordering::AcqRel) == 0 {
            self.give_back();
        }
    }

    fn give_back(&self) {
        let seats = &self.pod.seats;
        let mut held = seats.held.lock();
        held.lasting -= self.weight;
        self.pod.namespace.1.lasting.fetch_sub(self.weight, Ordering::Relaxed);
        self.pod.own.lasting.fetch_sub(self.weight, Ordering::Relaxed);
        seats.tell(held, Awaited::Lasting);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // No instance is there: each keeps the share.
        self.close();
    }
}

impl Seat {
    /// It is the container's own, and nobody else's when it gets free.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.give_back();
        self.share.gone.notify_waiters();
    }
}

impl Seat {
    fn give_back(&self) {
        let share = &self.share;
        let seats = &share.pod.seats;
        seats.live.fetch_sub(share.weight, Ordering::Relaxed);
        if self.is_first {
            if share.first.fetch_and(!USED, Ordering::AcqRel) & CLOSED != 0 {
                share.give_back();
            }
            return;
        }
        let mut held = seats.held.lock();
        held.passing -= share.weight;
        for count in [&share.pod.namespace.1.passing, &share.pod.own.passing, &share.passing] {
            count.fetch_sub(share.weight, Ordering::Relaxed);
        }
        seats.tell(held, Awaited::Any);
    }
}
