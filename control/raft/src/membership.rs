//! Who belongs to the cluster: changes of members, their form in the log, and which are allowed.
//!
//! The one source of truth is raft's configuration. It is empty before the first entry: a new cluster's initial voters
//! are its first entries, so that a member that joins later, with nothing, learns them from the log as it learns
//! everything else.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use raft::eraftpb::{Entry, EntryType, HardState};

use crate::config::PROMOTE_LAG_ENTRIES_MAX;
use crate::error::{ChangeError, Error};
use crate::wal::{Record, SnapshotMarker};

/// One change of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member that receives the log but does not vote. Its id must never have been used.
    AddLearner(u64),
    /// A learner becomes a voter.
    Promote(u64),
    /// Voter or learner. Its id is never used again.
    Remove(u64),
}

/// What a leader knows about a member when a change is judged.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub matched: u64,
    pub active: bool,
}

/// The members, and the ids of all that ever were.
#[derive(Clone, Debug, Default)]
pub struct Members {
    pub conf_state: ConfState,
    used: BTreeSet<u64>,
}

impl Members {
    /// The members as of a snapshot.
    pub fn new(conf_state: ConfState, removed: &[u64]) -> Members {
        let mut members = Members { used: removed.iter().copied().collect(), ..Members::default() };
        members.set(conf_state);
        members
    }

    /// The members as of a snapshot that this member takes over.
    pub fn restore(&mut self, marker: &SnapshotMarker) {
        self.used.extend(&marker.removed);
        self.set(marker.conf_state.clone());
    }

    /// The ids that were members once and are no more.
    pub fn removed(&self) -> Vec<u64> {
        let members: BTreeSet<u64> = ids(&self.conf_state).collect();
        self.used.difference(&members).copied().collect()
    }

    /// Whether it was a member and is none any more.
    pub fn is_removed(&self, id: u64) -> bool {
        self.used.contains(&id) && !self.contains(id)
    }

    /// Takes over the configuration that a committed change has led to.
    pub fn set(&mut self, conf_state: ConfState) {
        self.used.extend(ids(&conf_state));
        self.conf_state = conf_state;
    }

    /// In ascending order; in a joint configuration the voters of both halves.
    pub fn voters(&self) -> Vec<u64> {
        let state = &self.conf_state;
        let voters: BTreeSet<u64> = state.voters.iter().chain(&state.voters_outgoing).copied().collect();
        voters.into_iter().collect()
    }

    /// In ascending order.
    pub fn learners(&self) -> Vec<u64> {
        let learners: BTreeSet<u64> = self.conf_state.learners.iter().copied().collect();
        learners.into_iter().collect()
    }

    pub fn contains(&self, id: u64) -> bool {
        ids(&self.conf_state).any(|member| member == id)
    }

    pub fn is_voter(&self, id: u64) -> bool {
        self.conf_state.voters.contains(&id) || self.conf_state.voters_outgoing.contains(&id)
    }

    /// Whether `id` is all the quorum there is.
    pub fn is_sole_voter(&self, id: u64) -> bool {
        self.conf_state.voters == [id] && !self.is_joint()
    }

    pub fn is_joint(&self) -> bool {
        !self.conf_state.voters_outgoing.is_empty()
    }

    /// The changes that are still to be made, each judged by what the leader `leader` knows. What is so already is left
    /// out: a caller that repeats itself after an unknown outcome gets no error.
    pub fn judge(
        &self,
        changes: &[MemberChange],
        leader: u64,
        last: u64,
        standing: impl Fn(u64) -> Option<Standing>,
    ) -> Result<Vec<MemberChange>, ChangeError> {
        let mut needed = Vec::new();
        let mut voters: BTreeSet<u64> = self.conf_state.voters.iter().copied().collect();
        for change in changes {
            match *change {
                MemberChange::AddLearner(id) if self.conf_state.learners.contains(&id) => continue,
                MemberChange::AddLearner(id) if id == 0 || self.used.contains(&id) => {
                    return Err(ChangeError::IdUsed { id });
                }
                MemberChange::AddLearner(_) => {}
                MemberChange::Promote(id) if self.conf_state.voters.contains(&id) => continue,
                MemberChange::Promote(id) => {
                    let known = standing(id).filter(|_| self.conf_state.learners.contains(&id));
                    let standing = known.ok_or(ChangeError::UnknownMember { id })?;
                    let behind = last.saturating_sub(standing.matched);
                    if !standing.active {
                        return Err(ChangeError::NotActive { id });
                    }
                    if behind > PROMOTE_LAG_ENTRIES_MAX {
                        return Err(ChangeError::NotCaughtUp { id, behind });
                    }
                    voters.insert(id);
                }
                MemberChange::Remove(id) if !self.contains(id) && self.used.contains(&id) => continue,
                MemberChange::Remove(id) if !self.contains(id) => {
                    return Err(ChangeError::UnknownMember { id });
                }
                MemberChange::Remove(id) => {
                    voters.remove(&id);
                    if voters.is_empty() {
                        return Err(ChangeError::LastVoter);
                    }
                    if id == leader {
                        return Err(ChangeError::RemovesLeader { id });
                    }
                }
            }
            needed.push(*change);
        }
        Ok(needed)
    }
}

fn ids(state: &ConfState) -> impl Iterator<Item = u64> + '_ {
    state
        .voters
        .iter()
        .chain(&state.learners)
        .chain(&state.voters_outgoing)
        .chain(&state.learners_next)
        .copied()
}

