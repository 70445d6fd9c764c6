//! The cluster, its clients and the queue of what happens next.

pub mod admin;
pub mod apply;
pub mod client;
pub mod fault;
pub mod front;
pub mod full_disk;
pub mod healing;
pub mod log;
pub mod member;
pub mod raft;
pub mod reads;
pub mod snapshot;
pub mod watcher;

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use coracle_proto::raft as wire;

use self::client::{Asker, Client};
use self::front::{Call, Reply};
use self::member::{Life, Member};
use self::raft::Input;
use self::watcher::{Item, Watcher};
use crate::checker::history::{Ending, History, OpId};
use crate::checker::keys::Keys;
use crate::checker::ledger::Ledger;
use crate::network::Network;
use crate::options::{MS, Options, Plan};
use crate::rng::Rng;
use crate::trace::{Micros, Note, Trace};
use crate::{Counts, HEAL_BOUND};

/// A promise that was broken.
#[derive(Debug)]
pub struct Broken {
    pub what: String,
    /// When, where it was not just now.
    pub at: Option<Micros>,
}

impl Broken {
    pub fn new(what: impl Into<String>) -> Broken {
        Broken { what: what.into(), at: None }
    }
}

pub type Step<T = ()> = Result<T, Broken>;

/// One life of a member: what was meant for an earlier one gets lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub id: u64,
    pub life: u32,
}

/// Something that happens at its time.
pub enum Event {
    Tick(Who),
    /// The raft thread has something to do.
    Run(Who),
    /// The others have waited long enough to be told what is committed.
    Tell(Who),
    /// Those who were asked this question have had time enough to answer.
    AskAll(Who, u64),
    /// The log task has finished its round.
    Written(Who),
    /// The apply task takes what waits.
    Apply(Who),
    Message(Box<wire::Message>),
    Unreachable(Who, u64),
    Call {
        from: Who,
        to: u64,
        call: Box<Call>,
    },
    Reply {
        to: Who,
        reply: Box<Reply>,
    },
    /// The snapshot task has written what it was given.
    SnapshotWritten(Who),
    /// All parts of a snapshot have arrived.
    Fetched(Who, u64),
    /// No part of a snapshot has come for long.
    PartTimeout(Who, u32),
    RetryWrite(Who, OpId, u32),
    WriteTimeout(Who, OpId, u32),
    WriteDeadline(Who, OpId),
    RetryRead(Who, u32),
    ReadTimeout(Who, u32),
    ReadDeadline(Who, OpId),
    /// A request of a client arrives at a member.
    Ask(Who, OpId),
    /// An operation ends for its client.
    Told(OpId, Box<Ending>),
    Client(usize),
    /// A watcher that is not connected looks for a member.
    Watch(usize),
    Attach {
        who: Who,
        watcher: usize,
        generation: u32,
        since: Micros,
    },
    Pump {
        who: Who,
        watcher: usize,
        generation: u32,
    },
    /// A session says how far it is, where it is quiet.
    WatchTick {
        who: Who,
        watcher: usize,
        generation: u32,
    },
    Items {
        watcher: usize,
        generation: u32,
        items: Vec<Item>,
    },
    Fault,
    /// A member that is to end in the middle of a write does.
    Doom(Who),
    /// The disk of a machine has room again, where no later fault has filled it.
    RoomAgain(u64),
    /// A member asks the others how they are.
    Compare(Who),
    Admin,
    Restart(u64),
    Heal,
    Look,
}

struct Scheduled {
    at: Micros,
    number: u64,
    event: Event,
}

