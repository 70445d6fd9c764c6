//! What is checked of a file: on the node that it is what was asked for, apart from it (see `child.rs`) what it is.
//!
//! Nothing but its size and digest is looked at in this process: the rest is a stranger's bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::PrepareError;
use super::inspect::{self, Kind};
use super::slots;
use super::structures::{self, Structures};
use crate::digests::{DigestError, Digests};
use crate::pool::NotDone;

/// Bytes of a `.wasm` file: several times what interpreters compiled to WebAssembly need.
pub(super) const WASM_BYTES_MAX: u64 = 256 << 20;

/// A file that was hashed.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// SHA-256 of its content, in hex.
    pub(super) digest: String,
}

/// Finds which bytes these are, in the namespace's turn.
pub(super) async fn identify(
    digests: &Arc<Digests>,
    path: &Path,
    namespace: &Arc<str>,
) -> Result<Source, PrepareError> {
    match digests.of(path, namespace).await {
        Ok(digest) => Ok(Source { path: path.to_owned(), digest }),
        Err(DigestError::Io(source)) => {
            Err(PrepareError::Io { what: "cannot read", path: path.to_owned(), source })
        }
        Err(DigestError::TooLarge { bytes, limit }) => Err(PrepareError::TooLarge { bytes, limit }),
        Err(DigestError::NotDone(NotDone::Full)) => Err(PrepareError::Busy),
        Err(DigestError::NotDone(NotDone::Lost)) => {
            Err(PrepareError::GivenUp { message: "the file could not be read to its end".to_owned() })
        }
    }
}

/// Reads a file, which must have its digest still.
pub(super) fn read(source: &Source) -> Result<Vec<u8>, PrepareError> {
    let Source { path, digest } = source;
    let mut wasm = Vec::new();
    let file = File::open(path).and_then(|file| file.take(WASM_BYTES_MAX).read_to_end(&mut wasm));
    file.map_err(PrepareError::io("cannot read", path))?;
    if hex::encode(Sha256::digest(&wasm)) == *digest {
        Ok(wasm)
    } else {
        Err(PrepareError::Changed { path: path.clone() })
    }
}

/// Finds out whether a file can be run by what it says of itself: how it is entered, the engine that it needs, and what it
/// takes of the host. Whether its code is valid is found when it is compiled, and whether there is what it imports when it is
/// linked.
pub(super) fn kind(wasm: &[u8]) -> Result<Kind, PrepareError> {
    let kind = inspect::inspect(wasm)?;
    slots::check(wasm)?;
    let Structures { instance, loaded } = structures::of(wasm, kind.engine)?;
    Ok(Kind { structures: instance, loaded, ..kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_changed_since_is_not_compiled_under_its_old_digest() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("guest.wasm");
        std::fs::write(&path, "first").expect("written");
        let source = Source { digest: hex::encode(Sha256::digest("first")), path: path.clone() };
        assert_eq!(read(&source).expect("the same"), b"first");
        std::fs::write(&path, "other").expect("written");
        assert!(matches!(read(&source), Err(PrepareError::Changed { .. })));
    }
}
