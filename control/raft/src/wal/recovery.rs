//! Recovery: what the log of an earlier life says.
//!
//! A bad last batch of the last segment is a torn write and is cut off: its fsync never returned, so nobody was told of
//! it. Anything else that is bad is corruption and is refused. Nothing is skipped.

use raft::eraftpb::{Entry, HardState};

use super::at;
use super::disk::{Disk, DiskFile};
use super::record::{Record, SnapshotMarker};
use super::segment::{self, Header, Scan};
use crate::error::Error;

/// What was durable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    pub hard_state: HardState,
    pub snapshot: SnapshotMarker,
    /// Without gaps, beginning behind the snapshot.
    pub entries: Vec<Entry>,
}

/// A segment as recovery found it.
pub struct FoundSegment<F> {
    pub name: String,
    pub header: Header,
    pub file: F,
    pub size: u64,
    /// Where its last complete batch ends.
    pub end: u64,
    /// The bytes of that batch, where the segment is the log's last.
    pub last_batch: Vec<u8>,
    pub next_batch: u64,
    /// The highest entry index in it, void ones too.
    pub index_max: u64,
}

/// The segments in order, and what they say together.
pub type Found<F> = (Vec<FoundSegment<F>>, Recovered);

/// Reads all segments, which are given by their sequences in ascending order.
pub fn recover<D: Disk>(disk: &D, sequences: &[u64]) -> Result<Found<D::File>, Error> {
    let mut replay = Replay::default();
    let mut found: Vec<FoundSegment<D::File>> = Vec::new();
    for (position, sequence) in sequences.iter().enumerate() {
        let name = segment::name(*sequence);
        let io = |source| Error::Disk { action: "read", file: name.clone(), source };
        let file = disk.open(&name).map_err(io)?;
        let bytes = file.read_all().map_err(io)?;
        let corrupt = |offset: usize, what: &str| Error::Corrupt {
            file: name.clone(),
            offset: offset as u64,
            what: what.to_owned(),
        };

        let header = Header::decode(&bytes).ok_or_else(|| corrupt(0, "the segment's header is broken"))?;
        if header.sequence != *sequence {
            return Err(corrupt(0, "the segment's header and its name disagree"));
        }
        match found.last() {
            None => replay.begin(header.previous_index),
            Some(previous) => check_joint(previous, &header)?,
        }
        let scan = segment::scan(&bytes, &header).map_err(|bad| {
            corrupt(bad.offset, &format!("a record of unknown kind or form ({})", bad.kind))
        })?;
        let last = position + 1 == sequences.len();
        if last && segment::later_batch(&bytes, &header, &scan).is_some() {
            return Err(corrupt(scan.end, "a batch of records is broken, but later ones exist"));
        }
        let index_max = replay.segment(&scan).map_err(|what| corrupt(scan.end, &what))?;
        found.push(FoundSegment {
            size: bytes.len() as u64,
            end: scan.end as u64,
            last_batch: if last { bytes[scan.last..scan.end].to_vec() } else { Vec::new() },
            next_batch: scan.next_batch,
            name,
            header,
            file,
            index_max,
        });
    }
    let name = found.last().map(|last| last.name.clone()).unwrap_or_default();
    let recovered = replay.finish().map_err(|what| Error::Corrupt { file: name, offset: 0, what })?;
    Ok((found, recovered))
}

/// Makes what recovery has read durable, for from here on it counts as that.
///
/// It was read from the page cache, and a sync alone does not bring it to the disk: where an earlier life's sync has
/// failed, the kernel has marked the pages clean, and the next sync succeeds without writing them. So what is in doubt is
/// written again before it is synced. That is the log's last batch and nothing else:
/// - A batch is written only when the one before is durable, in the same life because a failed write or sync ends it, in
///   the next because it begins here. So only the last can have failed, whichever segment it is in.
/// - A segment gets its name when its header is synced. Where that sync fails the file keeps its old name, and its header
///   is written anew, all of it, before it gets another.
/// - Names are no pages: a file system that cannot write its journal takes no further changes and fails all later syncs,
///   so a sync of the directory that succeeds has kept them.
pub fn make_durable<D: Disk>(disk: &D, last: &mut FoundSegment<D::File>) -> Result<(), Error> {
    let start = last.end - last.last_batch.len() as u64;
    last.file.write_at(start, &last.last_batch).map_err(at("write", &last.name))?;
    last.file.sync().map_err(at("sync", &last.name))?;
    disk.sync_directory().map_err(at("sync", "."))
}

