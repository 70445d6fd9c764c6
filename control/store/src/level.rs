//! Levels: what all members must do alike with the same entry, whatever build each of them runs.
//!
//! A level fixes four things together: the form of entries (and of transactions and outcomes on their way between
//! members), what [`crate::Store::apply`] decides, what goes into the state's hash, and the form of the whole state in
//! snapshots and backups. Each entry begins with the level at which it was written. The state keeps the highest that it
//! has met and never falls behind it, so that all four follow from what is replicated, and never from the build.
//!
//! A build knows all levels up to its newest. Members announce that, and the leader writes at a level only once all
//! know it. To change any of the four:
//!
//! 1. add a row to [`LEVELS`], and to [`Level`] a field where a bound or a choice of `apply` is to differ;
//! 2. where a form or the hash is to differ, `match` on the level where it is made and read (`encode` and `decode` in
//!    `command.rs`, `write_as` and `restore` in `snapshot.rs`, `hash_event` in `state.rs`): what was is an arm of it and
//!    stays as it is;
//! 3. leave the rows and the arms of older levels alone for as long as builds are about that write them. The tests in
//!    `tests/levels.rs` hold the bytes and hashes of each level; add those of the new one.

use coracle_objects::OBJECT_BYTES_MAX;

/// What is decided at one level. The forms and the hash go by the level's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The largest draft that is taken, in bytes.
    pub object_bytes_max: usize,
    /// Bytes of outcomes that are remembered, so that a retry is answered.
    pub outcome_bytes_max: u64,
    /// A sequence that is further beyond the clock is not taken, so that no client can use the clock up.
    pub sequence_ahead_max: u64,
}

/// The levels of this build: the first row is level 1.
pub const LEVELS: &[Level] = &[Level {
    object_bytes_max: OBJECT_BYTES_MAX,
    // Some 200,000 ordinary ones.
    outcome_bytes_max: 16 * 1024 * 1024,
    sequence_ahead_max: 1 << 40,
}];

/// What every build knows.
pub const FIRST_LEVEL: u8 = 1;

/// All levels that a build knows. By default those of this one; others are for trying out upgrades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels(&'static [Level]);

impl Levels {
    /// At least one, and at most 255.
    pub const fn new(levels: &'static [Level]) -> Self {
        assert!(!levels.is_empty() && levels.len() <= u8::MAX as usize, "a level is a byte that is not 0");
        Self(levels)
    }

    pub fn newest(self) -> u8 {
        self.0.len() as u8
    }

    /// None where this build does not know it.
    pub fn get(self, level: u8) -> Option<&'static Level> {
        self.0.get(usize::from(level).checked_sub(1)?)
    }

    pub fn knows(self, level: u8) -> bool {
        self.get(level).is_some()
    }
}

impl Default for Levels {
    fn default() -> Self {
        Self::new(LEVELS)
    }
}