/// The change as raft takes it. Several changes go through one joint configuration, which is left by itself. None of
/// them is the change that leaves a joint configuration.
pub fn to_raft(changes: &[MemberChange]) -> ConfChangeV2 {
    let singles: Vec<ConfChangeSingle> = changes
        .iter()
        .map(|change| {
            let (change_type, node_id) = match *change {
                MemberChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
                MemberChange::Promote(id) => (ConfChangeType::AddNode, id),
                MemberChange::Remove(id) => (ConfChangeType::RemoveNode, id),
            };
            ConfChangeSingle { change_type, node_id, ..ConfChangeSingle::default() }
        })
        .collect();
    ConfChangeV2 { changes: singles.into(), ..ConfChangeV2::default() }
}

/// The twin of eraftpb's ConfChangeV2, so that its bytes, which may come from the network, are read by prost.
#[derive(Clone, PartialEq, prost::Message)]
struct ChangeTwin {
    #[prost(int32, tag = "1")]
    transition: i32,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<SingleTwin>,
    #[prost(bytes = "bytes", tag = "3")]
    context: Bytes,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SingleTwin {
    #[prost(int32, tag = "1")]
    change_type: i32,
    #[prost(uint64, tag = "2")]
    node_id: u64,
}

/// Reads the data of a change's entry. None where it is none.
pub fn decode(data: &[u8]) -> Option<ConfChangeV2> {
    let twin = ChangeTwin::decode(data).ok()?;
    let transition = match twin.transition {
        0 => ConfChangeTransition::Auto,
        1 => ConfChangeTransition::Implicit,
        2 => ConfChangeTransition::Explicit,
        _ => return None,
    };
    let mut changes = Vec::with_capacity(twin.changes.len());
    for single in twin.changes {
        let change_type = match single.change_type {
            0 => ConfChangeType::AddNode,
            1 => ConfChangeType::RemoveNode,
            2 => ConfChangeType::AddLearnerNode,
            _ => return None,
        };
        changes.push(ConfChangeSingle {
            change_type,
            node_id: single.node_id,
            ..ConfChangeSingle::default()
        });
    }
    Some(ConfChangeV2 {
        transition,
        changes: changes.into(),
        context: twin.context,
        ..ConfChangeV2::default()
    })
}

/// The first records of a new cluster's log, the same on each of its initial voters: one entry a voter, of term 1 and
/// committed.
pub fn initial_records(voters: &[u64], self_id: u64) -> Result<Vec<Record>, Error> {
    let ids: BTreeSet<u64> = voters.iter().copied().collect();
    if ids.len() != voters.len() || ids.contains(&0) || !ids.contains(&self_id) {
        return Err(Error::InvalidVoters);
    }
    let mut records: Vec<Record> = Vec::with_capacity(ids.len() + 1);
    for (index, id) in (1..).zip(&ids) {
        let change = ChangeTwin {
            changes: vec![SingleTwin { change_type: 0, node_id: *id }],
            ..ChangeTwin::default()
        };
        records.push(Record::Entry(Entry {
            entry_type: EntryType::EntryConfChangeV2,
            term: 1,
            index,
            data: change.encode_to_vec().into(),
            ..Entry::default()
        }));
    }
    records.push(Record::HardState(HardState {
        term: 1,
        vote: 0,
        commit: ids.len() as u64,
        ..HardState::default()
    }));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;

    use super::*;

    #[test]
    fn a_change_survives_the_log() {
        let change =
            to_raft(&[MemberChange::AddLearner(4), MemberChange::Promote(2), MemberChange::Remove(1)]);
        assert_eq!(decode(&change.write_to_bytes().expect("encodes")), Some(change));
        assert_eq!(decode(&[]), Some(ConfChangeV2::default()));
        assert_eq!(decode(&[0xff; 9]), None);
    }

    #[test]
    fn changes_are_judged() {
        use ChangeError::*;
        use MemberChange::*;
        let state = ConfState { voters: vec![1, 2], learners: vec![3, 4, 5], ..ConfState::default() };
        let members = Members::new(state, &[9]);
        let standing = |id| {
            let matched = if id == 4 { 10 } else { 990 };
            (id <= 5).then_some(Standing { matched, active: id != 5 })
        };
        let judge = |change| members.judge(&[change], 1, 1000, standing);
        assert_eq!(judge(AddLearner(6)), Ok(vec![AddLearner(6)]));
        assert_eq!(judge(AddLearner(3)), Ok(vec![]));
        assert_eq!(judge(AddLearner(9)), Err(IdUsed { id: 9 }));
        assert_eq!(judge(AddLearner(2)), Err(IdUsed { id: 2 }));
        assert_eq!(judge(Promote(3)), Ok(vec![Promote(3)]));
        assert_eq!(judge(Promote(2)), Ok(vec![]));
        assert_eq!(judge(Promote(4)), Err(NotCaughtUp { id: 4, behind: 990 }));
        assert_eq!(judge(Promote(5)), Err(NotActive { id: 5 }));
        assert_eq!(judge(Promote(7)), Err(UnknownMember { id: 7 }));
        assert_eq!(judge(Remove(2)), Ok(vec![Remove(2)]));
        assert_eq!(judge(Remove(1)), Err(RemovesLeader { id: 1 }));
        assert_eq!(judge(Remove(9)), Ok(vec![]));
        assert_eq!(judge(Remove(8)), Err(UnknownMember { id: 8 }));
        assert_eq!(members.judge(&[Remove(2), Remove(1)], 3, 1000, standing), Err(LastVoter));
    }

    #[test]
    fn initial_voters_are_checked() {
        assert!(initial_records(&[1, 2, 3], 2).is_ok_and(|records| records.len() == 4));
        for bad in [&[][..], &[2], &[1, 1], &[0, 1]] {
            assert!(matches!(initial_records(bad, 1), Err(Error::InvalidVoters)));
        }
    }
}
