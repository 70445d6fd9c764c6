//! How much of the host the components may take that containers use: their code on the disk, which stays there for as long as
//! they do, whatever the cache's bound is, and in memory what they take as they are loaded.

use std::fmt;
use std::path::Path;

use super::PrepareError;
use crate::limits::machine_memory;

/// The part of the file system that code in use may take, as images may.
const DISK_PART: u64 = 4;

/// The part of the machine's memory that components in use may take as they are loaded.
const MEMORY_PART: u64 = 8;

/// Bytes that a namespace may use whatever others use.
const CODE_CERTAIN_BYTES: u64 = 64 << 20;
const LOADED_CERTAIN_BYTES: u64 = 16 << 20;

/// What namespaces share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarce {
    /// Compiled code, on the disk.
    Code,
    /// What components take as they are loaded, in memory.
    Loaded,
}

impl Scarce {
    /// What gives the node more of it.
    pub(super) fn mend(self) -> &'static str {
        match self {
            Scarce::Code => "a larger disk",
            Scarce::Loaded => "more memory",
        }
    }
}

impl fmt::Display for Scarce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scarce::Code => "compiled code",
            Scarce::Loaded => "memory for components that are loaded",
        })
    }
}

/// Bytes of it that all containers together may use, and that those of one namespace may in any case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) of: Scarce,
    pub(super) bytes_max: u64,
    pub(super) certain: u64,
}

impl Room {
    /// For code on the file system that `path` is on. One that cannot be asked has no bound.
    pub(super) fn for_code(path: &Path) -> Room {
        let all = |found: rustix::fs::StatVfs| found.f_blocks.saturating_mul(found.f_frsize);
        let bytes_max = rustix::fs::statvfs(path).map_or(u64::MAX, |found| all(found) / DISK_PART);
        Room { of: Scarce::Code, bytes_max, certain: CODE_CERTAIN_BYTES }
    }

    /// For what is loaded into the machine's memory.
    pub(super) fn for_loaded() -> Room {
        let bytes_max = machine_memory().map_or(u64::MAX, |bytes| bytes / MEMORY_PART);
        Room { of: Scarce::Loaded, bytes_max, certain: LOADED_CERTAIN_BYTES }
    }

    /// Whether a namespace that uses `own` of the `used` bytes may use so many more: it has at most as much as stays free for
    /// all others.
    pub(super) fn admit(self, bytes: u64, own: u64, used: u64) -> Result<(), PrepareError> {
        let free = self.bytes_max.saturating_sub(used);
        let with_it = own.saturating_add(bytes);
        if with_it <= self.certain.max(free) {
            return Ok(());
        }
        Err(PrepareError::NoShare { of: self.of, bytes, used: own, free })
    }
}
