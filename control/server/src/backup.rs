//! Backup files: what is in one, and a new cluster made of it. A backup is a raft snapshot's file, byte for byte.

use std::{
    collections::BTreeSet,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use coracle_pki::Authorities;
use coracle_raft::{
    chain, durable, recover,
    snapshot::{Header, Reader},
};
use coracle_storage::{
    encryption::SecretBox,
    machine::{FrozenStore, unreadable},
    peers::MemberSpec,
    version::{Agreed, Build},
};
use coracle_store::{Store, StoreConfig};
use serde::Serialize;

use crate::{
    authority_files,
    data_dir::{DataDir, Membership},
    error::ServerError,
    newborn::{self, Break},
};

/// How much of a file is read at a time, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// Where a restored control node keeps its key ring.
const KEY_RING_FILE: &str = "keys/secrets.ring";

/// What a backup file holds. Its checksums were right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    pub cluster_id: String,
    /// The lowest version of the cluster's members.
    pub version: String,
    /// Of the last entry that is in it.
    pub index: u64,
    pub term: u64,
    pub revision: u64,
    pub state_hash: String,
    pub file_bytes: u64,
    pub kinds: Vec<KindCount>,
    /// Keys of which the file's Secrets are sealed; the keys themselves are never in a backup.
    pub keys: Vec<String>,
}

/// How a backup is restored.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Of the first control node.
    pub name: String,
    /// The key ring of the old cluster, with which the backup's Secrets are sealed.
    pub key_ring: Option<PathBuf>,
    /// Leaves sealed Secrets out: nobody has their keys any more.
    pub drop_secrets: bool,
    /// Who restores it. Another build than this is for trying out upgrades.
    pub build: Build,
}

/// The objects of one kind, by its resource name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindCount {
    pub resource: String,
    pub objects: u64,
    /// Of their JSON.
    pub bytes: u64,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restoration {
    pub from: Inspection,
    pub cluster_id: String,
    pub member_id: u64,
    /// The revision with which the new cluster begins.
    pub revision: u64,
}

/// Reads a backup whole and says what is in it.
pub fn inspect(file: &Path) -> Result<Inspection, ServerError> {
    let (header, store) = read(file, &Build::default())?;
    inspection(file, &header, &store)
}

/// Makes a new cluster of one member out of a backup, in a data directory that is new or empty. On an error nothing of
/// what was there before has changed.
pub fn restore(file: &Path, data_dir: &Path, options: &RestoreOptions) -> Result<Restoration, ServerError> {
    DataDir::check_vacant(data_dir)?;
    let build = &options.build;
    let (header, mut store) = read(file, build)?;
    let from = inspection(file, &header, &store)?;
    let keys = keys(file, &from, options)?;
    let agreed = Agreed::read(store.view());
    if let Some(refusal) = agreed.refusal(build) {
        return Err(ServerError::Backup { path: file.to_owned(), reason: refusal });
    }
    let mut used = header.marker.removed.clone();
    used.extend(&header.marker.conf_state.voters);
    used.extend(&header.marker.conf_state.learners);
    let me = MemberSpec {
        id: newborn::unused_id(&store, &used),
        name: options.name.clone(),
        version: build.version.clone(),
        level: build.level(),
        ..MemberSpec::default()
    };
    let cluster_id = uuid::Uuid::new_v4().to_string();
    let what = if options.drop_secrets { Break::EverybodyAndSecrets } else { Break::Everybody };
    newborn::settle(&mut store, &cluster_id, &me, what)
        .map_err(|reason| ServerError::Backup { path: file.to_owned(), reason })?;
    let data = DataDir::open_as(data_dir, build.clone())?;
    data.begin()?;
    authority_files::save(&Authorities::generate(&cluster_id)?, &data)?;
    if let Some(keys) = keys {
        data.write(KEY_RING_FILE, &keys)?;
    }
    let state = FrozenStore(store.freeze());
    let at = (header.marker.index, header.marker.term);
    recover::found(&data.path("raft"), &cluster_id, me.id, at, used, &state)?;
    // An older build could not read it, though it has not started on it yet.
    data.record(&Membership::control(&cluster_id, me.id, &options.name, "").of_cluster(&agreed))?;
    Ok(Restoration { from, cluster_id, member_id: me.id, revision: store.revision() })
}

/// The key ring's file, where one is needed and named; an error where it does not fit.
fn keys(file: &Path, from: &Inspection, options: &RestoreOptions) -> Result<Option<Vec<u8>>, ServerError> {
    let refused = |reason| Err(ServerError::Backup { path: file.to_owned(), reason });
    let Some(path) = &options.key_ring else {
        if from.keys.is_empty() || options.drop_secrets {
            return Ok(None);
        }
        return refused(format!(
            "its Secrets are sealed with the keys {}: name the old cluster's key ring with --key-ring FILE, or leave \
             the Secrets out with --drop-secrets",
            from.keys.join(", ")
        ));
    };
    let bytes = std::fs::read(path).map_err(ServerError::io("read the key ring", path))?;
    let ring = SecretBox::load(path)?.ring();
    if let Some(missing) = from.keys.iter().find(|key| ring.get(key).is_none()) {
        return refused(format!("its Secrets are sealed with key {missing}, which {} lacks", path.display()));
    }
    Ok(Some(bytes))
}

fn read(file: &Path, build: &Build) -> Result<(Header, Store), ServerError> {
    let broken = |reason: String| ServerError::Backup { path: file.to_owned(), reason };
    let opened = File::open(file).map_err(ServerError::io("open", file))?;
    let mut reader = Reader::open(BufReader::with_capacity(BUFFER_BYTES, opened))
        .map_err(|error| broken(chain(&error)))?;
    let config = StoreConfig { levels: build.levels, ..StoreConfig::default() };
    let store = Store::restore(&mut reader, config).map_err(|error| broken(unreadable(&error, build)))?;
    Ok((reader.header().clone(), store))
}

fn inspection(file: &Path, header: &Header, store: &Store) -> Result<Inspection, ServerError> {
    let length = file.metadata().map_err(ServerError::io("look at", file))?.len();
    let view = store.view();
    let kinds = view.tables.iter().map(|(resource, table)| KindCount {
        resource: resource.to_string(),
        objects: table.len() as u64,
        bytes: table.values().map(|object| object.json.len() as u64).sum(),
    });
    Ok(Inspection {
        cluster_id: header.cluster_id.clone(),
        version: Agreed::read(view).version,
        index: header.marker.index,
        term: header.marker.term,
        revision: view.revision,
        state_hash: hex::encode(store.state_hash()),
        file_bytes: length,
        kinds: kinds.filter(|kind| kind.objects > 0).collect(),
        keys: newborn::sealed(store).map(|(_, key)| key).collect::<BTreeSet<_>>().into_iter().collect(),
    })
}

/// Where a file is written until it is whole.
pub fn partial(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    file.with_file_name(name)
}

/// Gives a written file its name, once it has been read back as a whole backup. On an error the partial file is gone
/// and what had the name before is as it was.
pub fn keep(file: &Path) -> Result<Inspection, ServerError> {
    let partial = partial(file);
    let kept = inspect(&partial).and_then(|inspection| {
        let synced = File::open(&partial).and_then(|written| written.sync_all());
        synced.map_err(ServerError::io("sync", &partial))?;
        std::fs::rename(&partial, file).map_err(ServerError::io("rename", &partial))?;
        durable::sync_parent(file).map_err(ServerError::io("sync", file))?;
        Ok(inspection)
    });
    if kept.is_err() {
        // It may not even have been made.
        let _ = std::fs::remove_file(&partial);
    }
    kept
}
