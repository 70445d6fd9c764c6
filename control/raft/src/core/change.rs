//! Changes of members and handing leadership over.

use raft::eraftpb::{ConfChangeV2, Entry, EntryType};

use super::{Answered, Core, Outcome, Token};
use crate::config::OUTCOME_TIMEOUT_MS;
use crate::error::{ChangeError, Error};
use crate::membership::{self, MemberChange, Standing};

/// A change in the log. It is matched by index and term: a change that raft rejects turns into an empty entry that has
/// lost its context.
pub struct PendingChange {
    token: Token,
    index: u64,
    term: u64,
    deadline: u64,
    in_force: bool,
}

pub struct PendingTransfer {
    token: Token,
    to: u64,
    deadline: u64,
}

impl Core {
    /// Changes the members; one change is made at once, several through a joint configuration. The outcome comes when the
    /// new configuration is in force and the next change may be made.
    pub fn change(&mut self, token: Token, changes: &[MemberChange]) {
        match self.propose_change(changes) {
            Ok(None) => self.finish(token, Ok(())),
            Ok(Some((index, term))) => {
                let deadline = self.now + self.config.ticks(OUTCOME_TIMEOUT_MS);
                let change = PendingChange { token, index, term, deadline, in_force: false };
                if let Some(older) = self.change.replace(change) {
                    self.finish(older.token, Err(ChangeError::TimedOut));
                }
            }
            Err(error) => self.finish(token, Err(error)),
        }
    }

    /// The index and term of the proposed change, None where nothing has to change.
    fn propose_change(&mut self, changes: &[MemberChange]) -> Result<Option<(u64, u64)>, ChangeError> {
        if !self.is_leader() {
            return Err(ChangeError::NotLeader { leader: self.leader() });
        }
        // A leader that has not committed in its term may not know of a change that is committed already.
        if self.node.raft.has_pending_conf()
            || self.members.is_joint()
            || !self.node.raft.commit_to_current_term()
        {
            return Err(ChangeError::InProgress);
        }
        let last = self.node.raft.raft_log.last_index();
        let needed = self.members.judge(changes, self.config.id, last, |id| {
            let progress = self.node.raft.prs().get(id)?;
            Some(Standing { matched: progress.matched, active: self.is_active(id) })
        })?;
        if needed.is_empty() {
            return Ok(None);
        }
        self.node
            .propose_conf_change(Vec::new(), membership::to_raft(&needed))
            .map_err(|_| ChangeError::Rejected)?;
        Ok(Some((self.node.raft.raft_log.last_index(), self.node.raft.term)))
    }

    /// Hands leadership to another voter. The outcome comes when it leads.
    pub fn transfer(&mut self, token: Token, to: u64) {
        let refusal = if !self.is_leader() {
            Some(ChangeError::NotLeader { leader: self.leader() })
        } else if !self.members.is_voter(to) {
            Some(ChangeError::UnknownMember { id: to })
        } else if self.transfer.is_some() {
            Some(ChangeError::InProgress)
        } else if to != self.config.id && !self.is_active(to) {
            Some(ChangeError::NotActive { id: to })
        } else {
            None
        };
        if let Some(error) = refusal {
            return self.finish(token, Err(error));
        }
        if to != self.config.id {
            self.node.transfer_leader(to);
        }
        // Raft gives a transfer up after an election timeout; the new leader needs as long to be heard of.
        let deadline = self.now + 2 * self.config.election_ticks_max as u64;
        self.transfer = Some(PendingTransfer { token, to, deadline });
    }

    pub(super) fn notice_transfer(&mut self) {
        let leader = self.leader();
        if let Some(transfer) = self.transfer.take_if(|transfer| leader == Some(transfer.to)) {
            self.finish(transfer.token, Ok(()));
        }
    }

    pub(super) fn expire_changes(&mut self) {
        let now = self.now;
        if let Some(change) = self.change.take_if(|change| change.deadline <= now) {
            self.finish(change.token, Err(ChangeError::TimedOut));
        }
        if let Some(transfer) = self.transfer.take_if(|transfer| transfer.deadline <= now) {
            self.finish(transfer.token, Err(ChangeError::TimedOut));
        }
    }

    /// Puts a committed change into force, and finds out what became of the pending one.
    pub(super) fn commit_change(&mut self, entry: &Entry) -> Result<(), Error> {
        let is_change = entry.entry_type == EntryType::EntryConfChangeV2;
        let mut in_force = false;
        if is_change {
            let change = membership::decode(&entry.data).ok_or(Error::UnknownChange)?;
            // Raft refuses what does not fit the configuration, on each member alike; then it changes nothing.
            if let Ok(conf_state) = self.node.apply_conf_change(&change) {
                self.members.set(conf_state);
                self.history.note(entry.index, &self.members);
                self.changes += 1;
                in_force = true;
            }
            self.step_down_if_removed();
        }
        if let Some(change) = self.change.as_mut().filter(|change| change.index == entry.index) {
            change.in_force = change.term == entry.term && in_force;
            if !change.in_force {
                let token = change.token;
                self.change = None;
                self.finish(token, Err(ChangeError::Rejected));
            }
        }
        Ok(())
    }

    /// A change is done when the next may be made: the state machine has passed it, and a joint configuration is left.
    pub(super) fn notice_change(&mut self) {
        if self.node.raft.has_pending_conf() || self.members.is_joint() {
            return;
        }
        let applied = self.applied;
        if let Some(change) = self.change.take_if(|change| change.in_force && change.index <= applied) {
            self.finish(change.token, Ok(()));
        }
    }

    /// Raft-rs lets a leader that is removed go on, and panics at its next write. Removal of the leader is not proposed
    /// here, but a new leader may find its own removal in the log of the last one.
    fn step_down_if_removed(&mut self) {
        if self.is_leader() && !self.members.is_voter(self.config.id) {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, 0);
        }
    }

    /// Raft leaves a joint configuration by itself only where the leader that entered it applies the change. Any later
    /// leader has to.
    pub(super) fn leave_joint(&mut self) {
        if self.is_leader() && self.members.is_joint() && !self.node.raft.has_pending_conf() {
            // Dropped only during a transfer of leadership; then the next tick tries again.
            let _ = self.node.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }

    fn finish(&mut self, token: Token, result: Result<(), ChangeError>) {
        let outcome = match result {
            Ok(()) => Outcome::Changed,
            Err(error) => Outcome::ChangeFailed(error),
        };
        self.done.push(Answered { token, outcome });
    }
}
