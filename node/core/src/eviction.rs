//! Which pod goes where the disk is nearly full. Source: kubelet's `rankDiskPressureFunc`.

use std::cmp::Reverse;

use crate::{
    action::Failure,
    pod::{Observed, PodState},
    resources,
    spec::{Pod, PodUid},
};

/// Who has less, in bytes, would make no room by going.
const HELD_MIN: u64 = 1 << 20;

/// Pods of this priority stay whatever they have. Source: scheduling.k8s.io `SystemCriticalPriority`.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// As the kubelet calls it: `ephemeral-storage` or `inodes`.
    pub resource: &'static str,
    /// How much is to be free, in bytes, or of inodes their number.
    pub threshold: u64,
    pub available: u64,
}

/// The pod that is to end, and why. `held` says what a pod has of what is short, in bytes.
///
/// First those that have more than they requested, of them those of the least priority, of them the one that is furthest
/// beyond. `None` where nobody's end would help.
pub fn victim(
    observed: &Observed,
    shortage: Shortage,
    held: impl Fn(&PodUid) -> u64,
) -> Option<(PodUid, Failure)> {
    let candidates = observed.pods.iter().filter(|(_, state)| may_be_evicted(state));
    let ranked = candidates.filter_map(|(uid, state)| {
        let (held, requested) = (held(uid), requested(&state.pod));
        let rank =
            (held > requested, Reverse(state.pod.spec.priority), i128::from(held) - i128::from(requested));
        (held >= HELD_MIN).then_some((rank, uid, held, requested))
    });
    let (_, uid, held, requested) = ranked.max_by_key(|(rank, ..)| *rank)?;
    let kibibytes = |bytes: u64| format!("{}Ki", bytes >> 10);
    let Shortage { resource, threshold, available } = shortage;
    let [threshold, available] = [threshold, available].map(|amount| match resource {
        "inodes" => amount.to_string(),
        _ => kibibytes(amount),
    });
    let message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. The pod was using \
         {}, its request of ephemeral-storage is {}.",
        kibibytes(held),
        kibibytes(requested)
    );
    Some((uid.clone(), Failure { reason: EVICTED, message }))
}

/// The reason of a pod that was evicted.
pub const EVICTED: &str = "Evicted";

fn may_be_evicted(state: &PodState) -> bool {
    state.ending.is_none()
        && state.eviction.is_none()
        && !state.finished_before
        && state.outcome(&state.pod).is_none()
        && state.pod.spec.priority.unwrap_or(0) < CRITICAL_PRIORITY
}

fn requested(pod: &Pod) -> u64 {
    let of = |container| resources::requested(container, "ephemeral-storage");
    pod.spec.containers.iter().map(of).fold(0, u64::saturating_add)
}
