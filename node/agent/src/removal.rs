//! Removal of directories that guests have filled, however they have nested them.
//!
//! A directory that lies too deep is renamed to the top, so that there are never more than two levels to look at. That
//! takes one step an entry, a stack and a number of descriptors that no guest sets, and no path, which could be longer
//! than the kernel takes. What an interrupted removal leaves is an ordinary directory.
//!
//! A disk that is full may have no room for a name at the top: there [`Descent`] goes down instead, and comes back by
//! `..`. That only frees space.

mod descent;
mod queue;

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};

use descent::Descent;

pub use queue::Removals;

const OPEN: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory with all in it, and returns once it has; one that is not there is fine.
pub fn remove_dir(path: &Path) -> io::Result<()> {
    let Some(mut removal) = Removal::open(path)? else { return Ok(()) };
    while !removal.advance(usize::MAX)? {}
    Ok(())
}

/// The removal of one directory, done turn by turn.
struct Removal {
    path: PathBuf,
    top: Level,
    /// The directory in the top one that is being emptied, and its name there.
    below: Option<(CString, Level)>,
    /// What lies further down, where it could not be renamed to the top.
    deep: Option<Descent>,
    /// The number in the next name at the top.
    next_name: u64,
    /// The first of what could not be removed: the rest goes nevertheless.
    failed: Option<Errno>,
    rename: Rename,
}

/// Renames an entry of one directory to a name of another. A disk without room for that is something that tests make up.
type Rename = fn(&OwnedFd, &CStr, &OwnedFd, &str) -> rustix::io::Result<()>;

fn rename(from: &OwnedFd, name: &CStr, to: &OwnedFd, lifted: &str) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(from, name, to, lifted, RenameFlags::NOREPLACE)
}

/// A directory and how far it was read.
struct Level {
    dir: OwnedFd,
    entries: Dir,
    /// Something was removed, or came, since the reading began.
    changed: bool,
}

impl Level {
    fn new(dir: OwnedFd) -> rustix::io::Result<Self> {
        Ok(Self { entries: Dir::read_from(&dir)?, dir, changed: false })
    }

