//! The part of the disk that guests leave to the node.
//!
//! Guests' files share a file system with logs, artifacts, what the node has to remember and, under `coracle up`, the
//! control plane's log. Where little of it is left, whatever would take more is refused to guests, as on a full disk, and
//! the others go on. What frees space is never refused.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use super::usage::ENTRY_BYTES;
use crate::ledger::{Holding, Ledger};

/// The part of the disk's bytes and inodes that guests leave free, and within what bounds that is, in bytes: never less than
/// the control plane of `coracle up` needs to go on, whose log takes its room a segment at a time.
const PART: u64 = 20;
const BYTES_MIN: u64 = 256 << 20;
const BYTES_MAX: u64 = 1 << 30;

/// How long, and for how many bytes, what was seen of the disk is believed.
const BELIEVED_FOR: Duration = Duration::from_millis(50);
const BELIEVED_BYTES: u64 = 4 << 20;

/// What a file system has, and what is free of it for others than root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) bytes: u64,
    pub(super) bytes_free: u64,
    /// Zero where the file system has no number of them.
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

impl Space {
    fn of(path: &Path) -> Option<Space> {
        let found = rustix::fs::statvfs(path).ok()?;
        Some(Space {
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            bytes_free: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            inodes_free: found.f_favail,
        })
    }

    fn is_short(&self) -> bool {
        self.bytes_free < self.reserve() || (self.inodes > 0 && self.inodes_free < self.inodes / PART)
    }

    fn pressure(&self, before: bool) -> Option<DiskPressure> {
        let quarters = if before { 6 } else { 5 };
        let wanted = self.reserve() / 4 * quarters;
        if self.bytes_free < wanted {
            return Some(DiskPressure::Bytes { wanted, free: self.bytes_free });
        }
        let wanted = self.inodes / PART / 4 * quarters;
        (self.inodes_free < wanted).then_some(DiskPressure::Inodes { wanted, free: self.inodes_free })
    }

    fn has_room(&self, bytes: u64) -> bool {
        !self.is_short() && self.left() >= bytes
    }

    /// What is free of it for guests.
    fn left(&self) -> u64 {
        self.bytes_free.saturating_sub(self.reserve())
    }

    fn reserve(&self) -> u64 {
        // Of a tiny disk half is all that can be asked for.
        (self.bytes / PART).clamp(BYTES_MIN, BYTES_MAX).min(self.bytes / 2)
    }
}

/// What there is little of that guests may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskPressure {
    /// Bytes: how many are to be free, and how many are.
    Bytes { wanted: u64, free: u64 },
    /// Inodes.
    Inodes { wanted: u64, free: u64 },
}

/// What presses on guests on the file system that `path` is on: less of it is free than a quarter beyond the node's own part;
/// where that was so `before`, than half beyond. Blocks.
pub fn disk_pressure(path: &Path, before: bool) -> Option<DiskPressure> {
    Space::of(path)?.pressure(before)
}

/// Whether so many bytes more, written on account of guests, leave the node its part of the file system that `path` is on.
pub(crate) fn has_room(path: &Path, bytes: u64) -> bool {
    Space::of(path).is_none_or(|space| space.has_room(bytes))
}

/// Watches the file system of guests' files.
pub(crate) struct Reserve {
    space: Box<dyn Fn() -> Option<Space> + Send + Sync>,
    looked: Mutex<Option<Instant>>,
    /// Bytes that were taken since.
    taken: AtomicU64,
    is_short: AtomicBool,
    /// What guests share is told how much there is of it.
    ledger: Ledger,
}

impl Reserve {
    /// Of the file system that `path` is on. One that cannot be asked has no bound.
    pub(crate) fn at(path: PathBuf, ledger: Ledger) -> Reserve {
        Reserve::with(move || Space::of(&path), ledger)
    }

    /// Of no file system: there is no bound.
    pub(crate) fn nothing(ledger: Ledger) -> Reserve {
        Reserve::with(|| None, ledger)
    }

    /// Of a disk with so many bytes for guests, of which those are free that nobody holds.
    pub(crate) fn of_bytes(bytes: u64, ledger: Ledger) -> Reserve {
        let of_guests = ledger.clone();
        let look = move || {
            let free = bytes.saturating_sub(of_guests.held(Holding::Disk));
            let all = Space { bytes: 2 * bytes, bytes_free: 0, inodes: 0, inodes_free: 0 };
            Some(Space { bytes_free: all.reserve() + free, ..all })
        };
        Reserve::with(look, ledger)
    }

    pub(super) fn with(look: impl Fn() -> Option<Space> + Send + Sync + 'static, ledger: Ledger) -> Reserve {
        let (looked, taken, is_short) = Default::default();
        Reserve { space: Box::new(look), looked, taken, is_short, ledger }
    }

