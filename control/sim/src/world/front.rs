//! The door for writes, as `coracle_storage` is one: [`coracle_member`] says what shares an entry, where a write is
//! tried and what comes of it; here are the calls, their time and what is lost of them.

use coracle_member::batch::{Bounds, ENTRIES_UNDER_WAY, Proposers};
use coracle_member::identity::IDENTITIES_MAX;
use coracle_member::retry::{Failure, Next, Place, RETRY_PAUSE, Try, Write};
use coracle_member::room::grows;
use coracle_objects::{Expect, Transaction, View};
use coracle_store::{Command, Outcome, Request};

use super::apply::Waits;
use super::member::Member;
use super::raft::{Input, Waiter};
use super::reads::ReadReplyTo;
use super::snapshot::Part;
use super::{Event, Step, Who, World, life_of, micros, moment};
use crate::checker::history::{Ending, OpId, OpKind};
use crate::mutant::Mutant;
use crate::options::MS;
use crate::trace::{Micros, Note};

/// Until a write must have an outcome. Production waits longer; here more outcomes shall stay unknown.
const WRITE_TIMEOUT: Micros = 1_500 * MS;
/// Until the leader must have answered one forwarded call.
const FORWARD_TIMEOUT: Micros = 500 * MS;
/// What shares an entry. Less than in production, so that all bounds are met.
pub const BOUNDS: Bounds =
    Bounds { waiting_max: 16, entry_bytes: 1_500, entries_under_way: ENTRIES_UNDER_WAY };

