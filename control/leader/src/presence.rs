//! Whether this control node ran all the time. Who was frozen, or whose machine was paused, heard of nobody meanwhile, and
//! that says nothing of the others.

use std::time::Duration;

/// How often the clocks are looked at.
pub const PERIOD: Duration = Duration::from_millis(250);

/// Looks that are so far apart are late. A busy machine is late by less.
const LATE: Duration = Duration::from_millis(750);

/// The looks at the clocks.
#[derive(Debug, Default)]
pub struct Presence {
    last: Option<(Duration, Duration)>,
}

impl Presence {
    /// How long this control node was away before this look; `None` where it was not.
    ///
    /// `now`, the clock of the process, stands still while a machine sleeps; `since_boot`, that of the machine, goes on.
    /// Neither can be set.
    pub fn look(&mut self, now: Duration, since_boot: Duration) -> Option<Duration> {
        let (last, last_since_boot) = self.last.replace((now, since_boot))?;
        let gap = now.saturating_sub(last).max(since_boot.saturating_sub(last_since_boot));
        (gap >= LATE).then_some(gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_clock_tells_of_an_absence() {
        let begun = Duration::from_secs(7);
        let mut presence = Presence::default();
        let second = Duration::from_secs;
        assert_eq!(presence.look(begun, second(9)), None);
        assert_eq!(presence.look(begun + PERIOD, second(9) + PERIOD), None);
        assert_eq!(presence.look(begun + second(15), second(24)), Some(second(15) - PERIOD), "frozen");
        assert_eq!(presence.look(begun + second(15), second(99)), Some(second(75)), "asleep");
        assert_eq!(presence.look(begun + second(15), second(99)), None);
    }
}
