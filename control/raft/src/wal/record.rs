//! Records: what the log says, and how that is written into frames.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

use super::frame::number;

/// One thing that the log holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Entry(Entry),
    HardState(HardState),
    Snapshot(SnapshotMarker),
    /// The entries from this index on are void. The log itself writes it before an entry that overwrites others.
    Truncate(u64),
}

/// Everything up to `index` is held by a snapshot; the log begins behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotMarker {
    pub index: u64,
    pub term: u64,
    pub conf_state: ConfState,
    /// The ids that were members before `index` and are no more: ids are never used again.
    pub removed: Vec<u64>,
}

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_SNAPSHOT: u8 = 3;
const KIND_TRUNCATE: u8 = 4;

/// The most ids that one list of a snapshot marker may have.
const IDS_MAX: usize = 1 << 16;

impl Record {
    /// The kind of the record's frame.
    pub fn kind(&self) -> u8 {
        match self {
            Record::Entry(_) => KIND_ENTRY,
            Record::HardState(_) => KIND_HARD_STATE,
            Record::Snapshot(_) => KIND_SNAPSHOT,
            Record::Truncate(_) => KIND_TRUNCATE,
        }
    }

    /// Appends the payload of the record's frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Entry(entry) => {
                out.reserve(24 + entry.context.len() + entry.data.len());
                push(out, entry.index);
                push(out, entry.term);
                push(out, u64::from(entry_kind(entry.entry_type)) << 32 | entry.context.len() as u64);
                out.extend_from_slice(&entry.context);
                out.extend_from_slice(&entry.data);
            }
            Record::HardState(state) => {
                push(out, state.term);
                push(out, state.vote);
                push(out, state.commit);
            }
            Record::Snapshot(marker) => {
                push(out, marker.index);
                push(out, marker.term);
                let state = &marker.conf_state;
                push(out, u64::from(state.auto_leave));
                let lists = [
                    &state.voters,
                    &state.learners,
                    &state.voters_outgoing,
                    &state.learners_next,
                    &marker.removed,
                ];
                for ids in lists {
                    push(out, ids.len() as u64);
                    for id in ids {
                        push(out, *id);
                    }
                }
            }
            Record::Truncate(from) => push(out, *from),
        }
    }

    /// Reads a frame's payload back. None where it is not a record: a broken or an unknown one.
    pub fn decode(kind: u8, payload: &[u8]) -> Option<Record> {
        let mut rest = payload;
        let record = match kind {
            KIND_ENTRY => {
                let mut entry = Entry { index: take(&mut rest)?, term: take(&mut rest)?, ..Entry::default() };
                let mark = take(&mut rest)?;
                entry.entry_type = match mark >> 32 {
                    0 => EntryType::EntryNormal,
                    2 => EntryType::EntryConfChangeV2,
                    _ => return None,
                };
                let context_bytes = (mark & u64::from(u32::MAX)) as usize;
                let (context, data) = rest.split_at_checked(context_bytes)?;
                // Copied, so that an entry does not keep its whole segment in memory.
                entry.context = Bytes::copy_from_slice(context);
                entry.data = Bytes::copy_from_slice(data);
                return Some(Record::Entry(entry));
            }
            KIND_HARD_STATE => Record::HardState(HardState {
                term: take(&mut rest)?,
                vote: take(&mut rest)?,
                commit: take(&mut rest)?,
                ..HardState::default()
            }),
            KIND_SNAPSHOT => {
                let mut marker = SnapshotMarker {
                    index: take(&mut rest)?,
                    term: take(&mut rest)?,
                    ..SnapshotMarker::default()
                };
                marker.conf_state.auto_leave = take(&mut rest)? != 0;
                marker.conf_state.voters = take_ids(&mut rest)?;
                marker.conf_state.learners = take_ids(&mut rest)?;
                marker.conf_state.voters_outgoing = take_ids(&mut rest)?;
                marker.conf_state.learners_next = take_ids(&mut rest)?;
                marker.removed = take_ids(&mut rest)?;
                Record::Snapshot(marker)
            }
            KIND_TRUNCATE => Record::Truncate(take(&mut rest)?),
            _ => return None,
        };
        rest.is_empty().then_some(record)
    }
}

fn entry_kind(kind: EntryType) -> u32 {
    match kind {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}

fn push(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, tail) = rest.split_at_checked(8)?;
    *rest = tail;
    Some(number(bytes))
}

fn take_ids(rest: &mut &[u8]) -> Option<Vec<u64>> {
    let count = usize::try_from(take(rest)?).ok().filter(|count| *count <= IDS_MAX)?;
    (0..count).map(|_| take(rest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_round() {
        let entry = Entry {
            index: 5,
            term: 2,
            entry_type: EntryType::EntryConfChangeV2,
            context: Bytes::from_static(b"c"),
            data: Bytes::from_static(b"data"),
            ..Entry::default()
        };
        let marker = SnapshotMarker {
            index: 9,
            term: 3,
            conf_state: ConfState {
                voters: vec![1, 2],
                learners: vec![4],
                auto_leave: true,
                ..ConfState::default()
            },
            removed: vec![3],
        };
        let records = [
            Record::Entry(entry),
            Record::HardState(HardState { term: 1, vote: 2, commit: 3, ..HardState::default() }),
            Record::Snapshot(marker),
            Record::Truncate(7),
        ];
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(Record::decode(record.kind(), &bytes), Some(record.clone()));
            assert_eq!(Record::decode(99, &bytes), None);
            assert_eq!(Record::decode(record.kind(), &bytes[..7]), None);
        }
    }
}
