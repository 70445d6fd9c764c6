//! The pods that wait for a node: those to try now, and those that were tried in vain.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    sync::Arc,
};

use coracle_objects::{Object, ObjectName};
use jiff::{SignedDuration, Timestamp};

use crate::model::{Pod, Shape};

/// How long a pod that found no node waits at least before it is tried again. Doubles with each attempt.
const BACKOFF_MS_MIN: i64 = 50;
/// The longest such wait.
const BACKOFF_MS_MAX: i64 = 10_000;
/// How long a pod waits whose placement failed, by a fault of ours or because no store would take it. Doubles each time.
const FAILED_MS_MIN: i64 = 1_000;
const FAILED_MS_MAX: i64 = 300_000;
/// A placement that was stale is made anew at once so often in a row, and then after [`BACKOFF_MS_MIN`] and more.
const STALE_FREE: u32 = 1;
/// After this long a pod is tried again even though nothing changed that could help it: a net under our own faults.
const RETRY_S_MAX: i64 = 300;

/// A pod that wants a node.
#[derive(Clone, Debug)]
pub struct Pending {
    pub object: Arc<Object>,
    pub shape: Arc<Shape>,
    /// Equal for equal shapes; others may share it.
    pub shape_hash: u64,
    pub priority: i32,
    /// Its place among all that ever came: older ones go first.
    pub sequence: u64,
    /// What its PodScheduled=False condition says, if there is one.
    pub unplaced: Option<(String, String)>,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// How often its placement was stale, and how often it failed for good.
    stale: u32,
    failed: u32,
    /// Set while it waits for the world to change.
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Not tried before this, however the world changes.
    not_before: Timestamp,
    /// Tried then in any case.
    at_latest: Timestamp,
    /// [`Queue::world`] when it was tried.
    world: u64,
}

/// All pods that want a node. Bounded by the pods in the store.
#[derive(Debug, Default)]
pub struct Queue {
    pods: BTreeMap<ObjectName, Pending>,
    ready: BTreeSet<(Reverse<i32>, u64, ObjectName)>,
    waiting: BTreeSet<ObjectName>,
    sequence: u64,
    /// Grows with every change of nodes or assigned pods that could make room.
    world: u64,
}

impl Queue {
    /// Takes a new pod, or a new state of one that is here. A waiting pod that asks for the same as before goes on
    /// waiting.
    pub fn upsert(&mut self, object: &Arc<Object>, pod: Pod) {
        let name = &object.key.name;
        if let Some(known) = self.pods.get_mut(name)
            && known.object.meta.uid == object.meta.uid
            && *known.shape == pod.shape
            && known.priority == pod.priority
            // What failed may go well once a user has changed it.
            && (known.failed == 0 || known.object.meta.generation == object.meta.generation)
        {
            known.object = object.clone();
            known.unplaced = pod.unplaced;
            return;
        }
        self.remove(name);
        self.sequence += 1;
        let shape_hash = fingerprint(&pod.shape);
        self.restore(Pending {
            object: object.clone(),
            shape: Arc::new(pod.shape),
            shape_hash,
            priority: pod.priority,
            sequence: self.sequence,
            unplaced: pod.unplaced,
            attempts: 0,
            stale: 0,
            failed: 0,
            waiting: None,
        });
    }

