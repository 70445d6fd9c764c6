//! Places of connections, and of the requests that are under way on them.
//!
//! A connection with nothing under way has its place on sufferance: where its source has its share, or all places are
//! taken, the one that has been so for the longest makes room for a newcomer. One that is at work keeps its place.
//!
//! Whose connections had to be ended for their faults again and again is served by and by: each further connection of that
//! source is held back for a while before anything of it is read ([`HELD_BACK`]).

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{GATEWAY_WINDOW_BYTES, GIVEN_UP_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT};

/// Faults of a source that may be mishaps, those that are remembered, and how long each is.
const FAULTS_BORNE: u32 = 8;
const FAULTS_MAX: u32 = 32;
const FAULT_STAYS: Duration = Duration::from_secs(1);

/// How long a connection of a source with more faults waits until it is read.
pub const HELD_BACK: Duration = Duration::from_secs(1);

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
}

impl WeakPlaces {
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
    sources: HashMap<IpAddr, Source>,
    faults: HashMap<IpAddr, Faults>,
    /// Those with nothing under way, by when they became so.
    idle: BTreeMap<u64, Idle>,
}

#[derive(Default)]
struct Source {
    connections: usize,
    requests: usize,
    idle: BTreeSet<u64>,
}

/// Faults of one source that are not forgotten yet.
struct Faults {
    count: u32,
    /// When the first of them is forgotten.
    until: Instant,
}

struct Idle {
    source: IpAddr,
    standing: Arc<Mutex<Standing>>,
    lost: CancellationToken,
}

/// How one connection stands. Locked after the state.
struct Standing {
    /// Its key among the idle ones.
    idle: Option<u64>,
    in_flight: usize,
    since: Instant,
    has_asked: bool,
    given_up: u32,
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
    source: IpAddr,
    /// Whether its source's share counts.
    shares: bool,
    lost: CancellationToken,
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

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// Its source has its share under way.
    OfThisSource,
    /// All have together.
    OfAll,
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
        self.enter_as(source, true)
    }

    /// A place for one who speaks for many others, and so has no share but the whole.
    pub fn enter_for_many(&self, source: IpAddr) -> Option<Place> {
        self.enter_as(source, false)
    }

    fn enter_as(&self, source: IpAddr, shares: bool) -> Option<Place> {
        let (source, bounds) = (source_of(source), &self.shared.bounds);
        let mut state = self.shared.state.lock();
        let own = state.sources.get(&source);
        if shares && own.is_some_and(|own| own.connections >= bounds.connections_per_source_max) {
            let oldest = own.and_then(|own| own.idle.first().copied());
            state.evict(oldest?);
        } else if state.connections >= bounds.connections_max {
            let oldest = state.idle.keys().next().copied();
            state.evict(oldest?);
        }
        state.connections += 1;
        state.sources.entry(source).or_default().connections += 1;
        let lost = CancellationToken::new();
        let standing = Arc::new(Mutex::new(Standing {
            idle: None,
            in_flight: 0,
            since: Instant::now(),
            has_asked: false,
            given_up: 0,
            evicted: false,
        }));
        state.settle(source, &standing, &lost);
        drop(state);
        let (shared, guards) = (self.shared.clone(), Mutex::default());
        Some(Place { seat: Arc::new(Seat { shared, source, shares, lost, standing, guards }) })
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

    /// Connections with nothing under way.
    pub fn idle(&self) -> usize {
        self.shared.state.lock().idle.len()
    }

    /// The same places for one who does not keep them.
    pub fn downgrade(&self) -> WeakPlaces {
        WeakPlaces { shared: Arc::downgrade(&self.shared) }
    }

    /// Connections that have a place now.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().connections
    }
}

impl State {
    /// Enters a connection among the idle ones.
    fn settle(&mut self, source: IpAddr, standing: &Arc<Mutex<Standing>>, lost: &CancellationToken) {
        self.last += 1;
        let key = self.last;
        let mut now = standing.lock();
        now.idle = Some(key);
        now.since = Instant::now();
        self.idle.insert(key, Idle { source, standing: standing.clone(), lost: lost.clone() });
        self.sources.entry(source).or_default().idle.insert(key);
    }

