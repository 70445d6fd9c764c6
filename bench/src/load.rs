//! Closed-loop load: so many clients, each with one request under way, for so long.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

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

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Runs `request(client, sequence)` in a closed loop from `clients` tasks for `time`. The first error ends the run.
pub async fn closed_loop<F, R>(clients: usize, time: Duration, request: F) -> Result<Measured>
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
    let elapsed = begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let at =
        |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    let at = |share: f64| at(share).copied().unwrap_or_default();
    Ok(Measured { per_second: times.len() as f64 / elapsed, p50: at(0.5), p99: at(0.99), p999: at(0.999) })
}
