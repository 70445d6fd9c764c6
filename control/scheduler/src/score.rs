//! Scores: which of the nodes that can take a pod suits it best.
//!
//! Each score runs from 0 to [`SCALE`]; the sum weighs them. Integers, so that every machine agrees.

use crate::{
    filter::{affinity, taints},
    model::Shape,
    nodes::{Node, NodeIndex, scoring_requests},
};

/// The best value of one score.
const SCALE: u64 = 10_000;

const WEIGHT_LEAST_ALLOCATED: u64 = 1;
const WEIGHT_BALANCED: u64 = 1;
const WEIGHT_SPREAD: u64 = 2;
const WEIGHT_AFFINITY: u64 = 2;
const WEIGHT_TAINTS: u64 = 3;

/// How well the node suits a pod of this shape; more is better. Only for a node that exists.
pub fn score(shape: &Shape, node: &Node) -> u64 {
    let Some(facts) = &node.facts else { return 0 };
    let (cpu, memory) = scoring_requests(shape);
    let cpu = used_part(node.scoring_cpu_milli.saturating_add(cpu), facts.allocatable.cpu_milli);
    let memory = used_part(node.scoring_memory_bytes.saturating_add(memory), facts.allocatable.memory_bytes);
    let pods = used_part(node.used.pods + 1, facts.allocatable.pods);
    let least_allocated = SCALE - (cpu + memory + pods) / 3;
    let balanced = SCALE - cpu.abs_diff(memory) / 2;
    let siblings = shape.owner.as_deref().map_or(0, |owner| node.pods_of(owner)) as u64;
    let spread = SCALE / (1 + siblings);
    let affinity = affinity::preference(shape, &node.name, &facts.labels, SCALE);
    let taints = SCALE / (1 + taints::untolerated_preferences(&facts.taints, &shape.tolerations));
    least_allocated * WEIGHT_LEAST_ALLOCATED
        + balanced * WEIGHT_BALANCED
        + spread * WEIGHT_SPREAD
        + affinity * WEIGHT_AFFINITY
        + taints * WEIGHT_TAINTS
}

/// The used part of a resource, from 0 to `SCALE`: all of it where there is none, or more is used than is there.
fn used_part(used: i64, allocatable: i64) -> u64 {
    if allocatable <= 0 || used >= allocatable {
        return SCALE;
    }
    (used.max(0) as u128 * SCALE as u128 / allocatable as u128) as u64
}

/// Where the breaking of ties begins for a pod of this uid: FNV-1a, 64 bits.
pub fn tie_seed(uid: &str) -> u64 {
    uid.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Orders nodes of equal score by chance, but by the same chance on every machine.
pub fn tie_break(seed: u64, index: NodeIndex) -> u64 {
    let mixed = (seed ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_in_range() {
        assert_eq!(used_part(0, 0), SCALE);
        assert_eq!(used_part(50, 100), SCALE / 2);
        assert_eq!(used_part(i64::MAX, 1), SCALE);
        assert_eq!(used_part(-3, 100), 0);
    }

    #[test]
    fn ties_are_broken_the_same_way_for_ever() {
        assert_eq!(tie_seed("a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(tie_break(tie_seed("a"), 1), tie_break(tie_seed("a"), 2));
        assert_ne!(tie_break(tie_seed("a"), 1), tie_break(tie_seed("b"), 1));
    }
}
