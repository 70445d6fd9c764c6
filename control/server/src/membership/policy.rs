//! Which changes of members the leader makes by itself. Pure: what is known in, what is to be done out.

use std::collections::BTreeMap;

use coracle_raft::MemberChange;

/// A learner is caught up when it is at most so many entries behind.
pub const LAG_ENTRIES_MAX: u64 = 250;

/// Members that come in by one change at most.
const PROMOTED_MAX: usize = 3;

/// What the leader knows of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub voter: bool,
    /// For so long it has been heard of and, as a learner, caught up.
    pub ready: bool,
    /// It has not been heard of for so long that it counts as dead.
    pub dead: bool,
}

/// What the leader does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Made as one change; empty where nothing is to be changed.
    pub changes: Vec<MemberChange>,
    /// Dead members in whose place nobody can come.
    pub alarms: Vec<u64>,
}

impl Plan {
    pub fn promoted(&self) -> Vec<u64> {
        let promoted = self.changes.iter().filter_map(|change| match change {
            MemberChange::Promote(id) => Some(*id),
            _ => None,
        });
        promoted.collect()
    }

    pub fn removed(&self) -> Vec<u64> {
        let removed = self.changes.iter().filter_map(|change| match change {
            MemberChange::Remove(id) => Some(*id),
            _ => None,
        });
        removed.collect()
    }
}

/// Ready learners take the places of dead voters, one for one; further ones become voters where their number is odd
/// then. A dead member whose place nobody takes stays, and is told.
pub fn plan(members: &BTreeMap<u64, Known>) -> Plan {
    let ids = |wanted: fn(&Known) -> bool| -> Vec<u64> {
        members.iter().filter(|(_, known)| wanted(known)).map(|(&id, _)| id).collect()
    };
    let voters = ids(|known| known.voter).len();
    let dead = ids(|known| known.voter && known.dead);
    let ready: Vec<u64> = ids(|known| !known.voter && known.ready).into_iter().take(PROMOTED_MAX).collect();
    let replaced = dead.len().min(ready.len());
    let further = promotable(voters, ready.len() - replaced);
    let (removed, promoted) = (&dead[..replaced], &ready[..replaced + further]);
    let alive = voters - dead.len() + promoted.len();
    let all = voters - removed.len() + promoted.len();
    let mut plan = Plan::default();
    if alive >= quorum(all) {
        plan.changes.extend(promoted.iter().map(|&id| MemberChange::Promote(id)));
        plan.changes.extend(removed.iter().map(|&id| MemberChange::Remove(id)));
    }
    let leaving = plan.removed();
    plan.alarms = ids(|known| known.dead).into_iter().filter(|id| !leaving.contains(id)).collect();
    plan
}

/// How many of so many voters must agree.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many of the ready learners become voters. An even number of voters tolerates no more than the odd one below
/// it and needs one more for a quorum: a cluster never rests there.
fn promotable(voters: usize, ready: usize) -> usize {
    if (voters + ready) % 2 == 1 { ready } else { ready.saturating_sub(1) }
}

#[cfg(test)]
mod tests {
    use MemberChange::{Promote, Remove};

    use super::*;

    /// `v` voter, `d` dead voter, `l` learner, `r` ready learner, `x` dead learner; ids from 1.
    fn planned(members: &str) -> Plan {
        let known = members.chars().map(|letter| Known {
            voter: matches!(letter, 'v' | 'd'),
            ready: letter == 'r',
            dead: matches!(letter, 'd' | 'x'),
        });
        plan(&(1..).zip(known).collect())
    }

    #[test]
    fn a_cluster_never_rests_at_an_even_number_of_voters() {
        for (members, promoted) in [
            ("vr", 0),
            ("vrr", 2),
            ("vrrr", 2),
            ("vvvr", 0),
            ("vvr", 1),
            ("vvv", 0),
            ("vvvrrr", 2),
            ("vl", 0),
        ] {
            assert_eq!(planned(members).changes.len(), promoted, "{members}");
        }
    }

    #[test]
    fn a_ready_learner_takes_a_dead_voters_place() {
        assert_eq!(planned("vvdr"), Plan { changes: vec![Promote(4), Remove(3)], alarms: vec![] });
        assert_eq!(planned("vvdrr").changes, [Promote(4), Remove(3)], "no even number");
        assert_eq!(planned("vvdrrr").changes, [Promote(4), Promote(5), Promote(6), Remove(3)]);
        let two = planned("vvvddrr");
        assert_eq!(two.changes, [Promote(6), Promote(7), Remove(4), Remove(5)]);
        assert_eq!((two.promoted(), two.removed()), (vec![6, 7], vec![4, 5]));
    }

    #[test]
    fn a_dead_member_whose_place_nobody_takes_stays_and_is_told() {
        assert_eq!(planned("vvd"), Plan { changes: vec![], alarms: vec![3] });
        assert_eq!(planned("vvdl"), Plan { changes: vec![], alarms: vec![3] });
        assert_eq!(planned("vvvddr"), Plan { changes: vec![Promote(6), Remove(4)], alarms: vec![5] });
        assert_eq!(planned("vvvx"), Plan { changes: vec![], alarms: vec![4] });
    }

    #[test]
    fn no_change_is_made_without_a_quorum_after_it() {
        assert_eq!(planned("vddddr"), Plan { changes: vec![], alarms: vec![2, 3, 4, 5] });
    }
}