    /// What a name takes of the inodes, as its part of the bytes, beyond what it counts as in any case.
    pub(crate) fn inode_bytes(&self) -> u64 {
        let space = (self.space)().filter(|space| space.inodes > 0);
        space.map_or(0, |space| (space.bytes / space.inodes).saturating_sub(ENTRY_BYTES))
    }

    /// Whether a guest may take so many bytes more. It may ask the file system, and so block.
    pub(crate) fn admit(&self, bytes: u64) -> Result<(), ErrorCode> {
        self.look(bytes);
        if self.is_short.load(Ordering::Relaxed) { Err(ErrorCode::InsufficientSpace) } else { Ok(()) }
    }

    /// Sees what is free where what was seen is not believed any more, with so many bytes that are taken.
    pub(crate) fn look(&self, bytes: u64) {
        let taken = self.taken.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        // Whoever finds it taken goes by what another is just replacing.
        if let Some(mut looked) = self.looked.try_lock()
            && (taken > BELIEVED_BYTES || looked.is_none_or(|then| then.elapsed() > BELIEVED_FOR))
        {
            self.taken.store(0, Ordering::Relaxed);
            let space = (self.space)();
            self.is_short.store(space.is_some_and(|space| space.is_short()), Ordering::Relaxed);
            self.ledger.set_disk_free(space.map_or(u64::MAX, |space| space.left()));
            *looked = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::NodeBounds;

    fn ledger() -> Ledger {
        Ledger::new(NodeBounds { memory: None, heap: 0, files: 0, files_guaranteed: 0 })
    }

    #[test]
    fn a_part_of_the_disk_is_left_whatever_guests_take() {
        let free = Arc::new(AtomicU64::new(1 << 30));
        let left = Arc::clone(&free);
        let reserve = Reserve::with(
            move || {
                let bytes_free = left.load(Ordering::Relaxed);
                Some(Space { bytes: 10 << 30, bytes_free, inodes: 0, inodes_free: 0 })
            },
            ledger(),
        );
        let mut taken = 0;
        while reserve.admit(64 << 10).is_ok() {
            free.fetch_sub(64 << 10, Ordering::Relaxed);
            taken += 64 << 10;
        }
        let kept = free.load(Ordering::Relaxed);
        let least = (512 << 20) - BELIEVED_BYTES - (64 << 10);
        assert!((least..512 << 20).contains(&kept), "{kept} after {taken}");
        // It is seen when somebody frees some.
        free.store(2 << 30, Ordering::Relaxed);
        while reserve.admit(64 << 10).is_err() {}
        // A file system that says nothing has no bound.
        assert_eq!(Reserve::with(|| None, ledger()).admit(u64::MAX), Ok(()));
    }

    #[test]
    fn there_is_little_left_before_guests_are_refused_and_until_there_is_more() {
        let space = |bytes_free, inodes_free| Space { bytes: 1 << 40, bytes_free, inodes: 8000, inodes_free };
        let bytes = |wanted, free| Some(DiskPressure::Bytes { wanted, free });
        for (bytes_free, inodes_free, before, told) in [
            (5 << 28, 500, false, None),
            ((5 << 28) - 1, 500, false, bytes(5 << 28, (5 << 28) - 1)),
            (5 << 28, 600, true, bytes(6 << 28, 5 << 28)),
            (6 << 28, 600, true, None),
            (6 << 28, 499, false, Some(DiskPressure::Inodes { wanted: 500, free: 499 })),
        ] {
            assert_eq!(space(bytes_free, inodes_free).pressure(before), told);
        }
        let without_inodes = Space { inodes: 0, ..space(6 << 28, 0) };
        assert_eq!(without_inodes.pressure(true), None);
    }

    #[test]
    fn bytes_and_inodes_run_short() {
        let space = |bytes, bytes_free, inodes, inodes_free| Space { bytes, bytes_free, inodes, inodes_free };
        assert!(!space(1 << 40, 2 << 30, 1000, 60).is_short());
        assert!(space(1 << 40, (1 << 30) - 1, 1000, 60).is_short());
        assert!(space(1 << 40, 2 << 30, 1000, 49).is_short());
        assert!(!space(2 << 30, 257 << 20, 0, 0).is_short());
        assert!(space(2 << 30, 255 << 20, 0, 0).is_short());
        assert!(!space(200 << 20, 101 << 20, 0, 0).is_short());
        assert!(space(200 << 20, 99 << 20, 0, 0).is_short());
        assert!(!space(10 << 20, 6 << 20, 0, 0).is_short());
        let roomy = space(2 << 30, 300 << 20, 0, 0);
        assert!(roomy.has_room(44 << 20) && !roomy.has_room(45 << 20));
        assert!(!space(2 << 30, 1 << 30, 1000, 49).has_room(0));
    }
}
