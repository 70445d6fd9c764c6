//! Who opens connections to a pod, and what part of its sockets and buffers each of them may have.
//!
//! A connection that is accepted is the pod's: its seat, and what waits in both directions. So whoever opens connections
//! spends what the pod has, and gets one more only while he holds less than what is free, as `shares.rs` gives out what a
//! node has: the pods of another namespace together, and any one source. A part of the sockets is for the pod's own and for
//! the pods of its namespace on its node alone ([`OWN_PART`]). What waits in callers' pipes is shared by the same rule, in
//! [`Budget::room`].

use super::seat::Budget;
use crate::refusals::{Bound, Refused, What};
use crate::serving::source_of;
use crate::shares::give_back;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

/// The part of a pod's sockets that those from elsewhere leave to the pod itself and its own namespace.
const OWN_PART: usize = 4;

/// Budgets of callers that are kept before it is looked which of them are gone.
const BUDGETS_MIN: usize = 16;

/// Who opens a connection to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The node, to see whether the pod serves.
    Node,
    /// The pod itself.
    Own,
    /// A pod of the same namespace.
    Kin(IpAddr),
    /// Anybody else, with the namespace of one who is a pod.
    Other { source: IpAddr, namespace: Option<Arc<str>> },
}

impl Caller {
    /// Who has an address that is not the pod's, of a pod of `namespace` where it is one.
    pub(crate) fn of(ip: IpAddr, namespace: Option<Arc<str>>, own: &Arc<str>) -> Caller {
        let source = source_of(ip);
        match namespace {
            Some(namespace) if namespace == *own => Caller::Kin(source),
            namespace => Caller::Other { source, namespace },
        }
    }

    /// Whether it is of another namespace, or of none.
    pub(crate) fn is_other(&self) -> bool {
        matches!(self, Caller::Other { .. })
    }

    /// Whose part it is; none of the pod's own and the node's.
    pub(super) fn source(&self) -> Option<IpAddr> {
        match self {
            Caller::Node | Caller::Own => None,
            Caller::Kin(source) | Caller::Other { source, .. } => Some(*source),
        }
    }

    /// Of a pod of another namespace.
    pub(crate) fn namespace(&self) -> Option<&Arc<str>> {
        match self {
            Caller::Other { namespace, .. } => namespace.as_ref(),
            Caller::Node | Caller::Own | Caller::Kin(_) => None,
        }
    }

    /// Who shares what it buffers.
    pub(super) fn party(&self) -> Option<Party> {
        let of_namespace = self.namespace().cloned().map(Party::Namespace);
        of_namespace.or_else(|| self.source().map(Party::Source))
    }
}

/// Those who have one part of a pod's buffers, and of what waits at a socket, together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Party {
    Namespace(Arc<str>),
    Source(IpAddr),
}

/// What callers have of a pod's sockets.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    others: usize,
    sources: HashMap<IpAddr, usize>,
    namespaces: HashMap<Arc<str>, usize>,
    /// Those of whom something is left: also when the connection is closed, what waits in it is there until it is read.
    budgets: HashMap<Party, Weak<Budget>>,
    sweep_at: usize,
}

impl Callers {
    /// Counts one more connection of the caller, of a pod with `sockets_max` of which so many are free, unless it has its
    /// share.
    pub(crate) fn admit(&mut self, caller: &Caller, sockets_max: usize, free: usize) -> Result<(), Refused> {
        let others_max = sockets_max - sockets_max / OWN_PART;
        let free = if caller.is_other() { free.min(others_max - self.others.min(others_max)) } else { free };
        let of_source = caller.source().map(|source| held(&self.sources, &source));
        let of_namespace = caller.namespace().map(|namespace| held(&self.namespaces, namespace));
        if let Some(own) = of_source.into_iter().chain(of_namespace).find(|own| *own >= free) {
            return Err(Refused::of_share(What::Sockets, Bound::Caller, own, free, sockets_max));
        }
        self.others += usize::from(caller.is_other());
        if let Some(source) = caller.source() {
            *self.sources.entry(source).or_default() += 1;
        }
        if let Some(namespace) = caller.namespace() {
            *self.namespaces.entry(namespace.clone()).or_default() += 1;
        }
        Ok(())
    }

    /// One that was counted is gone.
    pub(crate) fn leave(&mut self, caller: &Caller) {
        self.others -= usize::from(caller.is_other());
        if let Some(source) = caller.source() {
            give_back(&mut self.sources, &source);
        }
        if let Some(namespace) = caller.namespace() {
            give_back(&mut self.namespaces, namespace);
        }
    }

    /// Where what the caller's connections buffer is counted, on the pod's account.
    pub(crate) fn budget(&mut self, caller: &Caller, pod: &Arc<Budget>) -> Arc<Budget> {
        let Some(party) = caller.party() else { return pod.clone() };
        if let Some(budget) = self.budgets.get(&party).and_then(Weak::upgrade) {
            return budget;
        }
        if self.budgets.len() >= self.sweep_at {
            self.budgets.retain(|_, budget| budget.strong_count() > 0);
            self.sweep_at = BUDGETS_MIN.max(2 * self.budgets.len());
        }
        let budget = Arc::new(Budget::of_caller(pod));
        self.budgets.insert(party, Arc::downgrade(&budget));
        budget
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.others == 0 && self.sources.is_empty() && self.namespaces.is_empty()
    }
}

fn held<K: Eq + Hash>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or(0)
}
