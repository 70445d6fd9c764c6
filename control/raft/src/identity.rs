//! Whose directory it is: one process at a time, of one member of one cluster.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::durable::{self, PRIVATE_FILE};
use crate::error::Error;
use crate::wal::{Disk, DiskFile};

/// The file that is locked while a member runs.
const LOCK_FILE: &str = "lock";
/// The file that names cluster and member.
const MEMBER_FILE: &str = "member";

/// Keeps other processes out of the directory until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Makes the directory where it is missing, and locks it.
pub fn lock(dir: &Path) -> Result<Lock, Error> {
    let failed = |action| move |source| Error::Disk { action, file: dir.display().to_string(), source };
    durable::create_dirs(dir).map_err(failed("create"))?;
    let file = File::options()
        .create(true)
        .mode(PRIVATE_FILE)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK_FILE))
        .map_err(failed("open the lock file of"))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { dir: dir.display().to_string() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// Makes sure that the directory belongs to this member, or takes it where it is empty.
pub fn claim(disk: &impl Disk, cluster_id: &str, id: u64) -> Result<(), Error> {
    let failed = |action| move |source| Error::Disk { action, file: MEMBER_FILE.to_owned(), source };
    let names = disk.list().map_err(failed("list"))?;
    if names.iter().any(|name| name == MEMBER_FILE) {
        let bytes = disk.open(MEMBER_FILE).and_then(|file| file.read_all()).map_err(failed("read"))?;
        let (found_cluster, found_id) =
            parse(&bytes).ok_or_else(|| corrupt("it does not name cluster and member"))?;
        if found_cluster != cluster_id {
            return Err(Error::ForeignCluster { found: found_cluster, expected: cluster_id.to_owned() });
        }
        if found_id != id {
            return Err(Error::ForeignMember { found: found_id, expected: id });
        }
        return Ok(());
    }
    if names.iter().any(|name| name.ends_with(".wal")) {
        return Err(corrupt("it is missing, but a log exists"));
    }
    let text = render(cluster_id, id);
    let temporary = format!("{MEMBER_FILE}.tmp");
    let write = || {
        let mut file = disk.create(&temporary, text.len() as u64)?;
        file.write_at(0, text.as_bytes())?;
        file.sync()?;
        disk.rename(&temporary, MEMBER_FILE)?;
        disk.sync_directory()
    };
    write().map_err(failed("write"))
}

fn corrupt(what: &str) -> Error {
    Error::Corrupt { file: MEMBER_FILE.to_owned(), offset: 0, what: what.to_owned() }
}

fn render(cluster_id: &str, id: u64) -> String {
    let body = format!("coracle raft 1\ncluster {cluster_id}\nmember {id}\n");
    let crc = crc32c::crc32c(body.as_bytes());
    format!("{body}crc32c {crc:08x}\n")
}

fn parse(bytes: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.lines().skip(1);
    let cluster_id = lines.next()?.strip_prefix("cluster ")?;
    let id = lines.next()?.strip_prefix("member ")?.parse().ok()?;
    (render(cluster_id, id) == text).then(|| (cluster_id.to_owned(), id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::MemoryDisk;

    #[test]
    fn a_directory_has_one_owner() {
        let disk = MemoryDisk::new();
        assert!(claim(&disk, "c1", 3).is_ok());
        disk.crash(|_| 0);
        assert!(claim(&disk, "c1", 3).is_ok());
        assert!(matches!(claim(&disk, "c2", 3), Err(Error::ForeignCluster { .. })));
        assert!(matches!(claim(&disk, "c1", 4), Err(Error::ForeignMember { found: 3, expected: 4 })));
        disk.plant(MEMBER_FILE, b"coracle raft 1\ncluster c1\nmember 4\ncrc32c 00000000\n");
        assert!(matches!(claim(&disk, "c1", 4), Err(Error::Corrupt { .. })));
        disk.plant("0000000000000001.wal", b"");
        assert!(disk.remove(MEMBER_FILE).is_ok());
        assert!(matches!(claim(&disk, "c1", 4), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_directory_has_one_process() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("raft");
        let first = lock(&path).expect("nobody else is there");
        assert!(matches!(lock(&path), Err(Error::Locked { .. })));
        drop(first);
        assert!(lock(&path).is_ok());
    }
}
