//! This member's keys, and the opening of what is sealed.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use coracle_objects::Object;
use jiff::Timestamp;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Notify;

use super::{
    key::{Key, KeyId},
    key_ring::{KeyRing, KeyRingError},
};

/// Opens with every key that this member holds.
pub struct SecretBox {
    path: PathBuf,
    ring: ArcSwap<KeyRing>,
    /// Held while the ring is changed: file first, memory after it.
    changing: Mutex<()>,
    /// Keys that something was met sealed with and that are not held.
    lacking: Mutex<BTreeSet<KeyId>>,
    wanted: Notify,
}

/// Why an object stays sealed for this member.
#[derive(Debug, Error)]
pub enum StaysSealed {
    #[error(
        "{object} is sealed with key {key}, which this control node does not hold; it asks the other control nodes for \
         it: where none has it, restore the key ring file from a backup and start again"
    )]
    NoKey { object: String, key: String },
    #[error("{object} does not open with its key {key}: it was changed or moved where it is stored")]
    Broken { object: String, key: String },
}

impl SecretBox {
    /// The ring of a file, empty where there is none.
    pub fn load(path: &Path) -> Result<Self, KeyRingError> {
        Ok(Self::with(path, KeyRing::load(path)?))
    }

    /// For a new cluster: the ring of the file, or a new one with one key. A restored cluster finds its old keys so.
    pub fn found(path: &Path) -> Result<Self, KeyRingError> {
        let mut ring = KeyRing::load(path)?;
        if ring.is_empty() {
            ring.add(Key::generate(Timestamp::now()));
        }
        if ring.writing.is_none() {
            let first = ring.ids().next().cloned();
            ring.writing = first;
        }
        ring.save(path)?;
        Ok(Self::with(path, ring))
    }

    /// For a member that joins: what the cluster handed it, beside what its file has. A cluster that has no ring yet
    /// hands nothing.
    pub fn join(path: &Path, handed: &[u8]) -> Result<Self, KeyRingError> {
        let mut ring = KeyRing::load(path)?;
        if !handed.is_empty() {
            let handed = KeyRing::from_bytes(handed).map_err(|_| KeyRingError::NotHanded)?;
            let handed_keys =
                handed.ids().filter_map(|id| Key::from_kept(&handed.get(id.as_str())?.kept()).ok());
            handed_keys.for_each(|key| ring.add(key));
            ring.writing = handed.writing.or(ring.writing);
            ring.save(path)?;
        }
        Ok(Self::with(path, ring))
    }

    /// A box that keeps its ring in no file, for tests of what needs none.
    #[cfg(test)]
    pub(super) fn for_tests(ring: KeyRing) -> Self {
        Self::with(Path::new("/nonexistent/secrets.ring"), ring)
    }

    fn with(path: &Path, ring: KeyRing) -> Self {
        Self {
            path: path.to_owned(),
            ring: ArcSwap::from_pointee(ring),
            changing: Mutex::new(()),
            lacking: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// The keys that are held now.
    pub fn ring(&self) -> Arc<KeyRing> {
        self.ring.load_full()
    }

    /// The file that the ring is kept in.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Changes the ring, in its file before in memory.
    pub(super) fn change(&self, change: impl FnOnce(&mut KeyRing)) -> Result<(), KeyRingError> {
        let _changing = self.changing.lock();
        let mut ring = KeyRing::clone(&self.ring.load());
        change(&mut ring);
        ring.save(&self.path)?;
        self.lacking.lock().retain(|id| ring.get(id.as_str()).is_none());
        self.ring.store(Arc::new(ring));
        Ok(())
    }

    /// Makes a key and keeps it; nothing is sealed with it yet.
    pub(super) fn generate(&self) -> Result<KeyId, KeyRingError> {
        let key = Key::generate(Timestamp::now());
        let id = key.id.clone();
        self.change(|ring| ring.add(key))?;
        Ok(id)
    }

    /// Keys that are missing here and that something is sealed with.
    pub(super) fn lacking(&self) -> BTreeSet<KeyId> {
        self.lacking.lock().clone()
    }

    /// Resolves when a further key was found missing.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// The object in clear. One that is not sealed is given back as it is.
    pub(crate) fn open(&self, object: &Arc<Object>) -> Result<Arc<Object>, StaysSealed> {
        let Some(sealed) = object.sealed() else { return Ok(object.clone()) };
        let ring = self.ring.load();
        let Some(key) = ring.get(sealed.key) else {
            self.miss(sealed.key);
            return Err(StaysSealed::NoKey { object: object.key.to_string(), key: sealed.key.to_owned() });
        };
        let broken = || StaysSealed::Broken { object: object.key.to_string(), key: sealed.key.to_owned() };
        let draft = key.open(&object.key, sealed.text).ok_or_else(broken)?;
        let opened = Object::from_draft(object.key.clone(), &draft, object.revision);
        opened.map(Arc::new).map_err(|_| broken())
    }

    fn miss(&self, id: &str) {
        if let Ok(id) = id.parse()
            && self.lacking.lock().insert(id)
        {
            self.wanted.notify_one();
        }
    }
}

#[cfg(test)]
impl Default for SecretBox {
    fn default() -> Self {
        Self::for_tests(KeyRing::default())
    }
}
