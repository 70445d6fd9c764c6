//! Disks and machines that fail.

use std::path::Path;

use coracle_raft::wal::{Fault, MemoryDisk};
use coracle_raft::{Closed, ProposeError, Raft, Role, Space, Status};

use crate::bench::{Journal, config, has, none, propose, soon, status};

#[tokio::test]
async fn a_failed_fsync_ends_the_member() {
    let disk = MemoryDisk::new();
    let config = config(Path::new("unused"), 1);
    let raft =
        Raft::start_on(config.clone(), disk.clone(), Journal::default(), none(), Some(&[1])).expect("starts");
    status(&raft, "leadership", |status| status.role == Role::Leader).await;
    assert_eq!(propose(&raft, "kept").await, Ok(1));
    disk.set_fault(Fault::Syncs);
    assert_eq!(propose(&raft, "lost").await, Err(ProposeError::Unknown));
    let Closed::Failed(reason) = soon("the end", raft.closed()).await else { panic!("it went on") };
    assert!(reason.contains("cannot sync") && reason.contains("injected fault"), "{reason}");
    assert_eq!(propose(&raft, "x").await, Err(ProposeError::Stopped));
    raft.shutdown().await;

    disk.set_fault(Fault::None);
    disk.crash(|_| 0);
    let journal = Journal::default();
    let raft = Raft::start_on(config, disk, journal.clone(), none(), None).expect("starts");
    has(&journal, 1).await;
    assert_eq!(journal.entries(), [b"kept"]);
    raft.shutdown().await;
}

#[tokio::test]
async fn a_disk_that_runs_full_is_noticed_in_time() {
    let disk = MemoryDisk::new();
    let config = config(Path::new("unused"), 1);
    let segment = config.segment_bytes;
    let raft = Raft::start_on(config, disk.clone(), Journal::default(), none(), Some(&[1])).expect("starts");
    let low = |low| move |status: &Status| status.disk.is_some_and(|disk| disk.low == low);
    status(&raft, "room", low(false)).await;
    disk.set_space(Space { total: 1 << 30, free: 2 * segment - 1 });
    status(&raft, "low room", low(true)).await;
    disk.set_space(Space { total: 1 << 30, free: 2 * segment });
    status(&raft, "room again", low(false)).await;
    raft.shutdown().await;
}

#[tokio::test]
async fn a_panicking_machine_ends_the_member() {
    let raft = Raft::start_on(
        config(Path::new("unused"), 1),
        MemoryDisk::new(),
        Journal::default(),
        none(),
        Some(&[1]),
    )
    .expect("starts");
    status(&raft, "leadership", |status| status.role == Role::Leader).await;
    assert_eq!(propose(&raft, "poison").await, Err(ProposeError::Unknown));
    let Closed::Failed(reason) = soon("the end", raft.closed()).await else { panic!("it went on") };
    assert!(reason.contains("apply thread panicked"), "{reason}");
}
