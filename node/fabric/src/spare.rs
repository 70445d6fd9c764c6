//! What can be done without: who finds no room for something new gives up what it used longest ago.

use coracle_wasi_host::refusals::Refused;
use coracle_wasi_host::shares::{Holder, Permit, Shares};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The keys of things that can be done without, by who holds them and when they were used last.
pub(crate) struct Spare<K> {
    of_pods: BTreeMap<(Holder, u64), K>,
    of_namespaces: BTreeMap<(Arc<str>, u64), K>,
    last: u64,
}

impl<K> Default for Spare<K> {
    fn default() -> Self {
        Self { of_pods: BTreeMap::new(), of_namespaces: BTreeMap::new(), last: 0 }
    }
}

impl<K: Clone> Spare<K> {
    /// Enters what was used just now, and gives its place here.
    pub(crate) fn enter(&mut self, holder: &Holder, key: K) -> u64 {
        self.last += 1;
        self.of_namespaces.insert((holder.namespace.clone(), self.last), key.clone());
        self.of_pods.insert((holder.clone(), self.last), key);
        self.last
    }

    /// Takes out what has this place.
    pub(crate) fn leave(&mut self, holder: &Holder, place: u64) {
        self.of_namespaces.remove(&(holder.namespace.clone(), place));
        self.of_pods.remove(&(holder.clone(), place));
    }

    /// The pod's own that was used longest ago; where it has none, that of the pods of its namespace.
    pub(crate) fn first(&self, holder: &Holder) -> Option<K> {
        let own = (holder.clone(), 0)..=(holder.clone(), u64::MAX);
        let namespace = &holder.namespace;
        let of_namespace = (namespace.clone(), 0)..=(namespace.clone(), u64::MAX);
        let first = self.of_pods.range(own).next().map(|(_, key)| key);
        first.or_else(|| self.of_namespaces.range(of_namespace).next().map(|(_, key)| key)).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.of_pods.len()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.of_pods.is_empty() && self.of_namespaces.is_empty()
    }
}

/// A place on an account for something new: one that is free, or is once `sweep` has looked for what is over, or once
/// `give_up` has dropped as much of what can be done without as it takes. Refused where it has nothing more to drop.
pub(crate) fn place<S>(
    places: &Arc<Shares>,
    holder: &Holder,
    state: &mut S,
    sweep: impl FnOnce(&mut S),
    mut give_up: impl FnMut(&mut S) -> Option<()>,
) -> Result<Permit, Refused> {
    if let Ok(free) = places.take(holder) {
        return Ok(free);
    }
    sweep(state);
    loop {
        match places.take(holder) {
            Err(refused) => give_up(state).ok_or(refused)?,
            free => return free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_goes_first_and_that_of_other_namespaces_never() {
        let holder = |namespace: &str, pod: u8| Holder {
            namespace: namespace.into(),
            pod: Some([10, 128, 0, pod].into()),
        };
        let mut spare = Spare::default();
        let first = spare.enter(&holder("a", 1), "first");
        let second = spare.enter(&holder("a", 2), "second");
        let third = spare.enter(&holder("a", 2), "third");
        assert_eq!(spare.first(&holder("a", 2)), Some("second"));
        assert_eq!(spare.first(&holder("a", 3)), Some("first"));
        assert_eq!(spare.first(&holder("b", 1)), None);
        spare.leave(&holder("a", 2), second);
        assert_eq!(spare.first(&holder("a", 2)), Some("third"));
        spare.leave(&holder("a", 2), third);
        assert_eq!(spare.first(&holder("a", 2)), Some("first"));
        spare.leave(&holder("a", 1), first);
        assert!(spare.is_empty());
    }
}
