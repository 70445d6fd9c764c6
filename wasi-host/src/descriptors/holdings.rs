//! Who has how many descriptors of one share, and whether one more is his to have.
//!
//! Nobody has more than what stays free for others. The node's own listeners, the gateway among them, and those of services
//! each leave the other a quarter of all. A client has at most as many as are free, over all listeners; the services of a
//! namespace at most as many as services can still have.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Claim;
use crate::refusals::{Bound, Refused, What};
use crate::serving::source_of;

/// The part of a share that the node's listeners leave to services', and those to the node's.
const KEPT_PART: usize = 4;

/// Descriptors that are taken.
pub(super) struct Holdings {
    size: usize,
    all: usize,
    /// Those of services' listeners.
    of_services: usize,
    namespaces: HashMap<Arc<str>, usize>,
    sources: HashMap<IpAddr, usize>,
    /// Who waits for whatever becomes free.
    pub(super) in_line: usize,
}

/// By whom a claimant has all that it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sated {
    /// Nothing is free.
    All,
    /// All services, or all the node's listeners.
    Lane,
    /// The client.
    Source(IpAddr),
    /// The namespace's services.
    Namespace,
}

impl Holdings {
    pub(super) fn new(size: usize) -> Self {
        let (namespaces, sources) = (HashMap::new(), HashMap::new());
        Self { size, all: 0, of_services: 0, namespaces, sources, in_line: 0 }
    }

    pub(super) fn all(&self) -> usize {
        self.all
    }

    /// One more, unless somebody has all that he may have. Who is in line goes before those who come.
    pub(super) fn take(&mut self, claim: &Claim, in_line: bool) -> Result<(), Sated> {
        let before = if in_line { 0 } else { self.in_line };
        let free = self.size - self.all;
        if free <= before {
            return Err(Sated::All);
        }
        let lane_max = self.size - self.size / KEPT_PART;
        let of_lane = if claim.namespace.is_some() { self.of_services } else { self.all - self.of_services };
        // Of whom nothing is counted may have what there is: a proxy speaks for all clients.
        let counts = claim.namespace.is_some() || claim.source.is_some();
        if counts && of_lane >= lane_max {
            return Err(Sated::Lane);
        }
        let source = claim.source.map(source_of);
        if let Some(source) = source
            && self.sources.get(&source).is_some_and(|own| *own >= free)
        {
            return Err(Sated::Source(source));
        }
        if let Some(namespace) = &claim.namespace
            && self.namespaces.get(namespace).is_some_and(|own| *own >= lane_max - of_lane)
        {
            return Err(Sated::Namespace);
        }
        self.all += 1;
        if let Some(source) = source {
            *self.sources.entry(source).or_default() += 1;
        }
        if let Some(namespace) = &claim.namespace {
            self.of_services += 1;
            *self.namespaces.entry(Arc::clone(namespace)).or_default() += 1;
        }
        Ok(())
    }

    /// What is said where somebody has all that he may have.
    pub(super) fn refused(&self, what: What, sated: Sated, claim: &Claim) -> Refused {
        let (size, free) = (self.size, self.size - self.all);
        let lane_max = size - size / KEPT_PART;
        let of_share = |bound, held, limit| Refused::of_share(what, bound, held, limit, size);
        match (sated, &claim.namespace) {
            (Sated::All, _) => of_share(Bound::Node, self.all, size),
            (Sated::Lane, Some(_)) => of_share(Bound::Node, self.of_services, lane_max),
            (Sated::Lane, None) => of_share(Bound::Node, self.all - self.of_services, lane_max),
            (Sated::Source(source), _) => {
                of_share(Bound::Caller, self.sources.get(&source).copied().unwrap_or(0), free)
            }
            (Sated::Namespace, namespace) => {
                let own = namespace.as_ref().and_then(|namespace| self.namespaces.get(namespace));
                let free = lane_max.saturating_sub(self.of_services);
                of_share(Bound::Namespace, own.copied().unwrap_or(0), free)
            }
        }
    }

