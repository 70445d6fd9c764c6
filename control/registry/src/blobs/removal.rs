//! Files that nothing needs any more are removed, but none that is just being asked for.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use tokio::task::spawn_blocking;

use super::{BlobError, Blobs, hidden::HIDDEN};
use crate::digest::{Algorithm, Digest};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub files: usize,
    pub bytes: u64,
}

impl Blobs {
    /// The size of a blob that is here and is about to be named: it is not removed meanwhile.
    pub async fn hold(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let (path, removal) = (self.path(digest), self.removal.clone());
        let held = spawn_blocking(move || -> io::Result<u64> {
            let _none_is_removed = removal.lock();
            let file = File::options().append(true).open(path)?;
            file.set_modified(SystemTime::now())?;
            Ok(file.metadata()?.len())
        });
        match held.await.map_err(io::Error::other)? {
            Ok(size) => Ok(Some(size)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BlobError::Io(error)),
        }
    }

    /// Removes all blobs but these that nobody has asked for since before this time.
    pub async fn remove_others(
        self: &Arc<Self>,
        needed: BTreeSet<Digest>,
        before: SystemTime,
    ) -> Result<Removed, BlobError> {
        let blobs = self.clone();
        let removed = spawn_blocking(move || blobs.remove_others_now(&needed, before));
        Ok(removed.await.map_err(io::Error::other)??)
    }

    fn remove_others_now(&self, needed: &BTreeSet<Digest>, before: SystemTime) -> io::Result<Removed> {
        let mut removed = Removed::default();
        for algorithm in Algorithm::ALL {
            for entry in fs::read_dir(self.folder.join(algorithm.as_str()))? {
                let entry = entry?;
                let name = format!("{}:{}", algorithm.as_str(), entry.file_name().to_string_lossy());
                let Some(digest) = Digest::parse(&name).filter(|digest| !needed.contains(digest)) else {
                    continue;
                };
                let _none_is_held = self.removal.lock();
                if is_old(&entry.path(), before)? {
                    removed.bytes += entry.metadata()?.len();
                    removed.files += 1;
                    fs::remove_file(entry.path())?;
                    forget(&self.marks(&digest))?;
                }
            }
        }
        self.forget_marks(before)?;
        Ok(removed)
    }

    /// Marks of blobs that are not here.
    fn forget_marks(&self, before: SystemTime) -> io::Result<()> {
        let marks = match fs::read_dir(self.folder.join(HIDDEN)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            marks => marks?,
        };
        for entry in marks {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().replacen('-', ":", 1);
            let is_here = Digest::parse(&name).is_some_and(|digest| self.path(&digest).exists());
            if !is_here && is_old(&entry.path(), before)? {
                forget(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn is_old(path: &Path, before: SystemTime) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.modified()? < before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn forget(marks: &Path) -> io::Result<()> {
    match fs::remove_dir_all(marks) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
