//! The directory of compiled code, of the key that vouches for it, and of what is on its way there.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::HostError;

/// The end of the names of what is not yet an entry.
const SCRATCH: &str = ".tmp";

/// After so long nobody who lives is writing it any more: others may share the directory.
const SCRATCH_STAYS: Duration = Duration::from_secs(3600);

const KEY_FILE: &str = "key";

/// A directory of this user alone. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CacheDir {
    path: Arc<Path>,
}

impl CacheDir {
    /// Opens the directory, which is made (0700) where it does not exist. Fails where it is another user's; one that was
    /// open to others is closed to them. What a process left behind that died while it wrote is removed.
    pub(crate) fn open(path: &Path) -> Result<CacheDir, HostError> {
        let failed = |source| HostError::CacheDir { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        make_private(path).map_err(failed)?;
        remove_scratch(path).map_err(failed)?;
        Ok(CacheDir { path: Arc::from(path) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the key that vouches for code.
    pub(super) fn key_file(&self) -> PathBuf {
        self.path.join(KEY_FILE)
    }

    /// A path of its own for something that is not yet an entry of this name.
    pub(super) fn scratch(&self, name: &str, extension: &str) -> PathBuf {
        self.path.join(format!("{name}.{:016x}.{extension}{SCRATCH}", rand::random::<u64>()))
    }
}

/// Removes what was on its way when a process died.
fn remove_scratch(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_scratch = entry.file_name().to_str().is_some_and(|name| name.ends_with(SCRATCH));
        if is_scratch && is_old(&entry) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// One whose time is not known, or lies in the future, is not.
fn is_old(entry: &fs::DirEntry) -> bool {
    let written = entry.metadata().and_then(|metadata| metadata.modified()).ok();
    written.and_then(|written| written.elapsed().ok()).is_some_and(|age| age >= SCRATCH_STAYS)
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

#[cfg(test)]
mod tests {
    use super::super::seal::Seal;
    use super::*;

    #[test]
    fn what_a_dead_process_left_behind_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CacheDir::open(dir.path()).expect("made");
        let left =
            [cache.scratch("abc", "cwasm"), cache.scratch("abc", "mac"), dir.path().join("a.wasm.tmp")];
        let entry = dir.path().join("abc.cwasm");
        for path in left.iter().chain([&entry]) {
            fs::write(path, "x").expect("written");
        }
        CacheDir::open(dir.path()).expect("ours");
        assert!(left.iter().all(|path| path.exists()), "somebody may be writing them");
        for path in left.iter().chain([&entry]) {
            let then = std::time::SystemTime::now() - SCRATCH_STAYS;
            fs::File::options()
                .append(true)
                .open(path)
                .and_then(|file| file.set_modified(then))
                .expect("set");
        }
        CacheDir::open(dir.path()).expect("ours");
        assert!(left.iter().all(|path| !path.exists()) && entry.exists());
    }

    #[test]
    fn a_directory_of_others_is_refused_and_an_open_one_is_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cache");
        let open = || CacheDir::open(&path).and_then(|dir| Seal::open(&dir));
        open().expect("made");
        let mode = || fs::metadata(&path).expect("there").mode() & 0o777;
        assert_eq!(mode(), 0o700);
        let key = fs::read(path.join(KEY_FILE)).expect("a key");
        open().expect("ours");
        assert_eq!(fs::read(path.join(KEY_FILE)).expect("a key"), key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
        open().expect("ours");
        assert_eq!(mode(), 0o700);
        assert_ne!(fs::read(path.join(KEY_FILE)).expect("a key"), key);
        // Only the superuser can give a directory away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65_534), None).expect("given away");
            assert!(matches!(CacheDir::open(&path), Err(HostError::CacheDir { .. })));
        }
    }
}
