//! Whether an ended container runs again, and when.

use std::time::Duration;

use jiff::Timestamp;

use crate::spec::RestartPolicy;

/// The first wait before a restart. Source: kubelet `backOffPeriod` / `initialBackOff`.
pub const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// The longest wait. Source: kubelet `MaxContainerBackOff`.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long since the last restart starts over with the first wait. Source: client-go
/// `flowcontrol.Backoff`, twice the longest wait.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// The wait before the next try, doubling with each.
///
/// The very first restart comes at once: a wait exists only after one restart was granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    wait: Duration,
    granted_at: Option<Timestamp>,
}

impl Backoff {
    /// Until when the container that ended at `ended` has to wait; `None` where it may start at once.
    pub fn until(&self, ended: Timestamp) -> Option<Timestamp> {
        let granted = self.granted_at?;
        if since(granted, ended) > BACKOFF_RESET {
            return None;
        }
        Some(after(ended, self.wait))
    }

    /// How long the wait is at present.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Notes that one try was granted at `now`, for a container that ended at `ended`.
    pub fn grant(&mut self, ended: Timestamp, now: Timestamp) {
        let fresh = self.granted_at.is_none_or(|granted| since(granted, ended) > BACKOFF_RESET);
        self.wait = if fresh { BACKOFF_INITIAL } else { (self.wait * 2).min(BACKOFF_MAX) };
        self.granted_at = Some(now);
    }
}

/// `now` plus a duration; saturates at the end of time.
pub fn after(now: Timestamp, duration: Duration) -> Timestamp {
    now.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// The time from `earlier` to `later`, zero where it is negative.
pub fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// Whether a container that ended with this code is started again.
pub fn restarts(policy: RestartPolicy, exit_code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// `10s`, `1m20s`, `5m0s`: as Go writes whole seconds.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn the_first_restart_is_at_once_then_waits_double_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..9 {
            let until = backoff.until(at(now));
            waits.push(until.map_or(0, |until| until.as_second() - now));
            now = until.map_or(now, |until| until.as_second());
            backoff.grant(at(now), at(now));
            now += 1;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_long_run_starts_over() {
        let mut backoff = Backoff::default();
        backoff.grant(at(0), at(0));
        backoff.grant(at(10), at(20));
        assert_eq!(backoff.until(at(20 + 600)), Some(at(640)));
        assert_eq!(backoff.until(at(20 + 601)), None);
        backoff.grant(at(621), at(621));
        assert_eq!(backoff.wait(), BACKOFF_INITIAL);
    }

    #[test]
    fn durations_read_as_in_go() {
        let text = |seconds| go_duration(Duration::from_secs(seconds));
        assert_eq!([text(10), text(80), text(300), text(3600)], ["10s", "1m20s", "5m0s", "1h0m0s"]);
    }
}
