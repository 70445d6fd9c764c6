//! Several cores in one thread, with a network and disks that the test commands.

mod snapshots;
mod sole_voter;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::membership::{MemberChange, initial_records};
use crate::message::{from_wire, to_wire};
use crate::wal::{MemoryDisk, Wal, WalOptions};

struct Member {
    core: Core,
    wal: Wal<MemoryDisk>,
    disk: MemoryDisk,
    applied: Vec<(u64, Bytes)>,
    done: BTreeMap<Token, Result<u64, Outcome>>,
    /// Writes are not made durable while this is set.
    stalled: bool,
    queue: VecDeque<Persist>,
    /// What this member has applied as of each of its snapshots. Durable.
    files: Files,
    /// The state machine does nothing while this is set.
    slow: bool,
    held: Vec<Work>,
    /// It tells what is committed only along with other messages while this is set.
    silent: bool,
}

type Files = BTreeMap<u64, Vec<(u64, Bytes)>>;

#[derive(Default)]
struct Cluster {
    members: BTreeMap<u64, Member>,
    network: VecDeque<Message>,
    cut: BTreeSet<u64>,
    next_token: Token,
    /// Members start with stalled disks.
    stalled: bool,
}

fn config(id: u64) -> Config {
    Config { seed: id * 77, keep_entries: 0, ..Config::new(id, "", "test") }
}

impl Cluster {
    fn new(voters: &[u64]) -> Cluster {
        let mut cluster = Cluster::default();
        for id in voters {
            cluster.start(*id, MemoryDisk::new(), Some(voters));
        }
        cluster
    }

    fn start(&mut self, id: u64, disk: MemoryDisk, voters: Option<&[u64]>) {
        self.start_with(id, disk, voters, Files::new());
    }

    fn start_with(&mut self, id: u64, disk: MemoryDisk, voters: Option<&[u64]>, files: Files) {
        let options = WalOptions { segment_bytes: 1 << 16, salt: id };
        let (mut wal, mut recovered) = Wal::open(disk.clone(), options).expect("opens");
        if let Some(voters) = voters {
            wal.append(&initial_records(voters, id).expect("valid")).expect("sound");
            (wal, recovered) = Wal::open(disk.clone(), options).expect("opens");
        }
        let applied = files.get(&recovered.snapshot.index).cloned().unwrap_or_default();
        let core =
            Core::new(config(id), recovered, &slog::Logger::root(slog::Discard, slog::o!())).expect("valid");
        let member = Member {
            core,
            wal,
            disk,
            applied,
            done: BTreeMap::new(),
            stalled: self.stalled,
            queue: VecDeque::new(),
            files,
            slow: false,
            held: Vec::new(),
            silent: false,
        };
        self.members.insert(id, member);
        self.settle();
    }

    /// A member makes a snapshot of all that it has applied, and drops its log before it.
    fn snapshot(&mut self, id: u64) -> SnapshotMarker {
        let member = self.members.get_mut(&id).expect("it runs");
        let index = member.core.status().applied;
        let marker = member.core.snapshot_marker(index).expect("it is applied");
        member.files.insert(index, member.applied.clone());
        assert!(member.core.compact(&marker));
        member.wal.append(&[Record::Snapshot(marker.clone())]).expect("the disk is sound");
        member.wal.release(index).expect("the disk is sound");
        self.settle();
        marker
    }

    fn crash(&mut self, id: u64) {
        let member = self.members.remove(&id).expect("it runs");
        member.disk.crash(|_| 0);
        self.start_with(id, member.disk, None, member.files);
    }

