//! Places of connections, and of the requests that are under way on them.
//!
//! A connection with nothing under way has its place on sufferance: where its source has its share, or all places are
//! taken, the one that has been so for the longest makes room for a newcomer. One that is at work keeps its place.
//!
//! Pods of one namespace together have no more than one source of connections, and of what is under way at most as much as
//! is free, where they are said to be of one.
//!
//! The same goes for the bytes of large heads that are under way ([`Place::hold_head`]): who has more than his part is cut
//! off, and those with heads as clients usually send are never asked.
//!
//! Whose connections had to be ended for their faults again and again is served by and by: each further connection of that
//! source is held back for a while before anything of it is read ([`HELD_BACK`]).

#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::refusals::{Bound, Refused, What};
use crate::shares::give_back;

use super::{GATEWAY_WINDOW_BYTES, GIVEN_UP_MAX, HEAD_BYTES_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT};

/// Bytes that large heads under way may take on all connections together: so many for each place, and always those of some.
/// A source has at most what is free.
const LARGE_HEADS_BYTES_PER_PLACE: usize = 4 * 1024;
const LARGE_HEADS_BYTES_MIN: usize = 4 * HEAD_BYTES_MAX;

/// Faults of a source that may be mishaps, those that are remembered, and how long each is.
const FAULTS_BORNE: u32 = 8;
const FAULTS_MAX: u32 = 32;
const FAULT_STAYS: Duration = Duration::from_secs(1);

/// How long a connection of a source with more faults waits until it is read.
pub const HELD_BACK: Duration = Duration::from_secs(1);

/// Connections of one source that wait so; others are closed at once. What they send meanwhile is in the kernel's memory, and
/// a client that floods sends as much as that takes: so much is taken of each ([`Place::is_held_back`]). They are many, so
/// that others behind the same address find a turn between those of a flood.
pub const HELD_BACK_MAX: usize = 1024;
pub const HELD_BACK_BYTES: usize = 16 * 1024;

/// Sources whose faults are remembered. Where there are more, all are forgotten.
const FAULTY_MAX: usize = 4096;

/// How many places there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once, of all and of one source.
    pub connections_max: usize,
    pub connections_per_source_max: usize,
    /// Requests under way at once, of all and of one source.
    pub requests_max: usize,
    pub requests_per_source_max: usize,
}

impl Bounds {
    /// The same with no more connections than this.
    #[must_use]
    pub fn within(self, connections: usize) -> Bounds {
        let connections_max = self.connections_max.min(connections).max(1);
        let connections_per_source_max = self.connections_per_source_max.min(connections_max.div_ceil(2));
        Bounds { connections_max, connections_per_source_max, ..self }
    }
}

/// The places of one listener. Clones are the same.
#[derive(Clone)]
pub struct Places {
    shared: Arc<Shared>,
}

/// The places of a listener that may be gone.
pub struct WeakPlaces {
    shared: Weak<Shared>,
    idle: Arc<AtomicUsize>,
}

impl WeakPlaces {
    /// Connections with nothing under way, without waiting for anybody; of a listener that is gone, none.
    pub(crate) fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    /// The places, while the listener or a connection of it is there.
    pub fn upgrade(&self) -> Option<Places> {
        self.shared.upgrade().map(|shared| Places { shared })
    }
}

struct Shared {
    bounds: Bounds,
    window_bytes: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    connections: usize,
    requests: usize,
    /// Of large heads.
    head_bytes: usize,
    sources: HashMap<IpAddr, Held>,
    namespaces: HashMap<Arc<str>, Held>,
    faults: HashMap<IpAddr, Faults>,
    /// Connections that are held back, by source.
    held_back: HashMap<IpAddr, usize>,
    /// Those with nothing under way, by when they became so.
    idle: BTreeMap<u64, Idle>,
    /// How many those are, for who must not wait.
    idle_count: Arc<AtomicUsize>,
}

