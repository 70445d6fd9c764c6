//! The directories of the host that a container mounts, each opened once.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use wasmtime_wasi::filesystem::Dir;
use wasmtime_wasi::{FsPerms, OpenMode};

use super::{Files, Usage};
use crate::sandbox::StartError;

/// A directory of the host that a guest sees.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The directory on the host; for messages only where `pin` is set.
    pub host: PathBuf,
    /// The directory itself, opened where its path was checked: what guests do to that path later changes nothing.
    /// Without it, the path is opened once, when the container is started.
    pub pin: Option<Arc<OwnedFd>>,
    /// Its absolute path in the guest; `.` for the directory in which relative paths begin.
    pub guest: String,
    /// Nothing under it can be changed by the guest.
    pub read_only: bool,
    /// The volume that it is of; none where only the node writes it.
    pub volume: Option<Volume>,
}

/// Files that guests of one pod write and share. What they take of the disk is counted together, however often and under
/// whatever paths the volume is mounted.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its directory on the host.
    pub dir: PathBuf,
    /// Bytes that its files may take: their lengths, and 4 KiB for each name.
    pub bytes_max: Option<u64>,
}

/// A mount whose directory was found once and for all.
pub(super) struct PinnedMount {
    dir: Dir,
    guest: String,
    read_only: bool,
    volume: Option<Volume>,
}

impl PinnedMount {
    /// The mounts of a container, and how many directories they are: each is opened once.
    pub(super) fn all(mounts: &[Mount]) -> Result<(Vec<PinnedMount>, usize), StartError> {
        let mut opened: BTreeMap<&Path, Dir> = BTreeMap::new();
        let mut all = Vec::with_capacity(mounts.len());
        for mount in mounts {
            let dir = match opened.get(&*mount.host) {
                Some(known) => known.clone(),
                None => {
                    let dir = open(mount).map_err(|error| StartError::Mount {
                        host: mount.host.display().to_string(),
                        guest: mount.guest.clone(),
                        message: error.to_string(),
                    })?;
                    opened.insert(&mount.host, dir.clone());
                    dir
                }
            };
            let (guest, volume) = (mount.guest.clone(), mount.volume.clone());
            all.push(PinnedMount { dir, guest, read_only: mount.read_only, volume });
        }
        Ok((all, opened.len()))
    }

    /// Lets the guest of `files` find the directory. `usage` says where a volume is counted.
    pub(super) fn mount(self, files: &mut Files, usage: impl FnOnce(&Volume) -> Arc<Usage>) {
        files.mount(self.dir, self.guest, self.read_only, self.volume.as_ref().map(usage));
    }
}

/// Opens a mount's directory, where that has not been done. Fails where it cannot be read as a directory.
fn open(mount: &Mount) -> io::Result<Dir> {
    let dir = match &mount.pin {
        Some(pin) => pin.try_clone()?,
        None => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&mount.host, flags, Mode::empty())?
        }
    };
    // Fails here rather than in the guest's task: the caller can say what is wrong with the spec.
    rustix::fs::openat(&dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Dir::new(dir.into(), FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE, true))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_pinned_directory_stays_the_same_whatever_takes_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let (host, other) = (dir.path().join("volume"), dir.path().join("secrets"));
        for (path, file) in [(&host, "mine"), (&other, "theirs")] {
            std::fs::create_dir(path).expect("made");
            std::fs::write(path.join(file), "").expect("written");
        }
        let pin = Some(Arc::new(OwnedFd::from(std::fs::File::open(&host).expect("there"))));
        let mount = Mount {
            host: host.clone(),
            pin: None,
            guest: "/data".to_owned(),
            read_only: false,
            volume: None,
        };
        let opened = open(&mount).expect("there");
        std::fs::rename(&host, dir.path().join("moved")).expect("moved");
        std::os::unix::fs::symlink(&other, &host).expect("linked");
        let pinned = open(&Mount { pin, ..mount }).expect("there");
        for dir in [opened, pinned] {
            let path = format!("/proc/self/fd/{}", dir.dir.as_raw_fd());
            let names = std::fs::read_dir(path).expect("readable").flatten();
            let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
            assert_eq!(names, ["mine"]);
        }
    }

    #[test]
    fn a_directory_is_opened_once_however_often_it_is_mounted() {
        let dir = tempfile::tempdir().expect("a directory");
        let mount = |number: usize| Mount {
            host: dir.path().to_owned(),
            pin: None,
            guest: format!("/data/{number}"),
            read_only: number == 0,
            volume: None,
        };
        let mounts: Vec<_> = (0..1000).map(mount).collect();
        let (all, dirs) = PinnedMount::all(&mounts).expect("there");
        assert_eq!((all.len(), dirs), (1000, 1));
        assert!(all.iter().all(|mount| Arc::ptr_eq(&mount.dir.dir, &all[0].dir.dir)));
    }
}