    fn next(&mut self) -> rustix::io::Result<Option<(CString, bool)>> {
        loop {
            let Some(entry) = self.entries.read().transpose()? else { return Ok(None) };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                known => known == FileType::Directory,
            };
            return Ok(Some((name.to_owned(), is_dir)));
        }
    }

    /// Reads from the beginning again; false where the last reading changed nothing, so that the next would not.
    fn again(&mut self) -> bool {
        self.entries.rewind();
        std::mem::take(&mut self.changed)
    }

    /// Removes an entry. False where it is a directory that has something in it.
    fn remove(&mut self, name: &CStr, is_dir: bool) -> rustix::io::Result<bool> {
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(&self.dir, name, flags) {
            Ok(()) | Err(Errno::NOENT) => {
                self.changed = true;
                Ok(true)
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_dir => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Removal {
    /// `None` where there is nothing to remove.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        Self::go_on(path, 0)
    }

    /// The same of one that has been begun, and of whose names so many have been used.
    fn go_on(path: &Path, next_name: u64) -> io::Result<Option<Self>> {
        let top = match rustix::fs::openat(CWD, path, OPEN, Mode::empty()) {
            Ok(dir) => Level::new(dir)?,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (below, deep, failed) = Default::default();
        Ok(Some(Self { path: path.to_owned(), top, below, deep, next_name, failed, rename }))
    }

    /// Looks at so many entries more. True once everything is gone.
    fn advance(&mut self, entries: usize) -> io::Result<bool> {
        for _ in 0..entries {
            if self.step()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at one entry more. What cannot be removed is passed over, and fails the whole at the end.
    fn step(&mut self) -> io::Result<bool> {
        if let Some(descent) = self.deep.take() {
            self.deep = self.descend(descent).unwrap_or_else(|error| self.pass_over(error));
            return Ok(false);
        }
        if let Some((name, mut level)) = self.below.take() {
            match level.next() {
                Ok(Some((inner, is_dir))) => {
                    self.empty(&mut level, &inner, is_dir).unwrap_or_else(|error| self.pass_over(error));
                    self.below = Some((name, level));
                }
                Ok(None) if self.remove_below(&name) => {}
                Ok(None) if level.again() => self.below = Some((name, level)),
                Ok(None) => self.pass_over(Errno::NOTEMPTY),
                Err(error) => self.pass_over(error),
            }
            return Ok(false);
        }
        match self.top.next()? {
            Some((name, is_dir)) => {
                self.below = self.enter(name, is_dir).unwrap_or_else(|error| self.pass_over(error));
                Ok(false)
            }
            None => match rustix::fs::rmdir(&self.path) {
                Ok(()) | Err(Errno::NOENT) => Ok(true),
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.top.again() => Ok(false),
                Err(error) => Err(self.failed.unwrap_or(error).into()),
            },
        }
    }

    /// Removes an entry of the top, or opens it to be emptied.
    fn enter(&mut self, name: CString, is_dir: bool) -> rustix::io::Result<Option<(CString, Level)>> {
        if self.top.remove(&name, is_dir)? {
            return Ok(None);
        }
        let dir = rustix::fs::openat(&self.top.dir, &name, OPEN, Mode::empty())?;
        Ok(Some((name, Level::new(dir)?)))
    }

    /// Removes an entry of the second level, or sees to it that it is emptied.
    fn empty(&mut self, level: &mut Level, name: &CStr, is_dir: bool) -> rustix::io::Result<()> {
        // Whatever was wrong with the new name: the way down needs none.
        if !level.remove(name, is_dir)? && self.lift(level, name).is_err() {
            self.deep = Some(Descent::begin(&self.top.dir, &level.dir, name)?);
        }
        Ok(())
    }

    /// Looks at one entry more of what lies deeper. `None` when that is empty.
    fn descend(&mut self, mut descent: Descent) -> rustix::io::Result<Option<Descent>> {
        let level = &mut descent.level;
        match level.next()? {
            // What was removed meanwhile may have made room at the top.
            Some((name, is_dir)) => {
                if !level.remove(&name, is_dir)? && self.lift(level, &name).is_err() {
                    descent.enter(&name)?;
                }
            }
            None if level.again() => {}
            None => {
                let above = descent.leave()?;
                if let (None, Some((_, second))) = (&above, &mut self.below) {
                    // A directory in it is empty now.
                    second.changed = true;
                }
                return Ok(above);
            }
        }
        Ok(Some(descent))
    }

    fn remove_below(&mut self, name: &CStr) -> bool {
        self.top.remove(name, true).unwrap_or_else(|error| self.pass_over(error))
    }

    /// Takes note of what went wrong, and goes on with nothing.
    fn pass_over<T: Default>(&mut self, error: Errno) -> T {
        self.failed.get_or_insert(error);
        T::default()
    }

    /// Renames a directory to the top, under a name that nothing there has.
    fn lift(&mut self, level: &mut Level, name: &CStr) -> rustix::io::Result<()> {
        loop {
            let lifted = format!(".lifted-{}", self.next_name);
            self.next_name += 1;
            match (self.rename)(&level.dir, name, &self.top.dir, &lifted) {
                Ok(()) => {
                    (self.top.changed, level.changed) = (true, true);
                    return Ok(());
                }
                // A guest may have used the name, once for each of its own entries.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A directory for tests of many entries, in memory where the machine has a place for that: some disks need
/// milliseconds for each.
#[cfg(test)]
pub fn quick_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, thread};

    use super::*;

    /// Nests directories without a path, as a guest does.
    pub fn nest(top: &Path, depth: usize, name: impl Fn(usize) -> String) {
        let mut dir = rustix::fs::openat(CWD, top, OPEN, Mode::empty()).unwrap();
        for level in 0..depth {
            let name = name(level);
            rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, &name, OPEN, Mode::empty()).unwrap();
            if level % 1000 == 0 {
                rustix::fs::openat(&dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
                rustix::fs::symlinkat("/", &dir, "link").unwrap();
            }
        }
    }

    /// On a stack that ten levels of recursion with a path each would overflow.
    fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
        thread::Builder::new().stack_size(128 * 1024).spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn depth_costs_neither_stack_nor_descriptors_nor_paths() {
        for (depth, length) in [(15_000, 1), (100_000, 2), (3_000, 255)] {
            let dir = quick_dir();
            let top = dir.path().join("pod");
            fs::create_dir(&top).unwrap();
            nest(&top, depth, |_| "n".repeat(length));
            on_a_small_stack(move || remove_dir(&top).unwrap());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{depth} of {length}");
        }
    }

    #[test]
    fn width_names_and_links_are_no_matter_and_what_lies_beyond_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (top, beyond) = (dir.path().join("pod"), dir.path().join("beyond"));
        for path in [&top, &beyond] {
            fs::create_dir(path).unwrap();
        }
        fs::write(beyond.join("kept"), "").unwrap();
        // Names that the removal itself would choose.
        for number in 0..50 {
            let inner = top.join(format!("v/.lifted-{number}/x/.lifted-{number}/y"));
            fs::create_dir_all(inner).unwrap();
            fs::create_dir_all(top.join(format!(".lifted-{number}/a/b"))).unwrap();
        }
        for number in 0..3000 {
            fs::write(top.join(format!("v/{number}")), "").unwrap();
        }
        symlink(&beyond, top.join("v/link")).unwrap();
        symlink(&beyond, top.join("link")).unwrap();
        remove_dir(&top).unwrap();
        assert!(!top.exists() && beyond.join("kept").exists());
        remove_dir(&top).unwrap();
    }

    #[test]
    fn an_interrupted_removal_goes_on_where_it_was() {
        let dir = quick_dir();
        let top = dir.path().join("pod");
        fs::create_dir(&top).unwrap();
        nest(&top, 3000, |level| format!("d{level}"));
        let mut removal = Removal::open(&top).unwrap().unwrap();
        assert!(!removal.advance(1000).unwrap());
        drop(removal);
        remove_dir(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_disk_without_room_for_a_name_is_emptied_nevertheless() {
        let full: Rename = |_, _, _, _| Err(Errno::NOSPC);
        for (depth, width) in [(1, 1), (2, 30), (20_000, 1)] {
            let dir = quick_dir();
            let top = dir.path().join("pod");
            for number in 0..width {
                let inner = top.join(format!("v/{number}"));
                fs::create_dir_all(&inner).unwrap();
                nest(&inner, depth, |level| format!("d{level}"));
                fs::write(inner.join("beside"), "x").unwrap();
            }
            on_a_small_stack(move || {
                let removal = Removal::open(&top).unwrap().unwrap();
                let mut removal = Removal { rename: full, ..removal };
                // Each directory is looked at a few times, on the way down and on the way up.
                assert!(removal.advance(10 * (depth + 4) * width).unwrap());
                assert!(!top.exists());
            });
        }
    }

    #[test]
    fn room_that_comes_about_is_used_and_what_lies_beyond_the_top_stays() {
        let dir = quick_dir();
        let top = dir.path().join("pod");
        let inner = top.join("v/a");
        fs::create_dir_all(&inner).unwrap();
        nest(&inner, 3000, |_| "d".into());
        fs::write(dir.path().join("kept"), "x").unwrap();
        let removal = Removal::open(&top).unwrap().unwrap();
        let mut removal = Removal { rename: |_, _, _, _| Err(Errno::DQUOT), ..removal };
        assert!(!removal.advance(2000).unwrap());
        removal.rename = rename;
        assert!(removal.advance(20_000).unwrap());
        assert!(!top.exists() && dir.path().join("kept").exists());
    }

    #[test]
    fn what_cannot_be_removed_now_holds_up_nothing_else() {
        let dir = quick_dir();
        let top = dir.path().join("pod");
        fs::create_dir_all(top.join("v/stuck/x")).unwrap();
        for number in 0..10 {
            fs::create_dir_all(top.join(format!("v/{number}/y/z"))).unwrap();
            fs::create_dir_all(top.join(format!("w{number}/y/z"))).unwrap();
        }
        // It is neither renamed nor entered: it has become something else since it was read.
        let removal = Removal::open(&top).unwrap().unwrap();
        let mut removal = Removal {
            rename: |from, name, to, lifted| match name.to_bytes() {
                b"stuck" => {
                    rustix::fs::renameat(from, name, from, "aside")?;
                    rustix::fs::openat(from, name, OFlags::CREATE, Mode::RUSR)?;
                    Err(Errno::IO)
                }
                _ => rename(from, name, to, lifted),
            },
            ..removal
        };
        assert!(removal.advance(1000).unwrap());
        assert_eq!(removal.failed, Some(Errno::NOTDIR));
        assert!(!top.exists());
    }
}
