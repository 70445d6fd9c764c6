//! The log as raft reads it: held in memory, behind the write-ahead log that makes it durable.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::config::KEEP_FOR_SNAPSHOT_BYTES;
use crate::snapshot::format::encode_marker;
use crate::wal::{Recovered, SnapshotMarker};

/// The newest entries, the very newest of which may not be durable yet. They reach back at least to the last snapshot,
/// and further for members that are a little behind.
///
/// Each entry owns its bytes, so that dropping one frees them.
#[derive(Debug)]
pub struct Log {
    hard_state: HardState,
    /// The last snapshot of this member. Its file is there.
    snapshot: SnapshotMarker,
    /// The index and term before the first of the entries.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    /// Another member needs a newer snapshot than there is.
    snapshot_wanted: Cell<bool>,
}

/// What an entry weighs beside its data and context when it is encoded, in bytes.
const ENTRY_OVERHEAD_BYTES: u64 = 24;

impl Log {
    pub fn new(recovered: Recovered) -> Log {
        Log {
            hard_state: recovered.hard_state,
            base: (recovered.snapshot.index, recovered.snapshot.term),
            snapshot: recovered.snapshot,
            entries: recovered.entries.into(),
            snapshot_wanted: Cell::new(false),
        }
    }

    pub fn first(&self) -> u64 {
        self.base.0 + 1
    }

    pub fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub fn snapshot_marker(&self) -> &SnapshotMarker {
        &self.snapshot
    }

    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub fn set_hard_state(&mut self, hard_state: &HardState) {
        self.hard_state = hard_state.clone();
    }

