//! The data directory of a control node: whose it is, who uses it now, and where in it everything lies.
//!
//! ```text
//! lock          held while a process uses the directory
//! cluster.json  written last when the directory is made: cluster, member, name, address, and what a build must be able
//!               to read that opens the directory
//! peers.json    the members' addresses when last known, so that a restart finds them
//! pki/          the three CAs and their keys, the service account key
//! raft/         the log
//! keys/         the key ring for Secrets, where no other place is named for it
//! raft-of-ID/   the log of the cluster from which this one was recovered
//! blobs/        the registry's content, by digest
//! kubeconfig    for administrators of the cluster
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use coracle_raft::durable;
use coracle_storage::version::{Agreed, Build, older};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::ServerError;

/// The layout of the directory. A build refuses a newer one than its own.
const FORMAT: u32 = 1;

/// What this module and others may put into the directory.
const OURS: &[&str] =
    &["lock", "making", "cluster.json", "peers.json", "pki", "keys", "raft", "blobs", "kubeconfig"];

/// Present from the first file until `cluster.json` is written: what lies here is half made and may be made anew.
const MAKING: &str = "making";

/// The role in `cluster.json`; a node's directory has another.
const ROLE: &str = "control";

/// Which member of which cluster a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    pub cluster_id: String,
    pub role: String,
    #[serde(default)]
    pub member_id: u64,
    #[serde(default)]
    pub name: String,
    /// `host:port` as advertised at the last start.
    #[serde(default)]
    pub address: String,
    /// The layout of the directory.
    #[serde(default = "first_format")]
    pub format: u32,
    /// What the cluster had agreed on when last heard of: an older build could not read the log.
    #[serde(default)]
    pub cluster_version: String,
    #[serde(default, rename = "entryFormat")]
    pub level: u8,
}

/// What every `cluster.json` has, of whatever build.
#[derive(Deserialize)]
struct Layout {
    #[serde(default = "first_format")]
    format: u32,
}

fn first_format() -> u32 {
    1
}

impl Membership {
    pub fn control(cluster_id: &str, member_id: u64, name: &str, address: &str) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            role: ROLE.into(),
            member_id,
            name: name.into(),
            address: address.into(),
            format: FORMAT,
            cluster_version: String::new(),
            level: 0,
        }
    }

    /// The same where its cluster has agreed on this. Never less than before: while a member reads its log again it hears
    /// of what was agreed on once.
    pub fn of_cluster(mut self, agreed: &Agreed) -> Self {
        if older(&self.cluster_version, &agreed.version) {
            self.cluster_version = agreed.version.clone();
        }
        self.level = self.level.max(agreed.level);
        self
    }

    fn agreed(&self) -> Agreed {
        Agreed { version: self.cluster_version.clone(), level: self.level }
    }
}

/// Makes a directory where it is missing, for this user alone. One of ours, which has this file, or that is empty is closed to
/// other users of the machine; a stranger's is left as it is.
pub fn private_dir(path: &Path, ours: &str) -> Result<(), ServerError> {
    durable::create_dirs(path).map_err(ServerError::io("create the data directory", path))?;
    let is_ours = path.join(ours).exists();
    if !is_ours && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(());
    }
    if durable::close(path).map_err(ServerError::io("close to other users", path))? && is_ours {
        tracing::warn!(path = %path.display(), "the data directory was open to other users of this machine");
    }
    Ok(())
}

