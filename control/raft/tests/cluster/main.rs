//! Whole members with their threads: on real directories, over a transport in this process and over gRPC.

mod grpc;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use coracle_proto::raft as wire;
use coracle_raft::snapshot::{Look, Reader};
use coracle_raft::wal::{Fault, MemoryDisk};
use coracle_raft::{
    ChangeError, Closed, Config, Error, Frozen, MemberChange, ProposeError, Raft, ReadError, Role,
    SnapshotSink, Space, StateMachine, Status, Transport,
};

/// Keeps all entries; a proposer is told how many there are.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<Vec<u8>>>>);

impl Journal {
    fn entries(&self) -> Vec<Vec<u8>> {
        self.0.lock().expect("not poisoned").clone()
    }
}

/// The entries, each behind its length.
struct Copy(Vec<Vec<u8>>);

impl Frozen for Copy {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        for entry in &self.0 {
            out.write_all(&(entry.len() as u32).to_le_bytes())?;
            out.write_all(entry)?;
        }
        Ok(())
    }
}

/// What [`Copy`] has written.
fn read_entries(state: &mut dyn Read) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    state.read_to_end(&mut bytes)?;
    let (mut rest, mut entries) = (&bytes[..], Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (entry, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
        entries.push(entry.to_vec());
        rest = tail;
    }
    Ok(entries)
}

impl StateMachine for Journal {
    type Output = usize;
    type Frozen = Copy;

    fn freeze(&self) -> Copy {
        Copy(self.entries())
    }

    fn restore(&mut self, _index: u64, state: &mut dyn Read) -> io::Result<()> {
        *self.0.lock().expect("not poisoned") = read_entries(state)?;
        Ok(())
    }

    fn apply(&mut self, _index: u64, _term: u64, entry: &[u8]) -> usize {
        assert_ne!(entry, b"poison", "the machine cannot digest this");
        let mut entries = self.0.lock().expect("not poisoned");
        entries.push(entry.to_vec());
        entries.len()
    }
}

/// As [`Journal`], of a build that cannot read the states of the others.
struct OldJournal(Journal);

impl StateMachine for OldJournal {
    type Output = usize;
    type Frozen = Copy;

    fn freeze(&self) -> Copy {
        self.0.freeze()
    }

    fn restore(&mut self, _index: u64, _state: &mut dyn Read) -> io::Result<()> {
        panic!("it was looked at before");
    }

    fn apply(&mut self, index: u64, term: u64, entry: &[u8]) -> usize {
        self.0.apply(index, term, entry)
    }

    fn look(&self) -> Look {
        Arc::new(|_| Err(io::Error::new(io::ErrorKind::Unsupported, "the state is of level 2")))
    }
}

/// A transport between the members of one process.
#[derive(Clone, Default)]
struct Hub(Arc<Mutex<HubState>>);

#[derive(Default)]
struct HubState {
    members: BTreeMap<u64, Raft<usize>>,
    dirs: BTreeMap<u64, PathBuf>,
    cut: BTreeSet<u64>,
    /// The next fetches come to nothing without a word: by the first nothing is brought, the others get lost.
    lost_fetches: usize,
    kept: Vec<Box<dyn SnapshotSink>>,
}

struct Port {
    hub: Weak<Mutex<HubState>>,
    from: u64,
}

impl Transport for Port {
    fn send(&self, to: u64, messages: Vec<wire::Message>) {
        let Some(hub) = self.hub.upgrade() else { return };
        let member = {
            let hub = hub.lock().expect("not poisoned");
            let cut = hub.cut.contains(&to) || hub.cut.contains(&self.from);
            hub.members.get(&to).filter(|_| !cut).cloned()
        };
        // Not under the lock: the receiver may answer before this returns.
        if let Some(member) = member {
            member.receive(messages);
        }
    }

    /// Members beside each other have directories beside each other.
    fn fetch(&self, from: u64, index: u64, mut sink: Box<dyn SnapshotSink>) {
        let hub = self.hub.upgrade().expect("the hub outlives its members");
        let dir = {
            let mut hub = hub.lock().expect("not poisoned");
            if hub.lost_fetches > 0 {
                hub.lost_fetches -= 1;
                if hub.kept.is_empty() {
                    hub.kept.push(sink);
                }
                return;
            }
            hub.dirs.get(&from).cloned()
        };
        std::thread::spawn(move || {
            let read = dir.ok_or_else(|| "no such member".to_owned()).and_then(|dir| {
                let file = dir.join(format!("snapshot-{index:016x}.snap"));
                let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
                sink.write(&bytes).map_err(|error| error.to_string())
            });
            sink.end(read);
        });
    }
}

