//! A member's turn: events are taken, the core is stepped, and its work is handed out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::{oneshot, watch};

use super::apply_thread::{ApplyItem, ApplyJob};
use super::fetch::Hold;
use super::shared::Waker;
use super::wal_thread::WalJob;
use crate::config::{
    APPLY_QUEUE_MAX, COMMIT_PAUSE_US, FETCH_IDLE_MS, MESSAGE_ENTRIES_BYTES_MAX, READ_PAUSE_US,
    SNAPSHOT_IDLE_MS, SPACE_PERIOD_MS, WAL_QUEUE_MAX,
};
use crate::core::{Answered, Core, Outcome, Token, Work};
use crate::error::{ChangeError, Error, ProposeError, ReadError};
use crate::membership::MemberChange;
use crate::message::to_wire;
use crate::snapshot::fetching::{Begin, Fetching};
use crate::status::{DiskRoom, Leading, Status};
use crate::transport::Transport;
use crate::wal::SnapshotMarker;

pub type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// Everything that can happen to a member, but for time, the disk and the state machine.
pub enum Event<O> {
    Propose(Bytes, Reply<O, ProposeError>),
    Read(Reply<u64, ReadError>),
    Change(Vec<MemberChange>, Reply<(), ChangeError>),
    Transfer(u64, Reply<(), ChangeError>),
    Messages(Vec<Message>),
    Unreachable(u64),
    /// Make a snapshot, due or not.
    Snapshot,
    /// What is a snapshot as of this applied index marked with?
    Mark(u64, Sender<Option<SnapshotMarker>>),
    /// A snapshot of this member is durable.
    Compact(SnapshotMarker),
    /// What became of the fetch with this number.
    Fetched(u64, Arrived),
    /// A member takes its snapshot from this one.
    Served(u64),
    /// Look at the counters.
    Wake,
}

/// How fetching a snapshot ended.
pub enum Arrived {
    /// It is here and durable.
    Whole,
    /// It will not arrive.
    Not,
    /// It is whole, and this build cannot read it. It was not kept.
    Newer(String),
}

/// An event with more than this of entries is not light.
const LIGHT_BYTES_MAX: usize = 64 * 1024;

impl<O> Event<O> {
    /// Whether it brings so little that its sender may take the turn. What comes of it may be more, as where a follower
    /// catches up; that is bounded by what raft sends ahead.
    pub fn is_light(&self) -> bool {
        match self {
            Event::Read(_) => true,
            Event::Propose(data, _) => data.len() <= LIGHT_BYTES_MAX,
            Event::Messages(messages) => {
                let entries = messages.iter().flat_map(|message| &message.entries);
                entries.map(|entry| entry.data.len()).sum::<usize>() <= LIGHT_BYTES_MAX
                    && messages.iter().all(|message| message.msg_type != MessageType::MsgSnapshot)
            }
            _ => false,
        }
    }
}

/// Begins to fetch a snapshot. Ends with [`Event::Fetched`]. None where there is no place for it.
pub type Fetch = Box<dyn Fn(Begin) -> Option<Hold> + Send>;

/// How much room there is beside the snapshot as of this entry.
pub type Room = Box<dyn Fn(u64) -> Option<DiskRoom> + Send>;

/// Who waits for the outcome of a call.
enum Waiter<O> {
    Propose(Reply<O, ProposeError>),
    Read(Reply<u64, ReadError>),
    Change(Reply<(), ChangeError>),
}

/// The core, and everything that its work goes to. Whoever has it takes a turn: see [`super::turns`].
pub struct Member<O> {
    pub core: Core,
    pub to_wal: Sender<WalJob>,
    pub to_apply: Sender<ApplyJob<O>>,
    pub transport: Arc<dyn Transport>,
    pub room: Room,
    pub fetch: Fetch,
    pub waker: Waker<O>,
    pub status: watch::Sender<Status>,
    pub leading: watch::Sender<Leading>,
    pub life: Life<O>,
}

