//! The operations as their clients saw them, and whether they are linearizable.
//!
//! Each write that took place has a revision of its own, so the order is given; what remains to check is that it is
//! right. Ops are ranked: a write by its revision, a read by the revision it saw, a refusal by a revision at which it
//! was due. An op that ended before another began must not have the higher rank. As ranks are given (or, for
//! refusals, the lowest possible is chosen, in the order of beginning), this decides exactly.

#[cfg(test)]
mod tests;
mod unknown;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use coracle_objects::{Applied, EventKind, Refusal, Revision, View};

use super::keys::Keys;
use super::ledger::{Change, Group, Ledger};
use super::model::{Spec, Timeline, Value};
use crate::trace::Micros;
use crate::world::client::Asker;
use crate::world::{Broken, Step};

/// Names one operation.
pub type OpId = usize;

#[derive(Debug)]
pub struct Op {
    pub asker: Asker,
    pub kind: OpKind,
    pub began: Micros,
    pub end: Option<(Micros, Ending)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Of everything.
    Read,
    Write(Spec),
}

/// What a client was told.
#[derive(Clone, Debug)]
pub enum Ending {
    Applied(Applied),
    Refused(Refusal),
    /// Certainly not done, now or later.
    NotDone,
    Unknown,
    Read(View),
    ReadFailed,
}

#[derive(Debug, Default)]
pub struct History {
    ops: Vec<Op>,
}

impl History {
    pub fn begin(&mut self, asker: Asker, kind: OpKind, began: Micros) -> OpId {
        self.ops.push(Op { asker, kind, began, end: None });
        self.ops.len() - 1
    }

    pub fn next_id(&self) -> OpId {
        self.ops.len()
    }

    pub fn end(&mut self, op: OpId, at: Micros, ending: Ending) {
        self.ops[op].end = Some((at, ending));
    }

    pub fn op(&self, op: OpId) -> &Op {
        &self.ops[op]
    }

    /// Checks all operations against each other and against what the members did.
    pub fn check(&self, keys: &Keys, ledger: &Ledger) -> Step {
        let timeline = self.replay(keys, ledger)?;
        let owners = self.owners(keys, ledger, &timeline)?;
        self.writes_are_right(keys, ledger, &timeline, &owners)?;
        self.reads_are_right(keys, ledger, &timeline)?;
        self.order_is_right(keys, &timeline, &owners)
    }

    /// Every state there was, from the changes alone.
    fn replay(&self, keys: &Keys, ledger: &Ledger) -> Step<Timeline> {
        let values: BTreeMap<&Bytes, &Value> =
            self.values().map(|(_, value)| (&value.draft, value)).collect();
        let mut timeline = Timeline::new(keys);
        for Group { revision, changes } in ledger.groups() {
            for Change { kind, key, draft } in changes {
                let before = timeline.at(*key, revision - 1).map(|stored| &stored.value.draft);
                let right = match kind {
                    EventKind::Added => before.is_none(),
                    EventKind::Modified => before.is_some(),
                    EventKind::Deleted => before == Some(draft),
                };
                if !right {
                    let name = keys.key(*key);
                    return Err(Broken::new(format!("revision {revision}: {name} cannot be {kind:?} then")));
                }
                let value = match kind {
                    EventKind::Deleted => None,
                    EventKind::Added | EventKind::Modified => Some(
                        (*values.get(draft).ok_or_else(|| {
                            Broken::new(format!("revision {revision} holds what nobody wrote"))
                        })?)
                        .clone(),
                    ),
                };
                timeline.set(*key, *revision, value);
            }
        }
        Ok(timeline)
    }

    fn values(&self) -> impl Iterator<Item = (OpId, &Value)> {
        self.ops.iter().enumerate().flat_map(|(id, op)| {
            let changes = match &op.kind {
                OpKind::Write(spec) => spec.changes.as_slice(),
                OpKind::Read => &[],
            };
            changes.iter().filter_map(move |(_, value)| Some((id, value.as_ref()?)))
        })
    }

