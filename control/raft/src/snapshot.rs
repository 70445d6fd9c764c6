//! Snapshots: the whole state as of one entry, as a file of its own, so that the log before it can go.
//!
//! A member makes one when its log has grown ([`crate::Config::snapshot_entries`]), and fetches its leader's when it is
//! too far behind. `snapshot-<index>.snap` beside the log is whole and durable once it has that name; the log then
//! names it in a `SnapshotMarker`, and is released up to it.

pub mod fetching;
pub mod files;
pub mod format;
pub mod incoming;
mod parts;

use std::io::{self, Read, Write};
use std::sync::Arc;

pub use self::files::SnapshotFile;
pub use self::format::{Header, Reader, Writer};
pub use self::parts::{parts, patient_parts};

/// A state machine's state at one moment, apart from the machine: it is written while the machine goes on.
pub trait Frozen: Send + 'static {
    /// Writes the state, so that [`crate::StateMachine::restore`] can read it back.
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()>;

    /// The form of the file around it ([`format::FORMS`]): the newest that all members read, as far as the state tells.
    fn form(&self) -> u8 {
        format::FIRST_FORM
    }
}

/// Looks at a state that another member gives, from its beginning on and no further than it needs to.
pub type Look = Arc<dyn Fn(&mut dyn Read) -> io::Result<()> + Send + Sync>;

/// What reads a snapshot's file from some offset on.
pub type Source = Box<dyn Read + Send>;

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("nothing is applied yet that a snapshot could hold")]
    Empty,
    #[error("the snapshot could not be written: {0}")]
    Failed(String),
    #[error("this member has stopped")]
    Stopped,
}