    /// Carries out all work and delivers all messages until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for member in self.members.values_mut() {
                moved |= member.work(&mut self.network);
            }
            while let Some(message) = self.network.pop_front() {
                moved = true;
                if !self.cut.contains(&message.from) && !self.cut.contains(&message.to) {
                    self.deliver(message);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn tick(&mut self, times: usize) {
        for _ in 0..times {
            for member in self.members.values_mut() {
                member.core.tick();
            }
            self.settle();
        }
    }

    fn leader(&mut self) -> u64 {
        for _ in 0..200 {
            let cut = &self.cut;
            let leader =
                self.members.iter().find(|(id, member)| !cut.contains(id) && member.core.is_leader());
            if let Some((id, _)) = leader {
                return *id;
            }
            self.tick(1);
        }
        panic!("no leader was elected");
    }

    fn call(&mut self, id: u64, call: impl FnOnce(&mut Core, Token)) -> Token {
        self.next_token += 1;
        call(&mut self.members.get_mut(&id).expect("it runs").core, self.next_token);
        self.settle();
        self.next_token
    }

    fn propose(&mut self, id: u64, data: &'static str) -> Token {
        self.call(id, |core, token| core.propose(vec![(token, Bytes::from_static(data.as_bytes()))]))
    }

    fn change(&mut self, id: u64, changes: &[MemberChange]) -> Token {
        self.call(id, |core, token| core.change(token, changes))
    }

    /// Carries out one member's work and delivers its messages, but not the answers to them.
    fn deliver_from(&mut self, id: u64) {
        self.members.get_mut(&id).expect("it runs").work(&mut self.network);
        while let Some(message) = self.network.pop_front() {
            self.deliver(message);
        }
    }

    fn deliver(&mut self, message: Message) {
        let sent = self.members.get(&message.from).map(|sender| sender.files.clone()).unwrap_or_default();
        let Some(member) = self.members.get_mut(&message.to) else { return };
        let message = from_wire(to_wire(message), member.core.config.id).expect("members are sound");
        if let Some(marker) = member.core.wants_snapshot(&message) {
            member.files.insert(marker.index, sent[&marker.index].clone());
        }
        let _ = member.core.step(message).expect("no member has lost its log");
    }

    fn outcome(&self, id: u64, token: Token) -> Option<&Result<u64, Outcome>> {
        self.members[&id].done.get(&token)
    }

    fn failed(&self, id: u64, token: Token) -> Option<Outcome> {
        self.outcome(id, token).and_then(|outcome| outcome.clone().err())
    }
}

impl Member {
    fn carry_out(&mut self, work: Work) {
        if let Some(marker) = work.restore {
            self.applied = self.files[&marker.index].clone();
            self.core.applied(marker.index);
        }
        for apply in work.apply {
            self.core.applied(apply.index);
            if let Some(token) = apply.token {
                assert!(self.done.insert(token, Ok(apply.index)).is_none());
            }
            if !apply.data.is_empty() {
                self.applied.push((apply.index, apply.data));
            }
        }
        for done in work.done {
            assert!(self.done.insert(done.token, Err(done.outcome)).is_none(), "a second outcome");
        }
    }

    fn work(&mut self, network: &mut VecDeque<Message>) -> bool {
        let mut moved = false;
        if !self.silent {
            self.core.tell_commit();
            self.core.ask_all();
        }
        while let Some(mut work) = self.core.work().expect("the log is sound") {
            moved = true;
            network.extend(std::mem::take(&mut work.messages));
            self.queue.extend(work.persist.take());
            self.held.push(work);
        }
        if !self.slow {
            for work in std::mem::take(&mut self.held) {
                moved = true;
                self.carry_out(work);
            }
        }
        while !self.stalled
            && let Some(persist) = self.queue.pop_front()
        {
            moved = true;
            self.wal.append(&persist.records).expect("the disk is sound");
            self.core.persisted(persist.number);
            network.extend(persist.messages);
        }
        moved
    }
}

#[test]
fn a_single_voter_leads_at_once_and_recovers() {
    let mut cluster = Cluster::new(&[1]);
    assert_eq!(cluster.leader(), 1, "without a tick");
    let token = cluster.propose(1, "a");
    assert!(matches!(cluster.outcome(1, token), Some(Ok(_))));
    let applied = cluster.members[&1].applied.clone();
    cluster.crash(1);
    cluster.leader();
    assert_eq!(cluster.members[&1].applied, applied);
}

#[test]
fn nothing_is_applied_before_a_majority_has_it_on_disk() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(3);
    for (id, member) in &mut cluster.members {
        member.stalled = *id != leader;
    }
    let token = cluster.propose(leader, "a");
    assert_eq!(cluster.outcome(leader, token), None);
    for member in cluster.members.values_mut() {
        member.stalled = false;
    }
    cluster.settle();
    assert!(matches!(cluster.outcome(leader, token), Some(Ok(_))));
}

