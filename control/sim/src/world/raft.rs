//! The raft thread: takes what is in its queue, steps the core, and hands its work out.

use bytes::Bytes;
use coracle_member::batch::Proposers;
use coracle_member::retry::Try;
use coracle_proto::raft as wire;
use coracle_raft::core::{Answered, Outcome, Token, Work};
use coracle_raft::message::{from_wire, to_wire};
use coracle_raft::{MemberChange, ProposeError, SnapshotMarker};
use raft::eraftpb::Message;

use super::apply::Task;
use super::front::ReplyTo;
use super::log::Job;
use super::member::{Life, Member, ended};
use super::reads::ReadReplyTo;
use super::{Broken, Event, Step, Who, World, life_of, moment};
use crate::options::MS;
use crate::trace::Note;

/// What the raft thread takes from its queue.
pub enum Input {
    Message(Box<wire::Message>),
    Propose(Token, Bytes),
    Read(Token),
    Change(Token, Vec<MemberChange>),
    Transfer(Token, u64),
    Unreachable(u64),
    /// What is the state as of this entry marked with?
    Mark(u64),
    /// A snapshot's file is durable.
    Compact(SnapshotMarker),
    /// A member takes its snapshot.
    Served(u64),
    /// The fetch of this number has ended: its snapshot is here, or will not be.
    Fetched(u64, bool),
}

/// Who waits for the outcome of a call.
pub enum Waiter {
    Entry(Proposers<ReplyTo>),
    Read(ReadReplyTo),
    Change,
}

impl World {
    /// Puts something into the raft thread's queue.
    pub fn give(&mut self, who: Who, input: Input) {
        if let Some(life) = self.life(who) {
            life.inbox.push(input);
            self.wake(who);
        }
    }

    /// The raft thread looks at its queue soon.
    pub fn wake(&mut self, who: Who) {
        let Some(life) = life_of(&mut self.members, who).filter(|life| !life.run_due) else { return };
        life.run_due = true;
        let delay = if self.rng.chance(10) { self.rng.below(8 * MS) } else { self.rng.between(5, 80) };
        self.after(delay, Event::Run(who));
    }

    /// One turn of the raft thread: the queue is taken, then what log and state machine have reached, then the step.
    pub fn run_member(&mut self, who: Who, ticked: bool) -> Step {
        self.gather(who);
        self.look_at_room(who);
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        if !ticked {
            life.run_due = false;
        }
        let inbox = std::mem::take(&mut life.inbox);
        life.core.persisted(life.log.persisted);
        life.core.applied(life.machine.applied);
        let mut proposals = Vec::new();
        for input in inbox {
            match input {
                Input::Propose(token, data) => proposals.push((token, data)),
                input => self.take(who, input)?,
            }
        }
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        if !proposals.is_empty() {
            life.core.propose(proposals);
        }
        if ticked {
            life.core.tick();
            life.ticks += 1;
            self.follow_fetch(who)?;
        }
        self.start_write(who)?;
        self.hand_out(who)?;
        let owes = |life: &&mut Life| life.core.owes_commit() && !life.tell_due;
        if let Some(life) = life_of(&mut self.members, who).filter(owes) {
            life.tell_due = true;
            self.after(MS, Event::Tell(who));
        }
        if let Some(life) = life_of(&mut self.members, who)
            && let Some(question) = life.core.asked_few()
            && life.asked.replace(question) != Some(question)
        {
            self.after(20 * MS, Event::AskAll(who, question));
        }
        self.wake_where_awaited(who);
        self.publish(who)
    }

    /// The apply task wakes the raft thread only where something waits for what was applied.
    pub fn wake_where_awaited(&mut self, who: Who) {
        let behind = |life: &&mut Life| life.core.status().applied < life.machine.applied;
        let awaited = |life: &&mut Life| life.core.awaits_applied();
        if life_of(&mut self.members, who).filter(behind).filter(awaited).is_some() {
            self.wake(who);
        }
    }

    /// No proposal has come that would have told it along.
    pub fn tell_commit(&mut self, who: Who) -> Step {
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        life.tell_due = false;
        life.core.tell_commit();
        self.run_member(who, false)
    }

    /// Those who were asked whether this member leads have not answered.
    pub fn ask_all(&mut self, who: Who, question: u64) -> Step {
        let waits = |life: &&mut Life| life.core.asked_few() == Some(question);
        let Some(life) = life_of(&mut self.members, who).filter(waits) else { return Ok(()) };
        life.core.ask_all();
        self.run_member(who, false)
    }

    /// One thing out of the queue.
    fn take(&mut self, who: Who, input: Input) -> Step {
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        match input {
            Input::Message(message) => self.receive_message(who, message)?,
            Input::Mark(index) => {
                let marker = life.core.snapshot_marker(index);
                self.marked(who, index, marker);
            }
            Input::Compact(marker) => {
                if life.core.compact(&marker) {
                    life.log.queue.push_back(Job::Compact(marker));
                }
            }
            Input::Served(id) => life.core.snapshot_served(id),
            Input::Fetched(number, arrived) => self.fetch_ended(who, number, arrived)?,
            Input::Propose(token, data) => life.core.propose(vec![(token, data)]),
            Input::Read(token) => life.core.read_index(token),
            Input::Change(token, changes) => life.core.change(token, &changes),
            Input::Transfer(token, to) => life.core.transfer(token, to),
            Input::Unreachable(id) => life.core.unreachable(id),
        }
        Ok(())
    }

    /// A message is stepped, or waits until the snapshot that it announces is here.
    fn receive_message(&mut self, who: Who, message: Box<wire::Message>) -> Step {
        let (from, to, kind) = (message.from, message.to, message.msg_type);
        let (term, index) = (message.term, message.index);
        self.note(Note::Got { from, to, kind, term, index });
        self.take_message(who, received(*message)?)
    }

