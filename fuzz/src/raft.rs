//! Messages of other members: decoding, what is let in, and what one member makes of them.

use arbitrary::{Arbitrary, Result, Unstructured};
use coracle_proto::raft as wire;
use coracle_raft::core::{Core, Work};
use coracle_raft::message::{from_wire, to_wire};
use coracle_raft::wal::{MemoryDisk, Record, SnapshotMarker, Wal, WalOptions};
use coracle_raft::{Config, initial_records, logger, snapshot::format::encode_marker};
use prost::Message as _;
use raft::eraftpb::ConfState;

/// The member under test.
const ME: u64 = 1;

/// No bytes make the decoder panic. What is let in is the same after it was sent on.
pub fn raft_decode(data: &[u8]) {
    let Ok(batch) = wire::MessageBatch::decode(data) else { return };
    for message in batch.messages {
        let Ok(let_in) = from_wire(message.clone(), ME) else { continue };
        let sent_on = to_wire(let_in.clone());
        assert_eq!(from_wire(sent_on, ME), Ok(let_in));
    }
}

/// What happens to the member. Numbers are small, so that they meet.
#[derive(Arbitrary, Debug)]
enum Step {
    Tick(u8),
    Message(Box<Fields>),
    /// Bytes that may be a message.
    Bytes(Vec<u8>),
    Propose(u8),
    Read,
    Unreachable(u8),
    /// What was handed to the log is durable.
    Persist,
    /// What was handed out is applied.
    Apply,
    /// A snapshot of everything that is applied.
    Compact,
}

#[derive(Arbitrary, Debug)]
struct Fields {
    kind: u8,
    from: u8,
    /// Against the member's own, from 4 below it on.
    term: u8,
    log_term: u8,
    index: u8,
    commit: u8,
    commit_term: u8,
    entries: Vec<(u8, u8)>,
    reject: bool,
    reject_hint: u8,
    context: Vec<u8>,
    snapshot: bool,
    priority: i8,
}

