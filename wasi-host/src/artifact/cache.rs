//! Compiled code on disk. It is native code: nothing is loaded that this host's own key does not vouch for.
//!
//! `<key>.cwasm` beside `<key>.mac`; the key names the component, the engine and all that the code depends on.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ring::hmac;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::PrepareError;
use crate::HostError;

/// Bytes of compiled code kept; the least recently compiled goes first.
const CACHE_BYTES_MAX: u64 = 4 << 30;

const KEY_FILE: &str = "key";
const KEY_BYTES: usize = 32;

/// The cache's directory and the key that its entries are authenticated with. Cheap to clone.
#[derive(Clone)]
pub(super) struct DiskCache {
    dir: Arc<Path>,
    key: hmac::Key,
}

impl DiskCache {
    /// Opens the cache in `dir`, which is made (0700) where it does not exist, as is its key (0600). Fails where it is
    /// another user's; one that was open to others is closed to them.
    pub(super) fn open(dir: &Path) -> Result<DiskCache, HostError> {
        let failed = |source| HostError::CacheDir { path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        make_private(dir).map_err(failed)?;
        let secret = read_or_make_key(&dir.join(KEY_FILE)).map_err(failed)?;
        Ok(DiskCache { dir: Arc::from(dir), key: hmac::Key::new(hmac::HMAC_SHA256, &secret) })
    }

    /// A path of its own for something that is not yet an entry.
    pub(super) fn scratch(&self, key: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{key}.{:016x}.{extension}.tmp", rand::random::<u64>()))
    }

    /// Makes the file that the compiler wrote an entry.
    pub(super) fn admit(&self, key: &str, written: &Path) -> Result<(), PrepareError> {
        let code = fs::read(written).map_err(PrepareError::io("cannot read", written))?;
        let tag = self.tag(key, &code);
        let mac = self.scratch(key, "mac");
        let admitted = fs::write(&mac, tag.as_ref())
            .and_then(|()| fs::rename(written, self.code_path(key)))
            .and_then(|()| fs::rename(&mac, self.mac_path(key)));
        if let Err(source) = admitted {
            // What is left behind of these is harmless and removed where that is possible.
            let _ = fs::remove_file(written);
            let _ = fs::remove_file(&mac);
            return Err(PrepareError::Io {
                what: "cannot write the cache entry",
                path: self.code_path(key),
                source,
            });
        }
        self.evict();
        Ok(())
    }

    /// Loads an entry; `None` where there is none, or none that is ours and whole. A bad entry is removed.
    pub(super) fn load(&self, key: &str, engine: &Engine) -> Option<Component> {
        let path = self.code_path(key);
        let code = fs::read(&path).ok()?;
        let tag = fs::read(self.mac_path(key)).unwrap_or_default();
        if hmac::verify(&self.key, &message(key, &code), &tag).is_err() {
            tracing::warn!(path = %path.display(), "compiled code is not authentic, compiling anew");
            self.remove(key);
            return None;
        }
        drop(code);
        match deserialize(engine, &path) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code cannot be loaded, compiling anew");
                self.remove(key);
                None
            }
        }
    }

    fn tag(&self, key: &str, code: &[u8]) -> hmac::Tag {
        hmac::sign(&self.key, &message(key, code))
    }

    fn code_path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.cwasm"))
    }

    fn mac_path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.mac"))
    }

    fn remove(&self, key: &str) {
        // Failing to remove it costs a compile at the next start, no more.
        let _ = fs::remove_file(self.code_path(key));
        let _ = fs::remove_file(self.mac_path(key));
    }

    /// Removes the oldest entries until the rest is within the bound.
    fn evict(&self) {
        let Ok(entries) = fs::read_dir(&*self.dir) else {
            return;
        };
        let mut kept: Vec<(SystemTime, u64, String)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let key = name.strip_suffix(".cwasm")?.to_owned();
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), key))
            })
            .collect();
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, key) in &kept {
            if total <= CACHE_BYTES_MAX {
                break;
            }
            self.remove(key);
            total -= bytes;
        }
    }
}

/// What is authenticated: the entry's name as well, so that no entry can stand in for another.
fn message(key: &str, code: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(key.len() + 1 + code.len());
    message.extend_from_slice(key.as_bytes());
    message.push(0);
    message.extend_from_slice(code);
    message
}

#[allow(unsafe_code, reason = "loading compiled code is inherently unsafe; it is authenticated before")]
fn deserialize(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by this host's compiler and has just been authenticated, with its name, by a key
    // that only this host's user can read, in a directory that only this user can write. Whoever could change it
    // between the check and the mapping, or later under the mapping, is this user and needs no such detour. That it
    // fits the engine is in its name, and wasmtime checks it again.
    unsafe { Component::deserialize_file(engine, path) }
}

/// Makes sure that the directory is this user's alone. Where others could write to it, its key goes, and with it all
/// its entries: either may be theirs.
fn make_private(dir: &Path) -> io::Result<()> {
    // By what was opened, so that all of this is about one directory.
    let opened = fs::File::open(dir)?;
    let metadata = opened.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    if metadata.mode() & 0o077 != 0 {
        opened.set_permissions(fs::Permissions::from_mode(0o700))?;
        tracing::warn!(path = %dir.display(), "cache directory was open to other users");
    }
    let key = dir.join(KEY_FILE);
    let foreign = fs::symlink_metadata(&key)
        .is_ok_and(|key| !key.is_file() || key.uid() != metadata.uid() || key.mode() & 0o077 != 0);
    if foreign || metadata.mode() & 0o022 != 0 {
        match fs::remove_file(&key) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn read_or_make_key(path: &Path) -> io::Result<Vec<u8>> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            let secret: [u8; KEY_BYTES] = rand::random();
            file.write_all(&secret)?;
            file.sync_all()?;
            Ok(secret.to_vec())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let secret = fs::read(path)?;
            if secret.len() == KEY_BYTES {
                return Ok(secret);
            }
            // A process that died between making and writing it: no entry can be authentic yet.
            fs::remove_file(path)?;
            read_or_make_key(path)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_others_is_refused_and_an_open_one_is_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cache");
        DiskCache::open(&path).expect("made");
        let mode = || fs::metadata(&path).expect("there").mode() & 0o777;
        assert_eq!(mode(), 0o700);
        let key = fs::read(path.join(KEY_FILE)).expect("a key");
        DiskCache::open(&path).expect("ours");
        assert_eq!(fs::read(path.join(KEY_FILE)).expect("a key"), key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
        DiskCache::open(&path).expect("ours");
        assert_eq!(mode(), 0o700);
        assert_ne!(fs::read(path.join(KEY_FILE)).expect("a key"), key);
        // Only the superuser can give a directory away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65_534), None).expect("given away");
            assert!(matches!(DiskCache::open(&path), Err(HostError::CacheDir { .. })));
        }
    }
}