/// A write that this process is to get done.
pub struct Flight {
    request: Request,
    write: Write,
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

/// Who asked for a try.
#[derive(Clone, Copy, Debug)]
pub enum ReplyTo {
    Here { op: OpId, attempt: u32 },
    There { to: Who, op: OpId, attempt: u32 },
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
        tried: Try,
        /// That of the member which answers.
        clock: u64,
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
                let id = life.identities.next(life.machine.store.clock());
                let request = Request { id, transaction: spec.transaction(&self.keys) };
                let deadline = moment(self.now + WRITE_TIMEOUT);
                let write = Write::new(who.id, deadline, IDENTITIES_MAX);
                life.flights.insert(op, Flight { request, write, attempt: 0, state: State::Pausing });
                self.after(WRITE_TIMEOUT, Event::WriteDeadline(who, op));
                self.try_write(who, op);
            }
        }
    }

    fn try_write(&mut self, who: Who, op: OpId) {
        let mutant = self.plan.mutant;
        let Some(life) = life_of(&mut self.members, who) else { return };
        let leader = life.status.0;
        let Some(flight) = life.flights.get_mut(&op) else { return };
        let place = match flight.write.begin(moment(self.now), leader) {
            Ok(place) => place,
            Err(failure) => return self.fail_write(who, op, failure),
        };
        flight.attempt += 1;
        flight.state = State::Trying;
        if flight.attempt > 1 {
            self.counts.retried += 1;
        }
        let attempt = flight.attempt;
        let mut request = flight.request.clone();
        if mutant == Some(Mutant::ForgottenRequest) {
            request.id = life.identities.next(life.machine.store.clock());
        }
        self.trace.note(self.now, Note::Try { op, member: who.id, at: leader, attempt });
        match place {
            Some(Place::Here) => self.take_request(who, request, ReplyTo::Here { op, attempt }),
            Some(Place::There(leader)) => {
                self.call(who, leader, Call::Write { op, attempt, request });
                self.after(FORWARD_TIMEOUT, Event::WriteTimeout(who, op, attempt));
            }
            None => flight.state = State::Pausing,
        }
    }

    pub fn tried(&mut self, who: Who, op: OpId, attempt: u32, tried: Try) {
        let Some(life) = life_of(&mut self.members, who) else { return };
        let Some(flight) = life.flights.get_mut(&op) else { return };
        if flight.attempt != attempt || !matches!(flight.state, State::Trying) {
            return;
        }
        flight.state = State::Pausing;
        match flight.write.tried(tried) {
            Next::Done { outcome, index } => {
                flight.state = State::Done(outcome);
                life.machine.waiting.push((index, Waits::Write(op)));
                self.tell_waiting(who);
            }
            Next::Again => self.after(micros(RETRY_PAUSE), Event::RetryWrite(who, op, attempt)),
            Next::Anew => {
                flight.request.id = life.identities.next(life.machine.store.clock());
                self.try_write(who, op);
            }
            Next::Failed(failure) => self.fail_write(who, op, failure),
        }
    }

    fn fail_write(&mut self, who: Who, op: OpId, failure: Failure) {
        let Some(life) = self.life(who) else { return };
        life.flights.remove(&op);
        self.counts.no_room += u64::from(failure == Failure::NoSpace);
        let unknown = matches!(failure, Failure::Unknown(_));
        self.answer(op, if unknown { Ending::Unknown } else { Ending::NotDone });
    }

    pub fn retry_write(&mut self, who: Who, op: OpId, attempt: u32) {
        let flight = self.life(who).and_then(|life| life.flights.get(&op));
        if flight.is_some_and(|flight| flight.attempt == attempt && matches!(flight.state, State::Pausing)) {
            self.try_write(who, op);
        }
    }

    pub fn write_timeout(&mut self, who: Who, op: OpId, attempt: u32) {
        self.tried(who, op, attempt, Try::Unknown("no answer in time".to_owned()));
    }

    pub fn write_deadline(&mut self, who: Who, op: OpId) {
        let Some(flight) = self.life(who).and_then(|life| life.flights.get_mut(&op)) else { return };
        match flight.state {
            State::Done(_) => self.finish_write(who, op),
            // It ends by itself, and no other begins.
            State::Trying => {}
            State::Pausing => self.try_write(who, op),
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
            if matches!(flight.state, State::Trying) {
                flight.write.tried(Try::moved());
            }
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
                let tried = Try::Unknown("no connection".to_owned());
                let reply = Reply::Write { op, attempt, tried, clock: 0 };
                self.after(500, Event::Reply { to: from, reply: Box::new(reply) });
            }
            (None, Call::ReadIndex { attempt }) => {
                let reply = Reply::ReadIndex { attempt, index: None };
                self.after(500, Event::Reply { to: from, reply: Box::new(reply) });
            }
        }
    }

    pub fn send_reply(&mut self, who: Who, to: Who, op: OpId, attempt: u32, tried: Try) {
        let clock = self.life(who).map_or(0, |life| life.machine.store.clock());
        self.send_back(who, to, Reply::Write { op, attempt, tried, clock });
    }

    pub fn send_back(&mut self, who: Who, to: Who, reply: Reply) {
        if let [Some(delay), _] = self.network.fate(&mut self.rng, who.id, to.id, self.now) {
            self.after(delay, Event::Reply { to, reply: Box::new(reply) });
        }
    }

    pub fn replied(&mut self, to: Who, reply: Reply) -> Step {
        match reply {
            Reply::Write { op, attempt, tried, clock } => {
                if matches!(tried, Try::Forgotten)
                    && let Some(life) = self.life(to)
                {
                    life.identities.heard(clock);
                }
                self.tried(to, op, attempt, tried);
            }
            Reply::ReadIndex { attempt, index } => self.index_had(to, attempt, index),
            Reply::Health { from, has_room } => self.health_had(to, from, has_room),
            Reply::Part { attempt, part } => self.part_had(to, attempt, part),
        }
        Ok(())
    }

    /// A request is an entry of its own, or waits for the next of this member.
    fn take_request(&mut self, who: Who, mut request: Request, reply: ReplyTo) {
        let Some(life) = life_of(&mut self.members, who) else { return };
        if life.room.is_low() {
            if grows(life.machine.store.view(), &request.transaction) {
                return self.reply(who, reply, Try::NoSpace);
            }
            self.counts.taken_without_room += 1;
        }
        if self.plan.mutant == Some(Mutant::CheckAtPropose) && life.core.is_leader() {
            request.transaction = checked_now(request.transaction, life.machine.store.view());
        }
        if life.gatherer.goes_alone() {
            self.propose(who, vec![request.clone()], Proposers::one(request.id, reply));
        } else if let Err((_, reply)) = life.gatherer.wait(request, reply) {
            return self.reply(who, reply, Try::Not("too many wait".to_owned()));
        }
        self.wake(who);
    }

    fn propose(&mut self, who: Who, requests: Vec<Request>, proposers: Proposers<ReplyTo>) {
        let Some(life) = self.life(who) else { return };
        let entry = Command { proposer: who.id, requests }.encode();
        let token = life.token(Waiter::Entry(proposers));
        life.inbox.push(Input::Propose(token, entry));
    }

    /// What waits becomes entries, as many as may be under way.
    pub fn gather(&mut self, who: Who) {
        while let Some(entry) = self.life(who).and_then(|life| life.gatherer.next_entry()) {
            self.counts.shared += entry.requests.len() as u64 - 1;
            self.propose(who, entry.requests, entry.proposers);
        }
    }

    /// An entry of this member has ended: there is room for the next.
    pub fn entry_ended(&mut self, who: Who) {
        if self.life(who).is_some_and(|life| life.gatherer.ended()) {
            self.wake(who);
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
