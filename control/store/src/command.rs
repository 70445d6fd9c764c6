//! What a raft entry holds: many transactions, each with the identity that makes a retry harmless.
//!
//! The codec is postcard behind one byte, the level at which it was written ([`crate::level`]). A member that meets a
//! level it does not know must stop: an entry is never skipped.

use bytes::Bytes;
use coracle_objects::{Applied, Refusal, Transaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::level::{FIRST_LEVEL, Levels};

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

/// Bytes that this build cannot read: damage, or an entry of a newer level. The member must stop.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum CorruptEntry {
    #[error("the entry is empty")]
    Empty,
    #[error("the entry is of level {found}, this build knows levels up to {newest}: upgrade this member")]
    Level { found: u8, newest: u8 },
    #[error("the entry cannot be decoded")]
    Decode(#[source] postcard::Error),
}

impl Command {
    /// At the first level, which every build knows.
    pub fn encode(&self) -> Bytes {
        encode(self, FIRST_LEVEL)
    }

    /// At the level that the cluster has agreed on. An error where this build does not know it.
    pub fn encode_at(&self, level: u8, levels: Levels) -> Result<Bytes, CorruptEntry> {
        if !levels.knows(level) {
            return Err(CorruptEntry::Level { found: level, newest: levels.newest() });
        }
        Ok(encode(self, level))
    }

    pub fn decode(entry: &[u8], levels: Levels) -> Result<Self, CorruptEntry> {
        decode(entry, levels)
    }
}

/// The level at which something was encoded. 0 where there is nothing.
pub fn level_of(encoded: &[u8]) -> u8 {
    encoded.first().copied().unwrap_or_default()
}

/// For the way to the leader, at the level that the cluster has agreed on; who knows none takes the first.
pub fn encode_transaction(request: &Request, level: u8) -> Bytes {
    encode(request, level)
}

pub fn decode_transaction(bytes: &[u8], levels: Levels) -> Result<Request, CorruptEntry> {
    decode(bytes, levels)
}

/// For the way back, at the level of the transaction: who sent that can read it.
pub fn encode_outcome(outcome: &Outcome, level: u8) -> Bytes {
    encode(outcome, level)
}

pub fn decode_outcome(bytes: &[u8], levels: Levels) -> Result<Outcome, CorruptEntry> {
    decode(bytes, levels)
}

/// The form of an outcome that members agree on: without words, which another build may choose differently.
pub(crate) fn encode_agreed(outcome: &Outcome, level: u8) -> Bytes {
    match outcome {
        Err(Refusal::BadDraft { key, .. }) => {
            encode(&Outcome::Err(Refusal::BadDraft { key: key.clone(), reason: String::new() }), level)
        }
        outcome => encode(outcome, level),
    }
}

/// The form is that of the level, which has been the same at all of them.
fn encode(value: &impl Serialize, level: u8) -> Bytes {
    // Only a type without a fixed length or a writer that fails can make this go wrong; here there is neither.
    postcard::to_extend(value, vec![level]).expect("a plain value encodes into memory").into()
}

fn decode<T: DeserializeOwned>(bytes: &[u8], levels: Levels) -> Result<T, CorruptEntry> {
    match bytes.split_first() {
        None => Err(CorruptEntry::Empty),
        Some((&level, rest)) if levels.knows(level) => {
            postcard::from_bytes(rest).map_err(CorruptEntry::Decode)
        }
        Some((&found, _)) => Err(CorruptEntry::Level { found, newest: levels.newest() }),
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
        let levels = Levels::default();
        assert_eq!(Command::decode(&command().encode(), levels), Ok(command()));
        let outcome = Ok(Applied { revision: 4, revisions: vec![4, 2] });
        assert_eq!(decode_outcome(&encode_outcome(&outcome, FIRST_LEVEL), levels), Ok(outcome));
    }

    #[test]
    fn an_unknown_level_is_named() {
        let levels = Levels::default();
        let mut entry = command().encode().to_vec();
        for found in [0, levels.newest() + 1, 77] {
            entry[0] = found;
            let newest = levels.newest();
            assert_eq!(Command::decode(&entry, levels), Err(CorruptEntry::Level { found, newest }));
        }
        assert_eq!(Command::decode(b"", levels), Err(CorruptEntry::Empty));
    }

    #[test]
    fn only_known_levels_are_written() {
        let levels = Levels::default();
        let newest = levels.newest();
        let entry = command().encode_at(newest, levels).unwrap();
        assert_eq!(Command::decode(&entry, levels), Ok(command()));
        for found in [0, newest + 1] {
            assert_eq!(command().encode_at(found, levels), Err(CorruptEntry::Level { found, newest }));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::decode(&[&[FIRST_LEVEL], bytes.as_slice()].concat(), Levels::default());
        }
    }
}
