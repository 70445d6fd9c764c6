//! The member as a synchronous step: events go in, [`Work`] comes out. No threads, clocks, files or sockets, so that
//! a simulator drives exactly what runs in production.
//!
//! The contract of a round: give events with the methods, in any order; then call [`Core::work`] until it answers None,
//! and for each [`Work`], in this order:
//!
//! 1. send `messages`;
//! 2. hand `persist` to the log, which makes the rounds durable in order, then sends each round's messages;
//!    tell [`Core::persisted`] *before* those messages can be answered;
//! 3. hand `restore`, then `apply` to the state machine, in order; tell [`Core::applied`] when it has got there;
//! 4. tell the waiters in `done`.
//!
//! Snapshots: one is made of the state as of an applied index with [`Core::snapshot_marker`]; when its file is durable
//! [`Core::compact`] drops the log before it. A leader's snapshot is fetched before its message is stepped.
//!
//! A committed change of members comes into force in `work`, before any later message is stepped. So no vote is ever
//! counted in a configuration that is known to be outdated, and nothing has to be held back for it.

mod change;
mod proposals;
mod reads;
mod snapshots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{RawNode, StateRole};

use self::change::{PendingChange, PendingTransfer};
use self::proposals::Proposals;
use self::reads::{Question, Reads};
use self::snapshots::History;
use crate::config::{APPLY_BACKLOG_ENTRIES_MAX, Config, ENTRY_BYTES_MAX, OUTCOME_TIMEOUT_MS, READ_RETRY_MS};
use crate::error::{ChangeError, Error, ProposeError, ReadError};
use crate::log::Log;
use crate::membership::Members;
use crate::message::Refused;
use crate::status::{Role, Status};
use crate::wal::{Record, Recovered, SnapshotMarker};

/// Names one call that waits for its outcome. Chosen by the caller, never twice.
pub type Token = u64;

/// What has to be done now. See the module's contract for the order.
#[derive(Debug, Default)]
pub struct Work {
    /// May leave at once: a leader's need not wait for its own disk.
    pub messages: Vec<Message>,
    pub persist: Option<Persist>,
    /// The state machine has to take this snapshot over, whose file is there, before it applies anything further.
    pub restore: Option<SnapshotMarker>,
    /// Committed and durable here. Each index once, without gaps.
    pub apply: Vec<Apply>,
    /// Each token once. A proposal that gets as far as `apply` is not among them.
    pub done: Vec<Answered>,
}

/// One round's part of the log.
#[derive(Debug)]
pub struct Persist {
    /// Rises from round to round; tell it to [`Core::persisted`].
    pub number: u64,
    /// False where nothing in it has to be durable: it may go along with the next write, and its messages may leave
    /// when the rounds before are durable.
    pub sync: bool,
    pub records: Vec<Record>,
    /// Must not leave before this round is durable.
    pub messages: Vec<Message>,
}

/// One committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apply {
    pub index: u64,
    pub term: u64,
    /// Empty where the entry is raft's own: there is nothing to apply then.
    pub data: Bytes,
    /// The proposal of this process that the entry is.
    pub token: Option<Token>,
}

/// The outcome of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub token: Token,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    ProposalFailed(ProposeError),
    /// All that was acknowledged before the read was asked for has an index up to this one.
    ReadIndex(u64),
    ReadFailed(ReadError),
    /// The members are as wanted, or leadership is where it was wanted.
    Changed,
    ChangeFailed(ChangeError),
}

/// One member's consensus: raft-rs, the log it reads, and who waits for what.
pub struct Core {
    config: Config,
    node: RawNode<Log>,
    members: Members,
    /// Who the members were, back to the last snapshot.
    history: History,
    /// How often the members have changed.
    changes: u64,
    /// Ticks since the start.
    now: u64,
    was_leader: bool,
    /// The committed index that this leader has told the others last.
    told: u64,
    /// The highest committed index that has been handed out.
    handed: u64,
    applied: u64,
    /// The number of the last round that was handed to the log, and of the last that is durable.
    to_persist: u64,
    persisted: u64,
    /// The number of the last round with another term or vote.
    voted: u64,
    proposals: Proposals,
    reads: Reads,
    change: Option<PendingChange>,
    transfer: Option<PendingTransfer>,
    /// When each member was last heard of, in ticks.
    heard: BTreeMap<u64, u64>,
    /// When each member that is sent a snapshot last took a part of it, in ticks.
    sending: BTreeMap<u64, u64>,
    /// Members that were sent a snapshot and have yet to be sent the log behind it.
    catching_up: BTreeSet<u64>,
    done: Vec<Answered>,
}