/// Whatever members send, as long as it passes `from_wire`, the member takes it or refuses it: it does not panic.
pub fn raft_step(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

struct Member {
    core: Core,
    wal: Wal<MemoryDisk>,
    to_persist: Vec<(u64, Vec<Record>)>,
    to_apply: u64,
    token: u64,
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let voters: &[u64] = if input.arbitrary()? { &[1, 2, 3] } else { &[1] };
    let mut member = Member::start(voters);
    let steps: Vec<Step> = input.arbitrary()?;
    for step in steps.into_iter().take(64) {
        crate::show(&step);
        if member.take(step).is_none() {
            // The member has stopped with an error, as it should where its log and the cluster contradict each other.
            return Ok(());
        }
    }
    Ok(())
}

impl Member {
    fn start(voters: &[u64]) -> Self {
        let options = WalOptions { segment_bytes: 4096, salt: 1 };
        let disk = MemoryDisk::new();
        let (mut wal, _) = Wal::open(disk.clone(), options).expect("an empty directory opens");
        wal.append(&initial_records(voters, ME).expect("the voters are sound")).expect("the disk is sound");
        drop(wal);
        let (wal, recovered) = Wal::open(disk, options).expect("a sound log opens");
        let config = Config { seed: 7, keep_entries: 0, ..Config::new(ME, "", "fuzz") };
        let core = Core::new(config, recovered, &logger()).expect("a sound log is taken");
        let mut member = Self { core, wal, to_persist: Vec::new(), to_apply: 0, token: 0 };
        member.work().expect("a sound log is taken");
        member.persist();
        member.apply().expect("a sound log is taken");
        member
    }

    fn take(&mut self, step: Step) -> Option<()> {
        match step {
            Step::Tick(times) => (0..times % 32).for_each(|_| self.core.tick()),
            Step::Message(fields) => {
                let message = self.message(&fields);
                self.receive(message)?;
            }
            Step::Bytes(bytes) => {
                if let Ok(message) = wire::Message::decode(&bytes[..]) {
                    self.receive(message)?;
                }
            }
            Step::Propose(bytes) => {
                self.token += 1;
                self.core.propose(vec![(self.token, vec![1; bytes.into()].into())]);
            }
            Step::Read => {
                self.token += 1;
                self.core.read_index(self.token);
            }
            Step::Unreachable(id) => self.core.unreachable((id % 5).into()),
            Step::Persist => self.persist(),
            Step::Apply => self.apply()?,
            Step::Compact => {
                let applied = self.core.status().applied;
                if let Some(marker) = self.core.snapshot_marker(applied) {
                    self.core.compact(&marker);
                }
            }
        }
        self.work()
    }

    fn receive(&mut self, message: wire::Message) -> Option<()> {
        crate::show(&message);
        let Ok(message) = from_wire(message, ME) else { return Some(()) };
        // The file that a message announces has arrived: whether it was wanted is of no matter here.
        let _ = self.core.wants_snapshot(&message);
        self.core.step(message).ok().map(drop)
    }

    fn work(&mut self) -> Option<()> {
        loop {
            let Work { persist, apply, restore, .. } = match self.core.work() {
                Ok(Some(work)) => work,
                Ok(None) => return Some(()),
                Err(_) => return None,
            };
            if let Some(persist) = persist {
                self.to_persist.push((persist.number, persist.records));
            }
            if let Some(marker) = restore {
                self.to_apply = marker.index;
            }
            if let Some(last) = apply.last() {
                self.to_apply = last.index;
            }
        }
    }

    fn persist(&mut self) {
        for (number, records) in std::mem::take(&mut self.to_persist) {
            self.wal.append(&records).expect("the disk is sound");
            self.core.persisted(number);
        }
    }

    fn apply(&mut self) -> Option<()> {
        self.core.applied(self.to_apply);
        self.work()
    }

    fn message(&self, fields: &Fields) -> wire::Message {
        const KINDS: &[wire::MessageType] = &[
            wire::MessageType::MsgAppend,
            wire::MessageType::MsgAppendResponse,
            wire::MessageType::MsgRequestVote,
            wire::MessageType::MsgRequestVoteResponse,
            wire::MessageType::MsgHeartbeat,
            wire::MessageType::MsgHeartbeatResponse,
            wire::MessageType::MsgTimeoutNow,
            wire::MessageType::MsgRequestPreVote,
            wire::MessageType::MsgRequestPreVoteResponse,
            wire::MessageType::MsgSnapshot,
        ];
        let kind = KINDS[usize::from(fields.kind) % KINDS.len()];
        let status = self.core.status();
        let near = |base: u64, offset: u8| (base + u64::from(offset % 16)).saturating_sub(4);
        let term = near(status.term, fields.term);
        let index = near(status.last, fields.index);
        let log_term = near(status.term, fields.log_term);
        let entries = (index + 1..).zip(&fields.entries).map(|(index, (entry_term, bytes))| wire::Entry {
            index,
            term: log_term.max(1) + u64::from(entry_term % 3),
            data: vec![3; (*bytes).into()].into(),
            ..wire::Entry::default()
        });
        let append = kind == wire::MessageType::MsgAppend;
        let marker = SnapshotMarker {
            index,
            term: log_term,
            conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
            removed: Vec::new(),
        };
        let snapshot = (kind == wire::MessageType::MsgSnapshot || fields.snapshot).then(|| wire::Snapshot {
            data: encode_marker(&marker).into(),
            metadata: Some(wire::SnapshotMetadata {
                conf_state: Some(wire::ConfState { voters: vec![1, 2, 3], ..wire::ConfState::default() }),
                index,
                term: log_term,
            }),
        });
        wire::Message {
            msg_type: kind.into(),
            to: ME,
            from: (fields.from % 5).into(),
            term,
            log_term,
            index,
            entries: if append { entries.collect() } else { Vec::new() },
            commit: near(status.commit, fields.commit),
            commit_term: near(status.term, fields.commit_term),
            snapshot,
            reject: fields.reject,
            reject_hint: near(status.last, fields.reject_hint),
            context: fields.context.clone().into(),
            priority: fields.priority.into(),
            ..wire::Message::default()
        }
    }
}
