//! The keys that this member holds, and the file that they are kept in.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use coracle_raft::durable::write_atomically;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::key::{KeptKey, Key, KeyId};

/// The version of the file's format.
const VERSION: u32 = 1;

/// Keys of a ring; a cluster has one, and two while it changes them.
pub const KEYS_MAX: usize = 64;

/// Keys by their ids. Immutable: a change makes another one.
#[derive(Clone, Default)]
pub struct KeyRing {
    /// The key that is written with as long as the cluster's state does not say it.
    pub writing: Option<KeyId>,
    keys: BTreeMap<KeyId, Arc<Key>>,
}

/// Why the keys for Secrets cannot be had. Each says what is wrong and the mend.
#[derive(Debug, Error)]
pub enum KeyRingError {
    /// Of the file or its folder.
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is no key ring of this build's.
    #[error(
        "the key ring {path} cannot be used: {reason}; restore it from a backup, or copy that of another control node"
    )]
    Unusable { path: PathBuf, reason: String },
    /// What the cluster handed a joining member is no key ring.
    #[error("the cluster answered the join without a key ring")]
    NotHanded,
}

impl KeyRingError {
    /// For `map_err`: what was done to which path.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The file, and what a joining member is handed.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    writing: Option<KeyId>,
    keys: Vec<KeptKey>,
}

impl KeyRing {
    /// The key of this id, where it is held.
    pub fn get(&self, id: &str) -> Option<&Arc<Key>> {
        self.keys.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn add(&mut self, key: Key) {
        self.keys.insert(key.id.clone(), Arc::new(key));
    }

    pub(super) fn remove(&mut self, id: &KeyId) {
        self.keys.remove(id);
    }

    /// Everything, keys in clear.
    pub fn to_bytes(&self) -> Vec<u8> {
        let keys = self.keys.values().map(|key| key.kept()).collect();
        let kept = Kept { version: VERSION, writing: self.writing.clone(), keys };
        serde_json::to_vec_pretty(&kept).expect("a plain value encodes into memory")
    }

    /// Fails in words where it is no key ring.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let kept: Kept = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if kept.version != VERSION {
            return Err(format!("it has version {}, this build reads {VERSION}", kept.version));
        }
        if kept.keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys, at most {KEYS_MAX} are taken", kept.keys.len()));
        }
        let mut ring = Self { writing: kept.writing, keys: BTreeMap::new() };
        for key in &kept.keys {
            ring.add(Key::from_kept(key)?);
        }
        match &ring.writing {
            Some(id) if !ring.keys.contains_key(id) => {
                Err(format!("it is to write with key {id}, which it lacks"))
            }
            _ => Ok(ring),
        }
    }

    /// The ring of a file; an empty one where there is no file.
    pub(super) fn load(path: &Path) -> Result<Self, KeyRingError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(KeyRingError::io("read the key ring", path)(error)),
        };
        Self::from_bytes(&bytes).map_err(|reason| KeyRingError::Unusable { path: path.to_owned(), reason })
    }

    /// Readable by its owner only; after a crash there is the old file or the new one.
    pub(super) fn save(&self, path: &Path) -> Result<(), KeyRingError> {
        write_atomically(path, &self.to_bytes()).map_err(KeyRingError::io("write the key ring", path))
    }
}

#[cfg(test)]
impl FromIterator<Key> for KeyRing {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        let mut ring = Self::default();
        keys.into_iter().for_each(|key| ring.add(key));
        ring
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_ring_survives_its_file_which_nobody_else_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/secrets.ring");
        assert!(KeyRing::load(&path).unwrap().is_empty());
        let mut ring = KeyRing::default();
        ring.add(Key::generate(Timestamp::now()));
        ring.add(Key::generate(Timestamp::now()));
        let first = ring.ids().next().cloned();
        ring.writing = first;
        ring.save(&path).unwrap();
        let loaded = KeyRing::load(&path).unwrap();
        assert_eq!(loaded.writing, ring.writing);
        assert_eq!(loaded.ids().collect::<Vec<_>>(), ring.ids().collect::<Vec<_>>());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_ring_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.ring");
        for (text, reason) in [
            ("nonsense", "expected"),
            (r#"{"version":7,"writing":null,"keys":[]}"#, "version 7"),
            (r#"{"version":1,"writing":"0123456789abcdef","keys":[]}"#, "which it lacks"),
            (r#"{"version":1,"writing":"xyz","keys":[]}"#, "no key id"),
        ] {
            fs::write(&path, text).unwrap();
            let error = KeyRing::load(&path).err().unwrap().to_string();
            assert!(error.contains(reason) && error.contains("secrets.ring"), "{error}");
        }
    }
}
