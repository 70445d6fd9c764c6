//! The boundary between the log and the machine: what a disk must promise, and the real one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

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
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        match fill_with_zeroes(&file, bytes) {
            Ok(()) => Ok(file),
            Err(error) => {
                // What was wrong in the first place is of more interest.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
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

/// Real zeroes rather than fallocate: a write into an unwritten extent has to journal its conversion, and then each
/// fdatasync waits for the journal.
fn fill_with_zeroes(file: &File, bytes: u64) -> io::Result<()> {
    let zeroes = vec![0_u8; ZEROES_BYTES.min(bytes as usize)];
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(zeroes.len() as u64);
        file.write_all_at(&zeroes[..length as usize], offset)?;
        offset += length;
    }
    file.sync_all()
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
