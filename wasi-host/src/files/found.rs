//! What lies below a directory, counted with one directory open, however guests have nested and filled it.
//!
//! The way down goes by names, the way back by `..`: no path is made, which could be longer than the kernel takes, and no
//! link is followed. Nobody else changes anything there meanwhile, so that `..` leads where it came from; it is taken only
//! as often as a name was. Of each directory above only the place is kept where its reading goes on, and that of the
//! deepest [`PLACES_MAX`] alone: in those above them the directory that was left is looked up again.

use std::collections::VecDeque;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

const OPEN: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Directories of which the place is kept where their reading goes on, 8 bytes each.
const PLACES_MAX: usize = 1 << 20;

/// Names in directories, and bytes in files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) names: u64,
    /// The lengths of files. One of several names has a part of its length in each, rounded down.
    pub(super) bytes: u64,
}

/// How many names there are below a directory, and how long their files are: nothing where it is not there. What cannot be
/// read is passed over, and the log says so. Blocks for as long as it takes to read all of it.
pub(super) fn found(dir: &Path) -> Found {
    let mut walk = match Walk::open(dir, PLACES_MAX) {
        Ok(walk) => walk,
        Err(Errno::NOENT) => return Found::default(),
        Err(error) => {
            tracing::warn!(path = %dir.display(), %error, "a volume could not be counted");
            return Found::default();
        }
    };
    if let Some(error) = walk.run().err().or(walk.failed) {
        tracing::warn!(path = %dir.display(), %error, "a part of a volume could not be counted");
    }
    walk.found
}

struct Walk {
    /// The one that is read.
    dir: Dir,
    /// How many lie above it, the top included.
    depth: u64,
    /// Where the reading of those goes on, the deepest last.
    places: VecDeque<i64>,
    places_max: usize,
    found: Found,
    /// The first of what was passed over.
    failed: Option<Errno>,
}

impl Walk {
    fn open(top: &Path, places_max: usize) -> rustix::io::Result<Walk> {
        let dir = Dir::new(rustix::fs::openat(CWD, top, OPEN, Mode::empty())?)?;
        let (places, found) = Default::default();
        Ok(Walk { dir, depth: 0, places, places_max, found, failed: None })
    }

    /// Counts all there is. Fails where there is no way back.
    fn run(&mut self) -> rustix::io::Result<()> {
        loop {
            match self.dir.read() {
                Some(entry) => {
                    if let Err(error) = entry.and_then(|entry| self.count(&entry)) {
                        self.failed.get_or_insert(error);
                    }
                }
                None if self.depth == 0 => return Ok(()),
                None => self.leave()?,
            }
        }
    }

    /// Counts an entry, and goes into it where it is a directory.
    fn count(&mut self, entry: &DirEntry) -> rustix::io::Result<()> {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            return Ok(());
        }
        self.found.names += 1;
        match entry.file_type() {
            FileType::Directory => return self.enter(entry),
            FileType::RegularFile | FileType::Unknown => {}
            _ => return Ok(()),
        }
        let stat =
            rustix::fs::statx(self.dir.fd()?, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => return self.enter(entry),
            FileType::RegularFile => {
                let bytes = stat.stx_size / u64::from(stat.stx_nlink.max(1));
                self.found.bytes = self.found.bytes.saturating_add(bytes);
            }
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, entry: &DirEntry) -> rustix::io::Result<()> {
        let below = rustix::fs::openat(self.dir.fd()?, entry.file_name(), OPEN, Mode::empty())?;
        self.dir = Dir::new(below)?;
        self.depth += 1;
        self.places.push_back(entry.offset());
        if self.places.len() > self.places_max {
            self.places.pop_front();
        }
        Ok(())
    }

    /// To the directory above, where its reading goes on.
    fn leave(&mut self) -> rustix::io::Result<()> {
        let left = self.dir.stat()?.st_ino;
        let above = rustix::fs::openat(self.dir.fd()?, c"..", OPEN, Mode::empty())?;
        self.dir = Dir::new(above)?;
        self.depth -= 1;
        if let Some(place) = self.places.pop_back() {
            return self.dir.seek(place);
        }
        while let Some(entry) = self.dir.read() {
            if entry?.ino() == left {
                return Ok(());
            }
        }
        Err(Errno::NOENT)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::symlink;
    use std::thread;

    use super::*;

    /// What is found with so many places, on a stack that a recursion of some levels would overflow.
    fn count(top: &Path, places_max: usize) -> Found {
        let top = top.to_owned();
        let work = move || {
            let mut walk = Walk::open(&top, places_max).expect("there");
            assert_eq!((walk.run(), walk.failed), (Ok(()), None));
            assert!(walk.places.is_empty() && walk.places.capacity() <= 2 * places_max + 8);
            walk.found
        };
        thread::Builder::new().stack_size(128 << 10).spawn(work).expect("a thread").join().expect("counted")
    }

    fn make_dir(parent: &OwnedFd, name: &str) -> OwnedFd {
        rustix::fs::mkdirat(parent, name, Mode::RWXU).expect("made");
        rustix::fs::openat(parent, name, OPEN, Mode::empty()).expect("there")
    }

    fn make_file(parent: &OwnedFd, name: &str, bytes: usize) {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::RUSR).expect("made");
        File::from(file).write_all(&vec![7; bytes]).expect("written");
    }

    #[test]
    fn what_lies_deeper_than_paths_lead_counts() {
        const DEPTH: usize = 120;
        let dir = tempfile::tempdir().expect("a directory");
        let mut below = rustix::fs::open(dir.path(), OPEN, Mode::empty()).expect("there");
        let mut expected = Found::default();
        for level in 0..DEPTH {
            // Whatever the order in which they are read, there is something after the one that leads down.
            for number in 0..4 {
                make_file(&make_dir(&below, &format!("beside-{number}")), "file", 10);
                make_file(&below, &format!("file-{number}"), level);
                expected.bytes += 10 + level as u64;
            }
            below = make_dir(&below, &"n".repeat(200));
            expected.names += 13;
        }
        const { assert!(DEPTH * 200 > 4 * 4096) };
        for places_max in [1, 5, PLACES_MAX] {
            assert_eq!(count(dir.path(), places_max), expected, "{places_max}");
        }
        assert_eq!(found(dir.path()), expected);
    }

    #[test]
    fn width_costs_nothing_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().join("top");
        fs::create_dir_all(dir.path().join("beyond/below")).expect("made");
        for number in 0..400 {
            fs::create_dir_all(top.join(format!("dir-{number}/empty"))).expect("made");
            fs::write(top.join(format!("dir-{number}/file")), "some").expect("written");
            fs::write(top.join(format!("file-{number}")), "text").expect("written");
        }
        fs::hard_link(top.join("file-0"), top.join("dir-0/again")).expect("linked");
        symlink(dir.path().join("beyond"), top.join("link")).expect("linked");
        symlink("/", top.join("dir-1/link")).expect("linked");
        let expected = Found { names: 4 * 400 + 3, bytes: 8 * 400 };
        for places_max in [1, PLACES_MAX] {
            assert_eq!(count(&top, places_max), expected);
        }
        assert_eq!(found(&top.join("link")), Found::default(), "the top is no link either");
        assert_eq!(found(&top.join("nowhere")), Found::default());
    }
}