    /// Takes a connection out from among the idle ones.
    fn unsettle(&mut self, key: u64) -> Option<Idle> {
        let idle = self.idle.remove(&key)?;
        if let Some(source) = self.sources.get_mut(&idle.source) {
            source.idle.remove(&key);
        }
        Some(idle)
    }

    fn evict(&mut self, key: u64) {
        let Some(idle) = self.unsettle(key) else { return };
        let mut standing = idle.standing.lock();
        standing.idle = None;
        standing.evicted = true;
        drop(standing);
        idle.lost.cancel();
        self.leave(idle.source);
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

    fn leave(&mut self, source: IpAddr) {
        self.connections -= 1;
        self.change(source, |own| own.connections -= 1);
    }

    fn change(&mut self, source: IpAddr, how: impl FnOnce(&mut Source)) {
        let Some(own) = self.sources.get_mut(&source) else { return };
        how(own);
        if own.connections == 0 && own.requests == 0 {
            self.sources.remove(&source);
        }
    }
}

impl Place {
    /// Bytes that the client may send ahead.
    pub(super) fn window_bytes(&self) -> u32 {
        self.seat.shared.window_bytes
    }

    /// Something begins on the connection: from now on it keeps its place.
    pub fn begin(&self) -> Result<InFlight, TooMany> {
        let seat = &self.seat;
        let bounds = &seat.shared.bounds;
        let mut state = seat.shared.state.lock();
        let own = state.sources.get(&seat.source).map_or(0, |own| own.requests);
        if seat.shares && own >= bounds.requests_per_source_max {
            return Err(TooMany::OfThisSource);
        }
        if state.requests >= bounds.requests_max {
            return Err(TooMany::OfAll);
        }
        state.requests += 1;
        state.sources.entry(seat.source).or_default().requests += 1;
        let mut standing = seat.standing.lock();
        standing.in_flight += 1;
        standing.has_asked = true;
        let key = standing.idle.take();
        drop(standing);
        if let Some(key) = key {
            state.unsettle(key);
        }
        drop(state);
        Ok(InFlight { task: Arc::new(Task { seat: seat.clone(), answered: false.into() }) })
    }

    /// How long it has to wait for the faults of others of its source.
    pub(super) fn held_back(&self) -> Option<Duration> {
        let seat = &self.seat;
        let faults = seat.shared.state.lock().count_faults(seat.source);
        (seat.shares && faults > FAULTS_BORNE).then_some(HELD_BACK)
    }

    /// It had to be ended for its client's fault.
    pub(super) fn was_at_fault(&self) {
        self.seat.shared.state.lock().note_fault(self.seat.source);
    }

    /// Keeps `guard` as long as the connection has its place, or anything is under way on it.
    pub fn hold(&self, guard: impl Any + Send + Sync) {
        self.seat.guards.lock().push(Box::new(guard));
    }

    /// Resolves once the connection has to end: another needs its place, or it gave up too many requests.
    pub async fn lost(&self) {
        self.seat.lost.cancelled().await;
    }