#[test]
fn followers_are_told_what_is_committed_with_the_next_entries_or_alone() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(3);
    cluster.members.get_mut(&leader).expect("it runs").silent = true;
    let commits = |cluster: &Cluster| -> Vec<u64> {
        let followers = cluster.members.values().filter(|member| !member.core.is_leader());
        followers.map(|member| member.core.status().commit).collect()
    };
    let mut written = Vec::new();
    for data in ["a", "b"] {
        let before = commits(&cluster);
        let token = cluster.propose(leader, data);
        let Some(Ok(index)) = cluster.outcome(leader, token).cloned() else { panic!("not applied") };
        let known = written.last().map_or(before, |last| vec![*last; 2]);
        assert_eq!(commits(&cluster), known, "as of the entry before");
        assert!(cluster.members[&leader].core.owes_commit());
        written.push(index);
    }
    cluster.call(leader, |core, _| core.tell_commit());
    assert_eq!(commits(&cluster), vec![written[1]; 2]);
    assert!(!cluster.members[&leader].core.owes_commit());
}

#[test]
fn outcomes_of_a_deposed_leader_are_exact() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.tick(3);
    cluster.cut.insert(old);
    let token = cluster.propose(old, "lost");
    let new = cluster.leader();
    assert_ne!(old, new);
    let kept = cluster.propose(new, "kept");
    cluster.cut.clear();
    cluster.tick(20);
    assert!(matches!(cluster.outcome(new, kept), Some(Ok(_))));
    assert_eq!(cluster.failed(old, token), Some(Outcome::ProposalFailed(ProposeError::Dropped)));
    let late = cluster.propose(old, "late");
    let leader = cluster.members[&old].core.leader();
    assert_eq!(cluster.failed(old, late), Some(Outcome::ProposalFailed(ProposeError::NotLeader { leader })));
    let applied: Vec<_> = cluster.members.values().map(|member| member.applied.clone()).collect();
    assert!(applied.iter().all(|one| *one == applied[0]), "{applied:?}");
}

#[test]
fn a_proposal_without_a_quorum_ends_unknown() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(3);
    cluster.cut.extend([1, 2, 3]);
    let token = cluster.propose(leader, "a");
    cluster.tick(101);
    assert_eq!(cluster.failed(leader, token), Some(Outcome::ProposalFailed(ProposeError::Unknown)));
}

#[test]
fn reads_need_a_quorum_and_a_commit_of_the_term() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(3);
    let write = cluster.propose(leader, "a");
    let Some(Ok(written)) = cluster.outcome(leader, write).cloned() else { panic!("not applied") };
    let read = cluster.call(leader, |core, token| core.read_index(token));
    let Some(Outcome::ReadIndex(index)) = cluster.failed(leader, read) else { panic!("not read") };
    assert!(index >= written);

    cluster.cut.insert(leader);
    let read = cluster.call(leader, |core, token| core.read_index(token));
    assert_eq!(cluster.outcome(leader, read), None, "it may be deposed");
    cluster.tick(40);
    assert!(matches!(cluster.failed(leader, read), Some(Outcome::ReadFailed(ReadError::NotLeader { .. }))));
    let read = cluster.call(leader, |core, token| core.read_index(token));
    assert!(matches!(cluster.failed(leader, read), Some(Outcome::ReadFailed(ReadError::NotLeader { .. }))));
}