/// What a member remembers from turn to turn.
pub struct Life<O> {
    /// The room that was found last, and when to look again.
    found_room: Option<DiskRoom>,
    look_at: Instant,
    /// The snapshot that is on its way here.
    fetching: Fetching,
    hold: Option<Hold>,
    /// Ticks since the start.
    now: u64,
    waiters: HashMap<Token, Waiter<O>>,
    next_token: Token,
    epoch: Option<(u64, Option<u64>, u64, u64)>,
    /// When the others are to be told what is committed, at the latest.
    tell_at: Option<Instant>,
    /// When all are to be asked whether this member leads, for this question.
    ask_at: Option<(u64, Instant)>,
}

impl<O> Default for Life<O> {
    fn default() -> Life<O> {
        Life {
            found_room: None,
            look_at: Instant::now(),
            fetching: Fetching::default(),
            hold: None,
            now: 0,
            waiters: HashMap::new(),
            next_token: 0,
            epoch: None,
            tell_at: None,
            ask_at: None,
        }
    }
}

/// The other side of a queue has ended: so does this member.
pub struct Ended;

impl<O: Send + 'static> Member<O> {
    /// Takes events, steps the core and hands its work out. `ticked` where raft's clock goes on.
    pub fn turn(&mut self, events: &mut Vec<Event<O>>, ticked: bool) -> Result<Result<(), Ended>, Error> {
        self.take_progress();
        if self.take(events)?.is_err() {
            return Ok(Err(Ended));
        }
        let now = Instant::now();
        if ticked {
            self.core.tick();
            self.life.now += 1;
            self.follow_fetch()?;
        }
        if self.life.tell_at.is_some_and(|at| now >= at) {
            self.core.tell_commit();
        }
        if self.life.ask_at.is_some_and(|(_, at)| now >= at) {
            self.core.ask_all();
        }
        // Not in the turn of a caller: the disk may take its time to answer.
        if ticked && now >= self.life.look_at {
            self.life.look_at = now + Duration::from_millis(SPACE_PERIOD_MS);
            self.look_at_room();
        }
        if self.hand_out()?.is_err() {
            return Ok(Err(Ended));
        }
        self.set_alarms(now);
        self.await_applied();
        let epoch = Some(self.core.epoch());
        if ticked || epoch != self.life.epoch {
            self.life.epoch = epoch;
            self.publish();
        }
        Ok(Ok(()))
    }

    /// When the next turn is due if nothing happens, beside ticks.
    pub fn due(&self) -> Option<Instant> {
        let ask_at = self.life.ask_at.map(|(_, at)| at);
        self.life.tell_at.into_iter().chain(ask_at).min()
    }

    /// Whether a turn's work surely finds room in the queues.
    pub fn has_room(&self) -> bool {
        self.to_wal.len() < WAL_QUEUE_MAX / 2 && self.to_apply.len() < APPLY_QUEUE_MAX / 2
    }

    fn set_alarms(&mut self, now: Instant) {
        let owes = self.core.owes_commit();
        let tell_at = self.life.tell_at.unwrap_or(now + Duration::from_micros(COMMIT_PAUSE_US));
        self.life.tell_at = owes.then_some(tell_at);
        self.life.ask_at = self.core.asked_few().map(|question| {
            let same = self.life.ask_at.filter(|(asked, _)| *asked == question);
            same.unwrap_or((question, now + Duration::from_micros(READ_PAUSE_US)))
        });
    }

    /// After the events are taken from the queue and before they are stepped: an answer to a message is then never
    /// stepped before the write that the message waited for is known to be durable.
    fn take_progress(&mut self) {
        let shared = &self.waker.shared;
        shared.accept_wake();
        self.core.persisted(shared.persisted.load(Ordering::SeqCst));
        self.core.applied(shared.applied.load(Ordering::SeqCst));
    }

    /// The apply thread need not wake this one where nothing waits for it.
    fn await_applied(&mut self) {
        let awaited = self.core.awaits_applied();
        if self.waker.shared.applied_awaited.swap(awaited, Ordering::SeqCst) != awaited && awaited {
            // What it has applied before it saw this.
            self.waker.wake();
        }
    }

    fn take(&mut self, batch: &mut Vec<Event<O>>) -> Result<Result<(), Ended>, Error> {
        let mut proposals = Vec::new();
        let mut proposed_bytes = 0;
        for event in batch.drain(..) {
            match event {
                Event::Propose(data, reply) => {
                    self.waker.shared.metrics.proposals.add(1);
                    proposed_bytes += data.len() as u64;
                    let token = self.wait(Waiter::Propose(reply));
                    proposals.push((token, data));
                    if proposed_bytes >= MESSAGE_ENTRIES_BYTES_MAX {
                        self.core.propose(std::mem::take(&mut proposals));
                        proposed_bytes = 0;
                    }
                }
                Event::Read(reply) => {
                    self.waker.shared.metrics.reads.add(1);
                    let token = self.wait(Waiter::Read(reply));
                    self.core.read_index(token);
                }
                Event::Change(changes, reply) => {
                    let token = self.wait(Waiter::Change(reply));
                    self.core.change(token, &changes);
                }
                Event::Transfer(to, reply) => {
                    let token = self.wait(Waiter::Change(reply));
                    self.core.transfer(token, to);
                }
                Event::Messages(messages) => {
                    self.waker.shared.metrics.messages_received.add(messages.len() as u64);
                    for message in messages {
                        self.receive(message)?;
                    }
                }
                Event::Unreachable(id) => self.core.unreachable(id),
                Event::Served(id) => self.core.snapshot_served(id),
                Event::Fetched(number, arrived) => self.fetched(number, arrived)?,
                Event::Mark(index, reply) => drop(reply.send(self.core.snapshot_marker(index))),
                Event::Compact(marker) => {
                    if self.core.compact(&marker) && self.to_wal.send(WalJob::Compact(marker)).is_err() {
                        return Ok(Err(Ended));
                    }
                }
                Event::Snapshot => {
                    if self.to_apply.send(ApplyJob::Snapshot).is_err() {
                        return Ok(Err(Ended));
                    }
                }
                Event::Wake => {}
            }
        }
        if !proposals.is_empty() {
            self.core.propose(proposals);
        }
        Ok(Ok(()))
    }

    fn receive(&mut self, message: Message) -> Result<(), Error> {
        match self.core.wants_snapshot(&message) {
            None => self.step(message)?,
            Some(marker) => {
                let idle = self.core.ticks(SNAPSHOT_IDLE_MS);
                let begin = self.life.fetching.announced(message, marker, self.life.now, idle);
                if let Some(begin) = begin {
                    let number = begin.number;
                    self.life.hold = (self.fetch)(begin);
                    if self.life.hold.is_none() {
                        // The leader sends another when it sees that this one is not taken.
                        self.life.fetching.ended(number, false);
                    }
                }
            }
        }
        Ok(())
    }

    fn fetched(&mut self, number: u64, arrived: Arrived) -> Result<(), Error> {
        if self.life.fetching.number() != Some(number) {
            return Ok(());
        }
        self.life.hold = None;
        if let Arrived::Newer(what) = arrived {
            return Err(Error::Newer { file: "the snapshot of the leader".to_owned(), what });
        }
        if let Some(message) = self.life.fetching.ended(number, matches!(arrived, Arrived::Whole)) {
            self.step(message)?;
        }
        self.begin_next()
    }

    /// A fetch of which nothing comes any more has failed, whether somebody tells so or not.
    fn follow_fetch(&mut self) -> Result<(), Error> {
        let Some(hold) = &self.life.hold else { return Ok(()) };
        let idle = self.core.ticks(FETCH_IDLE_MS);
        let sign = hold.sign(self.life.now);
        if self.life.fetching.moved(sign, self.life.now, idle) {
            tracing::warn!("nothing comes of a snapshot of the leader any more");
            self.life.hold = None;
            self.begin_next()?;
        }
        Ok(())
    }

    fn begin_next(&mut self) -> Result<(), Error> {
        match self.life.fetching.take_next() {
            Some(message) => self.receive(message),
            None => Ok(()),
        }
    }

    fn step(&mut self, message: Message) -> Result<(), Error> {
        let from = message.from;
        if let Err(reason) = self.core.step(message)? {
            self.waker.shared.metrics.messages_refused.add(1);
            tracing::debug!(from, %reason, "ignored a raft message");
        }
        Ok(())
    }

    fn wait(&mut self, waiter: Waiter<O>) -> Token {
        self.life.next_token += 1;
        self.life.waiters.insert(self.life.next_token, waiter);
        self.life.next_token
    }

    fn hand_out(&mut self) -> Result<Result<(), Ended>, Error> {
        while let Some(work) = self.core.work()? {
            if self.carry_out(work).is_err() {
                return Ok(Err(Ended));
            }
        }
        if self.core.take_snapshot_wanted() && self.to_apply.send(ApplyJob::Snapshot).is_err() {
            return Ok(Err(Ended));
        }
        Ok(Ok(()))
    }

    fn carry_out(&mut self, work: Work) -> Result<(), Ended> {
        send(&*self.transport, work.messages);
        if let Some(persist) = work.persist {
            self.to_wal.send(WalJob::Persist(persist)).map_err(|_| Ended)?;
        }
        if let Some(marker) = work.restore {
            self.to_apply.send(ApplyJob::Restore(marker)).map_err(|_| Ended)?;
        }
        if !work.apply.is_empty() {
            let waiters = &mut self.life.waiters;
            let items = work.apply.into_iter().map(|apply| {
                let waiter = apply.token.and_then(|token| waiters.remove(&token));
                let reply = match waiter {
                    Some(Waiter::Propose(reply)) => Some(reply),
                    _ => None,
                };
                ApplyItem { index: apply.index, term: apply.term, data: apply.data, reply }
            });
            self.to_apply.send(ApplyJob::Entries(items.collect())).map_err(|_| Ended)?;
        }
        for done in work.done {
            self.tell(done);
        }
        Ok(())
    }

    fn tell(&mut self, done: Answered) {
        match done.outcome {
            Outcome::ProposalFailed(_) => self.waker.shared.metrics.proposals_failed.add(1),
            Outcome::ReadFailed(_) => self.waker.shared.metrics.reads_failed.add(1),
            _ => {}
        }
        let Some(waiter) = self.life.waiters.remove(&done.token) else { return };
        // A waiter that has gone away is none of our business.
        match (waiter, done.outcome) {
            (Waiter::Propose(reply), Outcome::ProposalFailed(error)) => drop(reply.send(Err(error))),
            (Waiter::Read(reply), Outcome::ReadIndex(index)) => drop(reply.send(Ok(index))),
            (Waiter::Read(reply), Outcome::ReadFailed(error)) => drop(reply.send(Err(error))),
            (Waiter::Change(reply), Outcome::Changed) => drop(reply.send(Ok(()))),
            (Waiter::Change(reply), Outcome::ChangeFailed(error)) => drop(reply.send(Err(error))),
            (_, outcome) => unreachable!("a call has the outcome of another kind of call: {outcome:?}"),
        }
    }

    fn look_at_room(&mut self) {
        let found = (self.room)(self.core.status().snapshot);
        let low = |room: Option<DiskRoom>| room.is_some_and(|room| room.low);
        if low(found) != low(self.life.found_room) {
            let free = found.map_or(0, |room| room.space.free);
            if low(found) {
                tracing::error!(free, "the disk is nearly full");
            } else {
                tracing::info!(free, "the disk has room again");
            }
        }
        self.life.found_room = found;
    }

    fn publish(&self) {
        let status = Status { disk: self.life.found_room, ..self.core.status() };
        let leading = status.leading();
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            if old.role != status.role || old.leader != status.leader {
                let (role, leader, term) = (status.role, status.leader, status.term);
                tracing::info!(member = status.id, ?role, ?leader, term, "raft role or leader changed");
            }
            if old.leader != status.leader && status.leader.is_some() {
                self.waker.shared.metrics.leader_changes.add(1);
            }
            if changed {
                *old = status;
            }
            changed
        });
        self.leading.send_if_modified(|old| std::mem::replace(old, leading) != leading);
    }
}

/// Gives messages to the transport, those to one member together and in order.
pub fn send(transport: &dyn Transport, messages: Vec<Message>) {
    let mut by_member: BTreeMap<u64, Vec<_>> = BTreeMap::new();
    for message in messages {
        by_member.entry(message.to).or_default().push(to_wire(message));
    }
    for (to, messages) in by_member {
        transport.send(to, messages);
    }
}
