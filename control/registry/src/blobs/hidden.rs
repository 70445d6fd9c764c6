//! Where a blob was deleted: members keep one file of a blob for all repositories, so that a deletion hides it in one.
//!
//! The file itself goes when nothing in the registry needs it any more: a deletion never takes what an image of another
//! repository is made of.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use coracle_raft::durable;
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use super::{BlobError, Blobs};
use crate::digest::Digest;

/// Repositories in which one blob is hidden: who deletes may name as many as they like. In the one that was first it is
/// seen again.
pub(super) const MARKS_MAX: usize = 1000;

/// In the folder of the blobs: a folder for each blob that was deleted, with an empty file for each repository.
pub(super) const HIDDEN: &str = "hidden";

impl Blobs {
    /// Hides a blob in a repository, also where the disk has no room for content.
    pub async fn hide(&self, repository: &str, digest: &Digest) -> Result<(), BlobError> {
        let (folder, mark) = (self.marks(digest), self.mark(repository, digest));
        let hidden = spawn_blocking(move || {
            DirBuilder::new().recursive(true).mode(durable::PRIVATE_DIR).create(&folder)?;
            File::options().create(true).append(true).mode(durable::PRIVATE_FILE).open(mark)?;
            forget_oldest(&folder)
        });
        Ok(hidden.await.map_err(io::Error::other)??)
    }

    /// Has a blob seen in a repository again.
    pub async fn show(&self, repository: &str, digest: &Digest) -> Result<(), BlobError> {
        match tokio::fs::remove_file(self.mark(repository, digest)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub async fn is_hidden(&self, repository: &str, digest: &Digest) -> bool {
        tokio::fs::try_exists(self.mark(repository, digest)).await.unwrap_or(false)
    }

    fn mark(&self, repository: &str, digest: &Digest) -> PathBuf {
        let repository = hex::encode(&Sha256::digest(repository)[..16]);
        self.marks(digest).join(repository)
    }

    pub(super) fn marks(&self, digest: &Digest) -> PathBuf {
        let blob = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        self.folder.join(HIDDEN).join(blob)
    }
}

fn forget_oldest(folder: &Path) -> io::Result<()> {
    let marks = fs::read_dir(folder)?.filter_map(Result::ok).collect::<Vec<_>>();
    if marks.len() <= MARKS_MAX {
        return Ok(());
    }
    // Others come and go meanwhile.
    let made = marks.iter().filter_map(|mark| Some((mark.metadata().ok()?.modified().ok()?, mark.path())));
    match made.min().map(|(_, oldest)| fs::remove_file(oldest)) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
