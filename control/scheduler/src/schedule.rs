//! The decision itself: groups of equal pods, a heap of feasible nodes for each.

use std::{
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use coracle_objects::ObjectName;
use jiff::{SignedDuration, Timestamp};

use crate::{
    filter::{self, Diagnosis},
    model::Shape,
    nodes::{NodeIndex, Nodes},
    placement::{self, Decisions, Placement, Unplaced},
    queue::later,
    scheduler::{Assigned, Scheduler},
    score,
};

/// The most pods that one call decides about. The rest is for the next call, at once.
const DECISIONS_MAX: usize = 4_096;
/// How long a placement may stay unobserved before it is taken for lost. Its precondition makes a second one harmless.
const ASSUMED_S_MAX: i64 = 5;
/// Up to so many feasible nodes are always looked at (upstream's minFeasibleNodesToFind).
const SAMPLE_NODES_MIN: usize = 100;

/// Pods of one priority and one shape, oldest first.
struct Group {
    shape: Arc<Shape>,
    members: Vec<ObjectName>,
}

/// A feasible node: score, tie break, node, and the node's version that the score is of. The greatest is best.
type Candidate = (u64, u64, NodeIndex, u64);

impl Scheduler {
    /// Decides about all pods that can be tried now. `now` must not go backwards.
    pub fn schedule(&mut self, now: Timestamp) -> Decisions {
        self.now = Some(now);
        self.give_up_assumed(now);
        self.queue.wake(now);
        let mut decisions = Decisions::default();
        let names = self.queue.take_ready(DECISIONS_MAX);
        for group in self.grouped(names) {
            self.place_group(group, now, &mut decisions);
        }
        decisions
    }

    fn give_up_assumed(&mut self, now: Timestamp) {
        while let Some((deadline, name)) = self.assumed.first().cloned()
            && deadline <= now
        {
            self.assumed.remove(&(deadline, name.clone()));
            if let Some(pending) = self.release(&name) {
                self.queue.restore(pending);
            }
        }
    }

    /// Groups keep the order of their first members.
    fn grouped(&self, names: Vec<ObjectName>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut by_shape: BTreeMap<(i32, u64), Vec<usize>> = BTreeMap::new();
        for name in names {
            let Some(pending) = self.queue.get(&name) else { continue };
            let alike = by_shape.entry((pending.priority, pending.shape_hash)).or_default();
            match alike.iter().find(|&&index| groups[index].shape == pending.shape) {
                Some(&index) => groups[index].members.push(name),
                None => {
                    alike.push(groups.len());
                    groups.push(Group { shape: pending.shape.clone(), members: vec![name] });
                }
            }
        }
        groups
    }

    fn place_group(&mut self, group: Group, now: Timestamp, decisions: &mut Decisions) {
        let seed = self.queue.get(&group.members[0]).map_or("", |pending| pending.object.meta.uid.as_str());
        let seed = score::tie_seed(seed);
        let sample = sample_size(self.nodes.count()).max(group.members.len());
        let (mut candidates, examined) = candidates(&self.nodes, &group.shape, seed, self.next_start, sample);
        self.next_start = (self.next_start + examined) % self.nodes.slots().max(1);
        let mut members = group.members.into_iter();
        while let Some(name) = members.next() {
            let best = best(&mut candidates, &self.nodes, &group.shape, seed).or_else(|| {
                (candidates, _) = self::candidates(&self.nodes, &group.shape, seed, 0, usize::MAX);
                best(&mut candidates, &self.nodes, &group.shape, seed)
            });
            let Some(index) = best else {
                let message = self.diagnose(&group.shape);
                for name in std::iter::once(name).chain(members) {
                    self.pass_over(&name, &message, now, decisions);
                }
                return;
            };
            self.place(&name, index, now, decisions);
            if let Some(candidate) = candidate(&self.nodes, &group.shape, seed, index) {
                candidates.push(candidate);
            }
        }
    }

    fn place(&mut self, name: &ObjectName, index: NodeIndex, now: Timestamp, decisions: &mut Decisions) {
        let Some(pending) = self.queue.remove(name) else { return };
        let node = self.nodes.get(index);
        let node_uid = node.facts.as_ref().map_or("", |facts| facts.uid.as_str());
        decisions.placements.push(Placement {
            pod: pending.object.key.clone(),
            uid: pending.object.meta.uid.clone(),
            node: node.name.to_string(),
            transaction: placement::bind(&pending.object, &node.name, node_uid, now),
        });
        let shape = pending.shape.clone();
        self.nodes.add_pod_at(index, &shape);
        let deadline = later(now, SignedDuration::from_secs(ASSUMED_S_MAX));
        self.assumed.insert((deadline, name.clone()));
        let assigned = Assigned { node: index, shape, assumed: Some((deadline, pending)) };
        self.assigned.insert(name.clone(), assigned);
    }

    fn pass_over(&mut self, name: &ObjectName, message: &str, now: Timestamp, decisions: &mut Decisions) {
        let news = self.queue.wait(name, now, message);
        let Some(pending) = self.queue.get(name).filter(|_| news) else { return };
        decisions.failures.push(Unplaced {
            pod: pending.object.key.clone(),
            uid: pending.object.meta.uid.clone(),
            message: message.to_owned(),
            transaction: placement::explain(&pending.object, message, now),
        });
    }

    fn diagnose(&self, shape: &Shape) -> String {
        let mut diagnosis = Diagnosis::default();
        for index in 0..self.nodes.slots() {
            let node = self.nodes.get(index);
            if node.facts.is_some() {
                diagnosis.note(filter::reasons(shape, node));
            }
        }
        diagnosis.message()
    }
}

/// Up to `wanted` feasible nodes, searched for from `start` on, and how many slots were looked at.
fn candidates(
    nodes: &Nodes,
    shape: &Shape,
    seed: u64,
    start: NodeIndex,
    wanted: usize,
) -> (BinaryHeap<Candidate>, usize) {
    let slots = nodes.slots();
    let mut found = Vec::new();
    let mut examined = 0;
    while examined < slots && found.len() < wanted {
        let index = (start + examined) % slots;
        examined += 1;
        if filter::fixed(shape, nodes.get(index)).is_ok() {
            found.extend(candidate(nodes, shape, seed, index));
        }
    }
    (found.into(), examined)
}

/// The node as a candidate, where what the pod requests is left.
fn candidate(nodes: &Nodes, shape: &Shape, seed: u64, index: NodeIndex) -> Option<Candidate> {
    let node = nodes.get(index);
    let facts = node.facts.as_ref()?;
    if !filter::resources::fits(&shape.requests, &node.used, &facts.allocatable) {
        return None;
    }
    Some((score::score(shape, node), score::tie_break(seed, index), index, node.version))
}

/// Takes the best candidate. One whose node changed since it was scored is scored again first.
fn best(
    candidates: &mut BinaryHeap<Candidate>,
    nodes: &Nodes,
    shape: &Shape,
    seed: u64,
) -> Option<NodeIndex> {
    while let Some((_, _, index, version)) = candidates.pop() {
        if nodes.get(index).version == version {
            return Some(index);
        }
        candidates.extend(candidate(nodes, shape, seed, index));
    }
    None
}

/// How many feasible nodes are enough for a good choice among `nodes` (upstream's percentageOfNodesToScore).
fn sample_size(nodes: usize) -> usize {
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(SAMPLE_NODES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_grow_slower_than_clusters() {
        assert_eq!(sample_size(3), 100);
        assert_eq!(sample_size(1_000), 420);
        assert_eq!(sample_size(5_000), 500);
        assert_eq!(sample_size(100_000), 5_000);
    }
}
