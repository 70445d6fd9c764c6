//! After the loss of a quorum: makes a cluster of one of a stopped member, with everything that its log has.
//!
//! The new raft directory is made beside the old one. From the moment that the journal is written the recovery is
//! decided, and a run that was cut short is finished by the next.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use coracle_raft::{
    durable,
    recover::{self, Stopped},
};
use coracle_storage::{
    machine::FrozenStore,
    peers::MemberSpec,
    version::{Agreed, Build},
};
use serde::{Deserialize, Serialize};

use crate::{
    data_dir::{DataDir, Membership},
    error::ServerError,
    newborn::{self, Break},
};

/// The new raft directory until it takes the old one's place.
pub const MADE: &str = "recovered";

/// Written when the new directory is whole.
pub const JOURNAL: &str = "recovering.json";

/// Before the old cluster's id in the name that its raft directory gets.
pub const KEPT_PREFIX: &str = "raft-of-";

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    pub old_cluster_id: String,
    pub cluster_id: String,
    pub old_member_id: u64,
    pub member_id: u64,
    pub name: String,
    /// Where the member was reached at its last start.
    pub address: String,
    /// Of the last entry of the log.
    pub index: u64,
    pub term: u64,
    /// Entries that this member did not know to be committed. They are kept: others may have acknowledged them.
    pub uncommitted: u64,
    /// The revision with which the new cluster begins.
    pub revision: u64,
    pub objects: u64,
    /// Where the old raft directory is.
    pub kept: PathBuf,
    membership: Membership,
}

/// Makes the member of this data directory the only one of a new cluster. Nothing may run on the directory.
pub fn force_new_cluster(path: &Path) -> Result<Recovery, ServerError> {
    if !path.join("cluster.json").exists() {
        return Err(ServerError::NothingToRecover(path.to_owned()));
    }
    let data = DataDir::open(path)?;
    let found = data.membership()?.ok_or_else(|| ServerError::NothingToRecover(path.to_owned()))?;
    let recovery = match journal(&data)? {
        Some(recovery) => recovery,
        None => make(&data, &found)?,
    };
    finish(&data, &recovery)?;
    Ok(recovery)
}

/// Where a stopped member's log ends: of several members the one with the highest term, and then the highest index, has
/// everything that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd {
    pub cluster_id: String,
    pub member_id: u64,
    pub name: String,
    pub term: u64,
    pub index: u64,
    /// The highest index that the member knew to be committed.
    pub commit: u64,
}

/// Looks at the log of a stopped member; changes nothing.
pub fn log_end(path: &Path) -> Result<LogEnd, ServerError> {
    if !path.join("cluster.json").exists() {
        return Err(ServerError::NothingToRecover(path.to_owned()));
    }
    let data = DataDir::open(path)?;
    let found = data.membership()?.ok_or_else(|| ServerError::NothingToRecover(path.to_owned()))?;
    let stopped = Stopped::open(&data.path("raft"), &found.cluster_id, found.member_id)?;
    Ok(LogEnd {
        cluster_id: found.cluster_id,
        member_id: found.member_id,
        name: found.name,
        term: stopped.last_term(),
        index: stopped.last(),
        commit: stopped.commit(),
    })
}

fn journal(data: &DataDir) -> Result<Option<Recovery>, ServerError> {
    let path = data.path(JOURNAL);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| ServerError::Damaged { path, reason: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ServerError::io("read", path)(error)),
    }
}

fn make(data: &DataDir, found: &Membership) -> Result<Recovery, ServerError> {
    let stopped = Stopped::open(&data.path("raft"), &found.cluster_id, found.member_id)?;
    let mut store = newborn::replay(&stopped)?;
    let used = stopped.used_ids();
    let build = Build::default();
    let me = MemberSpec {
        id: newborn::unused_id(&store, &used),
        name: found.name.clone(),
        address: found.address.clone(),
        level: build.level(),
        version: build.version,
    };
    let cluster_id = uuid::Uuid::new_v4().to_string();
    newborn::settle(&mut store, &cluster_id, &me, Break::Members)
        .map_err(|reason| ServerError::Damaged { path: data.path("raft"), reason })?;
    let made = data.path(MADE);
    remove(&made)?;
    let (index, term) = (stopped.last(), stopped.last_term());
    recover::found(&made, &cluster_id, me.id, (index, term), used, &FrozenStore(store.freeze()))?;
    let recovery = Recovery {
        old_cluster_id: found.cluster_id.clone(),
        old_member_id: found.member_id,
        member_id: me.id,
        name: me.name,
        address: me.address,
        index,
        term,
        uncommitted: index.saturating_sub(stopped.commit()),
        revision: store.revision(),
        objects: store.view().tables.values().map(|table| table.len() as u64).sum(),
        kept: data.path(&format!("{KEPT_PREFIX}{}", found.cluster_id)),
        membership: Membership { cluster_id: cluster_id.clone(), member_id: me.id, ..found.clone() }
            .of_cluster(&Agreed::read(store.view())),
        cluster_id,
    };
    let text = serde_json::to_vec_pretty(&recovery).expect("a plain value encodes into memory");
    data.write(JOURNAL, &text)?;
    Ok(recovery)
}

/// Puts the new directory in the old one's place. May be done again after it was cut short anywhere.
fn finish(data: &DataDir, recovery: &Recovery) -> Result<(), ServerError> {
    let (made, raft) = (data.path(MADE), data.path("raft"));
    if made.exists() {
        if raft.exists() {
            fs::rename(&raft, &recovery.kept).map_err(ServerError::io("move away", &raft))?;
        }
        fs::rename(&made, &raft).map_err(ServerError::io("put in its place", &made))?;
    }
    // What is recorded next must not outlast a crash that these names do not.
    durable::sync_parent(&raft).map_err(ServerError::io("sync", data.root()))?;
    data.record_peers(&[(recovery.member_id, recovery.address.clone())].into())?;
    data.record(&recovery.membership)?;
    let journal = data.path(JOURNAL);
    // A journal that came back would undo what the new cluster records later.
    fs::remove_file(&journal)
        .and_then(|()| durable::sync_parent(&journal))
        .map_err(ServerError::io("remove", &journal))
}

fn remove(folder: &Path) -> Result<(), ServerError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ServerError::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}
