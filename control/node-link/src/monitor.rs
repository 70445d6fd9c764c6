//! Tells the cluster which nodes are heard of. Only changes are written.

use std::time::Duration;

use coracle_api::{Storage, fresh_uid};
use coracle_leader::{
    monitor::{Monitor, Turned, together},
    node_object::{self, LEASE_SECONDS},
    presence::{self, Presence},
};
use coracle_objects::Transaction;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{links::Links, pod_blocks::Abandoned};

/// How often all nodes are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Leases are renewed rarely: nothing here depends on them, but clients look at them.
const LEASE_PERIOD: Duration = Duration::from_secs(LEASE_SECONDS / 2);

/// How often blocks of nodes that are gone are looked for.
const BLOCKS_PERIOD: Duration = Duration::from_secs(5);

/// Writes about nodes under way at a time.
const WRITES_MAX: usize = 32;

/// Watches the nodes until it is dropped.
pub async fn monitor(storage: &impl Storage, links: &Links) {
    let presence = Mutex::new(Presence::default());
    // Looked at also while the writes of a round wait for their quorum, which is no absence.
    let stay = async {
        let mut looks = interval(presence::PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            be_present(&presence, links);
        }
    };
    tokio::select! {
        () = stay => {}
        () = judge(storage, links, &presence) => {}
    }
}

/// To be called before any silence is judged: after an absence it is not known which of several timers comes first.
fn be_present(presence: &Mutex<Presence>, links: &Links) {
    let away = presence.lock().look(links.now(), since_boot());
    if let Some(gap) = away {
        tracing::warn!(gap_ms = gap.as_millis(), "this control node did not run for a while");
        links.away(gap);
    }
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

async fn judge(storage: &impl Storage, links: &Links, presence: &Mutex<Presence>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leases_due = Instant::now() + LEASE_PERIOD;
    let mut blocks_due = Instant::now();
    let mut abandoned = Abandoned::default();
    let mut monitor = Monitor::default();
    let mut next_verdict = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = links.changed.notified() => {}
            () = sleep_until(next_verdict.unwrap_or_else(Instant::now)), if next_verdict.is_some() => {}
        }
        be_present(presence, links);
        let view = storage.view();
        let now = Timestamp::now();
        links.retain(|node| view.get(&node_object::key(node)).is_some());
        let hearing = links.hearing();
        let judged = monitor.judge(&view, &hearing, |node| links.connected(node), links.now(), now);
        next_verdict = judged.next.map(|moment| links.instant(moment));
        for Turned { node, ready } in &judged.turned {
            match ready {
                true => tracing::info!(node, "node is ready"),
                false => tracing::warn!(node, "node is not heard of any more"),
            }
        }
        let mut writes = judged.writes;
        if Instant::now() >= leases_due {
            leases_due = Instant::now() + LEASE_PERIOD;
            let linked = view.list("nodes", None).filter(|node| links.connected(node.name()));
            writes.extend(linked.map(|node| node_object::lease(&view, node.name(), &fresh_uid(), now)));
        }
        if Instant::now() >= blocks_due {
            blocks_due = Instant::now() + BLOCKS_PERIOD;
            writes.extend(abandoned.due(&view, |node| links.connected(node), Instant::now()));
        }
        write_downs(storage, &judged.downs).await;
        write(storage, writes).await;
    }
}

async fn write_downs(storage: &impl Storage, downs: &[Transaction]) {
    for (one, each) in together(downs) {
        if !matches!(storage.propose(one).await, Ok(Ok(_))) {
            write(storage, each.to_vec()).await;
        }
    }
}

async fn write(storage: &impl Storage, writes: Vec<Transaction>) {
    let outcomes = stream::iter(writes).map(|write| storage.propose(write)).buffer_unordered(WRITES_MAX);
    outcomes
        .for_each(async |outcome| {
            if let Err(error) = outcome {
                // The next round sees the same difference and tries again.
                tracing::debug!(%error, "a node's state is not written yet");
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_the_machine_goes_on() {
        let before = since_boot();
        assert!(!before.is_zero());
        assert!(since_boot() >= before);
    }
}
