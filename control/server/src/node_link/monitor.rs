//! Tells the cluster which nodes are heard of. Only changes are written.

use std::{collections::BTreeMap, time::Duration};

use coracle_api::Storage;
use coracle_objects::{Object, Revision, Transaction};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{
    links::{Heard, Links, Pressures},
    node_object::{self, LEASE_SECONDS, Readiness, ready_status},
    pod_blocks::Abandoned,
};
use crate::storage::ReplicatedStorage;

/// A node that was not heard of for so long is no longer Ready. Nodes send a heartbeat a second.
const NODE_MONITOR_GRACE: Duration = Duration::from_secs(4);

/// The same for a node whose link broke, which one that lives mends at once: its process has ended most probably.
const LOST_LINK_GRACE: Duration = Duration::from_millis(1500);

/// How often all nodes are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Leases are renewed rarely: nothing here depends on them, but clients look at them.
const LEASE_PERIOD: Duration = Duration::from_secs(LEASE_SECONDS / 2);

/// How often blocks of nodes that are gone are looked for.
const BLOCKS_PERIOD: Duration = Duration::from_secs(5);

/// Writes about nodes under way at a time.
const WRITES_MAX: usize = 32;

/// What a node's object and its node said when both agreed: nothing is to be done until one of them changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Agreed {
    revision: Revision,
    alive: bool,
    pressures: Option<Pressures>,
}

/// Watches the nodes until it is dropped.
pub async fn monitor(storage: &ReplicatedStorage, links: &Links) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leases_due = Instant::now() + LEASE_PERIOD;
    let mut blocks_due = Instant::now();
    let mut abandoned = Abandoned::default();
    let mut agreed: BTreeMap<String, Agreed> = BTreeMap::new();
    loop {
        let soon = Instant::now().checked_sub(LOST_LINK_GRACE).and_then(|since| links.lost_after(since));
        let due = soon.map(|lost| lost + LOST_LINK_GRACE);
        tokio::select! {
            _ = ticks.tick() => {}
            () = links.changed.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        let view = storage.view();
        let now = Timestamp::now();
        let exists = |node: &str| view.get(&node_object::key(node)).is_some();
        links.retain(exists);
        agreed.retain(|node, _| exists(node));
        let mut writes: Vec<Transaction> =
            view.list("nodes", None).filter_map(|node| change(links, node, &mut agreed, now)).collect();
        if Instant::now() >= leases_due {
            leases_due = Instant::now() + LEASE_PERIOD;
            let linked = view.list("nodes", None).filter(|node| links.connected(node.name()));
            writes.extend(linked.map(|node| node_object::lease(&view, node.name(), now)));
        }
        if Instant::now() >= blocks_due {
            blocks_due = Instant::now() + BLOCKS_PERIOD;
            writes.extend(abandoned.due(&view, |node| links.connected(node), Instant::now()));
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

fn is_alive(heard: Heard) -> bool {
    let lost = heard.lost.is_some_and(|lost| lost.elapsed() >= LOST_LINK_GRACE);
    !lost && heard.at.elapsed() < NODE_MONITOR_GRACE
}

fn change(
    links: &Links,
    node: &Object,
    agreed: &mut BTreeMap<String, Agreed>,
    now: Timestamp,
) -> Option<Transaction> {
    let heard = links.heard(node.name());
    let alive = heard.is_some_and(is_alive);
    let pressures = heard.and_then(|heard| heard.pressures);
    if alive && pressures.is_none() && !links.connected(node.name()) {
        // A new leader has not heard of the node yet: its state stays as it is for the grace period.
        return None;
    }
    let present = Agreed { revision: node.revision, alive, pressures };
    if agreed.get(node.name()) == Some(&present) {
        return None;
    }
    let transaction = match alive {
        true => node_object::transition(node, Readiness::Ready, pressures, now),
        false => node_object::transition(node, Readiness::Unknown, None, now),
    };
    match (&transaction, alive) {
        (None, _) => {
            agreed.insert(node.name().to_owned(), present);
        }
        (Some(_), true) if ready_status(node) != "True" => {
            tracing::info!(node = node.name(), "node is ready")
        }
        (Some(_), true) => {}
        (Some(_), false) => tracing::warn!(node = node.name(), "node is not heard of any more"),
    }
    transaction
}