/// Whose a connection is.
#[derive(Clone)]
struct Client {
    source: IpAddr,
    /// The namespace whose share counts too.
    namespace: Option<Arc<str>>,
}

/// What one source has, or the pods of one namespace.
#[derive(Default)]
struct Held {
    connections: usize,
    requests: usize,
    head_bytes: usize,
    idle: BTreeSet<u64>,
}

/// Faults of one source that are not forgotten yet.
struct Faults {
    count: u32,
    /// When the first of them is forgotten.
    until: Instant,
}

struct Idle {
    client: Client,
    standing: Arc<Mutex<Standing>>,
    lost: CancellationToken,
}

/// How one connection stands. Locked after the state.
struct Standing {
    /// Its key among the idle ones.
    idle: Option<u64>,
    in_flight: usize,
    since: Instant,
    /// Requests.
    begun: u64,
    given_up: u32,
    /// Bytes of a large head that is under way.
    head: usize,
    /// It had to make room, and is counted no more.
    evicted: bool,
}

/// One connection's place, kept by whoever has a clone of it or an [`InFlight`] of it.
#[derive(Clone)]
pub struct Place {
    seat: Arc<Seat>,
}

struct Seat {
    shared: Arc<Shared>,
    client: Client,
    /// Whether its source's share counts.
    shares: bool,
    lost: CancellationToken,
    broken_off: AtomicBool,
    standing: Arc<Mutex<Standing>>,
    guards: Mutex<Vec<Box<dyn Any + Send + Sync>>>,
}

/// Something under way on a connection, until the last clone is dropped.
#[derive(Clone)]
pub struct InFlight {
    task: Arc<Task>,
}

struct Task {
    seat: Arc<Seat>,
    answered: AtomicBool,
}

impl Places {
    /// All free.
    pub fn new(bounds: Bounds) -> Self {
        Self::with_window(bounds, GATEWAY_WINDOW_BYTES)
    }

    /// The same for clients of HTTP/2 that may send so many bytes ahead of who reads them.
    pub(crate) fn with_window(bounds: Bounds, window_bytes: u32) -> Self {
        Self { shared: Arc::new(Shared { bounds, window_bytes, state: Mutex::default() }) }
    }

    /// A place for a connection from `source`; none where all that could make room are at work.
    pub fn enter(&self, source: IpAddr) -> Option<Place> {
        self.enter_as(Client { source: source_of(source), namespace: None }, true)
    }

    /// The same for a pod, whose namespace has a share too.
    pub(crate) fn enter_of(&self, source: IpAddr, namespace: Option<Arc<str>>) -> Option<Place> {
        self.enter_as(Client { source: source_of(source), namespace }, true)
    }

    /// A place for one who speaks for many others, and so has no share but the whole.
    pub fn enter_for_many(&self, source: IpAddr) -> Option<Place> {
        self.enter_as(Client { source: source_of(source), namespace: None }, false)
    }

    fn enter_as(&self, client: Client, shares: bool) -> Option<Place> {
        let bounds = &self.shared.bounds;
        let mut state = self.shared.state.lock();
        let sated = state.held_by(&client).find(|own| own.connections >= bounds.connections_per_source_max);
        if let (true, Some(own)) = (shares, sated) {
            let oldest = own.idle.first().copied();
            state.evict(oldest?);
        } else if state.connections >= bounds.connections_max {
            let oldest = state.idle.keys().next().copied();
            state.evict(oldest?);
        }
        state.connections += 1;
        state.change(&client, |own| own.connections += 1);
        let lost = CancellationToken::new();
        let standing = Arc::new(Mutex::new(Standing {
            idle: None,
            in_flight: 0,
            since: Instant::now(),
            begun: 0,
            given_up: 0,
            head: 0,
            evicted: false,
        }));
        state.settle(&client, &standing, &lost);
        drop(state);
        let (shared, guards) = (self.shared.clone(), Mutex::default());
        let broken_off = AtomicBool::new(false);
        Some(Place { seat: Arc::new(Seat { shared, client, shares, lost, broken_off, standing, guards }) })
    }

