//! How much compiled code containers may use. It stays on the disk for as long as they do, whatever the cache's bound is.

use std::path::Path;

use super::PrepareError;

/// The part of the file system that code in use may take, as images may.
const PART: u64 = 4;

/// Bytes of code that a namespace may use whatever others use.
const CERTAIN_BYTES: u64 = 64 << 20;

/// Bytes of code that all containers together may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) bytes_max: u64,
}

impl Room {
    /// Of the file system that `path` is on. One that cannot be asked has no bound.
    pub(super) fn on(path: &Path) -> Room {
        let all = |found: rustix::fs::StatVfs| found.f_blocks.saturating_mul(found.f_frsize);
        Room { bytes_max: rustix::fs::statvfs(path).map_or(u64::MAX, |found| all(found) / PART) }
    }

    /// Whether a namespace that uses `own` of the `used` bytes may use code of so many more: it has at most as much as stays free
    /// for all others.
    pub(super) fn admit(self, bytes: u64, own: u64, used: u64) -> Result<(), PrepareError> {
        let free = self.bytes_max.saturating_sub(used);
        let with_it = own.saturating_add(bytes);
        if with_it <= CERTAIN_BYTES.max(free) {
            return Ok(());
        }
        Err(PrepareError::NoShare { bytes, used: own, free })
    }
}
