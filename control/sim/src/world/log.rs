//! The log task: gathers the rounds that wait, writes and syncs them at once, which takes its time, then lets their
//! messages go. As `coracle_raft`'s log thread does.

use std::collections::VecDeque;
use std::io::ErrorKind;

use coracle_proto::raft as wire;
use coracle_raft::Error;
use coracle_raft::core::Persist;
use coracle_raft::message::to_wire;
use coracle_raft::snapshot::files;
use coracle_raft::wal::{Record, SnapshotMarker, Wal};

use super::member::{How, ended};
use super::{Event, Step, Who, World, life_of};
use crate::disk::SimDisk;
use crate::mutant::Mutant;
use crate::options::MS;
use crate::rng::Rng;
use crate::trace::{Micros, Note};

/// What the log is to do next, in order.
pub enum Job {
    Persist(Persist),
    /// Everything up to the marker is in a durable snapshot.
    Compact(SnapshotMarker),
}

pub struct LogTask {
    pub wal: Wal<SimDisk>,
    pub queue: VecDeque<Job>,
    /// All rounds up to this number are durable.
    pub persisted: u64,
    /// Records that wait for the next write, but for the hard state.
    records: Vec<Record>,
    /// Of the hard states in one write only the last matters.
    hard_state: Option<Record>,
    round: Option<Round>,
    /// What the mutant that forgets votes writes in place of a new one.
    vote: u64,
}

#[derive(Default)]
struct Round {
    /// None where nothing but a snapshot's marker is to be written.
    number: Option<u64>,
    /// The entry up to which a snapshot holds everything.
    snapshot: Option<u64>,
    sync: bool,
    messages: Vec<wire::Message>,
}

impl LogTask {
    pub fn new(wal: Wal<SimDisk>) -> LogTask {
        LogTask {
            wal,
            queue: VecDeque::new(),
            persisted: 0,
            records: Vec::new(),
            hard_state: None,
            round: None,
            vote: 0,
        }
    }

    fn gather(&mut self, job: Job, round: &mut Round, mutant: Option<Mutant>) {
        let persist = match job {
            Job::Persist(persist) => persist,
            Job::Compact(marker) => {
                round.sync = true;
                round.snapshot = Some(marker.index);
                return self.records.push(Record::Snapshot(marker));
            }
        };
        round.number = Some(persist.number);
        round.sync |= persist.sync;
        round.messages.extend(persist.messages.into_iter().map(to_wire));
        for record in persist.records {
            match record {
                Record::HardState(mut state) => {
                    if mutant == Some(Mutant::ForgottenVote) {
                        state.vote = self.vote;
                    }
                    self.hard_state = Some(Record::HardState(state));
                }
                Record::Snapshot(ref marker) => {
                    round.snapshot = Some(marker.index);
                    self.records.push(record);
                }
                Record::Entry(_) | Record::Truncate(_) => self.records.push(record),
            }
        }
    }

    fn take_records(&mut self) -> Vec<Record> {
        let mut records = std::mem::take(&mut self.records);
        records.extend(self.hard_state.take());
        records
    }

    /// The process ends. What it was writing may be there, in part or whole. True where a write was under way.
    pub fn break_off(&mut self, disk: &SimDisk, rng: &mut Rng, how: How) -> bool {
        let mut round = self.round.take().unwrap_or_default();
        if how == How::Stop {
            while let Some(job) = self.queue.pop_front() {
                self.gather(job, &mut round, None);
            }
            round.sync |= !self.records.is_empty() || self.hard_state.is_some();
        }
        let writes = round.sync;
        if writes {
            let records = self.take_records();
            if how != How::Stop {
                disk.burn_after(rng.below(if round.snapshot.is_some() { 8 } else { 4 }));
            }
            // An error is what is wanted here; without one the write was just in time.
            if self.wal.append(&records).is_ok()
                && let Some(index) = round.snapshot
                && self.wal.release(index).is_ok()
            {
                let _ = files::remove_before(disk, index);
            }
            disk.power_is_back();
        }
        writes && how != How::Stop
    }
}

