//! What a change of members that an administrator asks for comes to, or why it is refused and the mend. Pure.

use std::collections::{BTreeMap, BTreeSet};

use coracle_raft::{MemberChange, Status};
use thiserror::Error;

use crate::membership::policy::{LAG_ENTRIES_MAX, quorum};

/// What is asked for. Members are named by id or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Promote(Vec<String>),
    Remove(Vec<String>),
    Replace { old: String, new: String },
    Transfer(String),
}

/// The next step, on the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is left to be done.
    Done,
    /// Leadership goes to another voter; for all but a transfer, that one then goes on.
    HandOver { to: u64 },
    /// One change; then the objects of these members go.
    Change { changes: Vec<MemberChange>, forget: Vec<u64> },
}

/// Why it is not done, and the mend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    #[error("there is no member {0}; `coracle cluster members` lists them")]
    Unknown(String),
    #[error("members {ids:?} are all named {name}: say which by its id")]
    Ambiguous { name: String, ids: Vec<u64> },
    #[error("member {0} is a voter already; `replace` takes a learner for the new member")]
    NotALearner(u64),
    #[error(
        "member {0} is a learner, not a voter; remove it with `coracle cluster remove`, and promote the other one"
    )]
    NotAVoter(u64),
    #[error("member {0} is a learner, which cannot lead; `coracle cluster promote` makes it a voter")]
    LearnerCannotLead(u64),
    #[error("member {0} is not heard of: start it, or look at its log, and try again")]
    NotHealthy(u64),
    #[error(
        "learner {id} is {behind} entries behind, at most {LAG_ENTRIES_MAX} are allowed: wait until it has caught up"
    )]
    NotCaughtUp { id: u64, behind: u64 },
    #[error("this would remove the last voter; to end the cluster, stop it and delete its data directories")]
    LastVoter,
    #[error(
        "only {healthy} of the {voters} voters that remain are healthy, {needed} are needed: the cluster would stand \
         still. Bring unhealthy members back, or remove those first"
    )]
    LosesQuorum { healthy: usize, voters: usize, needed: usize },
    #[error(
        "member {0} leads, and there is no other healthy voter to lead: start one, or promote a learner, first"
    )]
    NoSuccessor(u64),
    #[error("no member is named")]
    Nobody,
}

impl Refused {
    /// Whether it may go otherwise once the leader has heard of more members.
    pub fn depends_on_health(&self) -> bool {
        matches!(
            self,
            Refused::NotHealthy(_)
                | Refused::NotCaughtUp { .. }
                | Refused::LosesQuorum { .. }
                | Refused::NoSuccessor(_)
        )
    }
}

impl Operation {
    pub fn named(&self) -> Vec<&String> {
        match self {
            Operation::Promote(members) | Operation::Remove(members) => members.iter().collect(),
            Operation::Replace { old, new } => vec![old, new],
            Operation::Transfer(member) => vec![member],
        }
    }

    /// The same with every member named by its id: names may be gone once the change is half done.
    pub fn by_id(&self, members: &Members<'_>) -> Result<Self, Refused> {
        if self.named().is_empty() {
            return Err(Refused::Nobody);
        }
        let id = |named: &String| members.resolve(named).map(|id| id.to_string());
        let all = |named: &Vec<String>| named.iter().map(id).collect::<Result<Vec<_>, _>>();
        Ok(match self {
            Operation::Promote(named) => Operation::Promote(all(named)?),
            Operation::Remove(named) => Operation::Remove(all(named)?),
            Operation::Replace { old, new } => Operation::Replace { old: id(old)?, new: id(new)? },
            Operation::Transfer(named) => Operation::Transfer(id(named)?),
        })
    }
}

/// The members as the leader knows them.
pub struct Members<'a> {
    pub status: &'a Status,
    /// By id, of all that have an object.
    pub names: &'a BTreeMap<u64, String>,
    /// Ids from this on were never given.
    pub next_id: u64,
}

