//! Places for live instances: each engine has as many as its pool has slots, and no container may take them all.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::{Engines, WasiVersion};

/// A container may have at least so many, where the engine has them.
const SHARE_MIN: u32 = 64;

/// The part of the host's instances that one container may have beyond that.
const SHARE_PART: u32 = 8;

/// The seats of both engines. A seat is one memory and two tables of the pool; large components take several.
pub(crate) struct Seats {
    p2: Arc<Semaphore>,
    p3: Arc<Semaphore>,
    p2_max: u32,
    p3_max: u32,
}

/// What one container may take of them.
pub(crate) struct Share {
    engine: Arc<Semaphore>,
    engine_max: u32,
    own: Arc<Semaphore>,
    own_max: u32,
}

/// One live instance's seats, free again when dropped.
pub(crate) struct Seat {
    _engine: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

/// Why there is no seat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The engine admits no more than this.
    Host(u32),
    /// The container may have no more than this.
    Container(u32),
}

impl Seats {
    pub(crate) fn new(engines: &Engines) -> Seats {
        Seats::of(engines.instances_max, engines.p3_instances_max)
    }

    fn of(p2_max: u32, p3_max: u32) -> Seats {
        let semaphore = |places: u32| Arc::new(Semaphore::new(places as usize));
        Seats { p2: semaphore(p2_max), p3: semaphore(p3_max), p2_max, p3_max }
    }

    /// A new container's share.
    pub(crate) fn share(&self, version: WasiVersion) -> Share {
        let (engine, engine_max) = match version {
            WasiVersion::P2 => (&self.p2, self.p2_max),
            WasiVersion::P3 => (&self.p3, self.p3_max),
        };
        let own_max = SHARE_MIN.max(self.p2_max / SHARE_PART);
        let own = Arc::new(Semaphore::new(own_max as usize));
        Share { engine: Arc::clone(engine), engine_max, own, own_max }
    }

    /// Seats of both engines that are taken.
    pub(crate) fn taken(&self) -> usize {
        let all = self.p2_max as usize + self.p3_max as usize;
        all.saturating_sub(self.p2.available_permits() + self.p3.available_permits())
    }
}

impl Share {
    /// Seats for an instance of this weight, now or not at all.
    pub(crate) fn take(&self, weight: u32) -> Result<Seat, Full> {
        let own = Arc::clone(&self.own).try_acquire_many_owned(weight);
        let own = own.map_err(|_| Full::Container(self.own_max))?;
        let engine = Arc::clone(&self.engine).try_acquire_many_owned(weight);
        let engine = engine.map_err(|_| Full::Host(self.engine_max))?;
        Ok(Seat { _engine: engine, _own: own })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_container_leaves_seats_for_others_and_engines_have_their_own() {
        let seats = Seats::of(1000, 100);
        let (greedy, other) = (seats.share(WasiVersion::P2), seats.share(WasiVersion::P2));
        let taken: Vec<_> = (0..25).map(|_| greedy.take(5).expect("within the share")).collect();
        assert_eq!(greedy.take(1).err(), Some(Full::Container(125)));
        assert!(other.take(1).is_ok());
        drop(taken);
        assert!(greedy.take(125).is_ok());
        let (first, second) = (seats.share(WasiVersion::P3), seats.share(WasiVersion::P3));
        let held = first.take(100).expect("as many as there are");
        assert_eq!(second.take(1).err(), Some(Full::Host(100)));
        assert!(other.take(1).is_ok());
        assert_eq!(seats.taken(), 100);
        drop(held);
        assert_eq!(seats.taken(), 0);
    }
}
