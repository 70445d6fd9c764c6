//! What all pods of a node share, given out so that nobody takes it all.
//!
//! A namespace gets one more while it holds less than what is free, a pod while it holds less than half of that. However
//! many namespaces take all that they can get, they end with equal parts, and one part stays free for who comes next.
//!
//! That part gets smaller with each. So of what a pod cannot do without some are each pod's beside what all share
//! ([`Certain`]), as of memory, heap and files in the ledger: whoever holds nothing gets them, however greedy others are.

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

/// What a namespace and a pod may hold of what was free before they asked. By this the ledger shares too.
pub(crate) fn parts(free: u64) -> (u64, u64) {
    (free, free.div_ceil(2))
}

/// What each pod has whatever others hold, beside what all share: so many of so many. Where there are more pods than that is for,
/// a namespace still has at most as many of them as are free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Certain {
    pub each: usize,
    pub all: usize,
}

/// A number of equal things.
pub struct Shares {
    what: What,
    size: usize,
    certain: Certain,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    shared: Counts,
    certain: Counts,
}

#[derive(Default)]
struct Counts {
    all: usize,
    namespaces: HashMap<Arc<str>, usize>,
    /// Of what all share only those that are pods: what comes to a namespace from outside has no part of a pod.
    holders: HashMap<Holder, usize>,
}

impl Counts {
    fn of_namespace(&self, holder: &Holder) -> usize {
        self.namespaces.get(&holder.namespace).copied().unwrap_or(0)
    }

    fn of(&self, holder: &Holder) -> usize {
        self.holders.get(holder).copied().unwrap_or(0)
    }

    fn add(&mut self, holder: &Holder, has_part: bool) {
        self.all += 1;
        *self.namespaces.entry(holder.namespace.clone()).or_default() += 1;
        if has_part {
            *self.holders.entry(holder.clone()).or_default() += 1;
        }
    }

    fn give_back(&mut self, holder: &Holder) {
        self.all -= 1;
        give_back(&mut self.namespaces, &holder.namespace);
        give_back(&mut self.holders, holder);
    }
}

impl Shares {
    /// So many things, all free.
    pub fn new(what: What, size: usize) -> Arc<Self> {
        Self::with_certain(what, size, Certain::default())
    }

    /// The same with some more that are each pod's for certain.
    pub fn with_certain(what: What, size: usize, certain: Certain) -> Arc<Self> {
        Arc::new(Self { what, size, certain, held: Mutex::default() })
    }

    /// One more for `holder`, or by whose bound it has its share already. Whoever refuses for that notes it.
    pub fn take(self: &Arc<Self>, holder: &Holder) -> Result<Permit, Refused> {
        self.ask(holder).map_err(|(_, refused)| refused)
    }

    /// One more for `holder`, or who else would be refused now.
    pub(crate) fn ask(self: &Arc<Self>, holder: &Holder) -> Result<Permit, (Sated, Refused)> {
        let mut held = self.held.lock();
        let Held { shared, certain } = &mut *held;
        let certain_free = self.certain.all - certain.all;
        let may_have_certain = certain_free > 0 && certain.of_namespace(holder) < certain_free;
        let is_certain = may_have_certain && certain.of(holder) < self.certain.each;
        if is_certain {
            certain.add(holder, true);
        } else {
            shared.admit(self.what, self.size, holder).map_err(|refused| {
                let sated = match refused.bound {
                    Bound::Node if certain_free == 0 => Sated::All,
                    Bound::Node | Bound::Namespace if !may_have_certain => Sated::Namespace,
                    _ => Sated::Pod,
                };
                (sated, refused)
            })?;
            shared.add(holder, holder.pod.is_some());
        }
        drop(held);
        Ok(Permit { shares: self.clone(), holder: holder.clone(), is_certain })
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        let held = self.held.lock();
        held.shared.all + held.certain.all
    }

    /// How many there are in all.
    pub fn size(&self) -> usize {
        self.size + self.certain.all
    }
}

impl Counts {
    /// Whether one more of so many that all share may be the holder's.
    fn admit(&self, what: What, size: usize, holder: &Holder) -> Result<(), Refused> {
        let free = (size - self.all) as u64;
        let (of_namespace, of_pod) = (self.of_namespace(holder), self.of(holder));
        let (namespace, pod) = parts(free);
        let (bound, held, limit) = match () {
            () if free == 0 => (Bound::Node, self.all, size as u64),
            () if of_namespace as u64 >= namespace => (Bound::Namespace, of_namespace, namespace),
            () if of_pod as u64 >= pod => (Bound::PodShare, of_pod, pod),
            () => return Ok(()),
        };
        let (held, all) = (held as u64, size as u64);
        Err(Refused { what, bound, held, asked: 1, limit, all })
    }
}

/// Who would be refused as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sated {
    /// Everybody.
    All,
    /// The namespace.
    Namespace,
    /// The holder, which holds some itself.
    Pod,
}

/// One of the things, held until it is dropped.
pub struct Permit {
    shares: Arc<Shares>,
    holder: Holder,
    is_certain: bool,
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
        let Held { shared, certain } = &mut *held;
        let counts = if self.is_certain { certain } else { shared };
        counts.give_back(&self.holder);
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
        assert!(held.shared.holders.is_empty() && held.shared.namespaces.is_empty() && held.shared.all == 0);
    }

    #[test]
    fn what_is_certain_is_there_however_greedy_others_are() {
        let certain = Certain { each: 2, all: 400 };
        let shares = Shares::with_certain(What::Flows, 900, certain);
        let mut greedy = fill(&shares, &holder("a", 1));
        assert_eq!(greedy.len(), 302, "a third of what all share, and what is certain");
        // So many namespaces that nothing of what all share is left.
        for at in 0..50 {
            greedy.extend((0..3).flat_map(|pod| fill(&shares, &holder(&at.to_string(), pod))));
        }
        assert_eq!(shares.held.lock().shared.all, 900);
        for pod in 10..20 {
            let modest = fill(&shares, &holder("modest", pod));
            assert_eq!(modest.len(), 2, "{pod}");
            greedy.extend(modest);
        }
        let refused = shares.take(&holder("modest", 10)).err().expect("it has them");
        assert_eq!((refused.bound, refused.held, refused.limit), (Bound::Node, 900, 900));
        // A namespace of very many pods leaves some of it to those of others.
        let of_many: usize = (0..=255)
            .map(|pod| {
                let of_pod = fill(&shares, &holder("many", pod));
                let count = of_pod.len();
                greedy.extend(of_pod);
                count
            })
            .sum();
        assert!((20..=(400 - 122)).contains(&of_many), "{of_many}");
        assert_eq!(fill(&shares, &holder("last", 1)).len(), 2);
        drop(greedy);
        assert_eq!((shares.held(), shares.size()), (0, 1300));
        let held = shares.held.lock();
        assert!(held.certain.holders.is_empty() && held.certain.namespaces.is_empty());
    }
}