    /// Lets the connection that has done nothing for the longest make room; false where there is none.
    pub fn make_room(&self) -> bool {
        let mut state = self.shared.state.lock();
        let oldest = state.idle.keys().next().copied();
        oldest.map(|oldest| state.evict(oldest)).is_some()
    }

    /// [`Places::make_room`] among the connections of one source.
    pub(crate) fn make_room_of(&self, source: IpAddr) -> bool {
        let mut state = self.shared.state.lock();
        let oldest = state.sources.get(&source_of(source)).and_then(|own| own.idle.first().copied());
        oldest.map(|oldest| state.evict(oldest)).is_some()
    }

    /// Connections of one source with nothing under way.
    pub(crate) fn idle_of(&self, source: IpAddr) -> usize {
        self.shared.state.lock().sources.get(&source_of(source)).map_or(0, |own| own.idle.len())
    }

    /// Bytes of large heads that are under way.
    #[cfg(test)]
    pub(super) fn head_bytes(&self) -> usize {
        self.shared.state.lock().head_bytes
    }

    /// The same places for one who does not keep them.
    pub fn downgrade(&self) -> WeakPlaces {
        let idle = self.shared.state.lock().idle_count.clone();
        WeakPlaces { shared: Arc::downgrade(&self.shared), idle }
    }

    /// Whoever asks for anything of them waits as long as this lasts.
    #[cfg(test)]
    pub(crate) fn locked(&self) -> impl Sized {
        self.shared.state.lock()
    }

    /// Connections that have a place now.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().connections
    }
}

impl State {
    /// Enters a connection among the idle ones.
    fn settle(&mut self, client: &Client, standing: &Arc<Mutex<Standing>>, lost: &CancellationToken) {
        self.last += 1;
        let key = self.last;
        let mut now = standing.lock();
        now.idle = Some(key);
        now.since = Instant::now();
        let client = client.clone();
        self.change(&client, |own| {
            own.idle.insert(key);
        });
        self.idle.insert(key, Idle { client, standing: standing.clone(), lost: lost.clone() });
        self.idle_count.store(self.idle.len(), Ordering::Relaxed);
    }

    /// Takes a connection out from among the idle ones.
    fn unsettle(&mut self, key: u64) -> Option<Idle> {
        let idle = self.idle.remove(&key)?;
        self.idle_count.store(self.idle.len(), Ordering::Relaxed);
        self.change(&idle.client, |own| {
            own.idle.remove(&key);
        });
        Some(idle)
    }

    fn evict(&mut self, key: u64) {
        let Some(idle) = self.unsettle(key) else { return };
        let mut standing = idle.standing.lock();
        standing.idle = None;
        standing.evicted = true;
        let head = std::mem::take(&mut standing.head);
        drop(standing);
        idle.lost.cancel();
        self.give_back_head(&idle.client, head);
        self.leave(&idle.client);
    }

    /// A connection of the source had to be ended for its fault.
    fn note_fault(&mut self, source: IpAddr) {
        let count = self.count_faults(source);
        if count == 0 && self.faults.len() >= FAULTY_MAX {
            self.faults.clear();
        }
        let until = Instant::now() + FAULT_STAYS;
        let faults = self.faults.entry(source).or_insert(Faults { count: 0, until });
        faults.count = (count + 1).min(FAULTS_MAX);
    }

    /// Faults of the source that are not forgotten.
    fn count_faults(&mut self, source: IpAddr) -> u32 {
        let Some(faults) = self.faults.get_mut(&source) else { return 0 };
        let now = Instant::now();
        while faults.count > 0 && faults.until <= now {
            faults.count -= 1;
            faults.until += FAULT_STAYS;
        }
        if faults.count == 0 {
            self.faults.remove(&source);
            return 0;
        }
        faults.count
    }

    fn give_back_head(&mut self, client: &Client, bytes: usize) {
        if bytes > 0 {
            self.head_bytes -= bytes;
            self.change(client, |own| own.head_bytes -= bytes);
        }
    }

