//! The door for linearizable reads: [`coracle_member::reads`] says who shares a read index, which the leader has a quorum
//! confirm; then the member waits until it has applied that much, and reads its own view.

use std::collections::BTreeMap;

use coracle_member::reads::{Read, Readers};
use coracle_member::retry::{Ask, Place, RETRY_PAUSE};

use super::apply::Waits;
use super::front::{Call, Reply};
use super::raft::{Input, Waiter};
use super::{Event, Who, World, life_of, micros, moment};
use crate::checker::history::{Ending, OpId};
use crate::mutant::Mutant;
use crate::options::MS;
use crate::trace::{Micros, Note};

/// Until a read must have its index, and then its index applied.
const READ_TIMEOUT: Micros = 1_000 * MS;
/// Until the leader must have answered one forwarded call.
const FORWARD_TIMEOUT: Micros = 400 * MS;

/// How many may wait for the next index.
const WAITING_MAX: usize = 8;

/// The readers of one process.
pub struct Reads {
    readers: Readers<OpId>,
    /// Those that share the index which is under way.
    round: Option<Round>,
    /// How far each is.
    reads: BTreeMap<OpId, Read>,
    attempt: u32,
}

struct Round {
    ask: Ask,
    readers: Vec<OpId>,
    trying: bool,
}

/// Who asked for a read index.
#[derive(Clone, Copy, Debug)]
pub enum ReadReplyTo {
    Here { attempt: u32 },
    There { to: Who, attempt: u32 },
}

impl Default for Reads {
    fn default() -> Self {
        Self { readers: Readers::new(WAITING_MAX), round: None, reads: BTreeMap::new(), attempt: 0 }
    }
}

impl Reads {
    pub fn all(self) -> impl Iterator<Item = OpId> {
        self.reads.into_keys()
    }
}

impl World {
    pub fn begin_read(&mut self, who: Who, op: OpId) {
        let joins = self.plan.mutant == Some(Mutant::ReusedReadIndex);
        let Some(life) = self.life(who) else { return };
        let reads = &mut life.reads;
        reads.reads.insert(op, Read::default());
        let mut alone = false;
        let mut due = false;
        match &mut reads.round {
            Some(round) if joins && round.trying => round.readers.push(op),
            _ if reads.readers.goes_alone() => alone = true,
            _ => match reads.readers.wait(op) {
                Ok(is_due) => due = is_due,
                Err(_) => return self.fail_read(who, op),
            },
        }
        self.after(READ_TIMEOUT, Event::ReadDeadline(who, op));
        if alone {
            self.begin_round(who, vec![op]);
        } else if due {
            self.next_round(who);
        }
    }

    fn next_round(&mut self, who: Who) {
        if let Some(readers) = self.life(who).and_then(|life| life.reads.readers.next_round()) {
            self.begin_round(who, readers);
        }
    }

    fn begin_round(&mut self, who: Who, readers: Vec<OpId>) {
        let ask = Ask::new(who.id, moment(self.now + READ_TIMEOUT));
        self.counts.shared_reads += readers.len() as u64 - 1;
        let Some(life) = self.life(who) else { return };
        life.reads.round = Some(Round { ask, readers, trying: false });
        self.try_index(who);
    }

    fn end_round(&mut self, who: Who) {
        if self.life(who).is_some_and(|life| life.reads.readers.ended()) {
            self.next_round(who);
        }
    }

