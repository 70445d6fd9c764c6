//! After the last fault: everything comes back by itself, and soon.

use super::member::How;
use super::{Event, Step, World};
use crate::checker::history::OpKind;
use crate::options::MS;
use crate::trace::Note;
use crate::world::client::Asker;

impl World {
    /// No fault lasts; everybody is started again.
    pub fn heal(&mut self) -> Step {
        self.healed = true;
        self.note(Note::Healed);
        self.network.heal();
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            if let Some(member) = self.members.get_mut(&id) {
                member.paused_until = 0;
                member.doom = None;
                member.disk_fails = false;
                member.disk_slow_until = 0;
                member.disk_full_until = 0;
                member.disk.set_room(None);
                member.apply_slow_until = 0;
                member.disk.set_fault(coracle_raft::wal::Fault::None);
            }
            self.restart(id)?;
        }
        self.after(100 * MS, Event::Look);
        Ok(())
    }

    /// Whether all is well; else looks again.
    pub fn look(&mut self) -> Step {
        self.look_after_members()?;
        if !self.ailing()?.is_empty() {
            self.after(50 * MS, Event::Look);
            return Ok(());
        }
        // What each member holds in the end is read once more, past everything.
        for id in self.final_config().unwrap_or_default() {
            let Some(who) = self.members.get(&id).and_then(super::member::Member::who) else { continue };
            let Some(view) = self.view(who) else { continue };
            let op = self.history.begin(Asker::Watcher(0), OpKind::Read, self.now);
            self.history.end(op, self.now, view);
        }
        self.finished = true;
        Ok(())
    }

    /// Who is a member runs, and who was removed is stopped.
    fn look_after_members(&mut self) -> Step {
        let Some(config) = self.final_config() else { return Ok(()) };
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            if config.contains(&id) {
                self.restart(id)?;
            } else {
                self.end(id, How::Stop)?;
            }
        }
        Ok(())
    }

    /// The members by the word of the leader, once faults have ended.
    pub fn final_config(&self) -> Option<Vec<u64>> {
        if !self.healed {
            return None;
        }
        let (_, status) = self.leader()?;
        Some(status.voters.into_iter().chain(status.learners).collect())
    }

    /// What is not well yet; empty when all is.
    pub fn ailing(&self) -> Step<String> {
        let Some((leader, status)) = self.leader() else { return Ok("no leader".into()) };
        if status.applied != status.last {
            return Ok(format!("m{} has applied {} of {}", leader.id, status.applied, status.last));
        }
        for id in status.voters.iter().chain(&status.learners) {
            let life = self.members.get(id).and_then(|member| member.life.as_ref());
            let Some(life) = life else { return Ok(format!("m{id} does not run")) };
            let applied = life.machine.applied;
            if applied != status.last || life.core.leader() != Some(leader.id) {
                return Ok(format!("m{id} has applied {applied} of {}", status.last));
            }
            if life.room.is_low() {
                return Ok(format!("m{id} has no room on its disk"));
            }
            // Raft's own entries leave the hash as it was.
            let hash = life.machine.store.state_hash();
            if self.ledger.hash_at(applied).is_some_and(|known| known != hash) {
                let what = format!("m{id} has another state hash at {applied}");
                return Err(super::Broken::new(what));
            }
        }
        if let Some(client) = self.clients.iter().position(|client| !client.is_done()) {
            return Ok(format!("client {client} is not served"));
        }
        for (number, watcher) in self.watchers.iter().enumerate() {
            if let Some(group) = self.ledger.next(watcher.resource(), watcher.after(), &self.keys) {
                return Ok(format!("watcher {number} has not got revision {}", group.revision));
            }
        }
        Ok(String::new())
    }
}