impl Members<'_> {
    fn resolve(&self, named: &str) -> Result<u64, Refused> {
        if let Ok(id) = named.parse::<u64>()
            && (self.is_member(id) || self.names.contains_key(&id) || id != 0 && id < self.next_id)
        {
            return Ok(id);
        }
        let mut ids: Vec<u64> =
            self.names.iter().filter(|(_, name)| *name == named).map(|(&id, _)| id).collect();
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => Ok(id),
            (None, _) => Err(Refused::Unknown(named.to_owned())),
            (Some(last), false) => {
                ids.push(last);
                Err(Refused::Ambiguous { name: named.to_owned(), ids })
            }
        }
    }

    fn is_member(&self, id: u64) -> bool {
        self.is_voter(id) || self.is_learner(id)
    }

    fn is_voter(&self, id: u64) -> bool {
        self.status.voters.contains(&id)
    }

    fn is_learner(&self, id: u64) -> bool {
        self.status.learners.contains(&id)
    }

    fn is_healthy(&self, id: u64) -> bool {
        let heard = self.status.progress.iter().any(|(member, _, active)| *member == id && *active);
        heard || id == self.status.id
    }

    fn matched(&self, id: u64) -> u64 {
        self.status.progress.iter().find(|(member, _, _)| *member == id).map_or(0, |(_, matched, _)| *matched)
    }

    /// What is left to be done of `operation`, all of whose members are named by id.
    pub fn step(&self, operation: &Operation) -> Result<Step, Refused> {
        match operation {
            Operation::Transfer(member) => self.transfer(self.resolve(member)?),
            Operation::Promote(members) => {
                let ids = self.all(members)?;
                let promoted: BTreeSet<u64> = ids.into_iter().filter(|id| !self.is_voter(*id)).collect();
                self.change(&promoted, &BTreeSet::new())
            }
            Operation::Remove(members) => self.change(&BTreeSet::new(), &self.all(members)?),
            Operation::Replace { old, new } => self.replace(self.resolve(old)?, self.resolve(new)?),
        }
    }

    fn all(&self, named: &[String]) -> Result<BTreeSet<u64>, Refused> {
        named.iter().map(|member| self.resolve(member)).collect()
    }

    fn transfer(&self, to: u64) -> Result<Step, Refused> {
        if self.status.id == to {
            return Ok(Step::Done);
        }
        match (self.is_voter(to), self.is_learner(to)) {
            (true, _) if self.is_healthy(to) => Ok(Step::HandOver { to }),
            (true, _) => Err(Refused::NotHealthy(to)),
            (false, true) => Err(Refused::LearnerCannotLead(to)),
            (false, false) => Err(Refused::Unknown(to.to_string())),
        }
    }

    fn replace(&self, old: u64, new: u64) -> Result<Step, Refused> {
        if self.is_voter(new) && !self.is_member(old) {
            return self.change(&BTreeSet::new(), &[old].into());
        }
        if self.is_voter(new) {
            return Err(Refused::NotALearner(new));
        }
        if self.is_learner(old) {
            return Err(Refused::NotAVoter(old));
        }
        self.change(&[new].into(), &[old].into())
    }

    fn change(&self, promoted: &BTreeSet<u64>, removed: &BTreeSet<u64>) -> Result<Step, Refused> {
        for &id in promoted {
            self.check_learner(id)?;
        }
        let leaving: BTreeSet<u64> = removed.iter().copied().filter(|id| self.is_member(*id)).collect();
        let forget: Vec<u64> = removed.iter().copied().filter(|id| self.names.contains_key(id)).collect();
        let mut voters: BTreeSet<u64> = self.status.voters.iter().copied().collect();
        voters.extend(promoted);
        voters.retain(|id| !leaving.contains(id));
        if voters.is_empty() {
            return Err(Refused::LastVoter);
        }
        let healthy = voters.iter().filter(|id| self.is_healthy(**id)).count();
        let needed = quorum(voters.len());
        if healthy < needed && leaving.iter().any(|id| self.is_voter(*id)) {
            return Err(Refused::LosesQuorum { healthy, voters: voters.len(), needed });
        }
        if leaving.contains(&self.status.id) {
            return self.successor(&leaving).map(|to| Step::HandOver { to });
        }
        let mut changes: Vec<MemberChange> = promoted.iter().map(|&id| MemberChange::Promote(id)).collect();
        changes.extend(leaving.iter().map(|&id| MemberChange::Remove(id)));
        if changes.is_empty() && forget.is_empty() {
            return Ok(Step::Done);
        }
        Ok(Step::Change { changes, forget })
    }

    fn check_learner(&self, id: u64) -> Result<(), Refused> {
        if !self.is_learner(id) {
            return Err(Refused::Unknown(id.to_string()));
        }
        if !self.is_healthy(id) {
            return Err(Refused::NotHealthy(id));
        }
        let behind = self.status.last.saturating_sub(self.matched(id));
        if behind > LAG_ENTRIES_MAX {
            return Err(Refused::NotCaughtUp { id, behind });
        }
        Ok(())
    }

    /// The healthy voter that stays and has the most of the log.
    fn successor(&self, leaving: &BTreeSet<u64>) -> Result<u64, Refused> {
        let voters = self.status.voters.iter().copied();
        let staying = voters.filter(|id| !leaving.contains(id) && self.is_healthy(*id));
        staying.max_by_key(|id| self.matched(*id)).ok_or(Refused::NoSuccessor(self.status.id))
    }
}

#[cfg(test)]
mod tests {
    use MemberChange::{Promote, Remove};

    use super::*;