/// A segment begins only when the one before is complete, and says where that ended.
fn check_joint<F>(previous: &FoundSegment<F>, next: &Header) -> Result<(), Error> {
    let corrupt = |what: &str| {
        Err(Error::Corrupt { file: previous.name.clone(), offset: previous.end, what: what.to_owned() })
    };
    if next.sequence != previous.header.sequence + 1 {
        return corrupt("the segment behind this one is missing");
    }
    if next.previous_end != previous.end || next.first_batch != previous.next_batch {
        return corrupt("a batch of records is broken, and a later segment exists");
    }
    Ok(())
}

/// The records, applied one after the other.
#[derive(Default)]
struct Replay {
    recovered: Recovered,
    /// The index before the first of the entries.
    base: u64,
}

impl Replay {
    fn begin(&mut self, base: u64) {
        self.base = base;
    }

    fn last(&self) -> u64 {
        self.base + self.recovered.entries.len() as u64
    }

    /// Applies a segment's records; answers the highest entry index among them.
    fn segment(&mut self, scan: &Scan) -> Result<u64, String> {
        let mut index_max = 0;
        for record in scan.batches.iter().flatten() {
            if let Record::Entry(entry) = record {
                index_max = index_max.max(entry.index);
            }
            self.record(record)?;
        }
        Ok(index_max)
    }

    fn record(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::Entry(entry) => {
                let last_term = match self.recovered.entries.last() {
                    Some(last) => last.term,
                    None if self.base == self.recovered.snapshot.index => self.recovered.snapshot.term,
                    None => 0,
                };
                if entry.index != self.last() + 1 || entry.term < last_term {
                    return Err(format!("entry {} of term {} is out of order", entry.index, entry.term));
                }
                self.recovered.entries.push(entry.clone());
            }
            Record::HardState(state) => {
                let old = &self.recovered.hard_state;
                if state.term < old.term || state.commit < old.commit {
                    return Err(format!("term or commit go back at commit {}", state.commit));
                }
                self.recovered.hard_state = state.clone();
            }
            Record::Truncate(from) => self.truncate(*from)?,
            Record::Snapshot(marker) => self.snapshot(marker),
        }
        Ok(())
    }

    fn truncate(&mut self, from: u64) -> Result<(), String> {
        if from <= self.recovered.hard_state.commit
            || from <= self.recovered.snapshot.index
            || from > self.last()
        {
            return Err(format!("the entries from {from} on cannot be void"));
        }
        if from > self.base {
            self.recovered.entries.truncate((from - self.base - 1) as usize);
        } else {
            // The void entries were in a segment that is released by now.
            self.recovered.entries.clear();
            self.base = from - 1;
        }
        Ok(())
    }

    fn snapshot(&mut self, marker: &SnapshotMarker) {
        if marker.index > self.last() {
            self.recovered.entries.clear();
            self.base = marker.index;
        } else if marker.index > self.base {
            self.recovered.entries.drain(..(marker.index - self.base) as usize);
            self.base = marker.index;
        }
        self.recovered.snapshot = marker.clone();
    }

    fn finish(mut self) -> Result<Recovered, String> {
        // What a snapshot holds was committed, though the commit index may not have been written down since.
        let committed = self.recovered.snapshot.index;
        self.recovered.hard_state.commit = self.recovered.hard_state.commit.max(committed);
        if self.base != self.recovered.snapshot.index {
            return Err(format!(
                "the entries begin behind {}, but the snapshot ends at {}",
                self.base, self.recovered.snapshot.index
            ));
        }
        let (commit, last) = (self.recovered.hard_state.commit, self.last());
        if commit > last {
            return Err(format!("the log ends at entry {last}, but {commit} was committed"));
        }
        Ok(self.recovered)
    }
}
