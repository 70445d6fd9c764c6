//! Snapshots between members.

use raft::eraftpb::{Snapshot, SnapshotMetadata};

use super::*;
use crate::snapshot::format::encode_marker;

/// Three voters, the leader among them, and a follower that hears nothing.
fn with_a_follower_cut_off() -> (Cluster, u64, u64) {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(3);
    let late = *cluster.members.keys().find(|id| **id != leader).expect("two others");
    cluster.cut.insert(late);
    (cluster, leader, late)
}

#[test]
fn a_member_that_is_far_behind_takes_a_snapshot_over() {
    let (mut cluster, leader, late) = with_a_follower_cut_off();
    let first = cluster.propose(leader, "a");
    cluster.propose(leader, "b");
    let marker = cluster.snapshot(leader);
    assert!(matches!(cluster.outcome(leader, first), Some(Ok(index)) if *index < marker.index));
    cluster.propose(leader, "c");
    cluster.cut.clear();
    cluster.tick(100);
    assert_eq!(cluster.members[&late].applied, cluster.members[&leader].applied);
    assert_eq!(cluster.members[&late].core.status().snapshot, marker.index);

    // It goes on from there after a crash, and so does the one that made it.
    let applied = cluster.members[&leader].applied.clone();
    for id in [late, leader] {
        cluster.crash(id);
        cluster.tick(100);
        assert_eq!(cluster.members[&id].applied, applied, "member {id}");
    }
    let leader = cluster.leader();
    let token = cluster.propose(leader, "d");
    assert!(matches!(cluster.outcome(leader, token), Some(Ok(_))));
}

#[test]
fn a_joiner_needs_a_snapshot_that_names_it() {
    let mut cluster = Cluster::new(&[1]);
    cluster.leader();
    cluster.propose(1, "a");
    cluster.snapshot(1);
    cluster.propose(1, "b");
    cluster.start(2, MemoryDisk::new(), None);
    cluster.change(1, &[MemberChange::AddLearner(2)]);
    cluster.tick(10);
    assert!(cluster.members[&2].applied.is_empty(), "the snapshot is from before it was a member");
    assert!(cluster.members[&1].core.take_snapshot_wanted());
    cluster.snapshot(1);
    cluster.tick(10);
    assert_eq!(cluster.members[&2].applied, cluster.members[&1].applied);
    assert_eq!(cluster.members[&2].core.status().learners, [2]);

    // Ids stay used behind a snapshot.
    cluster.change(1, &[MemberChange::Remove(2)]);
    cluster.snapshot(1);
    cluster.crash(1);
    cluster.leader();
    let token = cluster.change(1, &[MemberChange::AddLearner(2)]);
    assert_eq!(cluster.failed(1, token), Some(Outcome::ChangeFailed(ChangeError::IdUsed { id: 2 })));
}

#[test]
fn a_snapshot_that_does_not_arrive_is_sent_again() {
    let (mut cluster, leader, late) = with_a_follower_cut_off();
    cluster.propose(leader, "a");
    cluster.snapshot(leader);
    // Its acknowledgements arrive, so that the leader sends the snapshot, but nothing gets to it.
    let mut heartbeat =
        Message { msg_type: MessageType::MsgHeartbeatResponse, to: leader, from: late, ..Message::default() };
    heartbeat.term = cluster.members[&leader].core.node.raft.term;
    let _ = cluster.members.get_mut(&leader).expect("it runs").core.step(heartbeat);
    cluster.settle();
    assert_eq!(cluster.members[&late].core.status().snapshot, 0);
    cluster.cut.clear();
    cluster.tick(200);
    assert_eq!(cluster.members[&late].applied, cluster.members[&leader].applied);
}

#[test]
fn a_member_that_takes_a_snapshot_over_does_nothing_else() {
    let (mut cluster, leader, late) = with_a_follower_cut_off();
    cluster.propose(leader, "a");
    let first = cluster.snapshot(leader);
    cluster.cut.clear();
    cluster.members.get_mut(&late).expect("it runs").slow = true;
    cluster.tick(20);
    assert_eq!(cluster.members[&late].core.status().snapshot, first.index);
    assert!(cluster.members[&late].core.status().applied < first.index);

    // Another snapshot of the leader would put the first one's file out of the way.
    cluster.propose(leader, "b");
    let second = cluster.snapshot(leader);
    let data = encode_marker(&second);
    let metadata = SnapshotMetadata {
        conf_state: Some(second.conf_state.clone()).into(),
        index: second.index,
        term: second.term,
        ..SnapshotMetadata::default()
    };
    let snapshot = Snapshot { data: data.into(), metadata: Some(metadata).into(), ..Snapshot::default() };
    let message = Message {
        msg_type: MessageType::MsgSnapshot,
        to: late,
        from: leader,
        term: second.term,
        snapshot: Some(snapshot).into(),
        ..Message::default()
    };
    let member = &mut cluster.members.get_mut(&late).expect("it runs").core;
    assert_eq!(member.wants_snapshot(&message), None);
    assert_eq!(member.step(message).expect("its log is sound"), Err(Refused::OutOfPlace));

    // Without a leader it would campaign, which raft-rs cannot do before the snapshot is applied.
    cluster.cut.extend([leader, late]);
    cluster.tick(40);
    assert!(!cluster.members[&late].core.is_leader());
    cluster.cut.clear();
    cluster.members.get_mut(&late).expect("it runs").slow = false;
    cluster.tick(200);
    let leader = cluster.leader();
    assert_eq!(cluster.members[&late].applied, cluster.members[&leader].applied);
}
