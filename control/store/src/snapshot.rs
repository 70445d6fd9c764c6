//! The whole replicated state as a stream of bytes, for raft snapshots and backups. What carries it checks that it is
//! whole: there is no checksum here.
//!
//! ```text
//! "CORACLE\x03"  head, objects..., end      each a length u32 (little-endian, 0 for the end) and as many bytes of postcard
//! ```

use std::io::{self, Read, Write};

use coracle_objects::{Object, ObjectError, ObjectKey, Revision, View};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    dedup::Dedup,
    state::{Store, StoreConfig},
    watch::Window,
};

/// In front of every state; the last byte is the version of the format.
const MAGIC: &[u8; 8] = b"CORACLE\x03";

/// The longest part, in bytes: the head with its remembered outcomes, or an object.
const PART_BYTES_MAX: u32 = 256 * 1024 * 1024;

/// The state at one moment; taking it is O(1) and it does not hold up the store.
#[derive(Clone, Debug)]
pub struct Frozen {
    view: View,
    dedup: Dedup,
    hash: [u8; 32],
}

/// Why bytes are not a state.
#[derive(Debug, Error)]
pub enum SnapshotError {
    #[error("this is not the state of a Coracle cluster, or one of another version of its format")]
    Magic,
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
    dedup: Dedup,
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

    /// Restores what [`Frozen::write_to`] wrote, and reads on to the end of the input. The watch window starts empty:
    /// older revisions are expired.
    pub fn restore(input: &mut dyn Read, config: StoreConfig) -> Result<Self, SnapshotError> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(SnapshotError::Magic);
        }
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
        Ok(Self { config, view, dedup: head.dedup, window, hash: head.hash })
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

    /// Linear in the size of the state. Needs memory for one object at a time.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        let head = Head { revision: self.view.revision, hash: self.hash, dedup: self.dedup.clone() };
        let mut buffer = Vec::new();
        write_part(out, &mut buffer, &head, PART_BYTES_MAX)?;
        for object in self.view.tables.values().flat_map(|table| table.values()) {
            let record = Record { key: object.key.clone(), revision: object.revision, draft: object.draft() };
            write_part(out, &mut buffer, &record, PART_BYTES_MAX)?;
        }
        out.write_all(&0_u32.to_le_bytes())
    }
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
