//! How long a pod tolerates what its node suffers from.

use jiff::{SignedDuration, Timestamp};

use super::{DOWN_TOLERATION_MS, is_ours};
use crate::{
    draft::later,
    model::{Pod, Taint, Toleration},
};

/// Until when the pod may stay; None where it may for ever. The past where it must go now.
///
/// A taint of ours that the pod does not speak of is tolerated for [`DOWN_TOLERATION_MS`] from `down_since` on, so that
/// a node that was away for a moment, or a new leader, does not move everything. A user's own taint is not.
pub fn tolerated_until<'a>(
    pod: &Pod,
    taints: impl Iterator<Item = &'a Taint>,
    down_since: Option<Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    taints
        .filter(|taint| taint.effect == "NoExecute")
        .filter_map(|taint| until(pod, taint, down_since, now))
        .min()
}

fn until(pod: &Pod, taint: &Taint, down_since: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let matching: Vec<&Toleration> =
        pod.tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
    // A pod that was made for a node in trouble has its time too: one made again and again must not be a busy loop.
    // Its creation is known to the second.
    let born = pod.created.map_or(Timestamp::MIN, |created| later(created, SignedDuration::from_secs(1)));
    if matching.is_empty() {
        let default = down_since.filter(|_| is_ours(taint)).map(|since| since.max(born));
        return Some(
            default.map_or(now, |since| later(since, SignedDuration::from_millis(DOWN_TOLERATION_MS))),
        );
    }
    // The shortest counts, as upstream has it; one without a limit is for ever.
    let seconds = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min()?;
    let since = taint.time_added.or(down_since).unwrap_or(now).max(pod.created.unwrap_or(Timestamp::MIN));
    Some(later(since, SignedDuration::from_secs(seconds.max(0))))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if !toleration.effect.is_empty() && toleration.effect != taint.effect {
        return false;
    }
    if !toleration.key.is_empty() && toleration.key != taint.key {
        return false;
    }
    match toleration.operator.as_str() {
        "" | "Equal" => !toleration.key.is_empty() && toleration.value == taint.value,
        "Exists" => true,
        _ => false,
    }
}
