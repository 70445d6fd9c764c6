//! Why an image is not on this node.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::{ARTIFACT_BYTES_MAX, InvalidImage, room::NoRoom};

/// Why an image could not be made present. `reason` is what the container's status says.
#[derive(Debug, Error)]
pub enum PullError {
    #[error("couldn't parse image name {image:?}: {source}")]
    InvalidName { image: String, source: InvalidImage },
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull { image: String },
    #[error(
        "failed to resolve reference {image:?}: {registry} is a remote registry, and this version pulls from none yet; \
         push the file into the cluster's own registry with `coracle push FILE.wasm {repository}` and name the image \
         {repository:?}"
    )]
    Remote { image: String, registry: String, repository: String },
    #[error(
        "{image:?} is a file that this node does not run; start it with --allow-local-artifacts DIR, the folder that has \
         the file, or push the file with `coracle push`"
    )]
    LocalForbidden { image: String },
    #[error("failed to read {path}: {source}")]
    Local { path: PathBuf, source: io::Error },
    #[error(
        "failed to resolve reference {image:?}: {image}: not found in the cluster's registry; push it with `coracle \
         push FILE.wasm {image}`"
    )]
    NotFound { image: String },
    #[error("failed to pull {image:?}: no control node could serve it: {tried}")]
    Unreachable { image: String, tried: String },
    #[error("failed to pull {image:?}: {reason}")]
    BadManifest { image: String, reason: String },
    #[error("failed to pull {image:?}: it has {size} bytes, and at most {ARTIFACT_BYTES_MAX} are taken")]
    TooLarge { image: String, size: u64 },
    #[error("failed to pull {image:?}: unexpected digest: expected {expected}, found {found}")]
    WrongDigest { image: String, expected: String, found: String },
    #[error("failed to keep {image:?} of {size} bytes on this node's disk: {source}")]
    NoRoom { image: String, size: u64, source: NoRoom },
    #[error("failed to keep {image:?} on this node's disk: {source}")]
    Disk { image: String, source: io::Error },
}

impl PullError {
    /// The reason in `state.waiting`.
    pub fn reason(&self) -> &'static str {
        match self {
            PullError::InvalidName { .. } => "InvalidImageName",
            PullError::NeverPull { .. } => "ErrImageNeverPull",
            _ => "ErrImagePull",
        }
    }

    /// Whose images, that only wait to be used, would have to go: one namespace's (true), or anybody's.
    pub fn wants_room(&self) -> Option<bool> {
        match self {
            PullError::NoRoom { source, .. } => Some(matches!(source, NoRoom::Share { .. })),
            _ => None,
        }
    }
}
