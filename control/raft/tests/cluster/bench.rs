//! Members in one process, over a network that loses what it is told to, and a machine that keeps what was applied.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use coracle_proto::raft as wire;
use coracle_raft::snapshot::Look;
use coracle_raft::{
    ChangeError, Config, Frozen, ProposeError, Raft, ReadError, SnapshotSink, StateMachine, Status, Transport,
};

/// Keeps all entries; a proposer is told how many there are.
#[derive(Clone, Default)]
pub struct Journal(pub Arc<Mutex<Vec<Vec<u8>>>>);

impl Journal {
    pub fn entries(&self) -> Vec<Vec<u8>> {
        self.0.lock().expect("not poisoned").clone()
    }
}

/// The entries, each behind its length.
pub struct Copy(pub Vec<Vec<u8>>);

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
pub fn read_entries(state: &mut dyn Read) -> io::Result<Vec<Vec<u8>>> {
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
pub struct OldJournal(pub Journal);

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
pub struct Hub(pub Arc<Mutex<HubState>>);

#[derive(Default)]
pub struct HubState {
    pub members: BTreeMap<u64, Raft<usize>>,
    pub dirs: BTreeMap<u64, PathBuf>,
    pub cut: BTreeSet<u64>,
    /// The next fetches come to nothing without a word: by the first nothing is brought, the others get lost.
    pub lost_fetches: usize,
    pub kept: Vec<Box<dyn SnapshotSink>>,
}

pub struct Port {
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
    pub fn port(&self, from: u64) -> Arc<dyn Transport> {
        Arc::new(Port { hub: Arc::downgrade(&self.0), from })
    }

    pub fn start(&self, dir: &Path, id: u64, voters: Option<&[u64]>) -> (Raft<usize>, Journal) {
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

    pub async fn stop(&self, id: u64) {
        let member = self.0.lock().expect("not poisoned").members.remove(&id);
        member.expect("it runs").shutdown().await;
    }

    pub fn cut(&self, id: u64) {
        self.0.lock().expect("not poisoned").cut.insert(id);
    }
}

pub fn config(dir: &Path, id: u64) -> Config {
    let mut config = Config::new(id, dir.join(id.to_string()), "cluster-a");
    config.tick = Duration::from_millis(30);
    config.segment_bytes = 256 * 1024;
    config.snapshot_entries = 25;
    config.keep_entries = 5;
    config
}

pub fn none() -> Arc<dyn Transport> {
    Hub::default().port(0)
}

/// Within a time that is long on the slowest machine, and not waited for on others.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(120), future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out: {what}"),
    }
}

pub async fn status(raft: &Raft<usize>, what: &str, until: impl FnMut(&Status) -> bool) -> Status {
    let mut status = raft.status();
    soon(what, status.wait_for(until)).await.expect("the member runs").clone()
}

/// The leader that all of these agree on.
pub async fn leader(members: &[&Raft<usize>]) -> u64 {
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

pub async fn propose(raft: &Raft<usize>, data: &str) -> Result<usize, ProposeError> {
    soon("a proposal's outcome", raft.propose(Bytes::copy_from_slice(data.as_bytes()))).await
}

pub async fn leading<'a>(members: &[&'a Raft<usize>]) -> &'a Raft<usize> {
    let leads = leader(members).await;
    members.iter().find(|member| member.id() == leads).expect("one of them leads")
}

/// Proposes to whoever leads, again where the entry certainly is not in the log: on a busy machine leaders change.
pub async fn propose_to_leader(members: &[&Raft<usize>], data: Vec<u8>) -> usize {
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
pub async fn read_index(members: &[&Raft<usize>]) -> u64 {
    loop {
        match soon("a read index", leading(members).await.read_index()).await {
            Ok(index) => return index,
            Err(ReadError::NotLeader { .. } | ReadError::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has whoever leads hand leadership to this member.
pub async fn hand_to(members: &[&Raft<usize>], id: u64) {
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

pub async fn has(journal: &Journal, count: usize) {
    soon("entries to be applied", async {
        while journal.entries().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