/// The simulated world.
pub struct World {
    pub plan: Plan,
    pub now: Micros,
    pub trace: Trace,
    pub counts: Counts,
    rng: Rng,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    network: Network,
    members: BTreeMap<u64, Member>,
    next_member: u64,
    clients: Vec<Client>,
    watchers: Vec<Watcher>,
    keys: Keys,
    history: History,
    ledger: Ledger,
    healed: bool,
    finished: bool,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(options, &mut rng.fork());
        let keys = Keys::new(plan.keys);
        World {
            now: 0,
            trace: Trace::default(),
            counts: Counts::default(),
            queue: BinaryHeap::new(),
            scheduled: 0,
            network: Network::new(&plan),
            members: BTreeMap::new(),
            next_member: 1,
            clients: (0..plan.clients).map(|_| Client::new(plan.keys)).collect(),
            watchers: (0..plan.watchers).map(|number| Watcher::new(number % keys.resources())).collect(),
            keys,
            history: History::default(),
            ledger: Ledger::default(),
            healed: false,
            finished: false,
            rng,
            plan,
        }
    }

    /// Until all is well again after the last fault, then checks the history.
    pub fn run(&mut self) -> Step {
        let voters: Vec<u64> = (1..=self.plan.voters).collect();
        self.next_member = self.plan.voters + 1;
        for id in &voters {
            self.add_member(*id, Some(&voters))?;
        }
        for client in 0..self.clients.len() {
            let at = self.rng.between(50, 400) * MS;
            self.after(at, Event::Client(client));
        }
        for watcher in 0..self.watchers.len() {
            let at = self.rng.between(50, 1_000) * MS;
            self.after(at, Event::Watch(watcher));
        }
        if !self.plan.faults.is_empty() {
            self.after(self.plan.fault_every, Event::Fault);
        }
        self.after(self.plan.heal_at, Event::Heal);
        while let Some(Reverse(next)) = self.queue.pop() {
            self.now = next.at;
            if self.now > self.plan.heal_at + HEAL_BOUND {
                return Err(Broken::new(format!("the cluster has not healed: {}", self.ailing()?)));
            }
            // A process that stands still takes nothing in.
            if let Some(until) = next.event.member().and_then(|id| self.standing_still(id)) {
                self.push(until, next.event);
                continue;
            }
            self.happen(next.event)?;
            if self.finished {
                break;
            }
        }
        self.history.check(&self.keys, &self.ledger)
    }

    fn happen(&mut self, event: Event) -> Step {
        match event {
            Event::Tick(who) => self.tick(who)?,
            Event::Run(who) => self.run_member(who, false)?,
            Event::Tell(who) => self.tell_commit(who)?,
            Event::AskAll(who, question) => self.ask_all(who, question)?,
            Event::Written(who) => self.written(who)?,
            Event::Apply(who) => self.apply(who)?,
            Event::Message(message) => self.deliver(message),
            Event::Unreachable(who, id) => self.give(who, Input::Unreachable(id)),
            Event::Call { from, to, call } => self.called(from, to, *call),
            Event::Reply { to, reply } => self.replied(to, *reply)?,
            Event::SnapshotWritten(who) => self.snapshot_written(who)?,
            Event::Fetched(who, number) => self.fetched(who, number),
            Event::PartTimeout(who, attempt) => self.part_timeout(who, attempt),
            Event::RetryWrite(who, op, attempt) => self.retry_write(who, op, attempt),
            Event::WriteTimeout(who, op, attempt) => self.write_timeout(who, op, attempt),
            Event::WriteDeadline(who, op) => self.write_deadline(who, op),
            Event::RetryRead(who, attempt) => self.retry_read(who, attempt),
            Event::ReadTimeout(who, attempt) => self.read_timeout(who, attempt),
            Event::ReadDeadline(who, op) => self.read_deadline(who, op),
            Event::Ask(who, op) => self.asked(who, op),
            Event::Told(op, ending) => self.told(op, *ending),
            Event::Client(client) => self.client_turn(client),
            Event::Watch(watcher) => self.watch(watcher),
            Event::Attach { who, watcher, generation, since } => {
                self.attach(who, watcher, generation, since);
            }
            Event::Pump { who, watcher, generation } => self.pump(who, watcher, generation),
            Event::WatchTick { who, watcher, generation } => self.tick_session(who, watcher, generation),
            Event::Items { watcher, generation, items } => self.receive(watcher, generation, items)?,
            Event::Fault => self.fault()?,
            Event::Doom(who) => self.doom(who)?,
            Event::RoomAgain(id) => self.room_again(id),
            Event::Compare(who) => self.compare(who),
            Event::Admin => self.administrate()?,
            Event::Restart(id) => self.restart(id)?,
            Event::Heal => self.heal()?,
            Event::Look => self.look()?,
        }
        Ok(())
    }

    fn after(&mut self, delay: Micros, event: Event) {
        self.push(self.now + delay, event);
    }

    fn push(&mut self, at: Micros, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at, number: self.scheduled, event }));
    }

    fn note(&mut self, note: Note) {
        self.trace.note(self.now, note);
    }

    fn life(&mut self, who: Who) -> Option<&mut Life> {
        life_of(&mut self.members, who)
    }

    fn standing_still(&self, id: u64) -> Option<Micros> {
        self.members.get(&id).map(|member| member.paused_until).filter(|until| *until > self.now)
    }

    /// The members that run.
    fn running(&self) -> Vec<Who> {
        self.members.values().filter_map(Member::who).collect()
    }

    fn asker(&self, op: OpId) -> Asker {
        self.history.op(op).asker
    }
}

/// Virtual time as [`coracle_member`] has it.
fn moment(at: Micros) -> Duration {
    Duration::from_micros(at)
}

fn micros(duration: Duration) -> Micros {
    duration.as_micros() as Micros
}

fn life_of(members: &mut BTreeMap<u64, Member>, who: Who) -> Option<&mut Life> {
    members.get_mut(&who.id)?.life.as_mut().filter(|life| life.number == who.life)
}

impl Event {
    /// The member whose process does it.
    fn member(&self) -> Option<u64> {
        match self {
            Event::Tick(who)
            | Event::Run(who)
            | Event::Tell(who)
            | Event::AskAll(who, _)
            | Event::Written(who)
            | Event::Apply(who)
            | Event::Unreachable(who, _)
            | Event::SnapshotWritten(who)
            | Event::Fetched(who, _)
            | Event::PartTimeout(who, _)
            | Event::RetryWrite(who, ..)
            | Event::WriteTimeout(who, ..)
            | Event::WriteDeadline(who, _)
            | Event::RetryRead(who, _)
            | Event::ReadTimeout(who, _)
            | Event::ReadDeadline(who, _)
            | Event::Compare(who)
            | Event::Ask(who, _)
            | Event::Attach { who, .. }
            | Event::Pump { who, .. }
            | Event::WatchTick { who, .. } => Some(who.id),
            Event::Message(message) => Some(message.to),
            Event::Call { to, .. } => Some(*to),
            Event::Reply { to, .. } => Some(to.id),
            Event::Told(..)
            | Event::Client(_)
            | Event::Watch(_)
            | Event::Items { .. }
            | Event::Fault
            | Event::Doom(_)
            | Event::RoomAgain(_)
            | Event::Admin
            | Event::Restart(_)
            | Event::Heal
            | Event::Look => None,
        }
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
