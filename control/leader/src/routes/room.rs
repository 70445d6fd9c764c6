//! How much a node is sent of pods, and of the ConfigMaps and Secrets that they name: both are as much as their authors
//! like, and the node keeps all of it in memory. What has no room is withheld until room comes. For a moment a node may
//! have twice as much: while a new link, or a new leader, sends others before it has told of those that it withholds.
//!
//! Room is shared as all is that pods of a node share: a namespace is sent more while it has less than what stays free, and a
//! little in any case. Within a namespace who came first is first ([`Order`]). Pods have room of their own, so that what they
//! name waits for no pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Object, ObjectKey};

use super::weight;

/// Bytes that a node is sent at most, of one namespace and of all, and of a namespace for certain, whatever others have.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub namespace: usize,
    pub node: usize,
    pub certain: usize,
}

/// Which of those that wait in a namespace comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Who came first: pods that each have a part of what they need would all wait for each other.
    First,
    /// Who came first of those that there is room for.
    Fitting,
}

/// Of those that wait, so many are looked at for one that there is room for.
const LOOKED_AT_MAX: usize = 64;

/// Of ConfigMaps and Secrets: their JSON, in their newest versions.
pub const OF_NAMED: Bounds = Bounds { namespace: 64 << 20, node: 512 << 20, certain: 64 << 10 };
/// Of pods: what a node keeps of them, as [`super::weight`] has it. An ordinary pod takes some 30 KiB.
pub const OF_PODS: Bounds = Bounds { namespace: 256 << 20, node: 512 << 20, certain: 256 << 10 };

/// Why an object is withheld, and the mend.
pub fn reason(object: &Object) -> String {
    let (namespace, is_pod) = (object.namespace(), object.key.resource.as_str() == super::PODS);
    let alone = if is_pod { weight::of_pod(object) } else { 0 };
    let (own, mib) = (OF_PODS.namespace, |bytes: usize| bytes >> 20);
    if alone > own {
        return format!(
            "the pod's spec would take {} MiB of the node's memory, and those of all pods of a namespace at most {}; give it \
             fewer containers, variables and arguments",
            mib(alone),
            mib(own)
        );
    }
    let (what, bounds, mend) = if is_pod {
        (
            format!("the specs of the pods of namespace {namespace:?} on this node"),
            OF_PODS,
            "give them fewer containers and variables, or spread them over nodes",
        )
    } else {
        (
            format!("the ConfigMaps and Secrets that pods of namespace {namespace:?} name here"),
            OF_NAMED,
            "make them smaller, or spread the pods over nodes",
        )
    };
    let (own, all) = (mib(bounds.namespace), mib(bounds.node));
    format!("{what} take more than {own} MiB, or than others leave free of {all} MiB; {mend}")
}

/// What has become of an object for the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Sent,
    Withheld,
    /// As before.
    StillWithheld,
}

/// What one node is sent, and what is withheld from it.
#[derive(Debug)]
pub struct Room {
    bounds: Bounds,
    order: Order,
    /// Bytes that it is sent.
    sent: usize,
    parts: BTreeMap<Arc<str>, Part>,
    /// Namespaces of which something is withheld only because of what others have.
    crowded: BTreeSet<Arc<str>>,
    /// Namespaces of which something has changed since the last [`Room::settle`].
    stirred: BTreeSet<Arc<str>>,
    /// The last place in a line.
    last: u64,
}

/// Of one namespace.
#[derive(Debug, Default)]
struct Part {
    sent: usize,
    /// In the order in which they came: where the first does not fit the others wait behind it.
    line: BTreeMap<u64, (ObjectKey, usize)>,
    /// The places in it.
    places: BTreeMap<ObjectKey, u64>,
    /// Those that no room would be enough for: nobody waits behind them.
    oversize: BTreeSet<ObjectKey>,
}

impl Room {
    pub fn new(bounds: Bounds, order: Order) -> Self {
        Self {
            bounds,
            order,
            sent: 0,
            parts: BTreeMap::new(),
            crowded: BTreeSet::new(),
            stirred: BTreeSet::new(),
            last: 0,
        }
    }

    /// The node needs an object that is there, of so many bytes now, and of so many `before` where it needed it already.
    /// What was sent stays so unless it has grown beyond the room; a namespace with no more than an equal part of the node
    /// loses nothing for what others have.
    pub fn put(&mut self, key: &ObjectKey, before: Option<usize>, bytes: usize) -> Outcome {
        let namespace = &key.name.namespace;
        let part = self.parts.entry(namespace.clone()).or_default();
        self.stirred.insert(namespace.clone());
        let is_oversize = bytes > self.bounds.namespace;
        if let Some(waiting) = part.places.get(key).and_then(|place| part.line.get_mut(place))
            && !is_oversize
        {
            waiting.1 = bytes;
            return Outcome::StillWithheld;
        }
        let was_withheld = part.places.contains_key(key) || part.oversize.contains(key);
        let was_sent = before.is_some_and(|before| self.remove(key, before));
        let has_line =
            self.order == Order::First && self.parts.get(namespace).is_some_and(|part| !part.line.is_empty());
        let stays = was_sent && (before >= Some(bytes) || self.may_grow(namespace, bytes));
        if stays || !has_line && self.fits(namespace, bytes) {
            self.send(namespace, bytes);
            return Outcome::Sent;
        }
        let part = self.parts.entry(namespace.clone()).or_default();
        if is_oversize {
            part.oversize.insert(key.clone());
        } else {
            self.last += 1;
            part.line.insert(self.last, (key.clone(), bytes));
            part.places.insert(key.clone(), self.last);
        }
        if was_withheld { Outcome::StillWithheld } else { Outcome::Withheld }
    }

