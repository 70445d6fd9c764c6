//! CPU quotas: a bucket that fills with the wall clock and is emptied by the CPU time that is used.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How much unused time is kept, in wall clock time at the bucket's rate. Kubernetes' period is 100 ms; a shorter
/// one keeps latencies under a quota low.
const BURST: Duration = Duration::from_millis(20);

/// A blocked group goes on with at least this much time, so that it does not start for nothing.
const RESUME_NS: i64 = 1_000_000;

/// The smallest rate that can be asked for, in cores: less is as good as never.
const CORES_MIN: f64 = 0.001;

/// CPU time that a container or a pod may use.
#[derive(Debug)]
pub(crate) struct Bucket {
    cores: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What may be used at once. Below zero where more was used than there was: that is paid back by waiting.
    tokens_ns: i64,
    refilled: Instant,
}

impl Bucket {
    /// A bucket that admits `cores` seconds of CPU time a second.
    pub(crate) fn new(cores: f64) -> Bucket {
        let cores = cores.max(CORES_MIN);
        let tokens_ns = burst_ns(cores);
        Bucket { cores, state: Mutex::new(State { tokens_ns, refilled: Instant::now() }) }
    }

    pub(crate) fn charge(&self, spent_ns: u64) {
        let mut state = self.state.lock();
        state.tokens_ns = state.tokens_ns.saturating_sub_unsigned(spent_ns);
    }

    /// When the bucket lets its group run again; `None` is now.
    pub(crate) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock();
        let elapsed_ns = now.saturating_duration_since(state.refilled).as_nanos() as f64;
        state.refilled = state.refilled.max(now);
        let filled = state.tokens_ns.saturating_add((elapsed_ns * self.cores) as i64);
        state.tokens_ns = filled.min(burst_ns(self.cores));
        if state.tokens_ns > 0 {
            return None;
        }
        let missing_ns = RESUME_NS.saturating_sub(state.tokens_ns) as f64 / self.cores;
        Some(now + Duration::from_nanos(missing_ns as u64))
    }
}

fn burst_ns(cores: f64) -> i64 {
    ((BURST.as_nanos() as f64 * cores) as i64).max(2 * RESUME_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_blocks_when_empty_and_pays_its_debt() {
        let bucket = Bucket::new(0.5);
        let now = Instant::now();
        assert_eq!(bucket.blocked_until(now), None);
        bucket.charge(30_000_000);
        let until = bucket.blocked_until(now).expect("the burst of 10 ms is used up");
        let wait = until - now;
        // 20 ms of debt and 1 ms to go on with, at half a core.
        assert!(wait > Duration::from_millis(40) && wait < Duration::from_millis(44), "{wait:?}");
        assert_eq!(bucket.blocked_until(until + Duration::from_millis(1)), None);
    }
}
