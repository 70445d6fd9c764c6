//! Full disks: the fault, and what members do about it. As `coracle_raft`'s driver looks at the room, `coracle_storage`
//! refuses what grows the state, and its health has a leader hand over to a voter that has room.

use std::collections::BTreeMap;

use coracle_raft::DiskRoom;

use super::front::{Call, Reply};
use super::raft::{Input, Waiter};
use super::{Event, Who, World, life_of};
use crate::options::MS;
use crate::trace::{Micros, Note};

/// Between two looks at the room. Shorter than in production, so that a run is.
const LOOK_PERIOD: Micros = 150 * MS;
/// How often members ask each other.
const COMPARE_PERIOD: Micros = 250 * MS;
/// What a process knows of the room on its disk and on those of others.
#[derive(Default)]
pub struct Room {
    found: Option<DiskRoom>,
    look_at: Micros,
    /// Who has answered since the last round of questions, and whether that one has room.
    others: BTreeMap<u64, bool>,
}

impl Room {
    pub fn is_low(&self) -> bool {
        self.found.is_some_and(|room| room.low)
    }
}

impl World {
    /// The disk of one machine, sometimes of all, has little room for a while.
    pub fn fill_disks(&mut self, id: u64) {
        let until = self.until(2_000);
        let all = self.rng.chance(150);
        let ids: Vec<u64> = self.members.keys().copied().filter(|one| all || *one == id).collect();
        for id in ids {
            let left = match self.rng.below(4) {
                0 => 0,
                1 => self.rng.below(self.plan.segment_bytes),
                _ => self.rng.below(3 * self.plan.segment_bytes),
            };
            self.note(Note::Fault { what: "full disk", member: id, until });
            self.counts.full_disks += 1;
            if let Some(member) = self.members.get_mut(&id) {
                member.disk.set_room(Some(left));
                member.disk_full_until = until;
            }
            self.after(until - self.now, Event::RoomAgain(id));
        }
    }

    pub fn room_again(&mut self, id: u64) {
        let now = self.now;
        if let Some(member) = self.members.get_mut(&id).filter(|member| member.disk_full_until <= now) {
            member.disk.set_room(None);
        }
    }

    /// The raft thread looks now and then.
    pub fn look_at_room(&mut self, who: Who) {
        let (now, segment_bytes) = (self.now, self.plan.segment_bytes);
        let Some(member) = self.members.get_mut(&who.id) else { return };
        let Some(life) = member.life.as_mut().filter(|life| life.number == who.life) else { return };
        if now >= life.room.look_at {
            life.room.look_at = now + LOOK_PERIOD;
            life.room.found = DiskRoom::look(&member.disk, segment_bytes, life.core.status().snapshot);
        }
    }

    /// A leader without room hands over by what the others have said; then they are asked again.
    pub fn compare(&mut self, who: Who) {
        let Some(life) = life_of(&mut self.members, who) else { return };
        let others = std::mem::take(&mut life.room.others);
        let status = life.core.status();
        let successor = status
            .progress
            .iter()
            .filter(|(id, _, active)| {
                *active && *id != who.id && status.voters.contains(id) && others.get(id) == Some(&true)
            })
            .max_by_key(|(_, matched, _)| *matched)
            .map(|(id, ..)| *id);
        if life.room.is_low()
            && life.core.is_leader()
            && let Some(to) = successor
        {
            let token = life.token(Waiter::Change);
            self.counts.handed_over += 1;
            self.note(Note::Change { member: who.id, what: "without room, lead by", id: to });
            self.give(who, Input::Transfer(token, to));
        }
        for id in status.voters.iter().chain(&status.learners).filter(|id| **id != who.id) {
            self.call(who, *id, Call::Health);
        }
        self.after(COMPARE_PERIOD, Event::Compare(who));
    }

    pub fn tell_health(&mut self, who: Who, to: Who) {
        let Some(life) = self.life(who) else { return };
        let has_room = !life.room.is_low();
        self.send_back(who, to, Reply::Health { from: who.id, has_room });
    }

    pub fn health_had(&mut self, who: Who, from: u64, has_room: bool) {
        if let Some(life) = self.life(who) {
            life.room.others.insert(from, has_room);
        }
    }
}
