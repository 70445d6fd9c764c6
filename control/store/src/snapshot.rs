//! The whole replicated state as a stream of bytes, for raft snapshots and backups. What carries it checks that it is
//! whole: there is no checksum here.
//!
//! ```text
//! "CORACLE\x03"                           at level 1, or
//! "CORACLE\x04" level: u8  version: length u8, UTF-8     at any other: these stay as they are, whatever comes behind
//! head, objects..., end      each a length u32 (little-endian, 0 for the end) and as many bytes of postcard
//! ```
//!
//! The level is that of the state ([`crate::level`]), the version the lowest of the members when it was written. By them
//! a build that is too old says what is needed.

use std::io::{self, Read, Write};

use coracle_objects::{Object, ObjectError, ObjectKey, Revision, View};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    command::CorruptEntry,
    dedup::{Dedup, Kept},
    level::{FIRST_LEVEL, Levels},
    state::{Store, StoreConfig},
    watch::Window,
};

/// In front of every state, before the byte that tells its beginning.
const MAGIC: &[u8; 7] = b"CORACLE";

/// A state of the first level, which says nothing of it.
const UNTOLD: u8 = 3;

/// One that tells its level and version.
const TOLD: u8 = 4;

/// The longest part, in bytes: the head with its remembered outcomes, or an object.
const PART_BYTES_MAX: u32 = 256 * 1024 * 1024;

/// The state at one moment; taking it is O(1) and it does not hold up the store.
#[derive(Clone, Debug)]
pub struct Frozen {
    view: View,
    dedup: Dedup,
    level: u8,
    hash: [u8; 32],
}

/// What the beginning of a state tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub level: u8,
    /// Of the cluster when it was written; empty where it is not told.
    pub version: String,
}

