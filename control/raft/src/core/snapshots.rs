//! Snapshots as consensus sees them: what one is marked with, when the log goes, and which are under way.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Message, Snapshot};
use raft::{ProgressState, SnapshotStatus, Storage};

use super::Core;
use crate::config::{KEEP_BYTES, SNAPSHOT_IDLE_MS};
use crate::error::{Error, ProposeError};
use crate::membership::Members;
use crate::snapshot::format::decode_marker;
use crate::wal::{Record, SnapshotMarker};

/// The members as of each index since the last snapshot: a snapshot is made of an applied index, while the members are
/// as of the last committed one.
pub struct History {
    /// (index, members, removed ids) in ascending order; the first holds from before all entries of the log.
    changes: VecDeque<(u64, ConfState, Vec<u64>)>,
}

impl History {
    pub fn new(marker: &SnapshotMarker) -> History {
        History { changes: [(marker.index, marker.conf_state.clone(), marker.removed.clone())].into() }
    }

    pub fn note(&mut self, index: u64, members: &Members) {
        self.changes.push_back((index, members.conf_state.clone(), members.removed()));
    }

    fn at(&self, index: u64) -> Option<(&ConfState, &[u64])> {
        let found = self.changes.iter().rev().find(|(since, ..)| *since <= index);
        found.map(|(_, state, removed)| (state, &removed[..]))
    }

    fn forget_before(&mut self, index: u64) {
        while self.changes.get(1).is_some_and(|(since, ..)| *since <= index) {
            self.changes.pop_front();
        }
    }
}

impl Core {
    /// What a snapshot of the state as of this applied index is marked with; None where the index is before the log.
    pub fn snapshot_marker(&self, index: u64) -> Option<SnapshotMarker> {
        let term = self.node.store().term(index).ok().filter(|_| index <= self.applied)?;
        let (conf_state, removed) = self.history.at(index)?;
        Some(SnapshotMarker { index, term, conf_state: conf_state.clone(), removed: removed.to_vec() })
    }

    /// The snapshot's file is durable: drops the log before it. False where a later snapshot was taken over meanwhile,
    /// and this one is of no use. Otherwise the caller appends the marker to the log and releases what is before it.
    pub fn compact(&mut self, marker: &SnapshotMarker) -> bool {
        if marker.index <= self.node.store().snapshot_marker().index {
            return false;
        }
        self.history.forget_before(marker.index);
        let awaited = self.oldest_awaited();
        // Nobody else is a little behind.
        let is_alone = self.node.raft.prs().iter().count() <= 1;
        let entries_max = if is_alone { 0 } else { self.config.keep_entries };
        self.node.mut_store().compact(marker.clone(), entries_max, KEEP_BYTES, awaited);
        true
    }

    /// Behind this index begins what a member that was sent a snapshot goes on with.
    fn oldest_awaited(&self) -> Option<u64> {
        let awaited = self.node.raft.prs().iter().filter_map(|(id, progress)| match progress.state {
            ProgressState::Snapshot => Some(progress.pending_snapshot),
            _ if self.catching_up.contains(id) => Some(progress.matched),
            _ => None,
        });
        awaited.min().filter(|_| self.is_leader())
    }

    /// Whether another member waits for a newer snapshot than there is. Asking forgets it.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.node.store().take_snapshot_wanted()
    }

    /// The snapshot that a message of the leader announces, where it has to be fetched before the message is stepped. One
    /// at a time: while the state machine takes another over, the message is of no use and not stepped either.
    pub fn wants_snapshot(&self, message: &Message) -> Option<SnapshotMarker> {
        let raft = &self.node.raft;
        let marker = decode_marker(&message.get_snapshot().data)?;
        let known = marker.index <= raft.raft_log.committed
            || raft.raft_log.match_term(marker.index, marker.term)
            || message.term < raft.term
            || self.is_restoring();
        (!known).then_some(marker)
    }

    /// A member is taking the snapshot that it was sent.
    pub fn snapshot_served(&mut self, id: u64) {
        if let Some(at) = self.sending.get_mut(&id) {
            *at = self.now;
        }
    }

    /// A member that takes nothing of its snapshot, or has given up, is sent another.
    pub(super) fn give_up_snapshots(&mut self) {
        self.follow_catching_up();
        let mut sending = std::mem::take(&mut self.sending);
        if self.is_leader() {
            let now = self.now;
            let receiving: Vec<u64> = self
                .node
                .raft
                .prs()
                .iter()
                .filter(|(_, progress)| progress.state == ProgressState::Snapshot)
                .map(|(id, _)| *id)
                .collect();
            for id in receiving {
                let at = sending.remove(&id).unwrap_or(now);
                if now - at > self.config.ticks(SNAPSHOT_IDLE_MS) {
                    self.node.report_snapshot(id, SnapshotStatus::Failure);
                } else {
                    self.sending.insert(id, at);
                }
            }
        }
    }

    /// Members that were sent a snapshot catch up until they have all that this member's last snapshot holds.
    fn follow_catching_up(&mut self) {
        let last = self.node.store().snapshot_marker().index;
        let prs = self.node.raft.prs().iter().filter(|_| self.is_leader());
        let catching_up = prs.filter(|(id, progress)| {
            let behind = progress.matched < last && self.is_active(**id) && self.catching_up.contains(id);
            progress.state == ProgressState::Snapshot || behind
        });
        self.catching_up = catching_up.map(|(id, _)| *id).collect();
    }

    /// Takes over a received snapshot, whose file is there.
    pub(super) fn restore(
        &mut self,
        snapshot: &Snapshot,
        records: &mut Vec<Record>,
    ) -> Result<SnapshotMarker, Error> {
        let marker = decode_marker(&snapshot.data).ok_or(Error::UnknownSnapshot)?;
        self.members.restore(&marker);
        self.history = History::new(&marker);
        self.changes += 1;
        self.handed = marker.index;
        let covered = self.proposals.take_through(marker.index);
        self.fail_proposals(covered, ProposeError::Unknown);
        if self.node.store().last() > marker.index {
            records.push(Record::Truncate(marker.index + 1));
        }
        self.node.mut_store().restore(marker.clone());
        records.push(Record::Snapshot(marker.clone()));
        Ok(marker)
    }
}
