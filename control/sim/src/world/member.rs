//! The members: their machines, and their lives between a start and an end.

use std::collections::BTreeMap;

use coracle_member::batch::Gatherer;
use coracle_member::identity::Identities;
use coracle_member::leadership::Hearing;
use coracle_raft::core::{Core, Token};
use coracle_raft::snapshot::{fetching::Fetching, files};
use coracle_raft::wal::{Fault, Wal, WalOptions};
use coracle_raft::{Config, chain, initial_records};
use coracle_store::{Store, StoreConfig};

use super::apply::Machine;
use super::front::{BOUNDS, Flight, ReplyTo};
use super::full_disk::Room;
use super::log::LogTask;
use super::raft::{Input, Waiter};
use super::reads::Reads;
use super::snapshot::{CLUSTER_ID, Fetch};
use super::watcher::{LEADERLESS_MAX, Session};
use super::{Broken, Event, Step, Who, World};
use crate::checker::history::{Ending, OpId};
use crate::disk::SimDisk;
use crate::mutant::Mutant;
use crate::options::MS;
use crate::trace::{Micros, Note};

/// What a tick of raft's clock is meant to take. Shorter than in production, so that a run is.
const TICK: Micros = 20 * MS;

/// A machine and, while it runs, its process.
pub struct Member {
    pub id: u64,
    pub disk: SimDisk,
    pub life: Option<Life>,
    pub lives: u32,
    /// The machine's own idea of a tick.
    pub tick: Micros,
    pub paused_until: Micros,
    pub disk_slow_until: Micros,
    /// Until the next start.
    pub disk_fails: bool,
    /// Until when there is little room or none.
    pub disk_full_until: Micros,
    pub apply_slow_until: Micros,
    /// Ends in the middle of its next write.
    pub doom: Option<How>,
    /// What a mutant keeps from the last life.
    pub kept: Option<Store>,
}

/// One life of the process.
pub struct Life {
    pub number: u32,
    pub core: Core,
    pub inbox: Vec<Input>,
    pub run_due: bool,
    /// It will tell the others what is committed, if nothing else does before.
    pub tell_due: bool,
    /// The last question that it put to a few only.
    pub asked: Option<u64>,
    pub log: LogTask,
    pub machine: Machine,
    /// Which snapshot is fetched, and what waits for it.
    pub fetching: Fetching,
    pub fetch: Option<Fetch>,
    pub attempts: u32,
    /// Ticks of raft's clock in this life.
    pub ticks: u64,
    /// Leader and term, as the rest of the process knows them.
    pub status: (Option<u64>, u64),
    pub led: u64,
    pub waiters: BTreeMap<Token, Waiter>,
    pub next_token: Token,
    pub gatherer: Gatherer<ReplyTo>,
    pub identities: Identities,
    pub flights: BTreeMap<OpId, Flight>,
    pub reads: Reads,
    pub hearing: Hearing,
    pub sessions: BTreeMap<usize, Session>,
    pub room: Room,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Power,
    Kill,
    Stop,
}

impl Member {
    pub fn who(&self) -> Option<Who> {
        self.life.as_ref().map(|life| Who { id: self.id, life: life.number })
    }
}

impl Life {
    pub fn token(&mut self, waiter: Waiter) -> Token {
        self.next_token += 1;
        self.waiters.insert(self.next_token, waiter);
        self.next_token
    }
}

impl World {
    /// A new machine; with voters it is one of a new cluster's first, without it joins with an empty disk.
    pub fn add_member(&mut self, id: u64, voters: Option<&[u64]>) -> Step {
        let disk = SimDisk::new(self.rng.fork());
        if let Some(voters) = voters {
            let records = initial_records(voters, id).map_err(|error| Broken::new(error.to_string()))?;
            let options = WalOptions { segment_bytes: self.plan.segment_bytes, salt: self.rng.number() };
            let (mut wal, _) = Wal::open(disk.clone(), options).map_err(|error| ended(id, &error))?;
            wal.append(&records).map_err(|error| ended(id, &error))?;
        }
        let member = Member {
            id,
            disk,
            life: None,
            lives: 0,
            tick: self.rng.between(TICK * 7 / 10, TICK * 13 / 10),
            paused_until: 0,
            disk_slow_until: 0,
            disk_fails: false,
            disk_full_until: 0,
            apply_slow_until: 0,
            doom: None,
            kept: None,
        };
        self.members.insert(id, member);
        self.restart(id)
    }

