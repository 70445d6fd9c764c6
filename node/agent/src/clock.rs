//! The node's time: it goes as the machine's monotonic clock does, so that no step of the wall clock makes anything due
//! early or late. What is shown to people is told in the wall clock's time.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

/// How far the wall clock may go astray before that counts as a step.
const ASTRAY_MAX: SignedDuration = SignedDuration::from_secs(1);

/// The node's time, which agreed with the wall clock when the node started.
pub struct Clock {
    wall_clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    started: (Timestamp, Instant),
    /// How far the wall clock is ahead of the node's time.
    ahead: Mutex<SignedDuration>,
}

impl Clock {
    pub fn new() -> Self {
        Self::beside(Timestamp::now)
    }

    /// One that starts from what this wall clock says.
    pub fn beside(wall_clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let started = (wall_clock(), Instant::now());
        Self { wall_clock: Box::new(wall_clock), started, ahead: Mutex::default() }
    }

    /// Grows evenly, whatever is done to the wall clock.
    pub fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Timestamp {
        let (wall, monotonic) = self.started;
        wall.checked_add(instant.duration_since(monotonic)).unwrap_or(Timestamp::MAX)
    }

    /// How far the wall clock is ahead; the same as before as long as it was not set.
    pub fn wall_ahead(&self) -> SignedDuration {
        self.ahead_at((self.wall_clock)(), Instant::now())
    }

    fn ahead_at(&self, wall: Timestamp, instant: Instant) -> SignedDuration {
        let is = wall.duration_since(self.at(instant));
        let mut ahead = self.ahead.lock();
        if (is - *ahead).abs() > ASTRAY_MAX {
            *ahead = is;
        }
        *ahead
    }

    /// What the wall clock says, for stamps.
    pub fn wall(&self) -> Timestamp {
        self.now().checked_add(self.wall_ahead()).unwrap_or(Timestamp::MAX)
    }

    /// The wait from now until `at`; zero where it is past.
    pub fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since(self.now())).unwrap_or_default()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_nodes_time_goes_on_evenly_whatever_the_wall_clock_is_set_to() {
        let wall = Arc::new(Mutex::new(Timestamp::UNIX_EPOCH));
        let set = wall.clone();
        let clock = Clock::beside(move || *wall.lock());
        let (mut before, second) = (clock.now(), SignedDuration::from_secs(1));
        for hours in [1, -2, 48, 0] {
            *set.lock() = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
            let now = clock.now();
            // Far less than any of the steps, however slow the machine is.
            assert!(before <= now && now - 600 * second < Timestamp::UNIX_EPOCH, "{now}");
            let waits = clock.until(Timestamp::UNIX_EPOCH + 1200 * second);
            assert!((600..=1200).contains(&waits.as_secs()), "{waits:?}");
            let astray = clock.wall().duration_since(*set.lock());
            assert!(astray.abs() < 600 * second, "{astray}");
            before = now;
        }
    }

    #[test]
    fn steps_of_the_wall_clock_move_what_is_shown_and_nothing_that_is_due() {
        let clock = Clock::new();
        let (wall, start) = clock.started;
        let second = SignedDuration::from_secs(1);
        let mut instant = start;
        for (step, shown) in [(0, 0), (3600, 3600), (3600, 3600), (-7200, -7200), (-7200, -7200), (0, 0)] {
            instant += Duration::from_secs(10);
            let node = clock.at(instant);
            assert_eq!(node.duration_since(wall).as_secs(), (instant - start).as_secs().cast_signed());
            assert_eq!(clock.ahead_at(node + second * step, instant), second * shown);
        }
        // A clock that is disciplined little by little is no step.
        let drifted = clock.at(instant) + SignedDuration::from_millis(900);
        assert_eq!(clock.ahead_at(drifted, instant), SignedDuration::ZERO);
        assert_eq!(clock.until(clock.now() - second), Duration::ZERO);
    }
}
