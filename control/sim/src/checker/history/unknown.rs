//! Operations of unknown outcome: which of them was done where nobody was told of it.
//!
//! What puts an object names its operation in the object; only deletions have to be searched for.

use std::collections::BTreeMap;

use coracle_objects::Revision;

use super::{Ending, History, OpId, OpKind};
use crate::checker::keys::Keys;
use crate::checker::ledger::Ledger;
use crate::checker::model::Timeline;
use crate::trace::Micros;

impl History {
    /// Finds an operation of unknown outcome for each revision that only deletes and was told to nobody; answers the
    /// first for which there is none.
    pub(super) fn assign(
        &self,
        open: &[Revision],
        owners: &mut [Option<OpId>],
        keys: &Keys,
        ledger: &Ledger,
        timeline: &Timeline,
    ) -> Option<Revision> {
        let fits = |id: OpId, revision: Revision| {
            let OpKind::Write(spec) = &self.ops[id].kind else { return false };
            let group = &ledger.groups()[revision as usize - 1];
            spec.changes.len() == group.changes.len()
                && spec.changes.iter().zip(&group.changes).all(|((key, _), change)| *key == change.key)
                && spec.judge(keys, |key| timeline.at(key, revision - 1)).is_ok()
                && self.ops[id].began <= self.seen_at(revision)
        };
        let candidates: Vec<OpId> = self
            .ops
            .iter()
            .enumerate()
            .filter(|(_, op)| matches!(op.end, Some((_, Ending::Unknown)) | None))
            .filter(|(_, op)| matches!(&op.kind, OpKind::Write(spec) if spec.only_deletes()))
            .map(|(id, _)| id)
            .collect();
        let mut taken: BTreeMap<OpId, Revision> = BTreeMap::new();
        for revision in open {
            let mut tried = Vec::new();
            if !augment(*revision, &candidates, &fits, &mut taken, &mut tried) {
                return Some(*revision);
            }
        }
        // The sooner an operation began, the sooner it may have been done: what it must precede is then least.
        let mut places: Vec<(Revision, OpId)> =
            taken.into_iter().map(|(id, revision)| (revision, id)).collect();
        places.sort_unstable();
        for first in 0..places.len() {
            for second in first + 1..places.len() {
                let ((one, early), (other, late)) = (places[first], places[second]);
                if late < early && fits(late, one) && fits(early, other) {
                    (places[first].1, places[second].1) = (late, early);
                }
            }
        }
        for (revision, id) in places {
            owners[revision as usize - 1] = Some(id);
        }
        None
    }

    /// When the first client knew of a revision or of a later one.
    fn seen_at(&self, revision: Revision) -> Micros {
        let seen = self.ops.iter().filter_map(|op| match &op.end {
            Some((at, Ending::Applied(applied))) if applied.revision >= revision => Some(*at),
            Some((at, Ending::Read(view))) if view.revision >= revision => Some(*at),
            _ => None,
        });
        seen.min().unwrap_or(Micros::MAX)
    }
}

/// Finds a place for a revision, where need be by moving others.
fn augment(
    revision: Revision,
    candidates: &[OpId],
    fits: &impl Fn(OpId, Revision) -> bool,
    taken: &mut BTreeMap<OpId, Revision>,
    tried: &mut Vec<OpId>,
) -> bool {
    let free = candidates.iter().find(|id| !taken.contains_key(id) && fits(**id, revision));
    if let Some(id) = free {
        taken.insert(*id, revision);
        return true;
    }
    for id in candidates {
        if tried.contains(id) || !fits(*id, revision) {
            continue;
        }
        tried.push(*id);
        if let Some(other) = taken.get(id).copied()
            && augment(other, candidates, fits, taken, tried)
        {
            taken.insert(*id, revision);
            return true;
        }
    }
    false
}