/// A directory that this process has for itself.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The build that uses it.
    build: Build,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl DataDir {
    /// Creates the directory where needed, closes it to other users, and takes its lock.
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        Self::open_as(path, Build::default())
    }

    /// The same for a build that may be another than this one.
    pub fn open_as(path: &Path, build: Build) -> Result<Self, ServerError> {
        private_dir(path, "cluster.json")?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(ServerError::io("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), build, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ServerError::Locked(path.to_owned())),
            Err(error) => Err(ServerError::io("lock", lock_path)(error.into())),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn build(&self) -> &Build {
        &self.build
    }

    pub fn root(&self) -> &Path {
        &self.path
    }

    /// An error unless the directory is new, empty or was left half made. Changes nothing.
    pub fn check_vacant(path: &Path) -> Result<(), ServerError> {
        if path.join(MAKING).exists() && !path.join("cluster.json").exists() {
            return Ok(());
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(ServerError::io("read", path)(error)),
        };
        for entry in entries {
            let name = entry.map_err(ServerError::io("read", path))?.file_name();
            if !matches!(name.to_str(), Some("lock" | "lost+found")) {
                let found = name.to_string_lossy().into_owned();
                return Err(ServerError::NotVacant { path: path.to_owned(), found });
            }
        }
        Ok(())
    }

    /// Whose the directory is; `None` where it is empty or was left half made.
    pub fn membership(&self) -> Result<Option<Membership>, ServerError> {
        let path = self.path("cluster.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.refuse_strangers()?;
                return Ok(None);
            }
            Err(error) => return Err(ServerError::io("read", path)(error)),
        };
        let damaged =
            |error: serde_json::Error| ServerError::Damaged { path: path.clone(), reason: error.to_string() };
        let Layout { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if format > FORMAT {
            return Err(ServerError::NewerLayout { path: self.path.clone(), found: format, known: FORMAT });
        }
        let membership: Membership = serde_json::from_slice(&text).map_err(damaged)?;
        if membership.role != ROLE {
            let Membership { role, cluster_id, .. } = membership;
            return Err(ServerError::OtherRole { path: self.path.clone(), role, cluster_id });
        }
        if membership.member_id == 0 {
            return Err(ServerError::Damaged { path, reason: "it names no member".into() });
        }
        if let Some(refusal) = membership.agreed().refusal(&self.build) {
            return Err(ServerError::OldBuild { path: self.path.clone(), refusal });
        }
        Ok(Some(membership))
    }

    /// Begins to make the directory: removes what a start that was cut short left behind.
    pub fn begin(&self) -> Result<(), ServerError> {
        for folder in ["pki", "keys", "raft", "blobs"] {
            let path = self.path(folder);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ServerError::io("clear", path)(error));
                }
                _ => {}
            }
        }
        self.write(MAKING, b"")
    }

    /// Ends making it, or records a changed address.
    pub fn record(&self, membership: &Membership) -> Result<(), ServerError> {
        self.write("cluster.json", &pretty(membership))?;
        let making = self.path(MAKING);
        match fs::remove_file(&making).and_then(|()| durable::sync_parent(&making)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ServerError::io("remove", making)(error))
            }
            _ => Ok(()),
        }
    }

    /// Records what the cluster has agreed on: from then on no older build opens the directory. False where it does not
    /// belong to a cluster yet.
    pub fn record_agreed(&self, agreed: &Agreed) -> Result<bool, ServerError> {
        let Some(membership) = self.membership()? else { return Ok(false) };
        let raised = membership.clone().of_cluster(agreed);
        if raised != membership {
            self.record(&raised)?;
        }
        Ok(true)
    }

    /// The members' addresses when last known.
    pub fn peers(&self) -> BTreeMap<u64, String> {
        let known = fs::read(self.path("peers.json")).ok();
        known.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub fn record_peers(&self, peers: &BTreeMap<u64, String>) -> Result<(), ServerError> {
        self.write("peers.json", &pretty(peers))
    }

    /// Writes a file so that after a crash there is the old one or the new one; readable by the owner only. One that
    /// has this content already is left alone: that takes no room on the disk.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), ServerError> {
        let path = self.path(name);
        if fs::read(&path).is_ok_and(|found| found == content) {
            // A write before may have failed in its last step: then only its name is not on the disk yet.
            return durable::sync_parent(&path).map_err(ServerError::io("sync", path));
        }
        durable::write_atomically(&path, content).map_err(ServerError::io("write", path))
    }

    fn refuse_strangers(&self) -> Result<(), ServerError> {
        if self.path(MAKING).exists() {
            return Ok(());
        }
        let entries = fs::read_dir(&self.path).map_err(ServerError::io("read", &self.path))?;
        for entry in entries {
            let name = entry.map_err(ServerError::io("read", &self.path))?.file_name();
            let harmless = matches!(name.to_str(), Some("lock" | "lost+found"));
            if !harmless {
                let known = name.to_str().is_some_and(|name| OURS.contains(&name));
                let found = name.to_string_lossy().into_owned();
                let found = if known { format!("{found}, but no cluster.json") } else { found };
                return Err(ServerError::NotEmpty { path: self.path.clone(), found });
            }
        }
        Ok(())
    }
}

