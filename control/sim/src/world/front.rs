//! The door for writes, as `coracle_server`'s storage is one: the leader gathers transactions into entries, any other
//! member forwards, and an unknown outcome is tried again under the same request id.

use std::collections::VecDeque;

use coracle_objects::{Expect, Transaction, View};
use coracle_store::{Command, Outcome, Request, RequestId};

use super::apply::Waits;
use super::full_disk::grows;
use super::member::Member;
use super::raft::{Input, Waiter};
use super::reads::ReadReplyTo;
use super::snapshot::Part;
use super::{Event, Step, Who, World, life_of};
use crate::checker::history::{Ending, OpId, OpKind};
use crate::mutant::Mutant;
use crate::options::MS;
use crate::trace::{Micros, Note};

/// Until a write must have an outcome. Production waits longer; here more outcomes shall stay unknown.
const WRITE_TIMEOUT: Micros = 1_500 * MS;
/// Until the leader must have answered one forwarded call.
const FORWARD_TIMEOUT: Micros = 500 * MS;
/// Between two tries.
pub const RETRY_PAUSE: Micros = 25 * MS;
/// Entries of one member under way at a time, and requests in one.
const ENTRIES_UNDER_WAY: u32 = 2;
const REQUESTS_MAX: usize = 16;

/// A write that this process is to get done.
pub struct Flight {
    request: Request,
    unknown: bool,
    attempt: u32,
    state: State,
}

enum State {
    Trying,
    /// Until a while has passed, or leadership has moved.
    Pausing,
    /// Done elsewhere; this member shall have it too before it answers.
    Done(Outcome),
}

/// How one try went.
#[derive(Clone, Debug)]
pub enum TryResult {
    Done {
        outcome: Outcome,
        index: u64,
    },
    Not,
    /// Certainly not done, and no use to try again soon.
    NoSpace,
    Unknown,
}

/// Who asked for a try.
#[derive(Clone, Copy, Debug)]
pub enum ReplyTo {
    Here { op: OpId, attempt: u32 },
    There { to: Who, op: OpId, attempt: u32 },
}

/// A request that waits for its entry.
pub struct Waiting {
    pub id: RequestId,
    pub reply: ReplyTo,
}

/// Makes entries of requests, on the leader.
#[derive(Default)]
pub struct Gatherer {
    waiting: VecDeque<(Request, ReplyTo)>,
    pub under_way: u32,
}

/// What one member asks of another.
pub enum Call {
    Write {
        op: OpId,
        attempt: u32,
        request: Request,
    },
    ReadIndex {
        attempt: u32,
    },
    /// How are you?
    Health,
    /// A part of a snapshot.
    Part {
        index: u64,
        offset: u64,
        attempt: u32,
    },
}

pub enum Reply {
    Write {
        op: OpId,
        attempt: u32,
        result: TryResult,
    },
    ReadIndex {
        attempt: u32,
        index: Option<u64>,
    },
    Health {
        from: u64,
        has_room: bool,
    },
    /// None where there is no such snapshot.
    Part {
        attempt: u32,
        part: Option<Part>,
    },
}

impl World {
    /// A client's request has arrived.
    pub fn asked(&mut self, who: Who, op: OpId) {
        let kind = self.history.op(op).kind.clone();
        let Some(life) = life_of(&mut self.members, who) else {
            // The connection is refused, or breaks: nothing has been tried.
            let ending = if kind == OpKind::Read { Ending::ReadFailed } else { Ending::NotDone };
            return self.after(200, Event::Told(op, Box::new(ending)));
        };
        match kind {
            OpKind::Read => self.begin_read(who, op),
            OpKind::Write(spec) => {
                life.sequence += 1;
                let id = RequestId { client: life.client, sequence: life.sequence };
                let request = Request { id, transaction: spec.transaction(&self.keys) };
                let flight = Flight { request, unknown: false, attempt: 0, state: State::Pausing };
                life.flights.insert(op, flight);
                self.after(WRITE_TIMEOUT, Event::WriteDeadline(who, op));
                self.try_write(who, op);
            }
        }
    }

