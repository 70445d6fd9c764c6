//! The node's time: that of the wall, but never backwards.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

/// How far the wall clock may be ahead before the node follows it.
const AHEAD_MAX: SignedDuration = SignedDuration::from_secs(1);

/// Gives times that grow, so that nothing that is due is postponed when somebody sets the clock back.
#[derive(Debug)]
pub struct Clock {
    anchor: Mutex<(Timestamp, Instant)>,
}

impl Clock {
    pub fn new() -> Self {
        Self { anchor: Mutex::new((Timestamp::now(), Instant::now())) }
    }

    pub fn now(&self) -> Timestamp {
        let mut anchor = self.anchor.lock();
        let (wall, monotonic) = (Timestamp::now(), Instant::now());
        let elapsed = monotonic.duration_since(anchor.1);
        let now = anchor.0.checked_add(elapsed).unwrap_or(Timestamp::MAX);
        if wall.duration_since(now) > AHEAD_MAX {
            // The machine slept or its clock was set forward.
            *anchor = (wall, monotonic);
            return wall;
        }
        now
    }

    /// The wait from now until `at`; zero where it is past.
    pub fn until(&self, at: Timestamp) -> std::time::Duration {
        std::time::Duration::try_from(at.duration_since(self.now())).unwrap_or_default()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
