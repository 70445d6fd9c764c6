//! Faults: which, whom and for how long is drawn from the run's plan.

use super::member::How;
use super::{Event, Step, Who, World};
use crate::options::{FaultKind, MS};
use crate::trace::{Micros, Note};

use coracle_raft::wal::Fault;

impl World {
    /// The next fault, and when the one after it comes.
    pub fn fault(&mut self) -> Step {
        if self.now >= self.plan.heal_at {
            return Ok(());
        }
        let pause = self.rng.between(20 * MS, self.plan.fault_every);
        self.after(pause, Event::Fault);
        let total: u64 = self.plan.faults.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.below(total.max(1));
        let mut kind = None;
        for (candidate, weight) in &self.plan.faults {
            if drawn < *weight {
                kind = Some(*candidate);
                break;
            }
            drawn -= weight;
        }
        let (Some(kind), Some(victim)) = (kind, self.victim()) else { return Ok(()) };
        self.strike(kind, victim)
    }

    /// Often the leader.
    fn victim(&mut self) -> Option<Who> {
        let running = self.running();
        let leads = |who: &&Who| {
            self.members
                .get(&who.id)
                .and_then(|member| member.life.as_ref())
                .is_some_and(|life| life.core.is_leader())
        };
        let leaders: Vec<Who> = running.iter().filter(leads).copied().collect();
        let leader = self.rng.pick(&leaders).copied().filter(|_| self.rng.chance(400));
        match leader {
            Some(leader) => Some(leader),
            None => self.rng.pick(&running).copied(),
        }
    }

    fn strike(&mut self, kind: FaultKind, victim: Who) -> Step {
        let id = victim.id;
        match kind {
            FaultKind::Power => self.crash(id, How::Power)?,
            FaultKind::Kill => self.crash(id, How::Kill)?,
            FaultKind::Stop => self.crash(id, How::Stop)?,
            FaultKind::Blackout => {
                for who in self.running() {
                    self.crash_now(who.id, How::Power)?;
                }
            }
            FaultKind::Isolate => self.isolate(id, true, true),
            FaultKind::OneWay => {
                let out = self.rng.chance(500);
                self.isolate(id, out, !out);
            }
            FaultKind::Split => {
                let until = self.until(1_200);
                let ids: Vec<u64> = self.members.keys().copied().collect();
                let side: Vec<bool> = ids.iter().map(|_| self.rng.chance(500)).collect();
                for (from, left) in ids.iter().zip(&side) {
                    for (to, right) in ids.iter().zip(&side) {
                        if left != right {
                            self.cut(*from, *to, until);
                        }
                    }
                }
            }
            FaultKind::Link => {
                let others: Vec<Who> = self.running().into_iter().filter(|who| who.id != id).collect();
                if let Some(other) = self.rng.pick(&others).copied() {
                    let until = self.until(1_400);
                    self.cut(id, other.id, until);
                    if self.rng.chance(400) {
                        self.cut(other.id, id, until);
                    }
                }
            }
            FaultKind::Pause => {
                let until = self.until(1_000);
                self.note(Note::Paused { member: id, until });
                if let Some(member) = self.members.get_mut(&id) {
                    member.paused_until = until;
                }
            }
            FaultKind::SlowDisk => {
                let until = self.until(1_000);
                self.note(Note::Fault { what: "slow disk", member: id, until });
                if let Some(member) = self.members.get_mut(&id) {
                    member.disk_slow_until = until;
                }
            }
            FaultKind::SlowApply => {
                let until = self.until(1_000);
                self.note(Note::Fault { what: "slow state machine", member: id, until });
                if let Some(member) = self.members.get_mut(&id) {
                    member.apply_slow_until = until;
                }
            }
            FaultKind::Storm => {
                let (until, share) = (self.until(1_000), self.rng.between(30, 400));
                self.note(Note::Fault { what: "storm", member: 0, until });
                self.network.storm(until, share);
            }
            FaultKind::BadDisk => {
                self.note(Note::Fault { what: "bad disk", member: id, until: 0 });
                let faults = [Fault::Writes, Fault::Syncs, Fault::SyncsForget];
                let fault = faults[self.rng.index(faults.len())];
                if let Some(member) = self.members.get_mut(&id) {
                    member.disk_fails = true;
                    member.disk.set_fault(fault);
                }
            }
            FaultKind::FullDisk => self.fill_disks(id),
            FaultKind::Members => {
                for _ in 0..3 {
                    let pause = self.rng.below(500 * MS);
                    self.after(pause, Event::Admin);
                }
            }
            FaultKind::Transfer => self.transfer(),
        }
        Ok(())
    }

    /// At once, or in the middle of the next write.
    fn crash(&mut self, id: u64, how: How) -> Step {
        if self.rng.chance(600)
            && let Some(member) = self.members.get_mut(&id)
        {
            member.doom = Some(how);
            return Ok(());
        }
        self.crash_now(id, how)
    }

    /// A member that is doomed has come to its write.
    pub fn doom(&mut self, who: Who) -> Step {
        let Some(member) = self.members.get_mut(&who.id).filter(|member| member.who() == Some(who)) else {
            return Ok(());
        };
        match member.doom.take() {
            Some(how) => self.crash_now(who.id, how),
            None => Ok(()),
        }
    }

    fn crash_now(&mut self, id: u64, how: How) -> Step {
        self.end(id, how)?;
        let back = if self.rng.chance(300) { self.rng.below(20 * MS) } else { self.rng.below(900 * MS) };
        // A machine that was killed may lose power before it is back.
        if how == How::Kill && self.rng.chance(250) {
            self.end(id, How::Power)?;
        }
        self.after(back + MS, Event::Restart(id));
        Ok(())
    }

    pub fn until(&mut self, most_ms: u64) -> Micros {
        let until = self.now + self.rng.between(20, most_ms) * MS;
        until.min(self.plan.heal_at)
    }

    fn isolate(&mut self, id: u64, out: bool, into: bool) {
        let until = self.until(1_200);
        let others: Vec<u64> = self.members.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            if out {
                self.cut(id, other, until);
            }
            if into {
                self.cut(other, id, until);
            }
        }
    }

    fn cut(&mut self, from: u64, to: u64, until: Micros) {
        self.note(Note::Cut { from, to, until });
        self.network.cut(from, to, until);
    }
}
