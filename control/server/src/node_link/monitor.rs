//! Tells the cluster which nodes are heard of. Only changes are written.

use std::{collections::BTreeMap, time::Duration};

use coracle_api::Storage;
use coracle_objects::{Object, Revision, Transaction};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{
    links::{Links, Pressures},
    node_object::{self, LEASE_SECONDS, Readiness, ready_status},
    pod_blocks::Abandoned,
    presence::{self, Presence},
    silence::{Hearing, Verdict},
};
use crate::storage::ReplicatedStorage;

/// How often all nodes are looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Leases are renewed rarely: nothing here depends on them, but clients look at them.
const LEASE_PERIOD: Duration = Duration::from_secs(LEASE_SECONDS / 2);

/// How often blocks of nodes that are gone are looked for.
const BLOCKS_PERIOD: Duration = Duration::from_secs(5);

/// Writes about nodes under way at a time.
const WRITES_MAX: usize = 32;

/// Nodes that are told in one transaction to be down.
const TOGETHER_MAX: usize = 32;

/// What a node's object and its node said when both agreed: nothing is to be done until one of them changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Agreed {
    revision: Revision,
    alive: bool,
    pressures: Option<Pressures>,
}

/// Watches the nodes until it is dropped.
pub async fn monitor(storage: &ReplicatedStorage, links: &Links) {
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
    let away = presence.lock().look();
    if let Some(gap) = away {
        tracing::warn!(gap_ms = gap.as_millis(), "this control node did not run for a while");
        links.away(gap);
    }
}

async fn judge(storage: &ReplicatedStorage, links: &Links, presence: &Mutex<Presence>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leases_due = Instant::now() + LEASE_PERIOD;
    let mut blocks_due = Instant::now();
    let mut abandoned = Abandoned::default();
    let mut agreed: BTreeMap<String, Agreed> = BTreeMap::new();
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
        let exists = |node: &str| view.get(&node_object::key(node)).is_some();
        links.retain(exists);
        agreed.retain(|node, _| exists(node));
        let hearing = links.hearing();
        let verdicts = hearing.verdicts(Instant::now());
        next_verdict = verdicts.next;
        let (mut writes, mut downs) = (Vec::new(), Vec::new());
        for node in view.list("nodes", None) {
            let verdict = verdicts.of(node.name());
            if let Some(write) = change(links, &hearing, verdict, node, &mut agreed, now) {
                if verdict == Verdict::Down { downs.push(write) } else { writes.push(write) }
            }
        }
        if Instant::now() >= leases_due {
            leases_due = Instant::now() + LEASE_PERIOD;
            let linked = view.list("nodes", None).filter(|node| links.connected(node.name()));
            writes.extend(linked.map(|node| node_object::lease(&view, node.name(), now)));
        }
        if Instant::now() >= blocks_due {
            blocks_due = Instant::now() + BLOCKS_PERIOD;
            writes.extend(abandoned.due(&view, |node| links.connected(node), Instant::now()));
        }
        write_downs(storage, downs).await;
        write(storage, writes).await;
    }
}

/// Tells that these nodes are down, of as many as possible at once: who sees only the first of them takes it for the only
/// one. Where one of them has changed meanwhile, each is told by itself.
async fn write_downs(storage: &ReplicatedStorage, downs: Vec<Transaction>) {
    for together in downs.chunks(TOGETHER_MAX) {
        let mut one = Transaction::default();
        for transaction in together.iter().cloned() {
            one.preconditions.extend(transaction.preconditions);
            one.writes.extend(transaction.writes);
        }
        if !matches!(storage.propose(one).await, Ok(Ok(_))) {
            write(storage, together.to_vec()).await;
        }
    }
}

async fn write(storage: &ReplicatedStorage, writes: Vec<Transaction>) {
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

fn change(
    links: &Links,
    hearing: &Hearing,
    verdict: Verdict,
    node: &Object,
    agreed: &mut BTreeMap<String, Agreed>,
    now: Timestamp,
) -> Option<Transaction> {
    let alive = match verdict {
        Verdict::Alive => true,
        Verdict::Down => false,
        Verdict::Undecided => return None,
    };
    let pressures = hearing.nodes.get(node.name()).and_then(|heard| heard.pressures);
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
