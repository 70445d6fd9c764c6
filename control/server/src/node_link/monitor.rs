//! Tells the cluster which nodes are heard of. Only changes are written.

use std::time::Duration;

use coracle_api::Storage;
use coracle_objects::{Object, Transaction};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    links::Links,
    node_object::{self, LEASE_RENEWED_SECONDS, Readiness, ready_status},
};
use crate::storage::ReplicatedStorage;

/// A node that was not heard of for so long is no longer Ready. Nodes send a heartbeat a second.
const NODE_MONITOR_GRACE: Duration = Duration::from_secs(4);

/// How often all nodes are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Writes about nodes under way at a time.
const WRITES_MAX: usize = 32;

/// Watches the nodes until it is dropped.
pub async fn monitor(storage: &ReplicatedStorage, links: &Links) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leases_renewed = None::<Instant>;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = links.changed.notified() => {}
        }
        let view = storage.view();
        let now = Timestamp::now();
        links.retain(|node| view.get(&node_object::key(node)).is_some());
        let mut writes: Vec<Transaction> =
            view.list("nodes", None).filter_map(|node| change(links, node, now)).collect();
        let due = leases_renewed.is_none_or(|at| at.elapsed() >= Duration::from_secs(LEASE_RENEWED_SECONDS));
        if due && leases_renewed.is_some() {
            let heard = view.list("nodes", None).filter(|node| links.connected(node.name()));
            writes.extend(heard.map(|node| node_object::lease(&view, node.name(), now)));
        }
        if due {
            leases_renewed = Some(Instant::now());
        }
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
}

fn change(links: &Links, node: &Object, now: Timestamp) -> Option<Transaction> {
    let heard = links.heard(node.name());
    let alive = heard.is_some_and(|heard| heard.at.elapsed() < NODE_MONITOR_GRACE);
    let transaction = match (heard, alive) {
        // A new leader has not heard of the node yet: its state stays as it is for the grace period.
        (Some(heard), true) if heard.pressures.is_none() && !links.connected(node.name()) => None,
        (Some(heard), true) => node_object::transition(node, Readiness::Ready, heard.pressures, now),
        _ => node_object::transition(node, Readiness::Unknown, None, now),
    };
    if transaction.is_some() {
        let before = ready_status(node);
        if alive && before != "True" {
            tracing::info!(node = node.name(), "node is ready");
        } else if !alive {
            tracing::warn!(node = node.name(), "node is not heard of any more");
        }
    }
    transaction
}
