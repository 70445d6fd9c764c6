//! Watchers of everything while writers write: events delivered a second, and how late they are.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use tokio::{task::JoinSet, time::timeout};

use super::{Door, KEYS};
use crate::load::{Times, closed_loop};

pub const WATCHERS: usize = 100;
pub const WRITERS: usize = 16;

/// Until the last event must have come to the last watcher after the writers have ended.
const DRAIN: Duration = Duration::from_secs(20);
/// One in so many arrivals is looked into for its delay, so that the looking costs little.
const SAMPLED: u64 = 16;

pub async fn load(door: &Arc<dyn Door>, time: Duration) -> Result<Times> {
    let delivered = Arc::new(AtomicU64::new(0));
    let delays = Arc::new(Mutex::new(Vec::new()));
    let mut streams = Vec::new();
    for watcher in 0..WATCHERS {
        streams.push(door.watch(watcher).await?);
    }
    // The watches never end by themselves; their tasks end with this set.
    let mut watchers = JoinSet::new();
    for mut stream in streams {
        let (delivered, delays) = (delivered.clone(), delays.clone());
        watchers.spawn(async move {
            let mut arrivals = 0u64;
            while let Some(Ok(arrived)) = stream.next().await {
                if arrivals.is_multiple_of(SAMPLED)
                    && let Some(written) = written_at(&arrived.first)
                {
                    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
                    delays.lock().expect("no watcher panics").push(now.saturating_sub(written));
                }
                arrivals += 1;
                delivered.fetch_add(arrived.events, Ordering::Relaxed);
            }
        });
    }
    let begun = Instant::now();
    let writing = door.clone();
    let written =
        closed_loop(WRITERS, time, move |client, sequence| writing.put(client, sequence % KEYS)).await?;
    let wanted = written.count() * WATCHERS as u64;
    let all = async {
        while delivered.load(Ordering::Relaxed) < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let drained = timeout(DRAIN, all).await;
    let took = begun.elapsed();
    let count = delivered.load(Ordering::Relaxed);
    drained.with_context(|| format!("{}: {count} of {wanted} events were delivered", door.name()))?;
    ensure!(count == wanted, "{}: {count} events were delivered of {wanted}", door.name());
    drop(watchers);
    let delays = std::mem::take(&mut *delays.lock().expect("no watcher panics"));
    Ok(Times::sampled(delays, took, count))
}

/// The time in an object's data, see [`super::object`].
fn written_at(object: &[u8]) -> Option<Duration> {
    const BEFORE: &[u8] = b"\"value\":\"";
    let at = object.windows(BEFORE.len()).position(|window| window == BEFORE)? + BEFORE.len();
    let digits = std::str::from_utf8(object.get(at..at + 20)?).ok()?;
    Some(Duration::from_nanos(digits.parse().ok()?))
}