/// Why bytes are not a state.
#[derive(Debug, Error)]
pub enum SnapshotError {
    #[error("this is not the state of a Coracle cluster, or one of another version of its format")]
    Magic,
    #[error(
        "the state is of level {}, of a cluster of version {:?}; this build knows levels up to {newest}: use that \
         version or a newer one", origin.level, origin.version
    )]
    Level { origin: Origin, newest: u8 },
    #[error("an outcome in the state cannot be read")]
    Outcome(#[source] CorruptEntry),
    #[error("the state cannot be read")]
    Read(#[from] io::Error),
    #[error("the state cannot be decoded")]
    Decode(#[source] postcard::Error),
    #[error("a part of the state is {bytes} bytes long; no part is longer than {PART_BYTES_MAX}")]
    TooLong { bytes: u32 },
    #[error("the state holds something that is not an object under {key}")]
    Object {
        key: ObjectKey,
        #[source]
        source: ObjectError,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    revision: Revision,
    hash: [u8; 32],
    dedup: Kept,
}

#[derive(Serialize, Deserialize)]
struct Record {
    key: ObjectKey,
    revision: Revision,
    draft: bytes::Bytes,
}

impl Store {
    pub fn freeze(&self) -> Frozen {
        Frozen { view: self.view.clone(), dedup: self.dedup.clone(), level: self.level, hash: self.hash }
    }

    /// Restores what [`Frozen::write_to`] wrote, and reads on to the end of the input. The watch window starts empty:
    /// older revisions are expired.
    pub fn restore(input: &mut dyn Read, config: StoreConfig) -> Result<Self, SnapshotError> {
        let level = origin(input, config.levels)?.level;
        let mut buffer = Vec::new();
        let head: Head = read_part(input, &mut buffer)?.ok_or(SnapshotError::Magic)?;
        let mut view = View { revision: head.revision, ..View::default() };
        while let Some(Record { key, revision, draft }) = read_part(input, &mut buffer)? {
            let object = Object::from_draft(key.clone(), &draft, revision)
                .map_err(|source| SnapshotError::Object { key: key.clone(), source })?;
            view.tables.entry(key.resource).or_default().insert(key.name, object.into());
        }
        io::copy(input, &mut io::sink())?;
        let window = Window::new(config, head.revision);
        let dedup = head.dedup.restore(config.levels).map_err(SnapshotError::Outcome)?;
        Ok(Self { config, view, dedup, window, level, hash: head.hash })
    }

    /// Goes on at a higher revision, as a restored backup must: whoever watched or read the cluster before it finds its
    /// revisions expired, and reads everything again. Never back.
    pub fn go_on_at(&mut self, revision: Revision) {
        self.view.revision = self.view.revision.max(revision);
        self.dedup.forget_all();
        self.window = Window::new(self.config, self.view.revision);
    }
}

impl Frozen {
    pub fn revision(&self) -> Revision {
        self.view.revision
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn state_hash(&self) -> [u8; 32] {
        self.hash
    }

    pub fn level(&self) -> u8 {
        self.level
    }

    /// As [`Frozen::write_as`], of a cluster whose version is not known.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_as("", out)
    }

    /// In the form of the state's level, which all members of the cluster know: the build has no say in it. Linear in
    /// the size of the state. Needs memory for one object at a time.
    pub fn write_as(&self, version: &str, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        match self.level {
            FIRST_LEVEL => out.write_all(&[UNTOLD])?,
            level => {
                let version = &version.as_bytes()[..version.len().min(u8::MAX.into())];
                out.write_all(&[TOLD, level, version.len() as u8])?;
                out.write_all(version)?;
            }
        }
        let head = Head { revision: self.view.revision, hash: self.hash, dedup: self.dedup.clone().into() };
        let mut buffer = Vec::new();
        write_part(out, &mut buffer, &head, PART_BYTES_MAX)?;
        for object in self.view.tables.values().flat_map(|table| table.values()) {
            let record = Record { key: object.key.clone(), revision: object.revision, draft: object.draft() };
            write_part(out, &mut buffer, &record, PART_BYTES_MAX)?;
        }
        out.write_all(&0_u32.to_le_bytes())
    }
}

/// Reads no further than the beginning of a state. An error where a build that knows these levels cannot read the rest.
pub fn origin(input: &mut dyn Read, levels: Levels) -> Result<Origin, SnapshotError> {
    let mut magic = [0; MAGIC.len() + 1];
    input.read_exact(&mut magic)?;
    let Some(&[told]) = magic.strip_prefix(MAGIC) else { return Err(SnapshotError::Magic) };
    let origin = match told {
        UNTOLD => Origin { level: FIRST_LEVEL, version: String::new() },
        TOLD => {
            let mut told = [0; 2];
            input.read_exact(&mut told)?;
            let mut version = vec![0; told[1].into()];
            input.read_exact(&mut version)?;
            Origin { level: told[0], version: String::from_utf8_lossy(&version).into_owned() }
        }
        _ => return Err(SnapshotError::Magic),
    };
    if !levels.knows(origin.level) {
        return Err(SnapshotError::Level { origin, newest: levels.newest() });
    }
    Ok(origin)
}

/// Refuses what [`read_part`] would not take: a snapshot that cannot be read must not take the place of the log.
fn write_part(
    out: &mut dyn Write,
    buffer: &mut Vec<u8>,
    part: &impl Serialize,
    bytes_max: u32,
) -> io::Result<()> {
    buffer.clear();
    let bytes = postcard::to_extend(part, std::mem::take(buffer)).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if length > bytes_max {
        return Err(io::Error::other(SnapshotError::TooLong { bytes: length }));
    }
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&bytes)?;
    *buffer = bytes;
    Ok(())
}

/// None at the end.
fn read_part<T: DeserializeOwned>(
    input: &mut dyn Read,
    buffer: &mut Vec<u8>,
) -> Result<Option<T>, SnapshotError> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length == 0 {
        return Ok(None);
    }
    if length > PART_BYTES_MAX {
        return Err(SnapshotError::TooLong { bytes: length });
    }
    buffer.clear();
    // Not allocated in advance: the length may be garbage.
    let read = input.take(length.into()).read_to_end(buffer)?;
    if read < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    postcard::from_bytes(buffer).map(Some).map_err(SnapshotError::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_could_not_be_read_is_not_written() {
        let mut out = Vec::new();
        let part = "x".repeat(20);
        assert!(write_part(&mut out, &mut Vec::new(), &part, 20).is_err());
        assert!(out.is_empty());
        write_part(&mut out, &mut Vec::new(), &part, 21).unwrap();
        assert_eq!(read_part(&mut &out[..], &mut Vec::new()).unwrap(), Some(part));
    }
}