#[test]
fn a_read_asks_few_and_all_where_those_are_silent() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(3);
    cluster.members.get_mut(&leader).expect("it runs").silent = true;
    let read = cluster.call(leader, |core, token| core.read_index(token));
    assert!(matches!(cluster.failed(leader, read), Some(Outcome::ReadIndex(_))), "one other is enough");
    let first = (1..=3).find(|id| *id != leader).expect("there are three");
    cluster.cut.insert(first);
    let read = cluster.call(leader, |core, token| core.read_index(token));
    assert_eq!(cluster.outcome(leader, read), None);
    assert!(cluster.members[&leader].core.asked_few().is_some());
    cluster.call(leader, |core, _| core.ask_all());
    assert!(matches!(cluster.failed(leader, read), Some(Outcome::ReadIndex(_))));
    assert_eq!(cluster.members[&leader].core.asked_few(), None);
    let read = cluster.call(leader, |core, token| core.read_index(token));
    assert!(
        matches!(cluster.failed(leader, read), Some(Outcome::ReadIndex(_))),
        "the silent one is not asked"
    );
}

#[test]
fn a_joiner_learns_everything_from_the_log() {
    let mut cluster = Cluster::new(&[1]);
    cluster.leader();
    cluster.propose(1, "before");
    cluster.start(2, MemoryDisk::new(), None);
    cluster.tick(50);
    assert!(!cluster.members[&2].core.is_leader(), "a joiner never campaigns");

    let added = cluster.change(1, &[MemberChange::AddLearner(2)]);
    cluster.tick(5);
    assert_eq!(cluster.failed(1, added), Some(Outcome::Changed));
    assert_eq!(cluster.members[&2].applied, cluster.members[&1].applied);
    let status = cluster.members[&2].core.status();
    assert_eq!((status.voters, status.learners, status.leader), (vec![1], vec![2], Some(1)));

    let promoted = cluster.change(1, &[MemberChange::Promote(2)]);
    cluster.tick(5);
    assert_eq!(cluster.failed(1, promoted), Some(Outcome::Changed));
    cluster.crash(2);
    cluster.tick(20);
    assert_eq!(cluster.members[&2].core.status().voters, [1, 2]);
    assert_eq!(cluster.members[&2].applied, cluster.members[&1].applied);
}

#[test]
fn several_changes_pass_through_a_joint_configuration_that_is_left() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.start(4, MemoryDisk::new(), None);
    cluster.tick(3);
    cluster.change(leader, &[MemberChange::AddLearner(4)]);
    cluster.tick(5);
    let gone = (1..=3).find(|id| *id != leader).expect("two others");
    let replaced = cluster.change(leader, &[MemberChange::Promote(4), MemberChange::Remove(gone)]);
    cluster.tick(5);
    assert_eq!(cluster.failed(leader, replaced), Some(Outcome::Changed));
    let status = cluster.members[&leader].core.status();
    assert_eq!(status.voters.len(), 3);
    assert!(status.voters.contains(&4) && !status.voters.contains(&gone));
    assert!(!cluster.members[&leader].core.members.is_joint());
    let again = cluster.change(leader, &[MemberChange::AddLearner(gone)]);
    assert_eq!(cluster.failed(leader, again), Some(Outcome::ChangeFailed(ChangeError::IdUsed { id: gone })));
}

#[test]
fn a_later_leader_leaves_the_joint_configuration() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.start(4, MemoryDisk::new(), None);
    cluster.tick(3);
    cluster.change(old, &[MemberChange::AddLearner(4)]);
    cluster.tick(5);
    // The change is in the others' logs, but its leader goes before it learns that.
    let gone = (1..=3).find(|id| *id != old).expect("two others");
    let changes = [MemberChange::Promote(4), MemberChange::Remove(gone)];
    cluster.next_token += 1;
    let member = cluster.members.get_mut(&old).expect("it runs");
    member.core.change(cluster.next_token, &changes);
    cluster.deliver_from(old);
    cluster.cut.insert(old);
    let new = cluster.leader();
    cluster.tick(40);
    let core = &cluster.members[&new].core;
    assert!(core.is_leader() && !core.members.is_joint());
    assert!(core.members.is_voter(4) && !core.members.is_voter(gone));
}

#[test]
fn an_explicit_joint_configuration_is_left_too() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.tick(3);
    let gone = (1..=3).find(|id| *id != leader).expect("two others");
    let change = raft::eraftpb::ConfChangeV2 {
        transition: raft::eraftpb::ConfChangeTransition::Explicit,
        ..crate::membership::to_raft(&[MemberChange::Remove(gone)])
    };
    let core = &mut cluster.members.get_mut(&leader).expect("it runs").core;
    core.node.propose_conf_change(Vec::new(), change).expect("nothing else is under way");
    cluster.settle();
    assert!(cluster.members[&leader].core.members.is_joint());
    cluster.tick(2);
    assert!(!cluster.members[&leader].core.members.is_joint());
    assert!(!cluster.members[&leader].core.members.contains(gone));
}