    fn try_write(&mut self, who: Who, op: OpId) {
        let mutant = self.plan.mutant;
        let Some(life) = life_of(&mut self.members, who) else { return };
        let Some(flight) = life.flights.get_mut(&op) else { return };
        flight.attempt += 1;
        flight.state = State::Trying;
        if flight.attempt > 1 {
            self.counts.retried += 1;
        }
        let attempt = flight.attempt;
        let mut request = flight.request.clone();
        if mutant == Some(Mutant::ForgottenRequest) {
            life.sequence += 1;
            request.id.sequence = life.sequence;
        }
        let leader = life.status.0;
        self.trace.note(self.now, Note::Try { op, member: who.id, at: leader, attempt });
        match leader {
            Some(leader) if leader == who.id => {
                self.take_request(who, request, ReplyTo::Here { op, attempt });
            }
            Some(leader) => {
                self.call(who, leader, Call::Write { op, attempt, request });
                self.after(FORWARD_TIMEOUT, Event::WriteTimeout(who, op, attempt));
            }
            // Goes on as soon as there is one.
            None => flight.state = State::Pausing,
        }
    }

    pub fn tried(&mut self, who: Who, op: OpId, attempt: u32, result: TryResult) {
        let Some(life) = life_of(&mut self.members, who) else { return };
        let Some(flight) = life.flights.get_mut(&op) else { return };
        if flight.attempt != attempt || !matches!(flight.state, State::Trying) {
            return;
        }
        match result {
            TryResult::Done { outcome, index } => {
                flight.state = State::Done(outcome);
                life.machine.waiting.push((index, Waits::Write(op)));
                self.tell_waiting(who);
            }
            TryResult::NoSpace if !flight.unknown => {
                life.flights.remove(&op);
                self.counts.no_room += 1;
                self.answer(op, Ending::NotDone);
            }
            TryResult::Not | TryResult::NoSpace | TryResult::Unknown => {
                flight.unknown |= matches!(result, TryResult::Unknown);
                flight.state = State::Pausing;
                self.after(RETRY_PAUSE, Event::RetryWrite(who, op, attempt));
            }
        }
    }

    pub fn retry_write(&mut self, who: Who, op: OpId, attempt: u32) {
        let flight = self.life(who).and_then(|life| life.flights.get(&op));
        if flight.is_some_and(|flight| flight.attempt == attempt && matches!(flight.state, State::Pausing)) {
            self.try_write(who, op);
        }
    }

    pub fn write_timeout(&mut self, who: Who, op: OpId, attempt: u32) {
        self.tried(who, op, attempt, TryResult::Unknown);
    }

    pub fn write_deadline(&mut self, who: Who, op: OpId) {
        let Some(flight) = self.life(who).and_then(|life| life.flights.get_mut(&op)) else { return };
        match flight.state {
            State::Done(_) => self.finish_write(who, op),
            State::Trying => flight.unknown = true,
            State::Pausing => {}
        }
        if let Some(flight) = self.life(who).and_then(|life| life.flights.remove(&op)) {
            self.answer(op, if flight.unknown { Ending::Unknown } else { Ending::NotDone });
        }
    }

    pub fn finish_write(&mut self, who: Who, op: OpId) {
        let Some(flight) = self.life(who).and_then(|life| life.flights.remove(&op)) else { return };
        if let State::Done(outcome) = flight.state {
            self.answer(
                op,
                match outcome {
                    Ok(applied) => Ending::Applied(applied),
                    Err(refusal) => Ending::Refused(refusal),
                },
            );
        }
    }

    /// There is another leader or term: an old leader that is cut off would keep the tries for long.
    pub fn moved(&mut self, who: Who) {
        let Some(life) = self.life(who) else { return };
        let mut again = Vec::new();
        for (op, flight) in &mut life.flights {
            if matches!(flight.state, State::Done(_)) {
                continue;
            }
            flight.unknown |= matches!(flight.state, State::Trying);
            flight.state = State::Pausing;
            again.push(*op);
        }
        for op in again {
            self.try_write(who, op);
        }
        self.reads_moved(who);
    }

    /// Sends a call to another member.
    pub fn call(&mut self, from: Who, to: u64, call: Call) {
        if let [Some(delay), _] = self.network.fate(&mut self.rng, from.id, to, self.now) {
            self.after(delay, Event::Call { from, to, call: Box::new(call) });
        }
    }