    fn leave(&mut self, client: &Client) {
        self.connections -= 1;
        self.change(client, |own| own.connections -= 1);
    }

    /// What the client's source has, and what its namespace.
    fn held_by(&self, client: &Client) -> impl Iterator<Item = &Held> {
        let of_namespace = client.namespace.as_ref().and_then(|namespace| self.namespaces.get(namespace));
        self.sources.get(&client.source).into_iter().chain(of_namespace)
    }

    /// Changes both.
    fn change(&mut self, client: &Client, how: impl Fn(&mut Held)) {
        change_of(&mut self.sources, &client.source, &how);
        if let Some(namespace) = &client.namespace {
            change_of(&mut self.namespaces, namespace, &how);
        }
    }
}

fn change_of<K: Clone + Eq + Hash>(all: &mut HashMap<K, Held>, key: &K, how: impl Fn(&mut Held)) {
    let own = all.entry(key.clone()).or_default();
    how(own);
    if own.connections == 0 && own.requests == 0 {
        all.remove(key);
    }
}

impl Place {
    /// Bytes that the client may send ahead.
    pub(super) fn window_bytes(&self) -> u32 {
        self.seat.shared.window_bytes
    }

    /// Something begins on the connection: from now on it keeps its place.
    pub fn begin(&self) -> Result<InFlight, Refused> {
        let seat = &self.seat;
        let bounds = &seat.shared.bounds;
        let mut state = seat.shared.state.lock();
        let own = state.sources.get(&seat.client.source).map_or(0, |own| own.requests);
        if seat.shares && own >= bounds.requests_per_source_max {
            let (limit, all) = (bounds.requests_per_source_max, bounds.requests_max);
            return Err(Refused::of_share(What::Requests, Bound::Caller, own, limit, all));
        }
        let free = bounds.requests_max.saturating_sub(state.requests);
        if free == 0 {
            return Err(Refused::full(What::Requests, Bound::Port, bounds.requests_max));
        }
        let of_namespace =
            seat.client.namespace.as_ref().and_then(|namespace| state.namespaces.get(namespace));
        if let Some(own) = of_namespace.map(|held| held.requests).filter(|own| *own >= free) {
            return Err(Refused::of_share(What::Requests, Bound::Caller, own, free, bounds.requests_max));
        }
        state.requests += 1;
        state.change(&seat.client, |own| own.requests += 1);
        let mut standing = seat.standing.lock();
        standing.in_flight += 1;
        standing.begun += 1;
        let key = standing.idle.take();
        drop(standing);
        if let Some(key) = key {
            state.unsettle(key);
        }
        drop(state);
        Ok(InFlight { task: Arc::new(Task { seat: seat.clone(), answered: false.into() }) })
    }

    /// Counts a large head that is under way on the connection, instead of the one before; false where there is no room for it.
    pub(super) fn hold_head(&self, bytes: usize) -> bool {
        let seat = &self.seat;
        let mut state = seat.shared.state.lock();
        let mut standing = seat.standing.lock();
        let before = std::mem::take(&mut standing.head);
        state.give_back_head(&seat.client, before);
        let all = seat.shared.bounds.connections_max * LARGE_HEADS_BYTES_PER_PLACE;
        let free = all.max(LARGE_HEADS_BYTES_MIN).saturating_sub(state.head_bytes);
        let most = state.held_by(&seat.client).map(|own| own.head_bytes).max().unwrap_or(0);
        let has_its_part = seat.shares && most + bytes > free;
        if standing.evicted || bytes > free || has_its_part {
            return bytes == 0;
        }
        standing.head = bytes;
        drop(standing);
        state.head_bytes += bytes;
        state.change(&seat.client, |own| own.head_bytes += bytes);
        true
    }

    /// Whether it has to wait for the faults of others of its source.
    pub fn is_held_back(&self) -> bool {
        self.held_back().is_some()
    }

