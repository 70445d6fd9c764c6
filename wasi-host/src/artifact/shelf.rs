//! Artifacts that are ready in memory, by digest, and components that are being compiled.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::code_store::Pins;
use super::making::Making;
use super::room::Room;
use super::{Artifact, PrepareError};

/// Artifacts kept ready in memory beyond those that containers use, and bytes of the host that they take. The namespace that
/// has the most of either loses what it used longest ago: others' need not be authenticated and linked again for it.
const READY_MAX: usize = 512;
const READY_BYTES_MAX: u64 = 256 << 20;

/// By digest.
pub(super) struct Shelf {
    /// For code and for what is loaded.
    rooms: [Room; 2],
    ready: HashMap<String, Ready>,
    pub(super) making: HashMap<String, Making>,
    /// Counts up with each use.
    uses: u64,
}

struct Ready {
    /// Pins nothing itself.
    artifact: Artifact,
    /// Bytes of its code in the store.
    bytes: u64,
    /// Those of the artifacts that containers have.
    pins: Arc<Pins>,
    /// What containers of each namespace have of it.
    used_by: HashMap<Arc<str>, Weak<Artifact>>,
    /// Who used it last.
    namespace: Arc<str>,
    /// The smallest goes first.
    used: u64,
}

impl Shelf {
    pub(super) fn new(rooms: [Room; 2]) -> Shelf {
        Shelf { rooms, ready: HashMap::new(), making: HashMap::new(), uses: 0 }
    }

    /// What the namespace uses from now on; `None` where it is not there. Fails where the namespace has its share.
    pub(super) fn take(
        &mut self,
        digest: &str,
        namespace: &Arc<str>,
    ) -> Result<Option<Arc<Artifact>>, PrepareError> {
        match self.ready.get(digest) {
            None => return Ok(None),
            Some(ready) if ready.is_used_by(namespace) => {}
            Some(ready) => self.admit(ready.sizes(), namespace)?,
        }
        self.uses += 1;
        let uses = self.uses;
        Ok(self.ready.get_mut(digest).map(|ready| {
            ready.used = uses;
            ready.pins.touch();
            ready.namespace = Arc::clone(namespace);
            ready.artifact_of(namespace)
        }))
    }

    /// Takes what was just loaded: another where somebody was loading it at the same time. Its code has so many bytes in the
    /// store, which knows by `pins` how it is used.
    pub(super) fn put(
        &mut self,
        digest: &str,
        namespace: &Arc<str>,
        artifact: Artifact,
        bytes: u64,
        pins: Arc<Pins>,
    ) -> Result<Arc<Artifact>, PrepareError> {
        if let Some(other) = self.take(digest, namespace)? {
            return Ok(other);
        }
        self.admit([bytes, artifact.loaded], namespace)?;
        self.uses += 1;
        let (own, used, used_by) = (Arc::clone(namespace), self.uses, HashMap::new());
        let mut ready = Ready { artifact, bytes, pins, used_by, namespace: own, used };
        let artifact = ready.artifact_of(namespace);
        self.ready.insert(digest.to_owned(), ready);
        self.make_room();
        Ok(artifact)
    }

    /// Whether the namespace may use so many bytes of code and loaded, beside what it uses. What several use counts for each of
    /// them.
    pub(super) fn admit(&self, sizes: [u64; 2], namespace: &Arc<str>) -> Result<(), PrepareError> {
        let (mut own, mut used) = ([0; 2], [0; 2]);
        for ready in self.ready.values().filter(|ready| ready.is_in_use()) {
            let is_own = ready.is_used_by(namespace);
            for (at, bytes) in ready.sizes().into_iter().enumerate() {
                used[at] += bytes;
                own[at] += if is_own { bytes } else { 0 };
            }
        }
        let mut rooms = self.rooms.iter().enumerate();
        rooms.try_for_each(|(at, room)| room.admit(sizes[at], own[at], used[at]))
    }

    /// How many are ready, or in the making.
    pub(super) fn held(&self) -> usize {
        self.ready.len() + self.making.len()
    }

    /// Digests of what no container uses.
    pub(super) fn unused(&self) -> Vec<String> {
        let unused = self.ready.iter().filter(|(_, ready)| !ready.is_in_use());
        unused.map(|(digest, _)| digest.clone()).collect()
    }

    /// Lets go of what no container uses.
    pub(super) fn let_go(&mut self, digest: &str) {
        if self.ready.get(digest).is_some_and(|ready| !ready.is_in_use()) {
            self.ready.remove(digest);
        }
    }

    /// Lets go what is beyond the bounds. What a container uses is held elsewhere too and stays, as does what was put just now.
    fn make_room(&mut self) {
        let mut unused: HashMap<&Arc<str>, Unused<'_>> = HashMap::new();
        let (mut left, mut bytes) = (0, 0);
        for (digest, ready) in self.ready.iter().filter(|(_, ready)| !ready.is_in_use()) {
            let own = unused.entry(&ready.namespace).or_default();
            let loaded = ready.artifact.loaded;
            own.all.push((ready.used, digest, loaded));
            own.bytes += loaded;
            left += 1;
            bytes += loaded;
        }
        // Of each what was used longest ago is the last.
        unused.values_mut().for_each(|own| own.all.sort_unstable_by(|one, other| other.cmp(one)));
        let mut gone = Vec::new();
        while left > READY_MAX || bytes > READY_BYTES_MAX {
            let by_bytes = bytes > READY_BYTES_MAX;
            let most = unused.values_mut().max_by_key(|own| {
                let holds = if by_bytes { own.bytes } else { own.all.len() as u64 };
                (holds, own.all.last().map(|(used, ..)| u64::MAX - used))
            });
            let Some(most) = most else { break };
            let Some((_, digest, freed)) = most.all.pop() else { break };
            most.bytes -= freed;
            (left, bytes) = (left - 1, bytes - freed);
            gone.push(digest.clone());
        }
        gone.iter().for_each(|digest| drop(self.ready.remove(digest)));
    }
}

/// What a namespace has on the shelf that no container uses.
#[derive(Default)]
struct Unused<'a> {
    /// When it was used, its digest, and its bytes.
    all: Vec<(u64, &'a String, u64)>,
    bytes: u64,
}

impl Ready {
    /// Bytes of its code, and of what it takes as it is loaded.
    fn sizes(&self) -> [u64; 2] {
        [self.bytes, self.artifact.loaded]
    }

    /// Some container has it.
    fn is_in_use(&self) -> bool {
        self.pins.is_pinned()
    }

    /// Some container of the namespace has it.
    fn is_used_by(&self, namespace: &Arc<str>) -> bool {
        self.used_by.get(namespace).is_some_and(|own| own.strong_count() > 0)
    }

    /// One that all containers of the namespace have: it says whether there are any.
    fn artifact_of(&mut self, namespace: &Arc<str>) -> Arc<Artifact> {
        if let Some(own) = self.used_by.get(namespace).and_then(Weak::upgrade) {
            return own;
        }
        let own = Arc::new(self.artifact.pinned(self.pins.pin()));
        self.used_by.retain(|_, other| other.strong_count() > 0);
        self.used_by.insert(Arc::clone(namespace), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests;
