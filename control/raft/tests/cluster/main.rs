//! Whole members with their threads: on real directories, over a transport in this process and over gRPC.

mod bench;
mod failures;
mod grpc;
mod snapshots;
mod turns;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use coracle_raft::{
    ChangeError, Closed, Config, Error, MemberChange, ProposeError, Raft, ReadError, Role, Status,
};

use self::bench::{
    Hub, Journal, config, hand_to, has, leader, leading, none, propose, propose_to_leader, read_index, soon,
    status,
};

#[tokio::test]
async fn a_single_member_keeps_what_it_has_acknowledged() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let journal = Journal::default();
    let raft = Raft::bootstrap(config(dir.path(), 1), journal.clone(), none(), &[1]).expect("starts");
    status(&raft, "leadership", |status| status.role == Role::Leader).await;
    let calls = (0..200).map(|n| {
        let raft = raft.clone();
        tokio::spawn(async move { raft.propose(Bytes::from(vec![n as u8; 1000])).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(matches!(call.await.expect("no panic"), Ok(1..=200)));
    }
    let index = soon("a read index", raft.read_index()).await.expect("it leads");
    soon("the read", raft.wait_applied(index)).await.expect("it runs");
    let entries = journal.entries();
    assert_eq!(entries.len(), 200);
    assert_eq!(propose(&raft, "").await, Err(ProposeError::Dropped));

    let locked = Raft::start(config(dir.path(), 1), Journal::default(), none());
    assert!(matches!(locked, Err(Error::Locked { .. })));
    raft.shutdown().await;
    assert_eq!(raft.closed().await, Closed::Shutdown);
    assert_eq!(propose(&raft, "x").await, Err(ProposeError::Stopped));
    assert_eq!(raft.read_index().await, Err(ReadError::Stopped));

    // Started by the same command once more: the log is kept.
    let journal = Journal::default();
    let raft = Raft::bootstrap(config(dir.path(), 1), journal.clone(), none(), &[1]).expect("starts");
    status(&raft, "leadership", |status| status.role == Role::Leader).await;
    let index = soon("a read index", raft.read_index()).await.expect("it leads");
    soon("the replay", raft.wait_applied(index)).await.expect("it runs");
    assert_eq!(journal.entries(), entries);
    assert_eq!(propose(&raft, "more").await, Ok(201));
    raft.shutdown().await;
}

#[tokio::test]
async fn who_waits_for_another_leader_is_not_woken_by_ticks_and_entries() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let raft = Raft::bootstrap(config(dir.path(), 1), Journal::default(), none(), &[1]).expect("starts");
    status(&raft, "it leads", |status| status.role == Role::Leader).await;
    let mut leading = raft.leading();
    soon("it is led", leading.wait_for(|now| now.led && now.leader == Some(1))).await.expect("it runs");
    leading.mark_unchanged();
    let mut ticks = raft.status();
    for n in 1..=20 {
        assert_eq!(propose(&raft, "a").await, Ok(n));
        ticks.mark_unchanged();
        soon("a tick that tells of the entry", ticks.changed()).await.expect("it runs");
    }
    assert!(!leading.has_changed().expect("it runs"), "nobody else leads");
}

#[tokio::test]
async fn a_foreign_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let raft = Raft::bootstrap(config(dir.path(), 1), Journal::default(), none(), &[1]).expect("starts");
    raft.shutdown().await;
    let other = Config { cluster_id: "cluster-b".to_owned(), ..config(dir.path(), 1) };
    let refused = Raft::start(other, Journal::default(), none()).map(|_| ()).expect_err("another cluster");
    assert!(refused.to_string().contains("cluster-a") && refused.to_string().contains("cluster-b"));
    let other = Config { id: 2, ..config(dir.path(), 1) };
    let refused = Raft::start(other, Journal::default(), none());
    assert!(matches!(refused, Err(Error::ForeignMember { found: 1, expected: 2 })));
    let refused = Raft::bootstrap(config(dir.path(), 5), Journal::default(), none(), &[1]);
    assert!(matches!(refused, Err(Error::InvalidVoters)));
}