    /// The same of what the node keeps in any case once it has it: that is sent whatever it takes now, and leaves less to those
    /// that come next.
    pub fn put_kept(&mut self, key: &ObjectKey, before: Option<usize>, bytes: usize) -> Outcome {
        if before.is_some_and(|before| self.is_sent(key) && self.remove(key, before)) {
            self.send(&key.name.namespace, bytes);
            return Outcome::Sent;
        }
        self.put(key, before, bytes)
    }

    fn is_sent(&self, key: &ObjectKey) -> bool {
        let part = self.parts.get(&key.name.namespace);
        part.is_some_and(|part| !part.places.contains_key(key) && !part.oversize.contains(key))
    }

    /// The node needs it no longer, or it is gone; it had so many bytes. True where it was sent.
    pub fn remove(&mut self, key: &ObjectKey, bytes: usize) -> bool {
        let namespace = &key.name.namespace;
        let Some(part) = self.parts.get_mut(namespace) else { return false };
        self.stirred.insert(namespace.clone());
        if let Some(place) = part.places.remove(key) {
            part.line.remove(&place);
            return false;
        }
        if part.oversize.remove(key) {
            return false;
        }
        part.sent -= bytes;
        self.sent -= bytes;
        true
    }

    /// What was withheld and has room by now: it is sent from here on. Who has least comes first, one object at a time.
    /// Looks only where something has changed, and where others had left no room, and there at the first that waits.
    pub fn settle(&mut self) -> Vec<ObjectKey> {
        let mut sent = vec![];
        let mut changed = std::mem::take(&mut self.stirred);
        changed.extend(self.crowded.iter().cloned());
        let has = |room: &Self, namespace: &Arc<str>| room.parts.get(namespace).map_or(0, |part| part.sent);
        let mut waiting: BTreeSet<(usize, Arc<str>)> =
            changed.into_iter().map(|namespace| (has(self, &namespace), namespace)).collect();
        while let Some((_, namespace)) = waiting.pop_first() {
            if let Some(key) = self.settle_one(&namespace) {
                sent.push(key);
                waiting.insert((has(self, &namespace), namespace));
            }
        }
        sent
    }

    /// All that is withheld.
    pub fn withheld(&self) -> impl Iterator<Item = &ObjectKey> {
        self.parts.values().flat_map(|part| part.line.values().map(|(key, _)| key).chain(&part.oversize))
    }

    /// The next that a namespace waits for, if there is room for it.
    fn settle_one(&mut self, namespace: &Arc<str>) -> Option<ObjectKey> {
        let first = self.parts.get(namespace).and_then(Part::first);
        if let Some(place) = self.next_place(namespace) {
            let part = self.parts.get_mut(namespace)?;
            let (key, bytes) = part.line.remove(&place)?;
            part.places.remove(&key);
            self.send(namespace, bytes);
            return Some(key);
        }
        if first.is_some_and(|bytes| self.parts[namespace].sent + bytes <= self.bounds.namespace) {
            self.crowded.insert(namespace.clone());
        } else {
            self.crowded.remove(namespace);
        }
        if self.parts.get(namespace).is_some_and(|part| part.is_empty()) {
            self.parts.remove(namespace);
        }
        None
    }

    fn next_place(&self, namespace: &str) -> Option<u64> {
        let looked_at = if self.order == Order::First { 1 } else { LOOKED_AT_MAX };
        let mut line = self.parts.get(namespace)?.line.iter().take(looked_at);
        line.find(|(_, (_, bytes))| self.fits(namespace, *bytes)).map(|(place, _)| *place)
    }

    /// Whether the namespace may be sent so many bytes more.
    pub(super) fn fits(&self, namespace: &str, bytes: usize) -> bool {
        let own = self.parts.get(namespace).map_or(0, |part| part.sent) + bytes;
        let free = self.bounds.node.saturating_sub(self.sent + bytes);
        own <= self.bounds.namespace && (own <= free || own <= self.bounds.certain)
    }

    /// Whether what was sent may be so large now.
    fn may_grow(&self, namespace: &str, bytes: usize) -> bool {
        let own = self.parts.get(namespace).map_or(0, |part| part.sent) + bytes;
        let equal = self.bounds.node / self.parts.len().max(1);
        own <= self.bounds.namespace.min(equal) && self.sent + bytes <= self.bounds.node
    }

    fn send(&mut self, namespace: &Arc<str>, bytes: usize) {
        self.parts.entry(namespace.clone()).or_default().sent += bytes;
        self.sent += bytes;
    }
}

impl Part {
    fn is_empty(&self) -> bool {
        self.sent == 0 && self.line.is_empty() && self.oversize.is_empty()
    }

    /// The bytes of the first that waits.
    fn first(&self) -> Option<usize> {
        self.line.first_key_value().map(|(_, (_, bytes))| *bytes)
    }
}

#[cfg(test)]
impl Room {
    /// Of each namespace the bytes of the first that waits.
    pub(super) fn first_waiting(&self) -> Vec<(Arc<str>, usize)> {
        let parts = self.parts.iter();
        parts.filter_map(|(namespace, part)| Some((namespace.clone(), part.first()?))).collect()
    }

    /// What is sent of each namespace.
    pub(super) fn sent(&self) -> Vec<(Arc<str>, usize)> {
        let parts = self.parts.iter().map(|(namespace, part)| (namespace.clone(), part.sent));
        parts.filter(|(_, bytes)| *bytes > 0).collect()
    }
}