impl Core {
    /// A member that goes on where its log ends. The state machine must be at the snapshot that the log begins behind:
    /// everything committed since is handed out again.
    pub fn new(config: Config, recovered: Recovered, logger: &slog::Logger) -> Result<Core, Error> {
        let log = Log::new(recovered);
        let marker = log.snapshot_marker().clone();
        let node = RawNode::new(&config.raft(marker.index), log, logger)?;
        let reads =
            Reads::new(config.id, config.seed, config.ticks(READ_RETRY_MS), config.ticks(OUTCOME_TIMEOUT_MS));
        let mut core = Core {
            proposals: Proposals::new(config.ticks(OUTCOME_TIMEOUT_MS)),
            reads,
            config,
            node,
            members: Members::new(marker.conf_state.clone(), &marker.removed),
            history: History::new(&marker),
            changes: 0,
            now: 0,
            was_leader: false,
            told: 0,
            handed: marker.index,
            applied: marker.index,
            to_persist: 0,
            persisted: 0,
            voted: 0,
            change: None,
            transfer: None,
            heard: BTreeMap::new(),
            sending: BTreeMap::new(),
            catching_up: BTreeSet::new(),
            done: Vec::new(),
        };
        core.set_election_timeout();
        Ok(core)
    }

    /// Raft's clock goes on by one tick.
    pub fn tick(&mut self) {
        self.now += 1;
        // A sole voter that campaigns has won at once, and raft-rs wants its log to be durable by then.
        let wins = self.members.is_sole_voter(self.config.id) && self.is_writing() && !self.is_leader();
        if !wins && !self.is_restoring() {
            self.node.tick();
        }
        self.campaign_alone();
        self.leave_joint();
        self.give_up_snapshots();
        self.tell_commit();
        let expired = self.proposals.expire(self.now);
        self.fail_proposals(expired, ProposeError::Unknown);
        let expired = self.reads.expire(self.now);
        self.fail_reads(expired, ReadError::TimedOut);
        self.expire_changes();
    }

    /// A message of another member that `message::from_wire` has let in. The file of a snapshot that
    /// [`Core::wants_snapshot`] must be there.
    pub fn step(&mut self, message: Message) -> Result<Result<(), Refused>, Error> {
        if let Some(refusal) = self.refusal(&message)? {
            return Ok(Err(refusal));
        }
        if self.members.contains(message.from) {
            self.heard.insert(message.from, self.now);
        }
        // Raft-rs refuses answers of those that are no members, and proposals: neither is of interest.
        Ok(self.node.step(message).map_err(|_| Refused::OutOfPlace))
    }

    /// Proposes entries, all at once. Each outcome comes with [`Work`], as an [`Apply`] or a [`Answered`].
    pub fn propose(&mut self, proposals: Vec<(Token, Bytes)>) {
        if !self.is_leader() {
            let tokens = proposals.into_iter().map(|(token, _)| token).collect();
            return self.fail_proposals(tokens, ProposeError::NotLeader { leader: self.leader() });
        }
        let room = self.proposals.room();
        let overloaded = self.handed - self.applied > APPLY_BACKLOG_ENTRIES_MAX;
        let mut tokens = Vec::with_capacity(proposals.len());
        let mut entries = Vec::with_capacity(proposals.len());
        let mut dropped = Vec::new();
        for (token, data) in proposals {
            if overloaded || data.is_empty() || data.len() > ENTRY_BYTES_MAX || tokens.len() == room {
                dropped.push(token);
            } else {
                tokens.push(token);
                entries.push(Entry { data, ..Entry::default() });
            }
        }
        if !entries.is_empty() {
            let message = Message {
                msg_type: MessageType::MsgPropose,
                from: self.config.id,
                entries: entries.into(),
                ..Message::default()
            };
            match self.node.raft.step(message) {
                Ok(()) => {
                    self.told = self.node.raft.raft_log.committed;
                    let first = self.node.raft.raft_log.last_index() + 1 - tokens.len() as u64;
                    let term = self.node.raft.term;
                    let overwritten = self.proposals.add(first, term, &tokens, self.now);
                    self.fail_proposals(overwritten, ProposeError::Unknown);
                }
                Err(_) => dropped.append(&mut tokens),
            }
        }
        self.fail_proposals(dropped, ProposeError::Dropped);
    }