#[tokio::test]
async fn three_members_survive_the_loss_of_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hub = Hub::default();
    let mut members: BTreeMap<u64, (Raft<usize>, Journal)> = BTreeMap::new();
    for id in 1..=3 {
        members.insert(id, hub.start(dir.path(), id, Some(&[1, 2, 3])));
    }
    let all: Vec<&Raft<usize>> = members.values().map(|(raft, _)| raft).collect();
    for n in 1..=20 {
        assert_eq!(propose_to_leader(&all, format!("a{n}").into()).await, n);
    }
    let first = leader(&all).await;
    let follower = (1..=3).find(|id| *id != first).expect("two others");
    let refused = propose(&members[&follower].0, "x").await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })));
    assert!(matches!(members[&follower].0.read_index().await, Err(ReadError::NotLeader { .. })));

    // A follower's local state is good for a read once it has reached the leader's read index.
    let index = read_index(&all).await;
    soon("the follower", members[&follower].0.wait_applied(index)).await.expect("it runs");
    assert_eq!(members[&follower].1.entries().len(), 20);

    // A follower that was away catches up.
    hub.stop(follower).await;
    let rest: Vec<&Raft<usize>> = all.into_iter().filter(|raft| raft.id() != follower).collect();
    for n in 21..=40 {
        assert_eq!(propose_to_leader(&rest, format!("b{n}").into()).await, n);
    }
    members.insert(follower, hub.start(dir.path(), follower, None));
    has(&members[&follower].1, 40).await;
    let complete = |status: &Status| {
        status.voters == [1, 2, 3]
            && status.progress.len() == 3
            && status.progress.iter().all(|(_, matched, active)| *matched == status.last && *active)
    };
    soon("the follower's progress", async {
        while !members.values().any(|(raft, _)| complete(&raft.status().borrow())) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    // The leader goes; another takes over, with everything that was acknowledged.
    let all: Vec<&Raft<usize>> = members.values().map(|(raft, _)| raft).collect();
    let first = leader(&all).await;
    hub.stop(first).await;
    members.remove(&first);
    let rest: Vec<&Raft<usize>> = members.values().map(|(raft, _)| raft).collect();
    assert_eq!(propose_to_leader(&rest, "c".into()).await, 41);
    let old = hub.start(dir.path(), first, None);
    has(&old.1, 41).await;
    assert_eq!(old.1.entries(), members[&leader(&rest).await].1.entries());

    let all: Vec<&Raft<usize>> = rest.into_iter().chain([&old.0]).collect();
    hand_to(&all, first).await;
    assert_eq!(propose_to_leader(&all, "d".into()).await, 42);
}

#[tokio::test]
async fn a_leader_without_its_followers_steps_down_and_acknowledges_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hub = Hub::default();
    let members: Vec<_> = (1..=3).map(|id| hub.start(dir.path(), id, Some(&[1, 2, 3]))).collect();
    let all: Vec<&Raft<usize>> = members.iter().map(|(raft, _)| raft).collect();
    assert_eq!(propose_to_leader(&all, "a".into()).await, 1);
    let old = leading(&all).await;
    hub.cut(old.id());
    let pending = tokio::spawn({
        let old = old.clone();
        async move { old.propose(Bytes::from_static(b"lost")).await }
    });
    let refused = soon("the read to fail", old.read_index()).await;
    assert!(matches!(refused, Err(ReadError::NotLeader { .. } | ReadError::TimedOut)), "{refused:?}");
    let rest: Vec<&Raft<usize>> = all.iter().copied().filter(|raft| raft.id() != old.id()).collect();
    assert_eq!(propose_to_leader(&rest, "b".into()).await, 2);
    hub.0.lock().expect("not poisoned").cut.clear();
    let outcome = soon("the outcome", pending).await.expect("no panic");
    assert!(matches!(outcome, Err(ProposeError::Dropped | ProposeError::Unknown)), "{outcome:?}");
}

#[tokio::test]
async fn a_joiner_is_added_and_promoted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let hub = Hub::default();
    let (one, journal) = hub.start(dir.path(), 1, Some(&[1]));
    status(&one, "leadership", |status| status.role == Role::Leader).await;
    assert_eq!(propose(&one, "a").await, Ok(1));
    let (two, copy) = hub.start(dir.path(), 2, None);

    let change = |change| soon("a change of members", one.change_membership(change));
    assert_eq!(change(MemberChange::Promote(2)).await, Err(ChangeError::UnknownMember { id: 2 }));
    assert_eq!(change(MemberChange::Remove(1)).await, Err(ChangeError::LastVoter));
    assert_eq!(change(MemberChange::AddLearner(2)).await, Ok(()));
    assert_eq!(change(MemberChange::AddLearner(2)).await, Ok(()), "repeated");
    has(&copy, 1).await;
    status(&one, "the learner", |status| status.learners == [2] && status.progress.iter().all(|one| one.2))
        .await;
    assert_eq!(change(MemberChange::Promote(2)).await, Ok(()));
    status(&two, "the promotion", |status| status.voters == [1, 2]).await;
    assert_eq!(propose_to_leader(&[&one, &two], "b".into()).await, 2);
    has(&copy, 2).await;
    assert_eq!(copy.entries(), journal.entries());

    // A joiner's own restart finds the members in its log.
    hub.stop(2).await;
    let (two, copy) = hub.start(dir.path(), 2, None);
    has(&copy, 2).await;
    status(&two, "the members", |status| status.voters == [1, 2]).await;
    // Either may lead once both are back.
    loop {
        hand_to(&[&one, &two], 1).await;
        match change(MemberChange::Remove(2)).await {
            Ok(()) => break,
            Err(ChangeError::NotLeader { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let again = loop {
        status(&one, "it leads alone", |status| status.role == Role::Leader && status.voters == [1]).await;
        match change(MemberChange::AddLearner(2)).await {
            Err(ChangeError::NotLeader { .. }) => {}
            outcome => break outcome,
        }
    };
    assert_eq!(again, Err(ChangeError::IdUsed { id: 2 }));
    assert_eq!(propose_to_leader(&[&one], "c".into()).await, 3);
}
