//! Members that are behind, and snapshots that get lost or cannot be read.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_raft::snapshot::Reader;
use coracle_raft::{Closed, Raft, Role};

use crate::bench::{
    Hub, Journal, OldJournal, config, has, leader, none, propose, propose_to_leader, read_entries, soon,
    status,
};

#[tokio::test]
async fn a_member_that_was_away_takes_the_leaders_snapshot() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hub = Hub::default();
    let mut members: BTreeMap<u64, (Raft<usize>, Journal)> = BTreeMap::new();
    for id in 1..=3 {
        members.insert(id, hub.start(dir.path(), id, Some(&[1, 2, 3])));
    }
    let first = leader(&members.values().map(|(raft, _)| raft).collect::<Vec<_>>()).await;
    let away = (1..=3).find(|id| *id != first).expect("two others");
    hub.stop(away).await;
    members.remove(&away);
    let rest: Vec<&Raft<usize>> = members.values().map(|(raft, _)| raft).collect();
    for n in 1..=200 {
        assert_eq!(propose_to_leader(&rest, format!("entry {n}").into()).await, n);
    }
    let (raft, journal) = hub.start(dir.path(), away, None);
    has(&journal, 200).await;
    assert!(raft.status().borrow().snapshot > 0, "the log alone would have done");
    let first = leader(&rest).await;
    assert_eq!(journal.entries(), members[&first].1.entries());

    // The log and old snapshots are gone, and what is left is all that a restart needs.
    let folder = dir.path().join(first.to_string());
    let snapshots = || {
        let names = std::fs::read_dir(&folder)
            .expect("it is there")
            .map(|entry| entry.expect("it lists").file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".snap")).count()
    };
    soon("old snapshots to go", async {
        while snapshots() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    hub.stop(first).await;
    let (_, journal) = hub.start(dir.path(), first, None);
    has(&journal, 200).await;
    assert_eq!(journal.entries(), members[&first].1.entries());
}

#[tokio::test]
async fn a_snapshot_of_a_newer_build_ends_a_member_and_leaves_what_it_has() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hub = Hub::default();
    let mut members: BTreeMap<u64, (Raft<usize>, Journal)> = BTreeMap::new();
    for id in 1..=3 {
        members.insert(id, hub.start(dir.path(), id, Some(&[1, 2, 3])));
    }
    let first = leader(&members.values().map(|(raft, _)| raft).collect::<Vec<_>>()).await;
    let away = (1..=3).find(|id| *id != first).expect("two others");
    hub.stop(away).await;
    members.remove(&away);
    let rest: Vec<&Raft<usize>> = members.values().map(|(raft, _)| raft).collect();
    for n in 1..=100 {
        assert_eq!(propose_to_leader(&rest, format!("entry {n}").into()).await, n);
    }
    let old = OldJournal(Journal::default());
    let raft = Raft::start(config(dir.path(), away), old, hub.port(away)).expect("it starts");
    hub.0.lock().expect("not poisoned").members.insert(away, raft.clone());
    let closed = soon("it to end", raft.closed()).await;
    let Closed::Failed(reason) = closed else { panic!("{closed:?}") };
    assert!(reason.contains("of a newer build: the state is of level 2"), "{reason}");
    assert!(reason.contains("Nothing was changed: upgrade this member"), "{reason}");
    hub.stop(away).await;
    let files = std::fs::read_dir(dir.path().join(away.to_string())).expect("it is there");
    let names = files.map(|file| file.expect("it lists").file_name().to_string_lossy().into_owned());
    let kept: Vec<String> = names.filter(|name| name.contains("snap")).collect();
    assert_eq!(kept, Vec::<String>::new());
    // The newer build goes on where the member stopped.
    let (raft, journal) = hub.start(dir.path(), away, None);
    has(&journal, 100).await;
    assert!(raft.status().borrow().snapshot > 0, "the log alone would have done");
}

#[tokio::test]
async fn a_snapshot_that_gets_lost_without_a_word_is_fetched_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hub = Hub::default();
    let mut members: BTreeMap<u64, (Raft<usize>, Journal)> = BTreeMap::new();
    for id in 1..=3 {
        members.insert(id, hub.start(dir.path(), id, Some(&[1, 2, 3])));
    }
    let first = leader(&members.values().map(|(raft, _)| raft).collect::<Vec<_>>()).await;
    let away = (1..=3).find(|id| *id != first).expect("two others");
    hub.stop(away).await;
    members.remove(&away);
    hub.0.lock().expect("not poisoned").lost_fetches = 3;
    let rest: Vec<&Raft<usize>> = members.values().map(|(raft, _)| raft).collect();
    for n in 1..=100 {
        assert_eq!(propose_to_leader(&rest, format!("entry {n}").into()).await, n);
    }
    let (raft, journal) = hub.start(dir.path(), away, None);
    has(&journal, 100).await;
    assert!(raft.status().borrow().snapshot > 0, "the log alone would have done");
    assert_eq!(hub.0.lock().expect("not poisoned").lost_fetches, 0);
}

#[tokio::test]
async fn a_snapshot_can_be_had_at_any_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let raft = Raft::bootstrap(config(dir.path(), 1), Journal::default(), none(), &[1]).expect("starts");
    status(&raft, "leadership", |status| status.role == Role::Leader).await;
    for count in 1..=3 {
        assert_eq!(propose(&raft, "entry").await, Ok(count));
        for _ in 0..2 {
            let (marker, source) = soon("a snapshot", raft.snapshot()).await.expect("it is written");
            let mut reader = Reader::open(source).expect("it is one");
            assert_eq!(reader.header().marker, marker);
            assert_eq!(
                (marker.conf_state.voters.as_slice(), reader.header().cluster_id.as_str()),
                (&[1][..], "cluster-a")
            );
            assert_eq!(read_entries(&mut reader).expect("it is whole"), vec![b"entry"; count]);
        }
    }
    // Many at once share few.
    let many = futures::future::join_all((0..40).map(|_| raft.snapshot()));
    for made in soon("all snapshots", many).await {
        assert!(made.is_ok_and(|(marker, _)| marker.index > 3));
    }
    raft.shutdown().await;
    let damaged = std::fs::read_dir(dir.path().join("1")).expect("it is there").find_map(|entry| {
        let path = entry.expect("it lists").path();
        path.extension().is_some_and(|extension| extension == "snap").then_some(path)
    });
    std::fs::write(damaged.expect("the last one stays"), b"CRCLSNP1 garbage").expect("it is writable");
    let refused =
        Raft::start(config(dir.path(), 1), Journal::default(), none()).map(|_| ()).expect_err("damage");
    assert!(refused.to_string().contains(".snap"), "{refused}");
}
