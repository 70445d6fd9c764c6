//! What a raft entry holds: many transactions, each with the identity that makes a retry harmless.
//!
//! The codec is postcard behind one version byte. A member that meets a version it does not know must stop: an
//! entry is never skipped.

use bytes::Bytes;
use coracle_objects::{Applied, Refusal, Transaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The version byte in front of everything that this module encodes.
const CODEC_VERSION: u8 = 1;

/// The formats of entries that this build reads and writes, oldest first. One that is newer than what every member
/// reads must not be written: see [`Command::encode_as`].
pub const ENTRY_FORMATS: std::ops::RangeInclusive<u8> = 1..=CODEC_VERSION;

/// What became of a transaction.
pub type Outcome = Result<Applied, Refusal>;

/// Names one transaction for ever. A second arrival under the same id gets the first one's outcome, or none where that
/// is forgotten; it is never applied a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Random for every start of a proposing process.
    pub client: u64,
    /// For each new transaction one above all that this client has used, and above [`crate::Store::clock`] as it has
    /// last heard of it: the store remembers the highest sequences of all clients.
    pub sequence: u64,
}

/// One transaction within a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub id: RequestId,
    pub transaction: Transaction,
}

/// The content of one raft entry. Transactions are applied in order, each by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The raft id of the member that proposed it.
    pub proposer: u64,
    pub requests: Vec<Request>,
}

/// Bytes that this build cannot read: damage, or an entry of a newer version. The member must stop.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum CorruptEntry {
    #[error("the entry is empty")]
    Empty,
    #[error("the entry has version {found}, this build reads version {CODEC_VERSION}: upgrade this member")]
    Version { found: u8 },
    #[error("the entry cannot be decoded")]
    Decode(#[source] postcard::Error),
}

impl Command {
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// In the format that the cluster has agreed on. An error where this build cannot write it.
    pub fn encode_as(&self, format: u8) -> Result<Bytes, CorruptEntry> {
        if !ENTRY_FORMATS.contains(&format) {
            return Err(CorruptEntry::Version { found: format });
        }
        Ok(self.encode())
    }

    pub fn decode(entry: &[u8]) -> Result<Self, CorruptEntry> {
        decode(entry)
    }
}

/// For the way from a follower to the leader.
pub fn encode_transaction(request: &Request) -> Bytes {
    encode(request)
}

pub fn decode_transaction(bytes: &[u8]) -> Result<Request, CorruptEntry> {
    decode(bytes)
}

/// For the way back from the leader to a follower.
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    encode(outcome)
}

pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, CorruptEntry> {
    decode(bytes)
}

/// The form of an outcome that members agree on: without words, which another build may choose differently.
pub(crate) fn encode_agreed(outcome: &Outcome) -> Bytes {
    match outcome {
        Err(Refusal::BadDraft { key, .. }) => {
            encode(&Outcome::Err(Refusal::BadDraft { key: key.clone(), reason: String::new() }))
        }
        outcome => encode(outcome),
    }
}

fn encode(value: &impl Serialize) -> Bytes {
    // Only a type without a fixed length or a writer that fails can make this go wrong; here there is neither.
    postcard::to_extend(value, vec![CODEC_VERSION]).expect("a plain value encodes into memory").into()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CorruptEntry> {
    match bytes.split_first() {
        None => Err(CorruptEntry::Empty),
        Some((&CODEC_VERSION, rest)) => postcard::from_bytes(rest).map_err(CorruptEntry::Decode),
        Some((&found, _)) => Err(CorruptEntry::Version { found }),
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::{ObjectKey, Transaction};
    use proptest::prelude::*;

    use super::*;

    fn command() -> Command {
        let key = ObjectKey::new("configmaps", "default", "a");
        let transaction = Transaction::create(key, Bytes::from_static(br#"{"metadata":{}}"#));
        Command {
            proposer: 3,
            requests: vec![Request { id: RequestId { client: 9, sequence: 1 }, transaction }],
        }
    }

    #[test]
    fn a_command_survives_its_codec() {
        assert_eq!(Command::decode(&command().encode()), Ok(command()));
        let outcome = Ok(Applied { revision: 4, revisions: vec![4, 2] });
        assert_eq!(decode_outcome(&encode_outcome(&outcome)), Ok(outcome));
    }

    #[test]
    fn an_unknown_version_is_named() {
        let mut entry = command().encode().to_vec();
        entry[0] = 77;
        assert_eq!(Command::decode(&entry), Err(CorruptEntry::Version { found: 77 }));
        assert_eq!(Command::decode(b""), Err(CorruptEntry::Empty));
    }

    #[test]
    fn only_known_formats_are_written() {
        let newest = *ENTRY_FORMATS.end();
        assert_eq!(command().encode_as(newest).map(|entry| Command::decode(&entry)), Ok(Ok(command())));
        let found = newest + 1;
        assert_eq!(command().encode_as(found), Err(CorruptEntry::Version { found }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::decode(&[&[CODEC_VERSION], bytes.as_slice()].concat());
        }
    }
}
