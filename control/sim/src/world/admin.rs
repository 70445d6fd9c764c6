//! Changes of members and of leadership, as an administrator or the automatic promotion asks for them.

use coracle_raft::{MemberChange, Status};

use super::raft::{Input, Waiter};
use super::{Step, Who, World};
use crate::trace::Note;

/// Members of one cluster, learners among them.
const MEMBERS_MAX: usize = 6;
/// Members that are ever started.
const STARTED_MAX: u64 = 12;

impl World {
    /// Asks who thinks that it leads for one change.
    pub fn administrate(&mut self) -> Step {
        if self.now >= self.plan.heal_at {
            return Ok(());
        }
        let Some((leader, status)) = self.leader() else { return Ok(()) };
        let learner = self.rng.pick(&status.learners).copied();
        let others: Vec<u64> = status.voters.iter().copied().filter(|id| *id != leader.id).collect();
        let other = self.rng.pick(&others).copied();
        let size = status.voters.len() + status.learners.len();
        let drawn = self.rng.below(100);
        let (what, id, changes) = match (learner, other) {
            (Some(learner), Some(other)) if drawn < 25 => {
                ("replace by", learner, vec![MemberChange::Promote(learner), MemberChange::Remove(other)])
            }
            (Some(learner), _) if drawn < 75 => ("promote", learner, vec![MemberChange::Promote(learner)]),
            (_, Some(other)) if drawn >= 75 && status.voters.len() > 2 => {
                ("remove", other, vec![MemberChange::Remove(other)])
            }
            (Some(learner), _) if drawn >= 90 => ("remove", learner, vec![MemberChange::Remove(learner)]),
            _ if size < MEMBERS_MAX && self.next_member <= STARTED_MAX => {
                let id = self.next_member;
                self.next_member += 1;
                self.add_member(id, None)?;
                ("add", id, vec![MemberChange::AddLearner(id)])
            }
            _ => return Ok(()),
        };
        self.note(Note::Change { member: leader.id, what, id });
        if let Some(life) = self.life(leader) {
            let token = life.token(Waiter::Change);
            self.give(leader, Input::Change(token, changes));
        }
        Ok(())
    }

    /// Asks for another leader.
    pub fn transfer(&mut self) {
        let Some((leader, status)) = self.leader() else { return };
        let Some(to) = self.rng.pick(&status.voters).copied() else { return };
        self.note(Note::Change { member: leader.id, what: "lead by", id: to });
        if let Some(life) = self.life(leader) {
            let token = life.token(Waiter::Change);
            self.give(leader, Input::Transfer(token, to));
        }
    }

    /// The member that leads the highest term, as far as is known now.
    pub fn leader(&self) -> Option<(Who, Status)> {
        let leaders = self.members.values().filter_map(|member| {
            let life = member.life.as_ref().filter(|life| life.core.is_leader())?;
            Some((member.who()?, life.core.status()))
        });
        leaders.max_by_key(|(_, status)| status.term)
    }
}
