//! Which pods go first where there are too many. The order is upstream's (ActivePodsWithRanks).

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
};

use jiff::Timestamp;

use crate::{
    draft::Unreadable,
    model::{Pod, ReplicaSet},
    state::State,
};

/// The `count` pods of `active` that go first.
pub fn first_to_go<'a>(
    state: &State,
    set: &ReplicaSet,
    active: &[&'a Pod],
    count: usize,
    now: Timestamp,
) -> Result<Vec<&'a Pod>, Unreadable> {
    if count >= active.len() {
        return Ok(active.to_vec());
    }
    let crowds = crowds(state, set)?;
    let crowd = |pod: &Pod| crowds.get(pod.node.as_str()).copied().unwrap_or(0);
    let mut pods = active.to_vec();
    pods.sort_by(|a, b| order(a, b, crowd(a), crowd(b), now));
    pods.truncate(count);
    Ok(pods)
}

/// How many active pods of this set and its siblings (the other sets of its owner) are on each node.
fn crowds<'a>(state: &'a State, set: &'a ReplicaSet) -> Result<BTreeMap<&'a str, usize>, Unreadable> {
    let mut crowds = BTreeMap::new();
    let owner = set.object.controller().and_then(|owner| state.get(state.by_uid(&owner.uid)?));
    let siblings: Vec<&ReplicaSet> = match owner {
        Some(owner) => state.sets_of(owner)?,
        None => vec![set],
    };
    for pod in siblings.into_iter().flat_map(|set| state.pods_of(&set.object)).filter(|pod| pod.active()) {
        *crowds.entry(pod.node.as_str()).or_default() += 1;
    }
    Ok(crowds)
}

/// Less goes first: unassigned, pending, not ready, cheap to delete, in a crowd, ready for a short time, restarted
/// often, young.
fn order(a: &Pod, b: &Pod, crowd_a: usize, crowd_b: usize, now: Timestamp) -> Ordering {
    let phase = |pod: &Pod| match pod.phase.as_str() {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let first = |pod: &Pod, crowd: usize| {
        (!pod.node.is_empty(), phase(pod), pod.ready, pod.deletion_cost, Reverse(crowd))
    };
    let ready_for = |pod: &Pod| if pod.ready { magnitude(pod.ready_since, now) } else { 0 };
    let last = |pod: &Pod| {
        (ready_for(pod), Reverse(pod.restarts), magnitude(pod.created, now), pod.object.meta.uid.clone())
    };
    first(a, crowd_a).cmp(&first(b, crowd_b)).then_with(|| last(a).cmp(&last(b)))
}

/// The binary order of magnitude of the time since `moment`: small differences of age are none. A moment that is not
/// known is the youngest.
fn magnitude(moment: Option<Timestamp>, now: Timestamp) -> u32 {
    let Some(moment) = moment else { return 0 };
    let elapsed_ns = now.duration_since(moment).as_nanos().max(0) as u128;
    u128::BITS - elapsed_ns.leading_zeros()
}