    fn hand_out(&mut self, who: Who) -> Step {
        loop {
            let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
            match life.core.work().map_err(|error| ended(who.id, &error))? {
                Some(work) => self.carry_out(who, work)?,
                None => break,
            }
        }
        if self.life(who).is_some_and(|life| life.core.take_snapshot_wanted())
            && let Some(life) = self.life(who)
        {
            life.machine.queue.push_back(Task::Snapshot);
            self.start_apply(who);
        }
        Ok(())
    }

    /// In the order of the core's contract.
    fn carry_out(&mut self, who: Who, work: Work) -> Step {
        for message in work.messages {
            self.send(who, to_wire(message))?;
        }
        if let Some(persist) = work.persist
            && let Some(life) = self.life(who)
        {
            life.log.queue.push_back(Job::Persist(persist));
            self.start_write(who)?;
        }
        if let Some(marker) = work.restore
            && let Some(life) = self.life(who)
        {
            life.machine.queue.push_back(Task::Restore(marker));
            self.start_apply(who);
        }
        if !work.apply.is_empty()
            && let Some(life) = self.life(who)
        {
            life.machine.queue.push_back(Task::Entries(work.apply));
            self.start_apply(who);
        }
        for done in work.done {
            self.tell(who, done)?;
        }
        Ok(())
    }

    fn tell(&mut self, who: Who, done: Answered) -> Step {
        let Some(life) = self.life(who) else { return Ok(()) };
        let Some(waiter) = life.waiters.remove(&done.token) else {
            return Err(Broken::new(format!("m{} tells call {} its outcome twice", who.id, done.token)));
        };
        match (waiter, done.outcome) {
            (Waiter::Entry(proposers), Outcome::ProposalFailed(error)) => {
                self.entry_ended(who);
                for reply in proposers.into_all() {
                    let tried = match error {
                        ProposeError::Unknown => Try::Unknown(error.to_string()),
                        _ => Try::Not(error.to_string()),
                    };
                    self.reply(who, reply, tried);
                }
            }
            (Waiter::Read(reply), Outcome::ReadIndex(index)) => self.reply_read(who, reply, Some(index)),
            (Waiter::Read(reply), Outcome::ReadFailed(_)) => self.reply_read(who, reply, None),
            (Waiter::Change, Outcome::Changed) => {
                self.counts.changes += 1;
                self.note(Note::Change { member: who.id, what: "done, as asked of", id: who.id });
            }
            (Waiter::Change, Outcome::ChangeFailed(_)) => {
                self.note(Note::Change { member: who.id, what: "refused, as asked of", id: who.id });
            }
            (_, outcome) => {
                return Err(Broken::new(format!("m{}: a call has the outcome {outcome:?}", who.id)));
            }
        }
        Ok(())
    }

    /// Tells the rest of the process of a change of leader or term.
    fn publish(&mut self, who: Who) -> Step {
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        let (term, leader) = (life.core.epoch().0, life.core.leader());
        life.hearing.hears(moment(self.now), leader.is_some());
        if life.core.is_leader() && life.led != term {
            life.led = term;
            self.counts.elections += 1;
            self.ledger.leads(term, who.id)?;
            self.trace.note(self.now, Note::Elected { member: who.id, term });
        }
        if life.status == (leader, term) {
            return Ok(());
        }
        life.status = (leader, term);
        self.note(Note::Leader { member: who.id, leader: leader.unwrap_or(0), term });
        self.moved(who);
        Ok(())
    }

    pub fn send(&mut self, who: Who, message: wire::Message) -> Step {
        self.counts.messages += 1;
        self.ledger.sent(&message)?;
        let (from, to) = (who.id, message.to);
        let arrivals = self.network.fate(&mut self.rng, from, to, self.now);
        self.note(Note::Sent {
            from,
            to,
            kind: message.msg_type,
            term: message.term,
            index: message.index,
            copies: arrivals.iter().flatten().count() as u8,
        });
        match arrivals {
            [Some(first), Some(second)] => {
                self.after(first, Event::Message(Box::new(message.clone())));
                self.after(second, Event::Message(Box::new(message)));
            }
            [Some(delay), None] | [None, Some(delay)] => self.after(delay, Event::Message(Box::new(message))),
            [None, None] => {}
        }
        Ok(())
    }

    pub fn deliver(&mut self, message: Box<wire::Message>) {
        let (from, to) = (message.from, message.to);
        if self.network.is_cut(from, to, self.now) {
            return;
        }
        match self.members.get(&to).and_then(Member::who) {
            Some(who) => self.give(who, Input::Message(message)),
            None => {
                // The sender's connection is refused, and it may notice.
                let sender = self.members.get(&from).and_then(Member::who);
                if let Some(sender) = sender.filter(|_| self.rng.chance(300)) {
                    let delay = self.network.latency(&mut self.rng);
                    self.after(delay, Event::Unreachable(sender, to));
                }
            }
        }
    }

    /// Answers a try of a write, here or at the member that forwarded it.
    pub fn reply(&mut self, who: Who, to: ReplyTo, tried: Try) {
        match to {
            ReplyTo::Here { op, attempt } => self.tried(who, op, attempt, tried),
            ReplyTo::There { to, op, attempt } => self.send_reply(who, to, op, attempt, tried),
        }
    }
}

/// As it comes from the wire. No message of a sound member is refused there.
fn received(message: wire::Message) -> Step<Message> {
    let (from, to) = (message.from, message.to);
    from_wire(message, to)
        .map_err(|refused| Broken::new(format!("m{to} refuses a message of m{from}: {refused}")))
}