    /// Asks for an index that covers everything acknowledged until now.
    pub fn read_index(&mut self, token: Token) {
        if !self.is_leader() {
            self.fail_reads(vec![token], ReadError::NotLeader { leader: self.leader() });
        } else if !self.reads.add(token, self.now) {
            self.fail_reads(vec![token], ReadError::Overloaded);
        }
    }

    /// Whether there is a committed index that the other members have not been told. A proposal's append messages tell it
    /// along, which under load saves each follower a message and its answer an entry; where no proposal comes, see
    /// [`Core::tell_commit`].
    pub fn owes_commit(&self) -> bool {
        self.is_leader()
            && self.node.raft.raft_log.committed > self.told
            && self.node.raft.prs().iter().any(|(id, _)| *id != self.config.id)
    }

    /// Tells the other members the committed index, if it is owed. Each tick does so too.
    pub fn tell_commit(&mut self) {
        if self.owes_commit() {
            self.told = self.node.raft.raft_log.committed;
            self.node.raft.bcast_append();
        }
    }

    /// The number of the question under way whether this member leads, if it has not gone to all; see
    /// [`Core::ask_all`].
    pub fn asked_few(&self) -> Option<u64> {
        self.reads.asked_few()
    }

    /// Puts the question under way to all, for lack of answers. Heartbeats do so too.
    pub fn ask_all(&mut self) {
        let Some(context) = self.reads.few().filter(|_| self.node.raft.state == StateRole::Leader) else {
            return;
        };
        // Where raft knows of none the answer is there, and comes out with the next work.
        let Some(status) = self.node.raft.read_only.pending_read_index.get(context) else { return };
        self.reads.ask_all(|id| status.acks.contains(&id));
        self.node.raft.bcast_heartbeat();
    }

    /// Whether something waits for the state machine. Where not, it is enough that [`Core::applied`] is told with the
    /// next event.
    pub fn awaits_applied(&self) -> bool {
        self.change.is_some()
            || self.members.is_joint()
            || self.is_restoring()
            || self.handed - self.applied > APPLY_BACKLOG_ENTRIES_MAX / 2
            || (!self.is_leader() && self.members.is_sole_voter(self.config.id))
    }

    /// The last message to a member did not get there.
    pub fn unreachable(&mut self, id: u64) {
        self.node.report_unreachable(id);
    }

    /// All rounds up to this number are durable.
    pub fn persisted(&mut self, number: u64) {
        if number > self.persisted {
            self.persisted = number;
            self.node.on_persist_ready(number);
            self.advance_applied();
        }
    }

    /// The state machine has applied all entries up to this index, which was handed out.
    pub fn applied(&mut self, index: u64) {
        if index > self.applied {
            assert!(index <= self.handed, "entry {index} was applied before it was handed out");
            self.applied = index;
            self.advance_applied();
            self.notice_change();
            self.campaign_alone();
        }
    }

    /// Raft may know of what is durable here only, and a snapshot may be restored before the log says so.
    fn advance_applied(&mut self) {
        let log = &self.node.raft.raft_log;
        let index = self.applied.min(log.persisted);
        if index > log.applied {
            self.node.advance_apply_to(index);
        }
    }