    /// How long it has to wait for the faults of others of its source.
    pub(super) fn held_back(&self) -> Option<Duration> {
        let seat = &self.seat;
        let faults = seat.shared.state.lock().count_faults(seat.client.source);
        (seat.shares && faults > FAULTS_BORNE).then_some(HELD_BACK)
    }

    /// A turn among those of its source that are held back, until it is dropped; none where there are too many.
    pub(super) fn wait_held_back(&self) -> Option<HeldBack> {
        let seat = self.seat.clone();
        let mut state = seat.shared.state.lock();
        let waiting = state.held_back.entry(seat.client.source).or_default();
        if *waiting >= HELD_BACK_MAX {
            return None;
        }
        *waiting += 1;
        drop(state);
        Some(HeldBack(seat))
    }

    /// It had to be ended for its client's fault.
    pub(super) fn was_at_fault(&self) {
        self.seat.shared.state.lock().note_fault(self.seat.client.source);
    }

    /// Keeps `guard` as long as the connection has its place, or anything is under way on it.
    pub fn hold(&self, guard: impl Any + Send + Sync) {
        self.seat.guards.lock().push(Box::new(guard));
    }

    /// Resolves once the connection has to end: another needs its place, or it gave up too many requests.
    pub async fn lost(&self) {
        self.seat.lost.cancelled().await;
    }

    /// An answer breaks off, and nothing in it would tell its client.
    pub(super) fn break_off(&self) {
        self.seat.broken_off.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_broken_off(&self) -> bool {
        self.seat.broken_off.load(Ordering::Relaxed)
    }

    /// Resolves once nothing has been under way for too long.
    pub async fn quiet(&self) {
        loop {
            let until = {
                let standing = self.seat.standing.lock();
                let patience = if standing.begun > 0 { IDLE_TIMEOUT } else { HEAD_TIMEOUT };
                (standing.in_flight == 0).then_some(standing.since + patience)
            };
            match until {
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::time::sleep_until(until).await,
                None => tokio::time::sleep(IDLE_TIMEOUT).await,
            }
        }
    }

    /// Whether anything ever began on it.
    pub fn has_asked(&self) -> bool {
        self.seat.standing.lock().begun > 0
    }

    /// Whether anything is under way on it.
    pub fn is_busy(&self) -> bool {
        self.seat.standing.lock().in_flight > 0
    }
}

/// A connection that is held back.
pub(super) struct HeldBack(Arc<Seat>);

impl Drop for HeldBack {
    fn drop(&mut self) {
        give_back(&mut self.0.shared.state.lock().held_back, &self.0.client.source);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let standing = self.standing.lock();
        let (idle, evicted, head) = (standing.idle, standing.evicted, standing.head);
        drop(standing);
        state.give_back_head(&self.client, head);
        if let Some(key) = idle {
            state.unsettle(key);
        }
        if !evicted {
            state.leave(&self.client);
        }
    }
}

impl InFlight {
    /// Its response has begun.
    pub fn answered(&self) {
        self.task.answered.store(true, Ordering::Relaxed);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let seat = &self.seat;
        let mut state = seat.shared.state.lock();
        state.requests -= 1;
        state.change(&seat.client, |own| own.requests -= 1);
        let mut standing = seat.standing.lock();
        standing.in_flight -= 1;
        if self.answered.load(Ordering::Relaxed) {
            standing.given_up = standing.given_up.saturating_sub(1);
        } else {
            standing.given_up += 1;
            if standing.given_up > GIVEN_UP_MAX && !seat.lost.is_cancelled() {
                state.note_fault(seat.client.source);
                seat.lost.cancel();
            }
        }
        let settles = standing.in_flight == 0 && !standing.evicted;
        drop(standing);
        if settles {
            state.settle(&seat.client, &seat.standing, &seat.lost);
        }
    }
}

/// Whom a share belongs to: an IPv4 address, or the network that one who has IPv6 has at least.
pub fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
    }
}
