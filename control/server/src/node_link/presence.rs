//! Whether this process ran all the time. Who was frozen, or whose machine was paused, heard of nobody meanwhile, and
//! that says nothing of the others.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// How often the clocks are looked at.
pub const PERIOD: Duration = Duration::from_millis(250);

/// Looks that are so far apart are late. A busy machine is late by less.
const LATE: Duration = Duration::from_millis(750);

/// The looks at the clocks.
#[derive(Debug, Default)]
pub struct Presence {
    last: Option<(Instant, Duration)>,
}

impl Presence {
    /// How long this process was away before this look; `None` where it was not.
    pub fn look(&mut self) -> Option<Duration> {
        self.look_at(Instant::now(), since_boot())
    }

    /// The clock of the process stands still while a machine sleeps, that of the machine goes on. Neither can be set.
    fn look_at(&mut self, now: Instant, since_boot: Duration) -> Option<Duration> {
        let (last, last_since_boot) = self.last.replace((now, since_boot))?;
        let gap = (now - last).max(since_boot.saturating_sub(last_since_boot));
        (gap >= LATE).then_some(gap)
    }
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_clock_tells_of_an_absence() {
        let begun = Instant::now();
        let mut presence = Presence::default();
        let second = Duration::from_secs;
        assert_eq!(presence.look_at(begun, second(9)), None);
        assert_eq!(presence.look_at(begun + PERIOD, second(9) + PERIOD), None);
        assert_eq!(presence.look_at(begun + second(15), second(24)), Some(second(15) - PERIOD), "frozen");
        assert_eq!(presence.look_at(begun + second(15), second(99)), Some(second(75)), "asleep");
        assert_eq!(presence.look_at(begun + second(15), second(99)), None);
    }

    #[test]
    fn the_clock_of_the_machine_goes_on() {
        let before = since_boot();
        assert!(!before.is_zero());
        assert!(since_boot() >= before);
    }
}