    /// The operation that each revision is, in order.
    fn owners(&self, keys: &Keys, ledger: &Ledger, timeline: &Timeline) -> Step<Vec<OpId>> {
        let mut told: BTreeMap<Revision, OpId> = BTreeMap::new();
        for (id, op) in self.ops.iter().enumerate() {
            if let Some((at, Ending::Applied(applied))) = &op.end {
                let whole = applied.revisions.iter().all(|revision| *revision == applied.revision);
                if let Some(other) = told.insert(applied.revision, id) {
                    return Err(broken(
                        *at,
                        format!("#{other} and #{id} have the same revision {}", applied.revision),
                    ));
                }
                if !whole || applied.revision as usize > ledger.groups().len() {
                    return Err(broken(*at, format!("#{id} was acknowledged, but is lost: {applied:?}")));
                }
            }
        }
        let drafts: BTreeMap<&Bytes, OpId> = self.values().map(|(id, value)| (&value.draft, id)).collect();
        let mut owners = Vec::with_capacity(ledger.groups().len());
        let mut open = Vec::new();
        for Group { revision, changes } in ledger.groups() {
            let by_draft = changes
                .iter()
                .filter(|change| change.kind != EventKind::Deleted)
                .find_map(|change| drafts.get(&change.draft).copied());
            owners.push(by_draft.or_else(|| told.get(revision).copied()));
            if owners.last() == Some(&None) {
                open.push(*revision);
            }
        }
        if let Some(revision) = self.assign(&open, &mut owners, keys, ledger, timeline) {
            return Err(Broken::new(format!("revision {revision} deletes what nobody may have deleted")));
        }
        Ok(owners.into_iter().flatten().collect())
    }

    /// Each write that took place did what it was to do, once, and was allowed to.
    fn writes_are_right(&self, keys: &Keys, ledger: &Ledger, timeline: &Timeline, owners: &[OpId]) -> Step {
        let mut done: BTreeMap<OpId, Revision> = BTreeMap::new();
        for (Group { revision, changes }, id) in ledger.groups().iter().zip(owners) {
            let op = &self.ops[*id];
            let at = op.end.as_ref().map_or(op.began, |(at, _)| *at);
            let wrong = |what: String| Err(broken(at, format!("#{id} at revision {revision}: {what}")));
            if let Some(first) = done.insert(*id, *revision) {
                return wrong(format!("done twice, at revision {first} too"));
            }
            match &op.end {
                Some((_, Ending::Applied(applied))) if applied.revision != *revision => {
                    return wrong(format!("its client was told {}", applied.revision));
                }
                Some((_, Ending::Refused(refusal))) => {
                    return wrong(format!("done, but its client was told {refusal:?}"));
                }
                Some((_, Ending::NotDone)) => {
                    return wrong("done, but its client was told it never is".into());
                }
                _ => {}
            }
            let OpKind::Write(spec) = &op.kind else { return wrong("it is a read".into()) };
            if let Err(refusal) = spec.judge(keys, |key| timeline.at(key, revision - 1)) {
                return wrong(format!("it had to be refused: {refusal:?}"));
            }
            let meant =
                spec.changes.iter().map(|(key, value)| (*key, value.as_ref().map(|value| &value.draft)));
            let did = changes.iter().map(|change| {
                (change.key, Some(&change.draft).filter(|_| change.kind != EventKind::Deleted))
            });
            if !meant.eq(did) {
                return wrong("it did not do what was asked".into());
            }
        }
        for (id, op) in self.ops.iter().enumerate() {
            if let Some((at, Ending::Applied(applied))) = &op.end
                && done.get(&id) != Some(&applied.revision)
            {
                let revision = applied.revision;
                return Err(broken(*at, format!("#{id}: revision {revision}, as it was told, is another's")));
            }
        }
        Ok(())
    }

    /// Each read saw a state that there was.
    fn reads_are_right(&self, keys: &Keys, ledger: &Ledger, timeline: &Timeline) -> Step {
        for (id, op) in self.ops.iter().enumerate() {
            let Some((at, Ending::Read(view))) = &op.end else { continue };
            if view.revision as usize > ledger.groups().len() {
                return Err(broken(*at, format!("#{id} read revision {}, which never was", view.revision)));
            }
            if let Err(what) = same_state(view, keys, timeline) {
                return Err(broken(*at, format!("#{id} read revision {}: {what}", view.revision)));
            }
        }
        Ok(())
    }