    pub(super) fn give_back(&mut self, claim: &Claim) {
        self.all -= 1;
        if let Some(source) = claim.source.map(source_of) {
            one_less(&mut self.sources, &source);
        }
        if let Some(namespace) = &claim.namespace {
            self.of_services -= 1;
            one_less(&mut self.namespaces, namespace);
        }
    }
}

fn one_less<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(source: u8, namespace: Option<&str>) -> Claim {
        Claim { source: Some([198, 51, 100, source].into()), namespace: namespace.map(Arc::from) }
    }

    fn fill(held: &mut Holdings, claims: impl IntoIterator<Item = Claim>) -> Vec<Claim> {
        let mut taken = Vec::new();
        for claim in claims {
            while held.take(&claim, false).is_ok() {
                taken.push(claim.clone());
            }
        }
        taken
    }

    #[test]
    fn nobody_has_more_than_what_stays_free() {
        let mut held = Holdings::new(1000);
        let namespaces: Vec<String> = (0..100).map(|at| at.to_string()).collect();
        let mut taken = fill(&mut held, namespaces.iter().map(|name| claim(1, Some(name))));
        assert_eq!(taken.len(), 500, "one client, whatever it connects to");
        assert_eq!(held.take(&claim(1, None), false), Err(Sated::Source([198, 51, 100, 1].into())));
        assert!(held.take(&claim(2, None), false).is_ok() && held.take(&claim(2, Some("x")), false).is_ok());
        held.give_back(&claim(2, None));
        held.give_back(&claim(2, Some("x")));
        taken.drain(..).for_each(|claim| held.give_back(&claim));

        taken = fill(&mut held, (1..200).map(|source| claim(source, Some("a"))));
        assert_eq!(taken.len(), 375, "one namespace, whoever connects");
        assert_eq!(held.take(&claim(250, Some("a")), false), Err(Sated::Namespace));
        let sources =
            (1..=250).flat_map(|source| namespaces.iter().map(move |name| claim(source, Some(name))));
        taken.extend(fill(&mut held, sources));
        assert_eq!((taken.len(), held.of_services), (750, 750), "all services");
        assert_eq!(held.take(&claim(251, Some("x")), false), Err(Sated::Lane));
        assert!(held.take(&claim(251, None), false).is_ok());
        held.give_back(&claim(251, None));
        taken.drain(..).for_each(|claim| held.give_back(&claim));
        assert!(
            held.all == 0 && held.of_services == 0 && held.namespaces.is_empty() && held.sources.is_empty()
        );
    }

    #[test]
    fn a_refusal_says_whose_bound_it_was() {
        let mut held = Holdings::new(8);
        let of_services = fill(&mut held, [claim(1, Some("a"))]);
        let refused = |sated, claim: &Claim| held.refused(What::ClientDescriptors, sated, claim).to_string();
        let one = claim(1, Some("a"));
        assert_eq!(of_services.len(), 3);
        assert_eq!(
            refused(Sated::Namespace, &one),
            "open files for clients: the namespace holds 3 of this node's 8 and may hold 3 by what is free of them now; have \
             the namespace's other pods hold less, or add a node"
        );
        let source = [198, 51, 100, 1].into();
        assert!(
            refused(Sated::Source(source), &one)
                .contains("the caller, or the pods of its namespace, hold 3 of 8")
        );
        assert!(refused(Sated::Lane, &one).contains("all pods of this node hold 3 of the 6"));
        assert!(refused(Sated::Lane, &claim(2, None)).contains("all pods of this node hold 0 of the 6"));
        assert!(refused(Sated::All, &one).contains("all pods of this node hold 3 of the 8"));
    }

    #[test]
    fn who_is_in_line_is_not_overtaken() {
        let mut held = Holdings::new(2);
        held.in_line = 1;
        assert!(held.take(&claim(1, None), false).is_ok());
        assert_eq!(held.take(&claim(2, None), false), Err(Sated::All));
        assert!(held.take(&claim(3, None), true).is_ok());
    }
}
