//! Who waits for a place: a line for each pod, from which namespaces, and pods within them, are served in turn.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use crate::shares::{Holder, Permit, Sated, Shares};

pub(super) struct Lines<T> {
    shares: Arc<Shares>,
    /// Namespaces that wait, whose turn it is first.
    turns: VecDeque<Arc<str>>,
    namespaces: HashMap<Arc<str>, Namespace<T>>,
    len: usize,
}

struct Namespace<T> {
    /// Pods that wait, whose turn it is first.
    turns: VecDeque<Option<IpAddr>>,
    /// What each of them waits with, by number.
    pods: HashMap<Option<IpAddr>, BTreeMap<u64, T>>,
}

impl<T> Lines<T> {
    pub(super) fn new(shares: Arc<Shares>) -> Self {
        Self { shares, turns: VecDeque::new(), namespaces: HashMap::new(), len: 0 }
    }

    pub(super) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many of the holder's pod wait.
    pub(super) fn waiting(&self, holder: &Holder) -> usize {
        let namespace = self.namespaces.get(&holder.namespace);
        namespace.and_then(|namespace| namespace.pods.get(&holder.pod)).map_or(0, BTreeMap::len)
    }

    /// Puts `what` at the end of the holder's line. Numbers rise.
    pub(super) fn join(&mut self, holder: &Holder, number: u64, what: T) {
        let namespace = self.namespaces.entry(holder.namespace.clone()).or_insert_with(|| {
            self.turns.push_back(holder.namespace.clone());
            Namespace { turns: VecDeque::new(), pods: HashMap::new() }
        });
        let pod = namespace.pods.entry(holder.pod).or_insert_with(|| {
            namespace.turns.push_back(holder.pod);
            BTreeMap::new()
        });
        pod.insert(number, what);
        self.len += 1;
    }

    /// Takes what waits under this number out of the line.
    pub(super) fn leave(&mut self, holder: &Holder, number: u64) -> Option<T> {
        let namespace = self.namespaces.get_mut(&holder.namespace)?;
        let pod = namespace.pods.get_mut(&holder.pod)?;
        let left = pod.remove(&number)?;
        self.len -= 1;
        if pod.is_empty() {
            namespace.pods.remove(&holder.pod);
            namespace.turns.retain(|pod| *pod != holder.pod);
        }
        if namespace.pods.is_empty() {
            self.namespaces.remove(&holder.namespace);
            self.turns.retain(|name| *name != holder.namespace);
        }
        Some(left)
    }

    /// The first one that may have a place now, with the place.
    ///
    /// Whoever is passed over holds a place already, so that at most as many are as there are places.
    pub(super) fn next(&mut self) -> Option<(Permit, T)> {
        for _ in 0..self.turns.len() {
            let name = self.turns.front()?.clone();
            let namespace = self.namespaces.get_mut(&name)?;
            let taken = namespace.next(&self.shares, &name);
            if matches!(taken, Err(Sated::All)) {
                return None;
            }
            self.turns.pop_front();
            if namespace.pods.is_empty() {
                self.namespaces.remove(&name);
            } else {
                self.turns.push_back(name);
            }
            if let Ok(taken) = taken {
                self.len -= 1;
                return Some(taken);
            }
        }
        None
    }

    /// Namespaces that are known.
    #[cfg(test)]
    pub(super) fn namespaces(&self) -> usize {
        self.namespaces.len().max(self.turns.len())
    }

    /// Empties all lines.
    pub(super) fn clear(&mut self) -> impl Sized + use<T> {
        self.turns.clear();
        self.len = 0;
        std::mem::take(&mut self.namespaces)
    }
}

impl<T> Namespace<T> {
    fn next(&mut self, shares: &Arc<Shares>, name: &Arc<str>) -> Result<(Permit, T), Sated> {
        for _ in 0..self.turns.len() {
            let Some(pod) = self.turns.front().copied() else { break };
            let permit = match shares.ask(&Holder { namespace: name.clone(), pod }) {
                Ok(permit) => permit,
                Err((Sated::Pod, _)) => {
                    self.turns.rotate_left(1);
                    continue;
                }
                Err((sated, _)) => return Err(sated),
            };
            self.turns.pop_front();
            let line = self.pods.get_mut(&pod);
            let (first, more) = line.map_or((None, false), |line| (line.pop_first(), !line.is_empty()));
            if more {
                self.turns.push_back(pod);
            } else {
                self.pods.remove(&pod);
            }
            if let Some((_, what)) = first {
                return Ok((permit, what));
            }
        }
        Err(Sated::Pod)
    }
}
