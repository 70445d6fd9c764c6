//! Filters: whether a node can take a pod at all, and if not, why.

pub mod affinity;
pub mod resources;
pub mod taints;

use std::{collections::BTreeMap, fmt};

use crate::{
    model::{NodeFacts, Shape, Taint},
    nodes::Node,
};

/// Why one node was passed over, in upstream's words: people and tools know them.
pub type Reason = String;

/// Why a node was passed over, whatever is used of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Misfit<'a> {
    /// The node does not exist: only pods speak of it.
    Unknown,
    Unschedulable,
    Taint(&'a Taint),
    Affinity,
    NotReady,
}

impl fmt::Display for Misfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("node(s) were unknown"),
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::Taint(taint) => {
                write!(f, "node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value)
            }
            Self::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::NotReady => f.write_str("node(s) were not ready"),
        }
    }
}

/// The filters whose outcome the placing of other pods does not change.
pub fn fixed<'a>(shape: &Shape, node: &'a Node) -> Result<&'a NodeFacts, Misfit<'a>> {
    #[cfg(test)]
    fault::strike(shape, node);
    let facts = node.facts.as_ref().ok_or(Misfit::Unknown)?;
    if facts.unschedulable && !taints::tolerates_cordon(&shape.tolerations) {
        return Err(Misfit::Unschedulable);
    }
    if let Some(taint) = taints::untolerated(&facts.taints, &shape.tolerations) {
        return Err(Misfit::Taint(taint));
    }
    if !affinity::admits(shape, &node.name, &facts.labels) {
        return Err(Misfit::Affinity);
    }
    if !facts.ready && !taints::tolerates_not_ready(&shape.tolerations) {
        return Err(Misfit::NotReady);
    }
    Ok(facts)
}

/// Why the node is passed over: several reasons where several resources are lacking, none where it is not.
pub fn reasons(shape: &Shape, node: &Node) -> Vec<Reason> {
    match fixed(shape, node) {
        Err(misfit) => vec![misfit.to_string()],
        Ok(facts) => resources::lacking(&shape.requests, &node.used, &facts.allocatable),
    }
}

/// How many nodes were passed over for each reason.
#[derive(Debug, Default)]
pub struct Diagnosis {
    counts: BTreeMap<Reason, u32>,
    nodes: u32,
}

impl Diagnosis {
    pub fn note(&mut self, reasons: Vec<Reason>) {
        self.nodes += 1;
        for reason in reasons {
            *self.counts.entry(reason).or_default() += 1;
        }
    }

    /// Upstream's sentence: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut reasons: Vec<String> =
            self.counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        format!("0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

/// Faults of ours, for tests of what they cost.
#[cfg(test)]
pub mod fault {
    use std::cell::Cell;

    use super::*;

    type Strikes = fn(&Shape, &Node) -> bool;

    thread_local! {
        static STRIKES: Cell<Option<Strikes>> = const { Cell::new(None) };
    }

    /// Until it is dropped, judging panics where `strikes` says so.
    pub struct Injected;

    pub fn inject(strikes: Strikes) -> Injected {
        STRIKES.set(Some(strikes));
        Injected
    }

    impl Drop for Injected {
        fn drop(&mut self) {
            STRIKES.set(None);
        }
    }

    pub fn strike(shape: &Shape, node: &Node) {
        assert!(!STRIKES.get().is_some_and(|strikes| strikes(shape, node)), "an injected fault");
    }
}