    /// What is to be done now; None when nothing is left.
    pub fn work(&mut self) -> Result<Option<Work>, Error> {
        self.notice_leadership();
        let question = self.ask_reads();
        self.set_election_timeout();
        if !self.node.has_ready() {
            let done = std::mem::take(&mut self.done);
            return Ok((!done.is_empty()).then(|| Work { done, ..Work::default() }));
        }

        let mut ready = self.node.ready();
        let (number, sync) = (ready.number(), ready.must_sync());
        let mut messages = ready.take_messages();
        if let Some(Question { context, asked: Some(asked) }) = question {
            messages.retain(|message| message.context != context || asked.contains(&message.to));
        }
        let mut work = Work::default();
        let mut records = Vec::with_capacity(ready.entries().len() + 1);
        if !ready.snapshot().is_empty() {
            work.restore = Some(self.restore(ready.snapshot(), &mut records)?);
        }
        let entries = ready.take_entries();
        self.node.mut_store().append(&entries);
        records.extend(entries.into_iter().map(Record::Entry));
        if let Some(state) = ready.hs() {
            let old = self.node.store().hard_state();
            if (old.term, old.vote) != (state.term, state.vote) {
                self.voted = number;
            }
            self.node.mut_store().set_hard_state(state);
            records.push(Record::HardState(state.clone()));
        }
        let mut held = ready.take_persisted_messages();
        // A sole voter leads as soon as it campaigns. Were its term not durable when others hear of it, it could lead the
        // same term twice, with other entries.
        if self.voted > self.persisted {
            messages.append(&mut held);
            held = std::mem::take(&mut messages);
        }
        work.messages = messages;
        let committed = ready.take_committed_entries();
        for read in ready.take_read_states() {
            let confirmed = self.reads.confirmed(&read.request_ctx);
            self.done.extend(
                confirmed
                    .into_iter()
                    .map(|token| Answered { token, outcome: Outcome::ReadIndex(read.index) }),
            );
        }
        let waits = sync || self.is_writing();
        self.node.advance_append_async(ready);

        if waits {
            if sync || !held.is_empty() || !records.is_empty() {
                self.to_persist = number;
                work.persist = Some(Persist { number, sync, records, messages: held });
            }
        } else {
            // Nothing here or before it has to become durable first.
            self.node.on_persist_ready(number);
            work.messages.extend(held);
            if !records.is_empty() {
                work.persist = Some(Persist { number, sync, records, messages: Vec::new() });
                self.to_persist = number;
                self.persisted = number;
            }
        }
        work.apply = self.commit(committed)?;
        work.done = std::mem::take(&mut self.done);
        Ok(Some(work))
    }

    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let mut progress = Vec::new();
        if self.is_leader() {
            progress.extend(raft.prs().iter().map(|(id, one)| (*id, one.matched, self.is_active(*id))));
            progress.sort_unstable();
        }
        Status {
            id: self.config.id,
            leader: self.leader(),
            led: self.leader().is_some_and(|leader| self.is_active(leader)),
            role: match raft.state {
                StateRole::Follower => Role::Follower,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Candidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
            term: raft.term,
            commit: raft.raft_log.committed,
            applied: self.applied,
            last: raft.raft_log.last_index(),
            snapshot: self.node.store().snapshot_marker().index,
            voters: self.members.voters(),
            learners: self.members.learners(),
            progress,
            disk: None,
        }
    }

    /// So many milliseconds in ticks.
    pub fn ticks(&self, ms: u64) -> u64 {
        self.config.ticks(ms)
    }

