//! What all pods of a node share, given out so that nobody takes it all.
//!
//! A namespace gets one more while it holds less than what is free, a pod while it holds less than half of that. However
//! many namespaces take all that they can get, they end with equal parts, and one part stays free for who comes next.

use crate::refusals::{Bound, Refused, What};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

/// On whose account something is held.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The pod's first address; `None` for what comes to a namespace's services from outside.
    pub pod: Option<IpAddr>,
}

/// A number of equal things.
pub struct Shares {
    what: What,
    size: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    namespaces: HashMap<Arc<str>, usize>,
    /// Only those with a pod.
    pods: HashMap<Holder, usize>,
}

impl Shares {
    /// So many things, all free.
    pub fn new(what: What, size: usize) -> Arc<Self> {
        Arc::new(Self { what, size, held: Mutex::default() })
    }

    /// One more for `holder`, or by whose bound it has its share already. Whoever refuses for that notes it.
    pub fn take(self: &Arc<Self>, holder: &Holder) -> Result<Permit, Refused> {
        let mut held = self.held.lock();
        let free = self.size - held.all;
        let of_namespace = held.namespaces.get(&holder.namespace).copied().unwrap_or(0);
        let of_pod = held.pods.get(holder).copied().unwrap_or(0);
        let of_share = |bound, held, limit| Err(Refused::of_share(self.what, bound, held, limit, self.size));
        if free == 0 {
            return of_share(Bound::Node, held.all, self.size);
        }
        if of_namespace >= free {
            return of_share(Bound::Namespace, of_namespace, free);
        }
        if of_pod >= free.div_ceil(2) {
            return of_share(Bound::PodShare, of_pod, free.div_ceil(2));
        }
        held.all += 1;
        *held.namespaces.entry(holder.namespace.clone()).or_default() += 1;
        if holder.pod.is_some() {
            *held.pods.entry(holder.clone()).or_default() += 1;
        }
        drop(held);
        Ok(Permit { shares: self.clone(), holder: holder.clone() })
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.held.lock().all
    }
}

/// One of the things, held until it is dropped.
pub struct Permit {
    shares: Arc<Shares>,
    holder: Holder,
}

impl Permit {
    /// On whose account it is.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.all -= 1;
        give_back(&mut held.namespaces, &self.holder.namespace);
        if self.holder.pod.is_some() {
            give_back(&mut held.pods, &self.holder);
        }
    }
}

/// Counts one less, and forgets who has none.
pub(crate) fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
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

    fn holder(namespace: &str, pod: u8) -> Holder {
        Holder { namespace: namespace.into(), pod: Some([10, 128, 0, pod].into()) }
    }

    fn fill(shares: &Arc<Shares>, holder: &Holder) -> Vec<Permit> {
        std::iter::from_fn(|| shares.take(holder).ok()).collect()
    }

    #[test]
    fn nobody_takes_all_and_all_is_given_back() {
        let shares = Shares::new(What::Flows, 900);
        let alone = fill(&shares, &holder("a", 1));
        assert_eq!(alone.len(), 300, "a pod has at most a third");
        let others: Vec<Permit> = (2..100).flat_map(|pod| fill(&shares, &holder("a", pod))).collect();
        assert_eq!(alone.len() + others.len(), 450, "a namespace has at most half");
        let second: Vec<Permit> = (100..200).flat_map(|pod| fill(&shares, &holder("b", pod))).collect();
        assert_eq!(second.len(), 225);
        // However many there are, the next one finds something.
        let more: Vec<Permit> = (0..6)
            .flat_map(|at| fill(&shares, &Holder { namespace: at.to_string().into(), pod: None }))
            .collect();
        assert!(shares.take(&holder("last", 200)).is_ok());
        drop((alone, others, second, more));
        let held = shares.held.lock();
        assert!(held.all == 0 && held.namespaces.is_empty() && held.pods.is_empty());
    }
}