impl World {
    /// Begins the next round, where none is under way.
    pub fn start_write(&mut self, who: Who) -> Step {
        let mutant = self.plan.mutant;
        let Some(member) = self.members.get_mut(&who.id) else { return Ok(()) };
        let slow = member.disk_slow_until > self.now;
        let doomed = member.doom.is_some();
        let Some(life) = member.life.as_mut().filter(|life| life.number == who.life) else { return Ok(()) };
        let log = &mut life.log;
        if log.round.is_some() || log.queue.is_empty() {
            return Ok(());
        }
        let mut round = Round::default();
        while let Some(job) = log.queue.pop_front() {
            log.gather(job, &mut round, mutant);
            if self.rng.chance(60) {
                break;
            }
        }
        let mut told = Vec::new();
        if mutant == Some(Mutant::SkipFsync) {
            log.persisted = round.number.unwrap_or(log.persisted);
            told = std::mem::take(&mut round.messages);
        }
        let delay = match (round.sync, slow) {
            (false, _) => 10,
            (true, false) => self.fsync_time(),
            (true, true) => self.fsync_time() + self.rng.between(10, 250) * MS,
        };
        let writes = round.sync;
        if let Some(life) = self.life(who) {
            life.log.round = Some(round);
        }
        for message in told {
            self.send(who, message)?;
        }
        if doomed && writes {
            let when = self.rng.below(delay);
            self.after(when, Event::Doom(who));
        }
        self.after(delay, Event::Written(who));
        Ok(())
    }

    fn fsync_time(&mut self) -> Micros {
        let usual = self.plan.fsync / 4 + self.rng.below(self.plan.fsync);
        if self.rng.chance(20) { usual + self.rng.below(40 * MS) } else { usual }
    }

    pub fn written(&mut self, who: Who) -> Step {
        let mutant = self.plan.mutant;
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        let Some(round) = life.log.round.take() else { return Ok(()) };
        if round.sync {
            let records = life.log.take_records();
            match life.log.wal.append(&records) {
                Err(error) if mutant == Some(Mutant::IgnoredFullDisk) && is_full(&error) => {}
                Err(error) => return self.disk_failed(who, &error),
                Ok(()) => {}
            }
            self.trace.note(
                self.now,
                Note::Written {
                    member: who.id,
                    number: round.number.unwrap_or(0),
                    records: records.len(),
                    torn: false,
                },
            );
        }
        // In this order: once a message is out, its answer may come, and the raft thread must know by then that
        // this round is durable.
        life.log.persisted = round.number.unwrap_or(life.log.persisted);
        if let Some(index) = round.snapshot {
            if let Err(error) = life.log.wal.release(index) {
                return self.disk_failed(who, &error);
            }
            // An old snapshot may stay.
            let _ = files::remove_before(life.log.wal.disk(), index);
        }
        if let Some(job) = life.log.wal.spare_wanted() {
            let made = job.run(life.log.wal.disk()).is_ok();
            life.log.wal.spare_made(job, made);
        }
        self.wake(who);
        for message in round.messages {
            self.send(who, message)?;
        }
        self.start_write(who)
    }

    /// A failed write or sync ends the process at once. It is started again when somebody has mended the disk.
    fn disk_failed(&mut self, who: Who, error: &Error) -> Step {
        let Some(member) = self.members.get(&who.id) else { return Ok(()) };
        let full = member.disk_full_until >= self.now && is_full(error);
        if !full && !member.disk_fails {
            return Err(ended(who.id, error));
        }
        self.counts.ended_full += u64::from(full);
        let how = if self.rng.chance(500) { How::Power } else { How::Kill };
        self.end(who.id, how)?;
        let back = self.rng.between(50, 800) * MS;
        self.after(back, Event::Restart(who.id));
        Ok(())
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Disk { source, .. } if source.kind() == ErrorKind::StorageFull)
}