    pub fn called(&mut self, from: Who, to: u64, call: Call) {
        let who = self.members.get(&to).and_then(Member::who);
        if self.network.is_cut(from.id, to, self.now) {
            return;
        }
        match (who, call) {
            (Some(who), Call::Write { op, attempt, request }) => {
                self.take_request(who, request, ReplyTo::There { to: from, op, attempt });
            }
            (Some(who), Call::ReadIndex { attempt }) => {
                self.ask_index(who, ReadReplyTo::There { to: from, attempt });
            }
            (Some(who), Call::Health) => self.tell_health(who, from),
            (Some(who), Call::Part { index, offset, attempt }) => {
                self.serve_part(who, from, index, offset, attempt);
            }
            // What has no answer at all is asked for again.
            (None, Call::Part { .. } | Call::Health) => {}
            // Nobody answers: a broken connection says nothing of what was done.
            (None, Call::Write { op, attempt, .. }) => {
                let reply = Reply::Write { op, attempt, result: TryResult::Unknown };
                self.after(500, Event::Reply { to: from, reply: Box::new(reply) });
            }
            (None, Call::ReadIndex { attempt }) => {
                let reply = Reply::ReadIndex { attempt, index: None };
                self.after(500, Event::Reply { to: from, reply: Box::new(reply) });
            }
        }
    }

    pub fn send_reply(&mut self, who: Who, to: Who, op: OpId, attempt: u32, result: TryResult) {
        self.send_back(who, to, Reply::Write { op, attempt, result });
    }

    pub fn send_back(&mut self, who: Who, to: Who, reply: Reply) {
        if let [Some(delay), _] = self.network.fate(&mut self.rng, who.id, to.id, self.now) {
            self.after(delay, Event::Reply { to, reply: Box::new(reply) });
        }
    }

    pub fn replied(&mut self, to: Who, reply: Reply) -> Step {
        match reply {
            Reply::Write { op, attempt, result } => self.tried(to, op, attempt, result),
            Reply::ReadIndex { attempt, index } => self.index_had(to, attempt, index),
            Reply::Health { from, has_room } => self.health_had(to, from, has_room),
            Reply::Part { attempt, part } => self.part_had(to, attempt, part),
        }
        Ok(())
    }

    /// A request waits for the next entry of this member.
    fn take_request(&mut self, who: Who, mut request: Request, reply: ReplyTo) {
        let Some(life) = life_of(&mut self.members, who) else { return };
        if life.room.is_low() {
            if grows(life.machine.store.view(), &request.transaction) {
                return self.reply(who, reply, TryResult::NoSpace);
            }
            self.counts.taken_without_room += 1;
        }
        if self.plan.mutant == Some(Mutant::CheckAtPropose) && life.core.is_leader() {
            request.transaction = checked_now(request.transaction, life.machine.store.view());
        }
        life.gatherer.waiting.push_back((request, reply));
        self.wake(who);
    }

    /// What waits becomes entries, as many as may be under way.
    pub fn gather(&mut self, who: Who) {
        let Some(life) = self.life(who) else { return };
        while life.gatherer.under_way < ENTRIES_UNDER_WAY && !life.gatherer.waiting.is_empty() {
            let count = life.gatherer.waiting.len().min(REQUESTS_MAX);
            let (requests, waiting): (Vec<_>, Vec<_>) = life
                .gatherer
                .waiting
                .drain(..count)
                .map(|(request, reply)| {
                    let id = request.id;
                    (request, Waiting { id, reply })
                })
                .unzip();
            let entry = Command { proposer: who.id, requests }.encode();
            life.gatherer.under_way += 1;
            let token = life.token(Waiter::Entry(waiting));
            life.inbox.push(Input::Propose(token, entry));
        }
    }
}

/// What the mutant proposes: without preconditions where they hold now, else as it was.
fn checked_now(transaction: Transaction, view: &View) -> Transaction {
    let holds = transaction.preconditions.iter().all(|precondition| {
        match (&precondition.expect, view.get(&precondition.key)) {
            (Expect::Absent, found) => found.is_none(),
            (_, None) => false,
            (Expect::Exists, Some(_)) => true,
            (Expect::Revision(revision), Some(object)) => object.revision == *revision,
            (Expect::Uid(uid), Some(object)) => object.meta.uid == *uid,
            (Expect::NotDeleting, Some(object)) => object.meta.deletion_timestamp.is_none(),
        }
    });
    if holds { Transaction { preconditions: vec![], writes: transaction.writes } } else { transaction }
}