impl Hub {
    fn port(&self, from: u64) -> Arc<dyn Transport> {
        Arc::new(Port { hub: Arc::downgrade(&self.0), from })
    }

    fn start(&self, dir: &Path, id: u64, voters: Option<&[u64]>) -> (Raft<usize>, Journal) {
        let journal = Journal::default();
        let config = config(dir, id);
        self.0.lock().expect("not poisoned").dirs.insert(id, config.dir.clone());
        let raft = match voters {
            Some(voters) => Raft::bootstrap(config, journal.clone(), self.port(id), voters),
            None => Raft::start(config, journal.clone(), self.port(id)),
        }
        .expect("the member starts");
        self.0.lock().expect("not poisoned").members.insert(id, raft.clone());
        (raft, journal)
    }

    async fn stop(&self, id: u64) {
        let member = self.0.lock().expect("not poisoned").members.remove(&id);
        member.expect("it runs").shutdown().await;
    }

    fn cut(&self, id: u64) {
        self.0.lock().expect("not poisoned").cut.insert(id);
    }
}

fn config(dir: &Path, id: u64) -> Config {
    let mut config = Config::new(id, dir.join(id.to_string()), "cluster-a");
    config.tick = Duration::from_millis(30);
    config.segment_bytes = 256 * 1024;
    config.snapshot_entries = 25;
    config.keep_entries = 5;
    config
}

fn none() -> Arc<dyn Transport> {
    Hub::default().port(0)
}

/// Within a time that is long on the slowest machine, and not waited for on others.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(120), future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out: {what}"),
    }
}

async fn status(raft: &Raft<usize>, what: &str, until: impl FnMut(&Status) -> bool) -> Status {
    let mut status = raft.status();
    soon(what, status.wait_for(until)).await.expect("the member runs").clone()
}

/// The leader that all of these agree on.
async fn leader(members: &[&Raft<usize>]) -> u64 {
    soon("a leader", async {
        loop {
            let first = status(members[0], "a leader", |status| status.leader.is_some()).await.leader;
            let mut agreed = true;
            for member in members {
                agreed &= member.status().borrow().leader == first;
            }
            if let Some(leader) =
                first.filter(|leader| agreed && members.iter().any(|one| one.id() == *leader))
            {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn propose(raft: &Raft<usize>, data: &str) -> Result<usize, ProposeError> {
    soon("a proposal's outcome", raft.propose(Bytes::copy_from_slice(data.as_bytes()))).await
}

async fn leading<'a>(members: &[&'a Raft<usize>]) -> &'a Raft<usize> {
    let leads = leader(members).await;
    members.iter().find(|member| member.id() == leads).expect("one of them leads")
}

/// Proposes to whoever leads, again where the entry certainly is not in the log: on a busy machine leaders change.
async fn propose_to_leader(members: &[&Raft<usize>], data: Vec<u8>) -> usize {
    loop {
        let leader = leading(members).await;
        match soon("a proposal's outcome", leader.propose(Bytes::from(data.clone()))).await {
            Ok(count) => return count,
            Err(ProposeError::NotLeader { .. } | ProposeError::Dropped) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Asks whoever leads, again where that has changed.
async fn read_index(members: &[&Raft<usize>]) -> u64 {
    loop {
        match soon("a read index", leading(members).await.read_index()).await {
            Ok(index) => return index,
            Err(ReadError::NotLeader { .. } | ReadError::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has whoever leads hand leadership to this member.
async fn hand_to(members: &[&Raft<usize>], id: u64) {
    loop {
        let leader = leading(members).await;
        if leader.id() == id {
            return;
        }
        match soon("the transfer", leader.transfer_leader(id)).await {
            Ok(()) => {}
            Err(ChangeError::NotLeader { .. } | ChangeError::NotActive { .. } | ChangeError::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn has(journal: &Journal, count: usize) {
    soon("entries to be applied", async {
        while journal.entries().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

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
