//! What daemons count, and the page on which they tell it to whoever monitors them. Plain atomics: counting neither waits nor
//! allocates, reading takes no lock.

pub mod process;
mod text;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

pub use self::text::{CONTENT_TYPE, Family, Labels, Text};

/// Durations, counted in fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    /// Ascending, in microseconds.
    bounds_us: &'static [u64],
    /// One a bound, and one for what lies above the last.
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl Histogram {
    /// `bounds_us` are the upper bounds of the buckets in microseconds, ascending.
    pub fn new(bounds_us: &'static [u64]) -> Histogram {
        let buckets = (0..=bounds_us.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds_us, buckets, sum_ns: AtomicU64::new(0) }
    }

    pub fn observe(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let bucket = self.bounds_us.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    /// The upper bound of each bucket in seconds, and how many observations were at most that. The last bound is
    /// infinite: its count is that of all.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = self.bounds_us.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        bounds.zip(&self.buckets).scan(0, |count, (bound, bucket)| {
            *count += bucket.load(Relaxed);
            Some((bound, *count))
        })
    }

    /// The sum of all observations.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Relaxed))
    }

    /// The number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let histogram = Histogram::new(&[100, 1_000]);
        for us in [1, 100, 101, 999, 5_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let counts: Vec<_> = histogram.cumulative().collect();
        assert_eq!(counts, [(0.0001, 2), (0.001, 4), (f64::INFINITY, 5)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, Duration::from_micros(6_201)));
    }
}
