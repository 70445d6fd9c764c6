//! Replication: raft-rs on a write-ahead log of our own, for any deterministic [`StateMachine`].
//!
//! [`Raft`] is the handle that a process holds. Inside, [`core::Core`] is the member as a pure step, [`wal::Wal`] the log
//! over a small [`wal::Disk`] boundary, [`transport`] the way to other members. Nothing is acknowledged before it is
//! durable on a majority; a failed write or fsync ends the member ([`Raft::closed`]).

mod config;
pub mod core;
mod driver;
pub mod durable;
mod error;
mod identity;
mod log;
mod logging;
mod membership;
pub mod message;
pub mod metrics;
pub mod recover;
pub mod snapshot;
mod status;
pub mod transport;
pub mod wal;

pub use config::{Config, ENTRY_BYTES_MAX, OUTCOME_TIMEOUT_MS, SNAPSHOT_ENTRIES};
pub use driver::{Closed, Raft, StateMachine};
pub use error::{ChangeError, Error, ProposeError, ReadError, chain};
pub use logging::logger;
pub use membership::{MemberChange, initial_records};
pub use metrics::Metrics;
pub use snapshot::{Frozen, SnapshotError};
pub use status::{DiskRoom, Leading, Role, Status};
pub use transport::{GrpcTransport, RaftSender, RaftService, SnapshotSink, Transport};
pub use wal::{SnapshotMarker, Space};