    fn try_index(&mut self, who: Who) {
        let now = self.now;
        let Some(life) = life_of(&mut self.members, who) else { return };
        let Some(round) = &mut life.reads.round else { return };
        let leader = life.status.0;
        let Ok(place) = round.ask.begin(moment(now), leader) else {
            let readers = life.reads.round.take().map(|round| round.readers);
            for op in readers.into_iter().flatten() {
                self.fail_read(who, op);
            }
            return self.end_round(who);
        };
        life.reads.attempt += 1;
        let attempt = life.reads.attempt;
        round.trying = place.is_some();
        if let Some(op) = round.readers.first().copied() {
            self.trace.note(now, Note::Try { op, member: who.id, at: leader, attempt });
        }
        match place {
            Some(Place::Here) => self.ask_index(who, ReadReplyTo::Here { attempt }),
            Some(Place::There(leader)) => {
                self.call(who, leader, Call::ReadIndex { attempt });
                self.after(FORWARD_TIMEOUT, Event::ReadTimeout(who, attempt));
            }
            // Leadership moves, or time is up.
            None => self.after(READ_TIMEOUT, Event::RetryRead(who, attempt)),
        }
    }

    /// Asks raft for an index, on the leader.
    pub fn ask_index(&mut self, who: Who, reply: ReadReplyTo) {
        let unconfirmed = self.plan.mutant == Some(Mutant::UnconfirmedRead);
        let Some(life) = life_of(&mut self.members, who) else { return };
        if unconfirmed && life.core.is_leader() {
            let index = life.core.status().commit;
            return self.reply_read(who, reply, Some(index));
        }
        let token = life.token(Waiter::Read(reply));
        self.give(who, Input::Read(token));
    }

    pub fn reply_read(&mut self, who: Who, to: ReadReplyTo, index: Option<u64>) {
        match to {
            ReadReplyTo::Here { attempt } => self.index_had(who, attempt, index),
            ReadReplyTo::There { to, attempt } => {
                self.send_back(who, to, Reply::ReadIndex { attempt, index });
            }
        }
    }

    pub fn index_had(&mut self, who: Who, attempt: u32, index: Option<u64>) {
        let unwaited = self.plan.mutant == Some(Mutant::UnwaitedRead);
        let Some(life) = life_of(&mut self.members, who) else { return };
        let reads = &mut life.reads;
        if reads.attempt != attempt {
            return;
        }
        let Some(mut round) = reads.round.take_if(|round| round.trying) else { return };
        let Some(index) = index else {
            round.trying = false;
            round.ask.failed("no index".to_owned());
            reads.round = Some(round);
            return self.after(micros(RETRY_PAUSE), Event::RetryRead(who, attempt));
        };
        let index = if unwaited { 0 } else { index };
        for op in round.readers {
            // It may have come too late for its reader.
            if let Some(read) = reads.reads.get_mut(&op) {
                *read = Read::Behind(index);
                life.machine.waiting.push((index, Waits::Read(op)));
            }
        }
        self.tell_waiting(who);
        self.end_round(who);
    }

    /// The member has applied the index for which a reader waited.
    pub fn finish_read(&mut self, who: Who, op: OpId) {
        let Some(life) = self.life(who) else { return };
        let applied = life.machine.applied;
        let sees = life.reads.reads.get(&op).is_some_and(|read| read.sees(applied));
        if sees && let Some(view) = self.view(who) {
            if let Some(life) = self.life(who) {
                life.reads.reads.remove(&op);
            }
            self.answer(op, view);
        }
    }

    pub fn retry_read(&mut self, who: Who, attempt: u32) {
        let Some(life) = self.life(who) else { return };
        let reads = &life.reads;
        if reads.attempt == attempt && reads.round.as_ref().is_some_and(|round| !round.trying) {
            self.try_index(who);
        }
    }

    pub fn read_timeout(&mut self, who: Who, attempt: u32) {
        self.index_had(who, attempt, None);
    }

    pub fn read_deadline(&mut self, who: Who, op: OpId) {
        self.fail_read(who, op);
    }

    fn fail_read(&mut self, who: Who, op: OpId) {
        if self.life(who).is_some_and(|life| life.reads.reads.remove(&op).is_some()) {
            self.answer(op, Ending::ReadFailed);
        }
    }

    pub fn reads_moved(&mut self, who: Who) {
        let Some(life) = self.life(who) else { return };
        let Some(round) = &mut life.reads.round else { return };
        if round.trying {
            round.ask.moved();
        }
        self.try_index(who);
    }
}
