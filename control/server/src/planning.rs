//! How far the planners of the leader are behind what happens: for metrics and `coracle doctor`.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// One planner's state, written by it and read by whoever scrapes.
#[derive(Debug, Default)]
pub struct Planner {
    /// Since when it has had work that it has not looked at. None while it has none, and while this member does not lead.
    behind_since: Mutex<Option<Instant>>,
    pub waiting: AtomicUsize,
    pub in_trouble: AtomicUsize,
    pub restless: AtomicUsize,
    pub unreadable: AtomicUsize,
    /// What it keeps beside the objects, as of its last plan.
    pub remembered: AtomicUsize,
    pub panics: AtomicU64,
}

/// Both planners of a control node.
#[derive(Debug, Default)]
pub struct Planning {
    pub controllers: Planner,
    pub scheduler: Planner,
}

impl Planner {
    /// How long there has been work that was not looked at.
    pub fn lag(&self) -> Duration {
        self.behind_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// It begins to look at what has happened.
    pub fn begin(&self) {
        self.behind_since.lock().get_or_insert_with(Instant::now);
    }

    /// It has looked at everything; what it planned is being carried out.
    pub fn caught_up(&self) {
        *self.behind_since.lock() = Some(Instant::now());
    }

    /// It waits for something to happen, or no longer runs.
    pub fn rest(&self) {
        *self.behind_since.lock() = None;
    }
}

/// Has a planner rest when it is dropped with its member's leadership.
pub struct Resting<'a>(pub &'a Planner);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.rest();
        self.0.waiting.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_time_since_all_was_looked_at() {
        let planner = Planner::default();
        assert_eq!(planner.lag(), Duration::ZERO);
        planner.begin();
        let lag = planner.lag();
        planner.begin();
        assert!(planner.lag() >= lag, "beginning again is no progress");
        {
            let _resting = Resting(&planner);
            planner.caught_up();
        }
        assert_eq!(planner.lag(), Duration::ZERO);
    }
}
