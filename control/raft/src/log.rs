//! The log as raft reads it: held in memory, behind the write-ahead log that makes it durable.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::wal::{Recovered, SnapshotMarker};

/// All entries behind the last snapshot, the newest of which may not be durable yet.
///
/// Each entry owns its bytes, so that dropping one frees them.
#[derive(Debug)]
pub struct Log {
    hard_state: HardState,
    snapshot: SnapshotMarker,
    entries: VecDeque<Entry>,
}

/// What an entry weighs beside its data and context when it is encoded, in bytes.
const ENTRY_OVERHEAD_BYTES: u64 = 24;

impl Log {
    pub fn new(recovered: Recovered) -> Log {
        Log {
            hard_state: recovered.hard_state,
            snapshot: recovered.snapshot,
            entries: recovered.entries.into(),
        }
    }

    pub fn first(&self) -> u64 {
        self.snapshot.index + 1
    }

    pub fn last(&self) -> u64 {
        self.snapshot.index + self.entries.len() as u64
    }

    pub fn snapshot_marker(&self) -> &SnapshotMarker {
        &self.snapshot
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
        self.snapshot = marker;
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
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        if index < self.snapshot.index {
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

    /// Raft asks again until a snapshot is there. None is made yet, and as the log is not compacted none is needed.
    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot> {
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
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

        log.restore(SnapshotMarker { index: 40, term: 5, ..SnapshotMarker::default() });
        assert_eq!((log.first(), log.last(), log.term(40)), (41, 40, Ok(5)));
    }
}
