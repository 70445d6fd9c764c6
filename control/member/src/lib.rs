//! How a member of the control plane carries out what it is asked: writes gathered into log entries and tried again,
//! reads that share a read index, watches that go on without gap or double.
//!
//! A pure crate: no clock, randomness, I/O or logging. Each part is a state machine that is told what has happened and says
//! what is next. `coracle_storage` brings tasks, calls and time, and drives it; so does the simulator, with its own.
//!
//! Moments are [`std::time::Duration`]s since any beginning that stays the same.

pub mod batch;
pub mod identity;
pub mod retry;
pub mod room;

pub mod reads;

pub mod leadership;
pub mod watch;