#[test]
fn a_leader_that_finds_its_own_removal_steps_down() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.tick(3);
    let gone = (1..=3).find(|id| *id != old).expect("two others");
    cluster.members.get_mut(&old).expect("it runs").core.change(1, &[MemberChange::Remove(gone)]);
    cluster.deliver_from(old);
    cluster.cut.insert(old);
    cluster.settle();
    let term = cluster.members[&old].core.node.raft.term;
    let msg_type = MessageType::MsgTimeoutNow;
    cluster.deliver(Message { msg_type, from: old, to: gone, term, ..Message::default() });
    cluster.settle();
    let core = &cluster.members[&gone].core;
    assert!(core.node.raft.term > term, "it was elected");
    assert!(!core.members.contains(gone) && !core.is_leader());
    cluster.cut.clear();
    cluster.tick(60);
    assert_ne!(cluster.leader(), gone);
}

#[test]
fn a_read_waits_for_the_first_commit_of_the_term() {
    let mut cluster = Cluster { stalled: true, ..Cluster::default() };
    cluster.start(1, MemoryDisk::new(), Some(&[1]));
    assert!(cluster.members[&1].core.is_leader());
    let read = cluster.call(1, |core, token| core.read_index(token));
    assert_eq!(cluster.outcome(1, read), None);
    cluster.members.get_mut(&1).expect("it runs").stalled = false;
    cluster.settle();
    assert_eq!(cluster.failed(1, read), Some(Outcome::ReadIndex(2)), "without a retry");
}

#[test]
fn leadership_is_handed_over() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.tick(3);
    let to = (1..=3).find(|id| *id != old).expect("two others");
    let refused = cluster.change(old, &[MemberChange::Remove(old)]);
    assert_eq!(
        cluster.failed(old, refused),
        Some(Outcome::ChangeFailed(ChangeError::RemovesLeader { id: old }))
    );
    let token = cluster.call(old, |core, token| core.transfer(token, to));
    cluster.tick(2);
    assert_eq!(cluster.failed(old, token), Some(Outcome::Changed));
    assert_eq!(cluster.leader(), to);
    cluster.tick(2);
    let removed = cluster.change(to, &[MemberChange::Remove(old)]);
    cluster.tick(2);
    assert_eq!(cluster.failed(to, removed), Some(Outcome::Changed));
    cluster.tick(60);
    assert_eq!(cluster.leader(), to, "the removed member does not disturb the others");
}

#[test]
fn a_member_that_has_lost_its_log_is_told() {
    let mut cluster = Cluster::new(&[1, 2]);
    let leader = cluster.leader();
    cluster.tick(3);
    let other = 3 - leader;
    cluster.members.remove(&other);
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut wiped = Core::new(config(other), Recovered::default(), &logger).expect("valid");
    cluster.members.get_mut(&leader).expect("it runs").core.tick();
    cluster.members.get_mut(&leader).expect("it runs").core.tick();
    let mut network = VecDeque::new();
    cluster.members.get_mut(&leader).expect("it runs").work(&mut network);
    let beat = network.into_iter().find(|message| message.msg_type == MessageType::MsgHeartbeat);
    assert!(matches!(wiped.step(beat.expect("a leader sends heartbeats")), Err(Error::LostLog { .. })));
}

#[test]
fn one_seed_gives_one_run() {
    let run = || {
        let mut cluster = Cluster::new(&[1, 2, 3]);
        let mut trace = Vec::new();
        for round in 0..120 {
            if round == 60 {
                let leader = cluster.leader();
                cluster.cut.insert(leader);
            }
            cluster.tick(1);
            trace.push(cluster.members.values().map(|member| member.core.epoch()).collect::<Vec<_>>());
        }
        trace
    };
    assert_eq!(run(), run());
}