    /// Real time allows the order of the revisions.
    fn order_is_right(&self, keys: &Keys, timeline: &Timeline, owners: &[OpId]) -> Step {
        let revisions: BTreeMap<OpId, Revision> = owners.iter().copied().zip(1..).collect();
        let mut by_begin: Vec<OpId> = (0..self.ops.len()).collect();
        by_begin.sort_by_key(|id| (self.ops[*id].began, *id));
        let mut ended: BinaryHeap<Reverse<(Micros, Revision, OpId)>> = BinaryHeap::new();
        // The highest rank of all that has ended, and whose it is.
        let mut floor = (0, None);
        for id in by_begin {
            let op = &self.ops[id];
            while let Some(Reverse((at, rank, other))) = ended.peek().copied()
                && at < op.began
            {
                ended.pop();
                if rank > floor.0 {
                    floor = (rank, Some(other));
                }
            }
            let end = op.end.as_ref().map_or(Micros::MAX, |(at, _)| *at);
            let seen = floor.1.map_or_else(String::new, |other| format!(" (#{other} ended before it began)"));
            let rank = match (&op.end, revisions.get(&id)) {
                (_, Some(revision)) if *revision <= floor.0 => {
                    let what = format!("#{id} wrote revision {revision} after {} was known{seen}", floor.0);
                    return Err(broken(op.began, what));
                }
                (Some((_, Ending::Read(view))), _) if view.revision < floor.0 => {
                    let what =
                        format!("stale read: #{id} saw {}, after {} was known{seen}", view.revision, floor.0);
                    return Err(broken(end, what));
                }
                (Some((_, Ending::Read(view))), _) => view.revision,
                (_, Some(revision)) => *revision,
                (Some((_, Ending::Refused(refusal))), None) => {
                    match self.due(keys, timeline, owners, id, refusal, floor.0) {
                        Some(rank) => rank,
                        None => {
                            let what = format!(
                                "#{id} was refused without a reason from {} on: {refusal:?}",
                                floor.0
                            );
                            return Err(broken(end, what));
                        }
                    }
                }
                (_, None) => continue,
            };
            // The end of what became known only later is of no matter.
            let end = if matches!(op.end, Some((_, Ending::Unknown))) { Micros::MAX } else { end };
            ended.push(Reverse((end, rank, id)));
        }
        Ok(())
    }

    /// The lowest revision from `floor` on at which the refusal was due, among those that were begun before its end.
    fn due(
        &self,
        keys: &Keys,
        timeline: &Timeline,
        owners: &[OpId],
        id: OpId,
        refusal: &Refusal,
        floor: Revision,
    ) -> Option<Revision> {
        let op = &self.ops[id];
        let (OpKind::Write(spec), Some((end, _))) = (&op.kind, &op.end) else { return None };
        let begun = |revision: &Revision| {
            *revision == 0
                || owners.get(*revision as usize - 1).is_some_and(|owner| self.ops[*owner].began <= *end)
        };
        let mut revisions = (floor..).take_while(|revision| begun(revision));
        revisions
            .find(|revision| spec.judge(keys, |key| timeline.at(key, *revision)).as_ref() == Err(refusal))
    }
}

/// Whether a view is the state at its revision.
pub fn same_state(view: &View, keys: &Keys, timeline: &Timeline) -> Result<(), String> {
    let mut expected = 0;
    for id in 0..keys.count() {
        let key = keys.key(id);
        let stored = timeline.at(id, view.revision);
        expected += usize::from(stored.is_some());
        let same = match (view.get(key), stored) {
            (None, None) => true,
            (Some(object), Some(stored)) => {
                object.revision == stored.revision
                    && object.draft() == stored.value.draft
                    && object.meta.uid == stored.value.uid
            }
            _ => false,
        };
        if !same {
            return Err(format!("{key} is not as it was then"));
        }
    }
    let found: usize = view.tables.values().map(|table| table.len()).sum();
    if found == expected { Ok(()) } else { Err(format!("it has {found} objects, not {expected}")) }
}

fn broken(at: Micros, what: String) -> Broken {
    Broken { what, at: Some(at) }
}