    /// The pods that are here.
    pub fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.pods.keys()
    }

    /// Puts a pod back whose placement did not take place, to be tried at once.
    pub fn restore(&mut self, mut pending: Pending) {
        pending.waiting = None;
        let name = pending.object.key.name.clone();
        self.ready.insert((Reverse(pending.priority), pending.sequence, name.clone()));
        self.pods.insert(name, pending);
    }

    /// Puts a pod back whose placement was stale: what made it so is known by now, or soon.
    pub fn retry(&mut self, mut pending: Pending, now: Timestamp) {
        pending.stale = pending.stale.saturating_add(1);
        let name = pending.object.key.name.clone();
        let stale = pending.stale;
        self.restore(pending);
        if let Some(doublings) = stale.checked_sub(STALE_FREE + 1) {
            self.hold(&name, later(now, doubled(BACKOFF_MS_MIN, doublings, BACKOFF_MS_MAX)));
        }
    }

    /// Lets a pod wait whose placement failed, however the world changes.
    pub fn fail(&mut self, name: &ObjectName, now: Timestamp) {
        let Some(pending) = self.pods.get_mut(name) else { return };
        let wait = doubled(FAILED_MS_MIN, pending.failed, FAILED_MS_MAX);
        pending.failed = pending.failed.saturating_add(1);
        self.hold(name, later(now, wait));
    }

    fn hold(&mut self, name: &ObjectName, until: Timestamp) {
        let world = self.world;
        let Some(pending) = self.pods.get_mut(name) else { return };
        pending.waiting = Some(Waiting { not_before: until, at_latest: until, world });
        self.ready.remove(&(Reverse(pending.priority), pending.sequence, name.clone()));
        self.waiting.insert(name.clone());
    }

    pub fn remove(&mut self, name: &ObjectName) -> Option<Pending> {
        let pending = self.pods.remove(name)?;
        self.ready.remove(&(Reverse(pending.priority), pending.sequence, name.clone()));
        self.waiting.remove(name);
        Some(pending)
    }

    pub fn get(&self, name: &ObjectName) -> Option<&Pending> {
        self.pods.get(name)
    }

    /// Takes up to `limit` pods that are to be tried now, the most important and oldest first. They stay in the queue.
    pub fn take_ready(&mut self, limit: usize) -> Vec<ObjectName> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some((_, _, name)) = self.ready.pop_first()
        {
            taken.push(name);
        }
        taken
    }

    /// Gives back what was taken and not looked at.
    pub fn give_back(&mut self, name: ObjectName) {
        let Some(pending) = self.pods.get(&name) else { return };
        self.ready.insert((Reverse(pending.priority), pending.sequence, name));
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// How many want a node.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// How many of those that wait have failed.
    pub fn in_trouble(&self) -> usize {
        let failed = |name: &&ObjectName| self.pods.get(*name).is_some_and(|pending| pending.failed > 0);
        self.waiting.iter().filter(failed).count()
    }

    /// Lets a pod wait that was tried in vain. Answers whether `message` is news for its condition.
    pub fn wait(&mut self, name: &ObjectName, now: Timestamp, message: &str) -> bool {
        let Some(pending) = self.pods.get_mut(name) else { return false };
        let backoff = doubled(BACKOFF_MS_MIN, pending.attempts, BACKOFF_MS_MAX);
        pending.attempts = pending.attempts.saturating_add(1);
        pending.waiting = Some(Waiting {
            not_before: later(now, backoff),
            at_latest: later(now, SignedDuration::from_secs(RETRY_S_MAX)),
            world: self.world,
        });
        self.waiting.insert(name.clone());
        let news =
            pending.unplaced.as_ref().is_none_or(|(reason, old)| reason != "Unschedulable" || old != message);
        if news {
            pending.unplaced = Some(("Unschedulable".to_owned(), message.to_owned()));
        }
        news
    }

    /// Notes that the world changed in a way that could help those who wait.
    pub fn world_changed(&mut self) {
        self.world += 1;
    }

    /// Moves those whose time has come from waiting to ready.
    pub fn wake(&mut self, now: Timestamp) {
        let world = self.world;
        let due: Vec<ObjectName> = self
            .waiting
            .iter()
            .filter(|name| self.deadline(name, world).is_some_and(|deadline| deadline <= now))
            .cloned()
            .collect();
        for name in due {
            self.waiting.remove(&name);
            let Some(pending) = self.pods.get_mut(&name) else { continue };
            pending.waiting = None;
            self.ready.insert((Reverse(pending.priority), pending.sequence, name));
        }
    }

    /// When the next of those who wait is to be tried.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.waiting.iter().filter_map(|name| self.deadline(name, self.world)).min()
    }

    fn deadline(&self, name: &ObjectName, world: u64) -> Option<Timestamp> {
        let waiting = self.pods.get(name)?.waiting?;
        Some(if waiting.world == world { waiting.at_latest } else { waiting.not_before })
    }
}

/// `min`, doubled so often, at most `max`, in milliseconds.
fn doubled(min: i64, doublings: u32, max: i64) -> SignedDuration {
    SignedDuration::from_millis(min.saturating_mul(1 << doublings.min(20)).min(max))
}

/// `moment` + `duration`, or the end of time.
pub fn later(moment: Timestamp, duration: SignedDuration) -> Timestamp {
    moment.checked_add(duration).unwrap_or(Timestamp::MAX)
}

fn fingerprint(shape: &Shape) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    shape.hash(&mut hasher);
    hasher.finish()
}

/// FNV-1a, 64 bits (RFC draft-eastlake-fnv). Only a first sieve: equal fingerprints are compared in full.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ *byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
