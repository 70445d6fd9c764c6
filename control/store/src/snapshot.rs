//! The whole replicated state as bytes: for raft snapshots and backups, closed by a SHA-256.

use coracle_objects::{Object, ObjectError, ObjectKey, Revision, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    dedup::Dedup,
    state::{Store, StoreConfig},
    watch::Window,
};

/// In front of every snapshot; the last byte is the version of the format.
const MAGIC: &[u8; 8] = b"CORACLE\x01";

/// Bytes of the SHA-256 at the end.
const TRAILER_BYTES: usize = 32;

/// The state at one moment; taking it is O(1) and it does not hold up the store.
#[derive(Clone, Debug)]
pub struct Frozen {
    view: View,
    dedup: Dedup,
    hash: [u8; 32],
}

/// Why bytes are not a snapshot.
#[derive(Debug, Error)]
pub enum SnapshotError {
    #[error("this is not a snapshot of a Coracle cluster, or one of a newer version")]
    Magic,
    #[error("the snapshot is damaged: its checksum does not match")]
    Checksum,
    #[error("the snapshot cannot be decoded")]
    Decode(#[source] postcard::Error),
    #[error("the snapshot holds something that is not an object under {key}")]
    Object {
        key: ObjectKey,
        #[source]
        source: ObjectError,
    },
}

#[derive(Serialize, Deserialize)]
struct Body {
    revision: Revision,
    hash: [u8; 32],
    dedup: Dedup,
    objects: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    key: ObjectKey,
    revision: Revision,
    draft: bytes::Bytes,
}

impl Store {
    pub fn freeze(&self) -> Frozen {
        Frozen { view: self.view.clone(), dedup: self.dedup.clone(), hash: self.hash }
    }

    /// Restores what [`Frozen::encode`] wrote. The watch window starts empty: older revisions are expired.
    pub fn restore(bytes: &[u8], config: StoreConfig) -> Result<Self, SnapshotError> {
        let content = bytes.strip_prefix(MAGIC).ok_or(SnapshotError::Magic)?;
        let (content, trailer) = content
            .split_at_checked(content.len().wrapping_sub(TRAILER_BYTES))
            .ok_or(SnapshotError::Checksum)?;
        if Sha256::digest(content).as_slice() != trailer {
            return Err(SnapshotError::Checksum);
        }
        let body: Body = postcard::from_bytes(content).map_err(SnapshotError::Decode)?;
        let mut view = View { revision: body.revision, ..View::default() };
        for Record { key, revision, draft } in body.objects {
            let object = Object::from_draft(key.clone(), &draft, revision)
                .map_err(|source| SnapshotError::Object { key: key.clone(), source })?;
            view.tables.entry(key.resource).or_default().insert(key.name, object.into());
        }
        let window = Window::new(config.watch_events_max, config.watch_revisions_max, body.revision);
        Ok(Self { config, view, dedup: body.dedup, window, hash: body.hash })
    }
}

impl Frozen {
    pub fn revision(&self) -> Revision {
        self.view.revision
    }

    pub fn state_hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Linear in the size of the state.
    pub fn encode(&self) -> Vec<u8> {
        let objects = self.view.tables.values().flat_map(|table| table.values());
        let body = Body {
            revision: self.view.revision,
            hash: self.hash,
            dedup: self.dedup.clone(),
            objects: objects
                .map(|object| Record {
                    key: object.key.clone(),
                    revision: object.revision,
                    draft: object.draft(),
                })
                .collect(),
        };
        let mut bytes =
            postcard::to_extend(&body, MAGIC.to_vec()).expect("a plain value encodes into memory");
        let digest = Sha256::digest(&bytes[MAGIC.len()..]);
        bytes.extend_from_slice(&digest);
        bytes
    }
}
