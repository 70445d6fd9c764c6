//! The checks behind `/livez` and `/readyz`, by name.

use std::time::Duration;

use coracle_api::{Checks, Storage};
use coracle_storage::ReplicatedStorage;

use crate::bootstrap;

/// A write to the log that lasts longer means that the disk hangs.
const WAL_STALLED: Duration = Duration::from_secs(10);

/// Committed entries that the state may be behind.
const APPLY_LAG_ENTRIES_MAX: u64 = 1000;

/// What only a restart mends.
pub fn liveness(storage: &ReplicatedStorage) -> Checks {
    let stalled = storage.raft().metrics().wal_stalled().filter(|stalled| *stalled > WAL_STALLED);
    let wal = match stalled {
        Some(stalled) => {
            Err(format!("a write to the log has lasted {} s: the disk hangs", stalled.as_secs()))
        }
        None => Ok(()),
    };
    vec![("wal".to_owned(), wal)]
}

/// What keeps clients from being served well here.
pub fn readiness(storage: &ReplicatedStorage) -> Checks {
    let status = storage.status();
    let leader = status.leader.map(|_| ()).ok_or_else(|| "no leader is known".to_owned());
    let lag = status.commit.saturating_sub(storage.raft().applied());
    let lag = match lag {
        0..=APPLY_LAG_ENTRIES_MAX => Ok(()),
        lag => Err(format!("{lag} committed entries are not applied yet (at most {APPLY_LAG_ENTRIES_MAX})")),
    };
    let objects = match bootstrap::is_done(&storage.view()) {
        true => Ok(()),
        false => Err("the cluster's first objects are not there yet".to_owned()),
    };
    let space = match status.disk {
        Some(disk) if disk.low => {
            Err(format!("the disk of the data directory is nearly full: {} bytes are free", disk.space.free))
        }
        _ => Ok(()),
    };
    let checks =
        [("raft-leader", leader), ("apply-lag", lag), ("first-objects", objects), ("nospace", space)];
    checks.into_iter().map(|(name, outcome)| (name.to_owned(), outcome)).collect()
}