    /// Voters 1 (leads), 2, 3 and learners 4, 5; `silent` are not heard of, 5 is far behind. 6 was removed before.
    fn step(silent: &[u64], operation: &Operation) -> Result<Step, Refused> {
        let names: BTreeMap<u64, String> =
            [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "d")].map(|(id, name)| (id, name.to_owned())).into();
        let matched = |id| if id == 5 { 100 } else { 990 + id };
        let status = Status {
            id: 1,
            last: 1000,
            voters: vec![1, 2, 3],
            learners: vec![4, 5],
            progress: (1..=5).map(|id| (id, matched(id), !silent.contains(&id))).collect(),
            ..Status::default()
        };
        let members = Members { status: &status, names: &names, next_id: 7 };
        members.step(&operation.by_id(&members)?)
    }

    fn texts(members: &[&str]) -> Vec<String> {
        members.iter().map(|member| (*member).to_owned()).collect()
    }

    fn promote(members: &[&str]) -> Operation {
        Operation::Promote(texts(members))
    }

    fn remove(members: &[&str]) -> Operation {
        Operation::Remove(texts(members))
    }

    fn replace(old: &str, new: &str) -> Operation {
        Operation::Replace { old: old.into(), new: new.into() }
    }

    #[test]
    fn members_are_found_by_id_or_name() {
        assert_eq!(step(&[], &remove(&["b"])), step(&[], &remove(&["2"])));
        assert_eq!(step(&[], &remove(&["x"])), Err(Refused::Unknown("x".into())));
        assert_eq!(step(&[], &remove(&["9"])), Err(Refused::Unknown("9".into())));
        assert_eq!(step(&[], &remove(&["d"])), Err(Refused::Ambiguous { name: "d".into(), ids: vec![4, 5] }));
        assert_eq!(step(&[], &remove(&[])), Err(Refused::Nobody));
    }

    #[test]
    fn only_healthy_learners_that_have_caught_up_are_promoted() {
        let changes = vec![Promote(4)];
        assert_eq!(step(&[], &promote(&["4"])), Ok(Step::Change { changes, forget: vec![] }));
        assert_eq!(step(&[], &promote(&["5"])), Err(Refused::NotCaughtUp { id: 5, behind: 900 }));
        assert_eq!(step(&[4], &promote(&["4"])), Err(Refused::NotHealthy(4)));
        assert_eq!(step(&[], &promote(&["2"])), Ok(Step::Done), "a voter already");
        assert_eq!(step(&[], &promote(&["6"])), Err(Refused::Unknown("6".into())));
    }

    #[test]
    fn removing_keeps_a_quorum() {
        let changes = vec![Remove(2), Remove(3)];
        assert_eq!(step(&[], &remove(&["2", "c"])), Ok(Step::Change { changes, forget: vec![2, 3] }));
        let lost = Refused::LosesQuorum { healthy: 1, voters: 2, needed: 2 };
        assert_eq!(step(&[3], &remove(&["2"])), Err(lost.clone()));
        let dead = Step::Change { changes: vec![Remove(3)], forget: vec![3] };
        assert_eq!(step(&[3], &remove(&["3"])), Ok(dead), "the dead one may go");
        assert_eq!(step(&[], &remove(&["1", "2", "3"])), Err(Refused::LastVoter));
        assert_eq!(step(&[2], &remove(&["1"])), Err(lost));
        let learner = Step::Change { changes: vec![Remove(5)], forget: vec![5] };
        assert_eq!(step(&[5], &remove(&["5"])), Ok(learner));
        assert_eq!(step(&[], &remove(&["6"])), Ok(Step::Done), "it was removed before");
    }

    #[test]
    fn a_leader_hands_over_before_it_goes() {
        assert_eq!(step(&[], &remove(&["a"])), Ok(Step::HandOver { to: 3 }));
        assert_eq!(step(&[], &remove(&["a", "c"])), Ok(Step::HandOver { to: 2 }));
        assert_eq!(step(&[], &replace("a", "4")), Ok(Step::HandOver { to: 3 }));
    }

    #[test]
    fn a_replacement_is_one_change() {
        let changes = vec![Promote(4), Remove(2)];
        assert_eq!(step(&[], &replace("b", "4")), Ok(Step::Change { changes, forget: vec![2] }));
        assert_eq!(step(&[], &replace("b", "c")), Err(Refused::NotALearner(3)));
        assert_eq!(step(&[], &replace("5", "4")), Err(Refused::NotAVoter(5)));
        assert_eq!(step(&[], &replace("6", "3")), Ok(Step::Done), "it was done before");
        assert!(step(&[2], &replace("b", "4")).is_ok(), "the dead one is replaced");
        let lost = Refused::LosesQuorum { healthy: 1, voters: 3, needed: 2 };
        assert_eq!(step(&[2, 3, 4], &replace("b", "4")), Err(Refused::NotHealthy(4)));
        assert_eq!(step(&[2, 3], &remove(&["4"])).err(), None, "a learner is no part of it");
        assert_eq!(step(&[3, 2], &promote(&["4"])).err(), None);
        assert_eq!(step(&[2, 3], &replace("1", "4")), Err(lost));
    }

    #[test]
    fn leadership_goes_to_healthy_voters_only() {
        assert_eq!(step(&[], &Operation::Transfer("b".into())), Ok(Step::HandOver { to: 2 }));
        assert_eq!(step(&[], &Operation::Transfer("a".into())), Ok(Step::Done));
        assert_eq!(step(&[2], &Operation::Transfer("b".into())), Err(Refused::NotHealthy(2)));
        assert_eq!(step(&[], &Operation::Transfer("4".into())), Err(Refused::LearnerCannotLead(4)));
    }
}
