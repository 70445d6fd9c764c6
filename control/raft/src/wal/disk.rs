//! The boundary between the log and the machine: what a disk must promise, and the real one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::durable::PRIVATE_FILE;

/// One directory on a disk. Names are plain file names in it.
///
/// What a crash keeps: file contents as of the file's last [`DiskFile::sync`], names as of the last
/// [`Disk::sync_directory`]. Anything newer may be there, in part or whole.
pub trait Disk: Clone + Send + Sync + 'static {
    type File: DiskFile;

    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a file of `bytes` zeroes, with blocks that are allocated and synced, in place of what had that name. Where it
    /// does not fit, nothing of it stays to take the room that others need.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Self::File>;
    /// As [`Disk::create`] where nobody waits for it: slowly, so that the syncs of others find the disk idle most of
    /// the time.
    fn create_beside(&self, name: &str, bytes: u64) -> io::Result<Self::File> {
        self.create(name, bytes)
    }
    /// Renames a file, in place of what had the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all creations, renames and removals before it last.
    fn sync_directory(&self) -> io::Result<()>;
    /// How much room there is.
    fn space(&self) -> io::Result<Space>;
}

/// The room on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    /// What this process may still write.
    pub free: u64,
}

/// One open file of a [`Disk`]. It stays the same file when it is renamed.
pub trait DiskFile: Send + 'static {
    fn size(&self) -> io::Result<u64>;
    fn read_all(&self) -> io::Result<Vec<u8>>;
    /// Reads what is there at `offset`, at most as much as `out` holds: how many bytes, 0 at the end.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize>;
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes all writes before it last.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the real file system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// The directory must exist.
    pub fn new(dir: impl Into<PathBuf>) -> RealDisk {
        RealDisk { dir: dir.into() }
    }
}

/// How many zeroes one write of a new file carries.
const ZEROES_BYTES: usize = 1024 * 1024;
/// How many zeroes are synced together where a file is made beside others' syncs, and how much longer the pause behind
/// them is than what they took.
const BESIDE_BYTES: usize = 256 * 1024;
const BESIDE_PAUSES: u32 = 4;
/// A pause is not longer than this, however slow the disk.
const BESIDE_PAUSE_MAX: Duration = Duration::from_millis(20);

impl RealDisk {
    /// Makes a file of what `fill` writes, synced. Where that fails, nothing of it stays.
    fn create_with(&self, name: &str, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(PRIVATE_FILE);
        let file = options.open(&path)?;
        match fill(&file).and_then(|()| file.sync_all()) {
            Ok(()) => Ok(file),
            Err(error) => {
                // What was wrong in the first place is of more interest.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }
}

/// Fills an empty file with so many zeroes, and calls `written` behind each `part_bytes` of them.
///
/// Real zeroes rather than fallocate: a write into an unwritten extent has to journal its conversion, and then each
/// fdatasync waits for the journal.
fn zero(
    file: &File,
    bytes: u64,
    part_bytes: usize,
    mut written: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let zeroes = vec![0_u8; part_bytes.min(bytes as usize)];
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(zeroes.len() as u64);
        file.write_all_at(&zeroes[..length as usize], offset)?;
        offset += length;
        written()?;
    }
    Ok(())
}

impl Disk for RealDisk {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.dir.join(name))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<File> {
        self.create_with(name, |file| zero(file, bytes, ZEROES_BYTES, || Ok(())))
    }

    fn create_beside(&self, name: &str, bytes: u64) -> io::Result<File> {
        let mut begun = Instant::now();
        self.create_with(name, |file| {
            zero(file, bytes, BESIDE_BYTES, || {
                file.sync_data()?;
                thread::sleep((begun.elapsed() * BESIDE_PAUSES).min(BESIDE_PAUSE_MAX));
                begun = Instant::now();
                Ok(())
            })
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok(Space { total: found.f_blocks * found.f_frsize, free: found.f_bavail * found.f_frsize })
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size()? as usize];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, out, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