    /// Appends entries, in place of those that have their indices and all behind. They must join on to the log, and
    /// not reach into the snapshot: raft never does that.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index >= self.first() && first.index <= self.last() + 1,
            "entry {} does not join on to the log {}..={}",
            first.index,
            self.first(),
            self.last()
        );
        self.entries.truncate((first.index - self.first()) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    /// Puts a received snapshot in place of the whole log.
    pub fn restore(&mut self, marker: SnapshotMarker) {
        self.entries.clear();
        self.hard_state.commit = self.hard_state.commit.max(marker.index);
        self.base = (marker.index, marker.term);
        self.snapshot = marker;
    }

    /// Drops what a snapshot of this member holds, but for at most `entries_max` entries and `bytes_max` bytes before
    /// it: members that are a little behind are then served from the log. What is behind `awaited`, which a member
    /// has yet to be sent, is kept up to [`KEEP_FOR_SNAPSHOT_BYTES`].
    pub fn compact(
        &mut self,
        marker: SnapshotMarker,
        entries_max: u64,
        bytes_max: u64,
        awaited: Option<u64>,
    ) {
        let held = (marker.index - self.base.0) as usize;
        let (mut entries, mut bytes) = (0, 0);
        let kept = self.entries.range(..held).rev().take_while(|entry| {
            entries += 1;
            bytes += entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES;
            let wanted =
                awaited.is_some_and(|awaited| entry.index > awaited) && bytes <= KEEP_FOR_SNAPSHOT_BYTES;
            wanted || (entries <= entries_max && bytes <= bytes_max)
        });
        let dropped = held - kept.count();
        if dropped > 0 {
            let last = &self.entries[dropped - 1];
            self.base = (last.index, last.term);
            self.entries.drain(..dropped);
            if self.entries.capacity() > 4 * self.entries.len().max(1024) {
                self.entries.shrink_to_fit();
            }
        }
        self.snapshot = marker;
    }

    /// Whether another member waits for a newer snapshot than there is. Asking forgets it.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.take()
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.snapshot.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        assert!(
            high <= self.last() + 1,
            "raft asks for entry {} behind the log's end {}",
            high - 1,
            self.last()
        );
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0_u64;
        let range = (low - self.first()) as usize..(high - self.first()) as usize;
        let mut found = Vec::new();
        for entry in self.entries.range(range) {
            bytes = bytes
                .saturating_add(entry.data.len() as u64 + entry.context.len() as u64 + ENTRY_OVERHEAD_BYTES);
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        match self.entries.get((index - self.first()) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// Raft asks again until there is one that serves. One from before `to` was a member does not: `to` would refuse it.
    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let marker = &self.snapshot;
        if marker.index == 0 || marker.index < request_index || !names(&marker.conf_state, to) {
            self.snapshot_wanted.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let metadata = SnapshotMetadata {
            conf_state: Some(marker.conf_state.clone()).into(),
            index: marker.index,
            term: marker.term,
            ..SnapshotMetadata::default()
        };
        Ok(Snapshot {
            data: encode_marker(marker).into(),
            metadata: Some(metadata).into(),
            ..Snapshot::default()
        })
    }
}

fn names(state: &ConfState, id: u64) -> bool {
    state.voters.contains(&id) || state.learners.contains(&id) || state.voters_outgoing.contains(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 100].into(), ..Entry::default() }
    }

    fn indices(log: &Log, low: u64, high: u64, max: Option<u64>) -> Result<Vec<u64>> {
        let found = log.entries(low, high, max, GetEntriesContext::empty(false))?;
        Ok(found.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn a_log_behind_a_snapshot_answers_for_its_range() {
        let marker = SnapshotMarker { index: 10, term: 2, ..SnapshotMarker::default() };
        let mut log = Log::new(Recovered { snapshot: marker, ..Recovered::default() });
        assert_eq!((log.first_index().ok(), log.last_index().ok()), (Some(11), Some(10)));
        log.append(&[entry(11, 2), entry(12, 2), entry(13, 3)]);

        assert_eq!(log.term(10), Ok(2));
        assert_eq!(log.term(13), Ok(3));
        assert_eq!(log.term(9), Err(StorageError::Compacted.into()));
        assert_eq!(log.term(14), Err(StorageError::Unavailable.into()));
        assert_eq!(indices(&log, 11, 14, None), Ok(vec![11, 12, 13]));
        assert_eq!(indices(&log, 11, 14, Some(260)), Ok(vec![11, 12]));
        assert_eq!(indices(&log, 12, 14, Some(0)), Ok(vec![12]));
        assert_eq!(indices(&log, 10, 12, None), Err(StorageError::Compacted.into()));

        log.append(&[entry(12, 4)]);
        assert_eq!((log.last(), log.term(12)), (12, Ok(4)));

        log.compact(SnapshotMarker { index: 12, term: 4, ..SnapshotMarker::default() }, 1, u64::MAX, None);
        assert_eq!((log.first(), log.last(), log.term(11)), (12, 12, Ok(2)));
        log.compact(SnapshotMarker { index: 12, term: 4, ..SnapshotMarker::default() }, 9, 0, None);
        assert_eq!((log.first(), log.last(), log.term(12)), (13, 12, Ok(4)));

        log.restore(SnapshotMarker { index: 40, term: 5, ..SnapshotMarker::default() });
        assert_eq!((log.first(), log.last(), log.term(40)), (41, 40, Ok(5)));
    }

    #[test]
    fn the_log_behind_a_snapshot_on_its_way_is_kept() {
        let marker = |index| SnapshotMarker { index, term: 1, ..SnapshotMarker::default() };
        let mut log = Log::new(Recovered::default());
        log.append(&(1..=100).map(|index| entry(index, 1)).collect::<Vec<_>>());
        log.compact(marker(50), 5, u64::MAX, Some(30));
        assert_eq!(log.first(), 31);
        log.compact(marker(90), 5, u64::MAX, Some(30));
        assert_eq!(log.first(), 31);
        log.compact(marker(95), 5, u64::MAX, None);
        assert_eq!(log.first(), 91);
    }

    #[test]
    fn a_snapshot_serves_the_members_that_it_names() {
        let conf_state = ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() };
        let mut log = Log::new(Recovered::default());
        log.append(&[entry(1, 1), entry(2, 1)]);
        assert!(log.snapshot(0, 2).is_err() && log.take_snapshot_wanted());
        log.compact(SnapshotMarker { index: 2, term: 1, conf_state, removed: vec![9] }, 0, 0, None);
        for (request, to, serves) in [(0, 2, true), (2, 3, true), (3, 2, false), (0, 4, false)] {
            assert_eq!(log.snapshot(request, to).is_ok(), serves, "{request} {to}");
            assert_eq!(log.take_snapshot_wanted(), !serves);
        }
    }
}
