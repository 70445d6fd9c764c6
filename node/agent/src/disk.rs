//! The part of the disk that is left to what a node must remember itself, and under `coracle up` to the control plane: half
//! of what guests' own files leave free, and of the inodes. Logs and volumes are written for pods, and take nothing of it.

use std::{
    io::{self, ErrorKind},
    os::fd::AsFd,
};

/// Of the disk's bytes, and within what bounds.
const PART: u64 = 40;
const BYTES_MIN: u64 = 128 << 20;
const BYTES_MAX: u64 = 512 << 20;

/// Whether so many bytes more leave that part of the disk free. A disk that cannot be asked has no bound.
pub fn admit(on_it: impl AsFd, bytes: u64) -> io::Result<()> {
    let Ok(found) = rustix::fs::fstatvfs(on_it) else { return Ok(()) };
    let all = found.f_blocks.saturating_mul(found.f_frsize);
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    // A file system that has no number of them has zero.
    let (inodes, inodes_free) = (found.f_files, found.f_favail);
    #[cfg(test)]
    let free = if tests::IS_FULL.get() { 0 } else { free };
    #[cfg(test)]
    let (inodes, inodes_free) = tests::INODES.get().unwrap_or((inodes, inodes_free));
    if free < kept(all).saturating_add(bytes) || inodes_free < inodes / PART {
        return Err(io::Error::new(ErrorKind::StorageFull, "the disk has no room for pods"));
    }
    Ok(())
}

/// Of a tiny disk a quarter is all that can be asked for.
fn kept(all: u64) -> u64 {
    (all / PART).clamp(BYTES_MIN, BYTES_MAX).min(all / 4)
}

#[cfg(test)]
pub mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Nothing of any disk is free, to this thread.
        pub static IS_FULL: Cell<bool> = const { Cell::new(false) };
        /// The inodes of any disk, and those that are free, to this thread.
        pub static INODES: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    }

    #[test]
    fn a_part_of_the_disk_is_for_nobody_but_the_node() {
        assert_eq!(kept(1 << 40), 512 << 20);
        assert_eq!(kept(1 << 30), 128 << 20);
        assert_eq!(kept(256 << 20), 64 << 20);
        let file = tempfile::tempfile().unwrap();
        assert!(admit(&file, 1).is_ok());
        assert_eq!(admit(&file, 1 << 60).unwrap_err().kind(), ErrorKind::StorageFull);
        for (inodes, is_full) in [((1000, 24), true), ((1000, 25), false), ((0, 0), false)] {
            INODES.set(Some(inodes));
            assert_eq!(admit(&file, 1).is_err(), is_full, "{inodes:?}");
        }
    }
}
