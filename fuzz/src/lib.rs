//! What the fuzzers run: one function a target, which panics where something is wrong. Apart from the fuzzer's entry
//! points, so that inputs that were found once run as plain tests (`tests/kept.rs`).

mod raft;
mod snapshot;
mod store;
mod token;
mod wal;
mod workloads;

pub use raft::{raft_decode, raft_step};
pub use snapshot::snapshot_stream;
pub use store::store_command;
pub use token::join_token;
pub use wal::wal_recovery;
pub use workloads::admitted_workloads;

/// Prints what an input means where `FUZZ_SHOW` is set, to look into one that was found.
fn show(what: &impl std::fmt::Debug) {
    static SHOWN: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("FUZZ_SHOW").is_some());
    if *SHOWN {
        eprintln!("{what:?}");
    }
}
