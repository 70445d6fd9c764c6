//! What has become of compiles, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::PrepareError;

/// What has become of compiles since the host's start. Those that have begun and not ended are under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compiles {
    /// Compiles that have begun.
    pub started: u64,
    /// Of those: that made code.
    pub succeeded: u64,
    /// That said what is wrong with the component, or could not go on.
    pub failed: u64,
    /// That nobody waited for any more, or that made room for others and are begun anew.
    pub abandoned: u64,
    /// How long all that have ended took together.
    pub took: Duration,
    /// Components whose code was in the store, so that nothing was compiled.
    pub spared: u64,
}

impl Compiles {
    /// Compiles that have ended, in whatever way.
    pub fn ended(&self) -> u64 {
        self.succeeded + self.failed + self.abandoned
    }
}

/// Counts them.
#[derive(Default)]
pub(super) struct Tally {
    started: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
    took_ns: AtomicU64,
    spared: AtomicU64,
}

impl Tally {
    /// One begins now.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        self.started.fetch_add(1, Relaxed);
        UnderWay { tally: self, began: Instant::now(), ends_as: &self.abandoned }
    }

    /// One was spared.
    pub(super) fn spare(&self) {
        self.spared.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> Compiles {
        // Those that have ended first, so that none is among them that has not begun.
        let [succeeded, failed, abandoned, took_ns, spared] =
            [&self.succeeded, &self.failed, &self.abandoned, &self.took_ns, &self.spared]
                .map(|count| count.load(Relaxed));
        let started = self.started.load(Relaxed).max(succeeded + failed + abandoned);
        Compiles { started, succeeded, failed, abandoned, took: Duration::from_nanos(took_ns), spared }
    }
}

/// A compile that has begun. It is abandoned where it is dropped without an outcome.
pub(super) struct UnderWay<'a> {
    tally: &'a Tally,
    began: Instant,
    ends_as: &'a AtomicU64,
}

impl UnderWay<'_> {
    /// It ends with this outcome.
    pub(super) fn ends<T>(mut self, outcome: Result<T, PrepareError>) -> Result<T, PrepareError> {
        self.ends_as = if outcome.is_ok() { &self.tally.succeeded } else { &self.tally.failed };
        outcome
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let took_ns = self.began.elapsed().as_nanos() as u64;
        self.tally.took_ns.fetch_add(took_ns, Relaxed);
        self.ends_as.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_compile_ends_in_one_way() {
        let tally = Tally::default();
        assert!(tally.begin().ends(Ok(())).is_ok());
        assert!(tally.begin().ends::<()>(Err(PrepareError::Busy)).is_err());
        drop(tally.begin());
        let under_way = tally.begin();
        tally.spare();
        let read = tally.read();
        assert_eq!((read.started, read.ended(), read.spared), (4, 3, 1));
        assert_eq!((read.succeeded, read.failed, read.abandoned), (1, 1, 1));
        drop(under_way);
        assert_eq!(tally.read().abandoned, 2);
    }
}
