//! Files that nothing needs any more are removed, but none that is just being asked for.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
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

    /// All blobs but these that came, or were asked for last, at such a time.
    pub async fn others(
        self: &Arc<Self>,
        needed: BTreeSet<Digest>,
        old: Range<SystemTime>,
    ) -> Result<BTreeSet<Digest>, BlobError> {
        let blobs = self.clone();
        let others = spawn_blocking(move || blobs.others_now(&needed, &old));
        Ok(others.await.map_err(io::Error::other)??)
    }

    fn others_now(&self, needed: &BTreeSet<Digest>, old: &Range<SystemTime>) -> io::Result<BTreeSet<Digest>> {
        let mut others = BTreeSet::new();
        for algorithm in Algorithm::ALL {
            for entry in fs::read_dir(self.folder.join(algorithm.as_str()))? {
                let entry = entry?;
                let name = format!("{}:{}", algorithm.as_str(), entry.file_name().to_string_lossy());
                let other = Digest::parse(&name).filter(|digest| !needed.contains(digest));
                if let Some(digest) = other
                    && is_old(&entry.path(), old)?
                {
                    others.insert(digest);
                }
            }
        }
        Ok(others)
    }

    /// Removes those of these blobs that are still as old.
    pub async fn remove(
        self: &Arc<Self>,
        digests: BTreeSet<Digest>,
        old: Range<SystemTime>,
    ) -> Result<Removed, BlobError> {
        let blobs = self.clone();
        let removed = spawn_blocking(move || blobs.remove_now(&digests, &old));
        Ok(removed.await.map_err(io::Error::other)??)
    }

    fn remove_now(&self, digests: &BTreeSet<Digest>, old: &Range<SystemTime>) -> io::Result<Removed> {
        let mut removed = Removed::default();
        for digest in digests {
            let path = self.path(digest);
            let _none_is_held = self.removal.lock();
            if is_old(&path, old)? {
                removed.bytes += fs::metadata(&path)?.len();
                removed.files += 1;
                fs::remove_file(&path)?;
                forget(&self.marks(digest))?;
            }
        }
        self.forget_marks(old)?;
        Ok(removed)
    }

    /// Marks of blobs that are not here.
    fn forget_marks(&self, old: &Range<SystemTime>) -> io::Result<()> {
        let marks = match fs::read_dir(self.folder.join(HIDDEN)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            marks => marks?,
        };
        for entry in marks {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().replacen('-', ":", 1);
            let is_here = Digest::parse(&name).is_some_and(|digest| self.path(&digest).exists());
            if !is_here && is_old(&entry.path(), old)? {
                forget(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn is_old(path: &Path, old: &Range<SystemTime>) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(old.contains(&metadata.modified()?)),
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
