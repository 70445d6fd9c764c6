//! The way down into directories that cannot be renamed to the top, with one directory open however deep it is.

use std::{ffi::CStr, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, Stat},
    io::Errno,
};

use super::{Level, OPEN};

/// A directory below the second level. Nobody else renames what is being removed, so that `..` leads where it came from;
/// it never leads beyond the top.
pub(super) struct Descent {
    pub level: Level,
    /// Directories between it and the second level.
    depth: u64,
    top: Identity,
}

type Identity = (u64, u64);

fn identity(dir: &OwnedFd) -> rustix::io::Result<Identity> {
    let Stat { st_dev, st_ino, .. } = rustix::fs::fstat(dir)?;
    Ok((st_dev, st_ino))
}

fn open(dir: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, OPEN, Mode::empty())
}

impl Descent {
    /// Into the directory `name` of the second level.
    pub fn begin(top: &OwnedFd, second: &OwnedFd, name: &CStr) -> rustix::io::Result<Self> {
        Ok(Self { level: Level::new(open(second, name)?)?, depth: 0, top: identity(top)? })
    }

    pub fn enter(&mut self, name: &CStr) -> rustix::io::Result<()> {
        self.level = Level::new(open(&self.level.dir, name)?)?;
        self.depth += 1;
        Ok(())
    }

    /// To the directory above, which is read from its beginning: what was before the one that was left has been removed.
    /// `None` where that is the second level.
    pub fn leave(self) -> rustix::io::Result<Option<Self>> {
        let Self { level, depth, top } = self;
        let Some(depth) = depth.checked_sub(1) else { return Ok(None) };
        let dir = open(&level.dir, c"..")?;
        if identity(&dir)? == top {
            return Err(Errno::LOOP);
        }
        Ok(Some(Self { level: Level::new(dir)?, depth, top }))
    }
}
