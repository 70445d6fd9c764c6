//! Where a blob was deleted: members keep one file of a blob for all repositories, so that a deletion hides it in one.
//!
//! The file itself goes when nothing in the registry needs it any more: a deletion never takes what an image of another
//! repository is made of.

use std::{io, path::PathBuf};

use sha2::{Digest as _, Sha256};

use super::{BlobError, Blobs};
use crate::digest::Digest;

/// In the folder of the blobs: a folder for each blob that was deleted, with an empty file for each repository.
pub(super) const HIDDEN: &str = "hidden";

impl Blobs {
    /// Hides a blob in a repository, also where the disk has no room for content.
    pub async fn hide(&self, repository: &str, digest: &Digest) -> Result<(), BlobError> {
        let mark = self.mark(repository, digest);
        if let Some(folder) = mark.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        tokio::fs::write(mark, b"").await?;
        Ok(())
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
