//! The door for linearizable reads: those that wait share a read index, which the leader has a quorum confirm; then the
//! member waits until it has applied that much, and reads its own view.

use super::apply::Waits;
use super::front::{Call, RETRY_PAUSE, Reply};
use super::raft::{Input, Waiter};
use super::{Event, Who, World, life_of};
use crate::checker::history::{Ending, OpId};
use crate::mutant::Mutant;
use crate::options::MS;
use crate::trace::{Micros, Note};

/// Until a read must have its index, and then its index applied.
const READ_TIMEOUT: Micros = 1_000 * MS;
/// Until the leader must have answered one forwarded call.
const FORWARD_TIMEOUT: Micros = 400 * MS;

/// The readers of one process.
#[derive(Default)]
pub struct Readers {
    /// Those that wait for the next index.
    waiting: Vec<OpId>,
    /// Those that share the index which is under way.
    round: Vec<OpId>,
    /// Those that wait until their index is applied.
    behind: Vec<OpId>,
    attempt: u32,
    trying: bool,
}

/// Who asked for a read index.
#[derive(Clone, Copy, Debug)]
pub enum ReadReplyTo {
    Here { attempt: u32 },
    There { to: Who, attempt: u32 },
}

impl Readers {
    pub fn all(self) -> impl Iterator<Item = OpId> {
        self.waiting.into_iter().chain(self.round).chain(self.behind)
    }

    fn forget(&mut self, op: OpId) -> bool {
        let before = self.waiting.len() + self.round.len() + self.behind.len();
        for list in [&mut self.waiting, &mut self.round, &mut self.behind] {
            list.retain(|one| *one != op);
        }
        before > self.waiting.len() + self.round.len() + self.behind.len()
    }
}

impl World {
    pub fn begin_read(&mut self, who: Who, op: OpId) {
        let joins = self.plan.mutant == Some(Mutant::ReusedReadIndex);
        let Some(life) = self.life(who) else { return };
        let readers = &mut life.readers;
        if joins && readers.trying {
            readers.round.push(op);
        } else {
            readers.waiting.push(op);
        }
        let idle = readers.round.is_empty();
        self.after(READ_TIMEOUT, Event::ReadDeadline(who, op));
        if idle {
            self.next_round(who);
        }
    }

    fn next_round(&mut self, who: Who) {
        let Some(life) = self.life(who) else { return };
        life.readers.round = std::mem::take(&mut life.readers.waiting);
        if !life.readers.round.is_empty() {
            self.try_index(who);
        }
    }

    fn try_index(&mut self, who: Who) {
        let Some(life) = life_of(&mut self.members, who) else { return };
        let Some(first) = life.readers.round.first().copied() else { return self.next_round(who) };
        life.readers.attempt += 1;
        life.readers.trying = true;
        let (attempt, leader) = (life.readers.attempt, life.status.0);
        self.trace.note(self.now, Note::Try { op: first, member: who.id, at: leader, attempt });
        match leader {
            Some(leader) if leader == who.id => self.ask_index(who, ReadReplyTo::Here { attempt }),
            Some(leader) => {
                self.call(who, leader, Call::ReadIndex { attempt });
                self.after(FORWARD_TIMEOUT, Event::ReadTimeout(who, attempt));
            }
            None => life.readers.trying = false,
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
        let readers = &mut life.readers;
        if readers.attempt != attempt || !readers.trying {
            return;
        }
        readers.trying = false;
        let Some(index) = index else {
            return self.after(RETRY_PAUSE, Event::RetryRead(who, attempt));
        };
        let round = std::mem::take(&mut readers.round);
        readers.behind.extend(&round);
        let index = if unwaited { 0 } else { index };
        life.machine.waiting.extend(round.into_iter().map(|op| (index, Waits::Read(op))));
        self.tell_waiting(who);
        self.next_round(who);
    }

    pub fn finish_read(&mut self, who: Who, op: OpId) {
        // It may have come too late for its reader.
        if self.life(who).is_some_and(|life| life.readers.forget(op))
            && let Some(view) = self.view(who)
        {
            self.answer(op, view);
        }
    }

    pub fn retry_read(&mut self, who: Who, attempt: u32) {
        let Some(life) = self.life(who) else { return };
        if life.readers.attempt == attempt && !life.readers.trying {
            self.try_index(who);
        }
    }

    pub fn read_timeout(&mut self, who: Who, attempt: u32) {
        self.index_had(who, attempt, None);
    }

    pub fn read_deadline(&mut self, who: Who, op: OpId) {
        if self.life(who).is_some_and(|life| life.readers.forget(op)) {
            self.answer(op, Ending::ReadFailed);
        }
        // A try that nobody waits for any more makes room for the next.
        let Some(life) = self.life(who) else { return };
        if life.readers.round.is_empty() {
            life.readers.trying = false;
            life.readers.attempt += 1;
            self.next_round(who);
        }
    }

    pub fn reads_moved(&mut self, who: Who) {
        if self.life(who).is_some_and(|life| !life.readers.round.is_empty()) {
            self.try_index(who);
        }
    }
}
