//! The clock of a run: virtual, and one a thread, since the API takes its clock as a plain function.

use std::{cell::Cell, time::Duration};

use jiff::{SignedDuration, Timestamp};

/// When every run begins: 2026-01-01T00:00:00Z.
const BEGIN_S: i64 = 1_767_225_600;

thread_local! {
    static MILLIS: Cell<i64> = const { Cell::new(BEGIN_S * 1_000) };
}

pub fn begin() -> Timestamp {
    Timestamp::from_second(BEGIN_S).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The present moment of this thread's run.
pub fn now() -> Timestamp {
    Timestamp::from_millisecond(MILLIS.get()).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub fn set(moment: Timestamp) {
    MILLIS.set(moment.as_millisecond());
}

/// `moment` and so many milliseconds.
pub fn after(moment: Timestamp, ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    moment.checked_add(SignedDuration::from_millis(ms)).unwrap_or(Timestamp::MAX)
}

/// Milliseconds from one moment to a later one; 0 where it is no later one.
pub fn ms_between(earlier: Timestamp, later: Timestamp) -> u64 {
    u64::try_from(later.duration_since(earlier).as_millis()).unwrap_or(0)
}

/// The time since the beginning.
pub fn elapsed(moment: Timestamp) -> Duration {
    Duration::from_millis(ms_between(begin(), moment))
}

/// The moment so long after the beginning: the first that is not before it.
pub fn at(elapsed: Duration) -> Timestamp {
    after(begin(), u64::try_from(elapsed.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX))
}
