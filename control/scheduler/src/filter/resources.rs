//! Whether what a pod requests is left on a node.

use super::Reason;
use crate::quota::Resources;

/// Whether all of `wanted` is left. A request of zero always fits, however overcommitted the node is.
pub fn fits(wanted: &Resources, used: &Resources, allocatable: &Resources) -> bool {
    used.pods.saturating_add(wanted.pods) <= allocatable.pods
        && left(wanted.cpu_milli, used.cpu_milli, allocatable.cpu_milli)
        && left(wanted.memory_bytes, used.memory_bytes, allocatable.memory_bytes)
        && wanted.others.iter().all(|(name, &amount)| left(amount, of(used, name), of(allocatable, name)))
}

/// A reason for each resource of which too little is left.
pub fn lacking(wanted: &Resources, used: &Resources, allocatable: &Resources) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if used.pods.saturating_add(wanted.pods) > allocatable.pods {
        reasons.push("Too many pods".to_owned());
    }
    if !left(wanted.cpu_milli, used.cpu_milli, allocatable.cpu_milli) {
        reasons.push("Insufficient cpu".to_owned());
    }
    if !left(wanted.memory_bytes, used.memory_bytes, allocatable.memory_bytes) {
        reasons.push("Insufficient memory".to_owned());
    }
    for (name, &amount) in &wanted.others {
        if !left(amount, of(used, name), of(allocatable, name)) {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}

fn left(wanted: i64, used: i64, allocatable: i64) -> bool {
    wanted == 0 || used.saturating_add(wanted) <= allocatable
}

fn of(resources: &Resources, name: &str) -> i64 {
    resources.others.get(name).copied().unwrap_or(0)
}
