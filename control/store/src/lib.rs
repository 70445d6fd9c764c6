//! The replicated state machine: objects, preconditions and watch events.
//!
//! A pure crate: no clock, randomness, I/O or logging. The same entries in the same order give the same state, the
//! same results and the same hash on every member.

pub mod command;
pub mod level;
pub mod snapshot;
pub mod state;
pub mod watch;

mod dedup;

pub use command::{
    Command, CorruptEntry, Outcome, Request, RequestId, decode_outcome, decode_transaction, encode_outcome,
    encode_transaction, level_of,
};
pub use level::{FIRST_LEVEL, LEVELS, Level, Levels};
pub use snapshot::{Frozen, Origin, SnapshotError};
pub use state::{Batch, Store, StoreConfig};
pub use watch::Expired;
