//! The nodes and what is used of each: kept as events come, never recomputed.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    model::{NodeFacts, Shape},
    quota::Resources,
};

/// What a pod without a cpu request counts for in scores (never in filters), in thousandths of a core. Upstream's.
const SCORING_CPU_MILLI_DEFAULT: i64 = 100;
/// What a pod without a memory request counts for in scores, in bytes. Upstream's.
const SCORING_MEMORY_BYTES_DEFAULT: i64 = 200 * 1024 * 1024;

/// A node's place in [`Nodes`]. Stable while the node, or a pod on it, exists.
pub type NodeIndex = usize;

/// One node: its facts, and the sums over the pods that are there or on their way.
#[derive(Debug, Default)]
pub struct Node {
    pub name: Arc<str>,
    /// None while only pods speak of it: a node not seen yet, or gone before its pods.
    pub facts: Option<NodeFacts>,
    pub used: Resources,
    /// As `used`, with defaults for pods that request nothing, so that these spread as well.
    pub scoring_cpu_milli: i64,
    pub scoring_memory_bytes: i64,
    /// Pods by the uid of their owner.
    owners: BTreeMap<String, u32>,
    /// Grows with every change of what is used: tells a remembered score from a current one.
    pub version: u64,
}

impl Node {
    /// How many pods of this owner are here.
    pub fn pods_of(&self, owner: &str) -> u32 {
        self.owners.get(owner).copied().unwrap_or(0)
    }

    fn add(&mut self, shape: &Shape) {
        self.used.add(&shape.requests);
        let (cpu, memory) = scoring_requests(shape);
        self.scoring_cpu_milli = self.scoring_cpu_milli.saturating_add(cpu);
        self.scoring_memory_bytes = self.scoring_memory_bytes.saturating_add(memory);
        if let Some(owner) = &shape.owner {
            match self.owners.get_mut(owner) {
                Some(count) => *count += 1,
                None => {
                    self.owners.insert(owner.clone(), 1);
                }
            }
        }
        self.version += 1;
    }

    fn remove(&mut self, shape: &Shape) {
        self.used.remove(&shape.requests);
        let (cpu, memory) = scoring_requests(shape);
        self.scoring_cpu_milli = self.scoring_cpu_milli.saturating_sub(cpu);
        self.scoring_memory_bytes = self.scoring_memory_bytes.saturating_sub(memory);
        if let Some(owner) = &shape.owner
            && let Some(count) = self.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
        self.version += 1;
    }
}

/// The cpu (thousandths) and memory (bytes) that a pod of this shape counts for in scores.
pub fn scoring_requests(shape: &Shape) -> (i64, i64) {
    let or = |amount: i64, default: i64| if amount == 0 { default } else { amount };
    (
        or(shape.requests.cpu_milli, SCORING_CPU_MILLI_DEFAULT),
        or(shape.requests.memory_bytes, SCORING_MEMORY_BYTES_DEFAULT),
    )
}

/// All nodes. Slots of nodes that nothing speaks of any more are used again.
#[derive(Debug, Default)]
pub struct Nodes {
    slots: Vec<Node>,
    by_name: BTreeMap<Arc<str>, NodeIndex>,
    free: Vec<NodeIndex>,
}

impl Nodes {
    pub fn get(&self, index: NodeIndex) -> &Node {
        &self.slots[index]
    }

    /// The number of slots: indices are below it. Slots may be empty.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// How many nodes are known, if only by pods that name them.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// Takes the node's new facts. Answers whether they differ from the old ones.
    pub fn set_facts(&mut self, name: &str, facts: NodeFacts) -> bool {
        let index = self.index_of(name);
        let node = &mut self.slots[index];
        if node.facts.as_ref() == Some(&facts) {
            return false;
        }
        node.facts = Some(facts);
        node.version += 1;
        true
    }

    pub fn forget(&mut self, name: &str) {
        if let Some(&index) = self.by_name.get(name) {
            self.slots[index].facts = None;
            self.release_if_empty(index);
        }
    }

    /// Forgets the nodes of other names.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        let gone: Vec<Arc<str>> = self.by_name.keys().filter(|name| !stays(name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
    }

    /// Counts a pod to the node of this name, which need not be known yet.
    pub fn add_pod(&mut self, name: &str, shape: &Shape) -> NodeIndex {
        let index = self.index_of(name);
        self.slots[index].add(shape);
        index
    }

    /// Counts a pod to a node that is known.
    pub fn add_pod_at(&mut self, index: NodeIndex, shape: &Shape) {
        self.slots[index].add(shape);
    }

    pub fn remove_pod(&mut self, index: NodeIndex, shape: &Shape) {
        self.slots[index].remove(shape);
        self.release_if_empty(index);
    }

    fn index_of(&mut self, name: &str) -> NodeIndex {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let name: Arc<str> = name.into();
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Node::default());
            self.slots.len() - 1
        });
        self.slots[index] =
            Node { name: name.clone(), version: self.slots[index].version + 1, ..Node::default() };
        self.by_name.insert(name, index);
        index
    }

    fn release_if_empty(&mut self, index: NodeIndex) {
        let node = &self.slots[index];
        if node.facts.is_none() && node.used.pods == 0 {
            self.by_name.remove(&node.name);
            self.free.push(index);
        }
    }
}