    /// Begins a new life from what the disk holds; does nothing where one goes on.
    pub fn restart(&mut self, id: u64) -> Step {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.life.is_none()) else {
            return Ok(());
        };
        member.lives += 1;
        member.disk.set_fault(Fault::None);
        member.disk_fails = false;
        let options = WalOptions { segment_bytes: self.plan.segment_bytes, salt: self.rng.number() };
        if member.lives > 1 && !self.healed && self.rng.chance(100) {
            // A start that gets nowhere: the power goes again while the log is opened.
            member.disk.burn_after(self.rng.below(5));
            let _ = Wal::open(member.disk.clone(), options);
            member.disk.power_is_back();
            member.disk.lose_power();
        }
        member.disk.set_deaf(self.plan.mutant == Some(Mutant::TrustedPageCache) && member.lives > 1);
        let opened = Wal::open(member.disk.clone(), options);
        member.disk.set_deaf(false);
        let (wal, mut recovered) = opened.map_err(|error| ended(id, &error))?;
        if self.plan.mutant == Some(Mutant::LostEntry) && member.lives > 1 {
            recovered.entries.pop();
            let last = recovered.snapshot.index + recovered.entries.len() as u64;
            recovered.hard_state.commit = recovered.hard_state.commit.min(last);
        }
        let last = recovered.snapshot.index + recovered.entries.len() as u64;
        let commit = recovered.hard_state.commit;
        let begins = recovered.snapshot.clone();
        let tick = std::time::Duration::from_millis(self.plan.tick_ms_nominal);
        let config = Config {
            tick,
            segment_bytes: self.plan.segment_bytes,
            keep_entries: self.plan.keep_entries,
            seed: self.rng.number(),
            ..Config::new(id, "", CLUSTER_ID)
        };
        let core =
            Core::new(config, recovered, &coracle_raft::logger()).map_err(|error| ended(id, &error))?;
        let store_config =
            StoreConfig { watch_events_max: self.plan.watch_events_max, ..StoreConfig::default() };
        let kept = member.kept.take();
        let store = match kept {
            Some(store) => store,
            None if begins.index == 0 => Store::new(store_config),
            None => {
                let mut state =
                    files::open_for(&member.disk, CLUSTER_ID, &begins).map_err(|error| ended(id, &error))?;
                Store::restore(&mut state, store_config)
                    .map_err(|error| unreadable(id, begins.index, &error))?
            }
        };
        self.ledger.restored(id, begins.index, store.state_hash())?;
        let number = member.lives;
        member.life = Some(Life {
            number,
            core,
            inbox: Vec::new(),
            run_due: true,
            tell_due: false,
            asked: None,
            log: LogTask::new(wal),
            machine: Machine::new(store, begins.index),
            fetching: Fetching::default(),
            fetch: None,
            attempts: 0,
            ticks: 0,
            status: (None, 0),
            led: 0,
            waiters: BTreeMap::new(),
            next_token: 0,
            gatherer: Gatherer::new(BOUNDS),
            identities: Identities::new(self.rng.number()),
            flights: BTreeMap::new(),
            reads: Reads::default(),
            hearing: Hearing::new(LEADERLESS_MAX),
            sessions: BTreeMap::new(),
            room: Room::default(),
        });
        let (tick, who) = (member.tick, Who { id, life: number });
        self.note(Note::Started { member: id, life: number, last, commit });
        let first = self.rng.below(tick);
        self.after(first, Event::Tick(who));
        self.after(1, Event::Run(who));
        self.after(first, Event::Compare(who));
        Ok(())
    }

    /// Ends a life, if one goes on.
    pub fn end(&mut self, id: u64, how: How) -> Step {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if let Some(mut life) = member.life.take() {
            let torn = life.log.break_off(&member.disk, &mut self.rng, how);
            if how != How::Stop {
                life.machine.break_off(&member.disk, &mut self.rng);
                if let Some(fetch) = life.fetch.take() {
                    fetch.break_off(&member.disk, &mut self.rng);
                }
            }
            if self.plan.mutant == Some(Mutant::AppliedTwice) {
                member.kept = Some(life.machine.store);
            }
            self.counts.crashes += 1;
            self.counts.torn += u64::from(torn);
            self.trace.note(self.now, Note::Ended { member: id, how: how.name() });
            if torn {
                let note = Note::Written { member: id, number: 0, records: 0, torn };
                self.trace.note(self.now, note);
            }
            for op in life.flights.into_keys() {
                self.answer_late(op, Ending::Unknown);
            }
            for op in life.reads.all() {
                self.answer_late(op, Ending::ReadFailed);
            }
            for watcher in life.sessions.into_keys() {
                self.disconnect(watcher);
            }
        }
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        member.paused_until = 0;
        if how == How::Power {
            member.disk.lose_power();
        }
        Ok(())
    }

    fn answer_late(&mut self, op: OpId, ending: Ending) {
        let delay = self.rng.between(100, 30 * MS);
        self.after(delay, Event::Told(op, Box::new(ending)));
    }

    pub fn tick(&mut self, who: Who) -> Step {
        let Some(tick) = self.members.get(&who.id).filter(|member| member.who() == Some(who)).map(|m| m.tick)
        else {
            return Ok(());
        };
        self.run_member(who, true)?;
        let jitter = self.rng.below(tick / 20 + 1);
        self.after(tick - tick / 40 + jitter, Event::Tick(who));
        Ok(())
    }
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Power => "power lost",
            How::Kill => "killed",
            How::Stop => "stopped",
        }
    }
}

/// A member that ends by itself although its disk is sound.
pub fn ended(id: u64, error: &coracle_raft::Error) -> Broken {
    Broken::new(format!("member {id} ends: {}", chain(error)))
}

/// A snapshot that was kept but does not serve.
pub fn unreadable(id: u64, index: u64, error: &impl std::fmt::Display) -> Broken {
    Broken::new(format!("member {id} cannot take its snapshot of entry {index} over: {error}"))
}
