//! Closed-loop load: so many clients, each with one request under way, for so long.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// What the runs of one load took, each for itself and all together.
#[derive(Clone, Debug, Default)]
pub struct Times {
    each: Vec<Duration>,
    all: Duration,
    /// What was done, where it is more than was timed.
    done: u64,
}

impl Times {
    pub fn new(each: Vec<Duration>, all: Duration) -> Self {
        let done = each.len() as u64;
        Self { each, all, done }
    }

    /// `each` are samples of `done` in all.
    pub fn sampled(each: Vec<Duration>, all: Duration, done: u64) -> Self {
        Self { each, all, done }
    }

    /// How much was done.
    pub fn count(&self) -> u64 {
        self.done
    }

    /// Adds a later run of the same load.
    pub fn add(&mut self, later: Times) {
        self.each.extend(later.each);
        self.all += later.all;
        self.done += later.done;
    }

    pub fn measured(&self) -> Measured {
        let mut times = self.each.clone();
        times.sort_unstable();
        let at = |share: f64| {
            let last = times.len().saturating_sub(1);
            times.get(((times.len() as f64 * share) as usize).min(last)).copied().unwrap_or_default()
        };
        let seconds = self.all.as_secs_f64().max(f64::MIN_POSITIVE);
        Measured { per_second: self.done as f64 / seconds, p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

/// What a load measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
}

impl Measured {
    pub fn line(&self) -> String {
        format!(
            "{:>9.0}/s  p50 {:>8.3} ms  p99 {:>8.3} ms  p99.9 {:>8.3} ms",
            self.per_second,
            ms(self.p50),
            ms(self.p99),
            ms(self.p999)
        )
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Runs `request(client, sequence)` in a closed loop from `clients` tasks for `time`. The first error ends the run.
pub async fn closed_loop<F, R>(clients: usize, time: Duration, request: F) -> Result<Times>
where
    F: Fn(usize, u64) -> R + Clone + Send + 'static,
    R: Future<Output = Result<()>> + Send + 'static,
{
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    let begun = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let request = request.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while begun.elapsed() < time {
                    let start = Instant::now();
                    request(client, SEQUENCE.fetch_add(1, Ordering::Relaxed)).await?;
                    times.push(start.elapsed());
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.context("a client panicked")??);
    }
    Ok(Times::new(times, begun.elapsed()))
}