    /// Resolves once nothing has been under way for too long.
    pub async fn quiet(&self) {
        loop {
            let until = {
                let standing = self.seat.standing.lock();
                let patience = if standing.has_asked { IDLE_TIMEOUT } else { HEAD_TIMEOUT };
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
        self.seat.standing.lock().has_asked
    }

    /// Whether anything is under way on it.
    pub fn is_busy(&self) -> bool {
        self.seat.standing.lock().in_flight > 0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let standing = self.standing.lock();
        let (idle, evicted) = (standing.idle, standing.evicted);
        drop(standing);
        if let Some(key) = idle {
            state.unsettle(key);
        }
        if !evicted {
            state.leave(self.source);
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
        state.change(seat.source, |own| own.requests -= 1);
        let mut standing = seat.standing.lock();
        standing.in_flight -= 1;
        if self.answered.load(Ordering::Relaxed) {
            standing.given_up = standing.given_up.saturating_sub(1);
        } else {
            standing.given_up += 1;
            if standing.given_up > GIVEN_UP_MAX && !seat.lost.is_cancelled() {
                state.note_fault(seat.source);
                seat.lost.cancel();
            }
        }
        let settles = standing.in_flight == 0 && !standing.evicted;
        drop(standing);
        if settles {
            state.settle(seat.source, &seat.standing, &seat.lost);
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn places() -> Places {
        Places::new(Bounds {
            connections_max: 4,
            connections_per_source_max: 2,
            requests_max: 4,
            requests_per_source_max: 3,
        })
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn is_lost(place: &Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[tokio::test]
    async fn a_source_makes_room_for_itself_first() {
        let places = places();
        let other = places.enter(ip(9)).unwrap();
        let (first, second) = (places.enter(ip(1)).unwrap(), places.enter(ip(1)).unwrap());
        let third = places.enter(ip(1)).unwrap();
        assert!(is_lost(&first) && ![&second, &third, &other].into_iter().any(is_lost));
        assert_eq!(places.connections(), 3, "one that has to go is counted no more");
        // Those at work stay; the newcomer does not come in.
        let at_work = [second.begin().unwrap(), third.begin().unwrap()];
        assert!(places.enter(ip(1)).is_none());
        let for_many = places.enter_for_many(ip(1)).unwrap();
        assert_eq!(places.connections(), 4);
        // All places are taken: the oldest that does nothing goes, whose ever it is.
        let last = places.enter(ip(8)).unwrap();
        assert!(is_lost(&other) && !is_lost(&for_many));
        drop(at_work);
        drop((first, second, third, other, for_many, last));
        let state = places.shared.state.lock();
        assert!(state.connections == 0 && state.requests == 0);
        assert!(state.sources.is_empty() && state.idle.is_empty());
    }

    #[tokio::test]
    async fn what_is_under_way_keeps_the_place_and_is_shared() {
        let places = places();
        let (one, two) = (places.enter(ip(1)).unwrap(), places.enter(ip(2)).unwrap());
        let kept: Vec<InFlight> = (0..3).map(|_| one.begin().unwrap()).collect();
        assert_eq!(one.begin().err(), Some(TooMany::OfThisSource));
        let other = two.begin().unwrap();
        assert_eq!(two.begin().err(), Some(TooMany::OfAll));
        // As an upgraded connection does, whose server has handed it over.
        drop(one);
        assert_eq!(places.connections(), 2);
        drop((kept, other));
        assert_eq!(places.connections(), 1);
    }

    #[tokio::test]
    async fn who_gives_up_again_and_again_has_to_go() {
        let places = places();
        let place = places.enter(ip(1)).unwrap();
        for _ in 0..10 * GIVEN_UP_MAX {
            let answered = place.begin().unwrap();
            drop(place.begin().unwrap());
            answered.answered();
        }
        assert!(!is_lost(&place));
        for _ in 0..=GIVEN_UP_MAX {
            drop(place.begin().unwrap());
        }
        assert!(is_lost(&place));
    }

    #[tokio::test(start_paused = true)]
    async fn the_faults_of_a_source_hold_back_its_further_connections_for_a_while() {
        let places = places();
        let (faulty, other) = (places.enter(ip(1)).unwrap(), places.enter(ip(2)).unwrap());
        for _ in 0..FAULTS_BORNE {
            assert_eq!(faulty.held_back(), None);
            faulty.was_at_fault();
        }
        assert_eq!(faulty.held_back(), None);
        faulty.was_at_fault();
        assert_eq!((faulty.held_back(), other.held_back()), (Some(HELD_BACK), None));
        assert_eq!(places.enter_for_many(ip(1)).unwrap().held_back(), None);
        tokio::time::advance(FAULT_STAYS).await;
        assert_eq!(faulty.held_back(), None);
        // However many there were, they are forgotten after a time.
        for _ in 0..1000 {
            faulty.was_at_fault();
        }
        tokio::time::advance(FAULT_STAYS * (FAULTS_MAX - FAULTS_BORNE)).await;
        assert_eq!(faulty.held_back(), None);
        tokio::time::advance(FAULT_STAYS * FAULTS_BORNE).await;
        assert_eq!(faulty.held_back(), None);
        assert!(places.shared.state.lock().faults.is_empty());
        // Nor are they too many.
        for at in 0..3 * FAULTY_MAX as u32 {
            places.shared.state.lock().note_fault(std::net::Ipv4Addr::from_bits(at).into());
        }
        assert!(places.shared.state.lock().faults.len() <= FAULTY_MAX);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let of = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