/// Whether a directory belongs to a control node already. Does not take its lock.
pub fn holds_member(path: &Path) -> bool {
    let membership = fs::read(path.join("cluster.json")).ok();
    let membership = membership.and_then(|text| serde_json::from_slice::<Membership>(&text).ok());
    membership.is_some_and(|membership| membership.role == ROLE && membership.member_id != 0)
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("a plain value encodes into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_had_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(ServerError::Locked(_))));
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn what_cannot_be_written_or_need_not_be_leaves_the_file_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.write("file", b"old").unwrap();
        // As on a full disk, also for root: a directory is in the way of the temporary file.
        fs::create_dir(data.path("file.new")).unwrap();
        data.write("file", b"old").unwrap();
        data.write("file", b"new").unwrap_err();
        assert_eq!(fs::read(data.path("file")).unwrap(), b"old");
        fs::remove_dir(data.path("file.new")).unwrap();
        fs::create_dir(data.path("taken")).unwrap();
        data.write("taken", b"new").unwrap_err();
        assert!(!data.path("taken.new").exists(), "nothing is left behind");
    }

    #[test]
    fn a_membership_is_read_back_and_another_role_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.membership().unwrap(), None);
        let mut membership = Membership::control("c", 1, "a", "127.0.0.1:1");
        data.begin().unwrap();
        assert_eq!(data.membership().unwrap(), None, "half made");
        data.record(&membership).unwrap();
        assert_eq!(data.membership().unwrap(), Some(membership.clone()));
        membership.role = "node".into();
        data.record(&membership).unwrap();
        assert!(matches!(data.membership(), Err(ServerError::OtherRole { role, .. }) if role == "node"));
    }

    #[test]
    fn a_directory_of_a_newer_build_is_refused_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let good = Membership::control("c", 1, "a", "127.0.0.1:1");
        let build = Build::default();
        let (version, level) = (build.version.clone(), build.level());
        let agreed = Agreed { version, level };
        assert!(!data.record_agreed(&agreed).unwrap());
        data.record(&good).unwrap();
        assert!(data.record_agreed(&agreed).unwrap());
        assert_eq!(data.membership().unwrap().unwrap().agreed(), agreed);
        let once = Agreed { version: "0.0.1".into(), level: 0 };
        assert!(data.record_agreed(&once).unwrap());
        assert_eq!(data.membership().unwrap().unwrap().agreed(), agreed, "never back");
        let refused = |membership: &Membership| {
            data.record(membership).unwrap();
            let before = fs::read(data.path("cluster.json")).unwrap();
            let error = data.membership().err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(fs::read(data.path("cluster.json")).unwrap(), before);
            error
        };
        let newer = refused(&Membership { cluster_version: "99.0.0".into(), ..good.clone() });
        assert!(newer.contains("use 99.0.0 or newer"), "{newer}");
        let higher = refused(&Membership { level: level + 1, ..good.clone() });
        assert!(higher.contains("are of level 2") && higher.contains(&build.version), "{higher}");
        let layout = refused(&Membership { format: FORMAT + 1, ..good });
        assert!(layout.contains("newer version of Coracle"), "{layout}");
    }

    #[test]
    fn a_directory_with_other_things_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert!(
            matches!(data.membership(), Err(ServerError::NotEmpty { found, .. }) if found == "thesis.tex")
        );
    }
}