    /// Changes whenever leader, role, term or members do.
    pub fn epoch(&self) -> (u64, Option<u64>, u64, u64) {
        (self.node.raft.term, self.leader(), self.node.raft.state as u64, self.changes)
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    pub fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|leader| *leader != 0)
    }

    /// Whether a round is on its way to the disk.
    fn is_writing(&self) -> bool {
        self.to_persist > self.persisted
    }

    /// Whether the state machine has yet to take over the snapshot that the log begins behind. A candidate looks through
    /// what it has not applied, and raft-rs panics where that is not in the log any more.
    fn is_restoring(&self) -> bool {
        self.node.raft.raft_log.applied + 1 < self.node.store().first()
    }

    /// Whether a member was heard of within an election timeout.
    fn is_active(&self, id: u64) -> bool {
        let heard = self.heard.get(&id).is_some_and(|at| self.now - at <= self.config.election_ticks as u64);
        id == self.config.id || heard
    }

    /// What raft-rs would panic at, or what is of no use, in this member's state.
    fn refusal(&self, message: &Message) -> Result<Option<Refused>, Error> {
        // Whoever ends TLS tells members from strangers when a stream begins, and a member may be removed meanwhile.
        if self.members.is_removed(message.from) {
            return Ok(Some(Refused::OutOfPlace));
        }
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let refused = match message.msg_type {
            // A leader tells only what this member has confirmed. If it has not got it, its disk was wiped or put back.
            MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
                return Err(Error::LostLog { id: self.config.id, confirmed: message.commit, last });
            }
            MessageType::MsgAppendResponse if message.term == raft.term && !message.reject => {
                message.index > last
            }
            // The log would name another snapshot, and the file of the one that is being taken over would go.
            MessageType::MsgSnapshot => self.is_restoring(),
            MessageType::MsgTimeoutNow => {
                message.term != raft.term || message.from != raft.leader_id || self.is_restoring()
            }
            _ => false,
        };
        Ok(refused.then_some(Refused::OutOfPlace))
    }

    /// Turns committed entries into what the state machine applies; a change of members comes into force here.
    fn commit(&mut self, committed: Vec<Entry>) -> Result<Vec<Apply>, Error> {
        let mut apply = Vec::with_capacity(committed.len());
        for entry in committed {
            self.handed = entry.index;
            let (token, overwritten) = self.proposals.committed(entry.index, entry.term);
            self.fail_proposals(overwritten, ProposeError::Dropped);
            let data = match entry.entry_type {
                EntryType::EntryNormal => entry.data.clone(),
                EntryType::EntryConfChangeV2 => Bytes::new(),
                EntryType::EntryConfChange => return Err(Error::UnknownChange),
            };
            self.commit_change(&entry)?;
            apply.push(Apply { index: entry.index, term: entry.term, data, token });
        }
        Ok(apply)
    }

    /// A sole voter need not wait for an election timeout.
    fn campaign_alone(&mut self) {
        let ready = self.applied == self.node.raft.raft_log.committed && !self.is_writing();
        if ready && !self.is_leader() && self.members.is_sole_voter(self.config.id) {
            // It fails only where raft is not ready for it; then the next tick tries again.
            let _ = self.node.campaign();
        }
    }

    fn notice_leadership(&mut self) {
        let leads = self.is_leader();
        if leads && !self.was_leader {
            self.told = 0;
        }
        if self.was_leader && !leads {
            let readers = self.reads.take_all();
            self.fail_reads(readers, ReadError::NotLeader { leader: self.leader() });
        }
        self.was_leader = leads;
        self.notice_transfer();
    }

    fn ask_reads(&mut self) -> Option<Question> {
        // Before a leader has committed in its own term it does not know what is committed, and raft-rs drops the
        // request without a word.
        if !self.is_leader() || !self.node.raft.commit_to_current_term() {
            return None;
        }
        let voters = self.members.voters();
        let simple = !self.members.is_joint() && voters.contains(&self.config.id);
        let question = self.reads.next_try(self.now, simple.then_some(voters.as_slice()))?;
        self.node.read_index(question.context.clone());
        Some(question)
    }

    /// Replaces the random timeout that raft-rs has drawn by one that follows from the seed, so that a simulation can be
    /// repeated. It changes with each term, role and leader.
    fn set_election_timeout(&mut self) {
        let (low, high) = (self.config.election_ticks, self.config.election_ticks_max);
        let raft = &mut self.node.raft;
        let state = raft.term << 2 | raft.state as u64;
        let drawn = mix(self.config.seed ^ mix(state) ^ mix(raft.leader_id).rotate_left(17));
        raft.set_randomized_election_timeout(low + (drawn % (high - low) as u64) as usize);
    }

    fn fail_proposals(&mut self, tokens: Vec<Token>, error: ProposeError) {
        self.done.extend(
            tokens.into_iter().map(|token| Answered { token, outcome: Outcome::ProposalFailed(error) }),
        );
    }

    fn fail_reads(&mut self, tokens: Vec<Token>, error: ReadError) {
        self.done
            .extend(tokens.into_iter().map(|token| Answered { token, outcome: Outcome::ReadFailed(error) }));
    }
}

/// Spreads a number over all 64 bits (the finaliser of SplitMix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
