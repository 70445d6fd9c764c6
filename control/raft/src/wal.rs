//! The write-ahead log: segmented, preallocated, one write and one fdatasync a batch.
//!
//! Files in the directory: `<sequence>.wal` are the segments in order, `spare-<n>.wal` are zeroed or recycled files that
//! become the next segment, `*.tmp` are unfinished and void. See `frame` and `segment` for the format, `recovery`
//! for what a crash may leave.

mod disk;
mod frame;
mod memory_disk;
mod record;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;

use raft::eraftpb::HardState;

pub use disk::{Disk, DiskFile, RealDisk, Space};
pub use memory_disk::{Fault, MemoryDisk, MemoryFile};
pub use record::{Record, SnapshotMarker};
pub use recovery::Recovered;

use self::frame::{COMMIT_BYTES, Place};
use self::segment::{HEADER_BYTES, Header};
use crate::config::FIRST_SEGMENT_BYTES;
use crate::error::Error;

/// How many spare segments are kept: one to go on with, one for a full disk.
const SPARES_MAX: usize = 2;
/// A segment is at most so many times as large as the one before.
const SEGMENT_GROWTH: u64 = 4;
/// The buffer for a batch is given back when it has grown beyond this many bytes.
const BUFFER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How a log is laid out.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// The size of a segment, in bytes; the first ones are smaller. A batch that is larger gets a larger one.
    pub segment_bytes: u64,
    /// Goes into all checksums. Random, so that no client can write an entry that looks like a frame.
    pub salt: u64,
}

/// The log of one member. After an error it must not be used again: what the disk holds is unknown.
pub struct Wal<D: Disk> {
    disk: D,
    options: WalOptions,
    current: Current<D::File>,
    sealed: VecDeque<Sealed>,
    spares: VecDeque<Spare>,
    spare_sequence: u64,
    spare_under_way: bool,
    /// The last one could not be made: the next is asked for behind the next rotation.
    spare_failed: bool,
    next_batch: u64,
    last_index: u64,
    hard_state: HardState,
    snapshot: SnapshotMarker,
    buffer: Vec<u8>,
    batch_bytes: u64,
}

struct Current<F> {
    file: F,
    header: Header,
    size: u64,
    /// Where the next batch begins.
    end: u64,
    index_max: u64,
}

struct Sealed {
    sequence: u64,
    size: u64,
    index_max: u64,
}

struct Spare {
    name: String,
    size: u64,
}

/// A spare segment to be made, which takes long and so is done beside the log.
#[derive(Debug)]
pub struct SpareJob {
    name: String,
    bytes: u64,
}

impl SpareJob {
    /// Zeroes the file. The result goes to [`Wal::spare_made`].
    pub fn run<D: Disk>(&self, disk: &D) -> io::Result<()> {
        let temporary = format!("{}.tmp", self.name);
        disk.create_beside(&temporary, self.bytes)?;
        disk.rename(&temporary, &self.name)?;
        disk.sync_directory()
    }
}

impl<D: Disk> Wal<D> {
    /// Opens the log in a directory, or makes an empty one, and answers what it holds.
    pub fn open(disk: D, options: WalOptions) -> Result<(Wal<D>, Recovered), Error> {
        let listing = Listing::read(&disk)?;
        let (mut found, recovered) = recovery::recover(&disk, &listing.sequences)?;
        let last_index = recovered.snapshot.index + recovered.entries.len() as u64;
        let (current, next_batch) = match found.pop() {
            Some(mut last) => {
                recovery::make_durable(&disk, &mut last)?;
                let (end, next_batch) = (last.end, last.next_batch);
                let current = Current {
                    file: last.file,
                    header: last.header,
                    size: last.size,
                    end,
                    index_max: last.index_max,
                };
                (current, next_batch)
            }
            None => (first_segment(&disk, options)?, 1),
        };
        let sealed = found
            .iter()
            .map(|one| Sealed { sequence: one.header.sequence, size: one.size, index_max: one.index_max })
            .collect();
        let wal = Wal {
            disk,
            options,
            current,
            sealed,
            spares: listing.spares.into(),
            spare_sequence: listing.spare_sequence,
            spare_under_way: false,
            spare_failed: false,
            next_batch,
            last_index,
            hard_state: recovered.hard_state.clone(),
            snapshot: recovered.snapshot.clone(),
            buffer: Vec::new(),
            batch_bytes: 0,
        };
        Ok((wal, recovered))
    }

    /// Writes the records as one batch and returns when they are durable: all of them or, after a crash, none.
    ///
    /// An entry may overwrite earlier ones: those from its index on are void then.
    pub fn append(&mut self, records: &[Record]) -> Result<(), Error> {
        let records = self.with_truncations(records);
        self.encode(&records);
        if self.current.end + self.buffer.len() as u64 > self.current.size {
            self.rotate(self.buffer.len() as u64)?;
            // The new segment restates what the ones before said, so that those can be released.
            let mut all = Vec::with_capacity(records.len() + 2);
            if self.snapshot.index > 0 {
                all.push(Cow::Owned(Record::Snapshot(self.snapshot.clone())));
            }
            all.push(Cow::Owned(Record::HardState(self.hard_state.clone())));
            all.extend(records.iter().cloned());
            self.encode(&all);
        }
        let name = segment::name(self.current.header.sequence);
        self.current.file.write_at(self.current.end, &self.buffer).map_err(at("write", &name))?;
        self.current.file.sync().map_err(at("sync", &name))?;
        self.batch_bytes = self.buffer.len() as u64;
        self.current.end += self.batch_bytes;
        self.next_batch += 1;
        for record in &records {
            self.note(record);
        }
        if self.buffer.capacity() > BUFFER_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Gives back the segments that hold nothing but entries up to `index`. A [`Record::Snapshot`] for `index` or
    /// more must have been appended.
    pub fn release(&mut self, index: u64) -> Result<(), Error> {
        let index = index.min(self.snapshot.index);
        let mut released = false;
        while self.sealed.front().is_some_and(|oldest| oldest.index_max <= index)
            && let Some(oldest) = self.sealed.pop_front()
        {
            let name = segment::name(oldest.sequence);
            if self.spares.len() < SPARES_MAX && oldest.size == self.options.segment_bytes {
                let spare = self.next_spare_name();
                self.disk.rename(&name, &spare).map_err(at("rename", &name))?;
                self.spares.push_back(Spare { name: spare, size: oldest.size });
            } else {
                self.disk.remove(&name).map_err(at("remove", &name))?;
            }
            released = true;
        }
        if released {
            self.disk.sync_directory().map_err(at("sync", "."))?;
        }
        Ok(())
    }

    /// A spare segment that should be made before the current one is full.
    pub fn spare_wanted(&mut self) -> Option<SpareJob> {
        // A young log's segments fill in less time than a larger one takes to be made.
        let young = self.current.size < self.options.segment_bytes;
        let begin = self.current.size / if young { 8 } else { 2 };
        if self.spare_under_way || !self.spares.is_empty() || self.current.end < begin {
            return None;
        }
        self.spare_under_way = true;
        Some(SpareJob { name: self.next_spare_name(), bytes: self.next_size() })
    }

    /// Takes the result of a [`SpareJob`]. After a failure the next is asked for behind the next rotation, which makes
    /// its segment by itself. So at most one is under way, however fast the log grows.
    pub fn spare_made(&mut self, job: SpareJob, made: bool) {
        if made {
            self.spare_under_way = false;
            self.spares.push_back(Spare { name: job.name, size: job.bytes });
        } else {
            self.spare_not_begun();
        }
    }

    /// As [`Wal::spare_made`] where the job that was asked for could not even begin.
    pub fn spare_not_begun(&mut self) {
        self.spare_failed = true;
    }

    /// How many segment files the log has, spares aside.
    pub fn segments(&self) -> u64 {
        self.sealed.len() as u64 + 1
    }

    /// The size of the last batch that was appended, in bytes.
    pub fn batch_bytes(&self) -> u64 {
        self.batch_bytes
    }

    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Segments grow from the small first one to their full size, so that a log which is short yet does not burden the
    /// disk with zeroes.
    fn next_size(&self) -> u64 {
        self.options.segment_bytes.min(self.current.size * SEGMENT_GROWTH)
    }

    fn next_spare_name(&mut self) -> String {
        self.spare_sequence += 1;
        spare_name(self.spare_sequence)
    }

    fn with_truncations<'a>(&self, records: &'a [Record]) -> Vec<Cow<'a, Record>> {
        let mut last_index = self.last_index;
        let mut all = Vec::with_capacity(records.len());
        for record in records {
            match record {
                Record::Entry(entry) => {
                    if entry.index <= last_index {
                        all.push(Cow::Owned(Record::Truncate(entry.index)));
                    }
                    last_index = entry.index;
                }
                Record::Snapshot(marker) => last_index = last_index.max(marker.index),
                Record::Truncate(from) => last_index = from - 1,
                Record::HardState(_) => {}
            }
            all.push(Cow::Borrowed(record));
        }
        all
    }

    fn encode(&mut self, records: &[Cow<'_, Record>]) {
        self.buffer.clear();
        let place = Place { salt: self.current.header.salt, batch: self.next_batch };
        segment::encode_batch(&mut self.buffer, self.current.end as usize, place, records.iter().cloned());
    }

    fn note(&mut self, record: &Record) {
        match record {
            Record::Entry(entry) => {
                self.last_index = entry.index;
                self.current.index_max = self.current.index_max.max(entry.index);
            }
            Record::HardState(state) => self.hard_state = state.clone(),
            Record::Snapshot(marker) => {
                self.last_index = self.last_index.max(marker.index);
                self.snapshot = marker.clone();
            }
            Record::Truncate(from) => self.last_index = from - 1,
        }
    }

    /// Begins a new segment with room for a batch of `bytes` and what is restated before it.
    fn rotate(&mut self, bytes: u64) -> Result<(), Error> {
        let mut marker = Vec::new();
        Record::Snapshot(self.snapshot.clone()).encode(&mut marker);
        let needed = (HEADER_BYTES + marker.len() + 4 * COMMIT_BYTES) as u64 + bytes;
        let size = self.next_size().max(needed.next_multiple_of(4096));
        let header = Header {
            sequence: self.current.header.sequence + 1,
            salt: salt(self.options.salt, self.current.header.sequence + 1),
            first_batch: self.next_batch,
            previous_end: self.current.end,
            previous_index: self.last_index,
        };
        let spare =
            self.spares.iter().position(|spare| spare.size >= needed).and_then(|at| self.spares.remove(at));
        let (file, size) = match spare {
            Some(spare) => (begin(&self.disk, &spare.name, None, &header)?, spare.size),
            None => (begin(&self.disk, "segment.tmp", Some(size), &header)?, size),
        };
        self.sealed.push_back(Sealed {
            sequence: self.current.header.sequence,
            size: self.current.size,
            index_max: self.current.index_max,
        });
        self.current = Current { file, header, size, end: HEADER_BYTES as u64, index_max: 0 };
        if std::mem::take(&mut self.spare_failed) {
            self.spare_under_way = false;
        }
        Ok(())
    }
}

/// The files of a directory that belong to a log.
struct Listing {
    sequences: Vec<u64>,
    spares: Vec<Spare>,
    spare_sequence: u64,
}

impl Listing {
    /// Lists the files and removes what an interrupted creation left.
    fn read<D: Disk>(disk: &D) -> Result<Listing, Error> {
        let mut listing = Listing { sequences: Vec::new(), spares: Vec::new(), spare_sequence: 0 };
        for name in disk.list().map_err(at("list", "."))? {
            if name.ends_with(".tmp") {
                disk.remove(&name).map_err(at("remove", &name))?;
            } else if let Some(sequence) = segment::sequence(&name) {
                listing.sequences.push(sequence);
            } else if let Some(number) = spare_number(&name) {
                listing.spare_sequence = listing.spare_sequence.max(number);
                let size = disk.open(&name).and_then(|file| file.size()).map_err(at("open", &name))?;
                listing.spares.push(Spare { name, size });
            }
        }
        listing.sequences.sort_unstable();
        Ok(listing)
    }
}

fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}.wal")
}

fn spare_number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("spare-")?.strip_suffix(".wal")?, 16).ok()
}

fn first_segment<D: Disk>(disk: &D, options: WalOptions) -> Result<Current<D::File>, Error> {
    let size = options.segment_bytes.clamp(4096, FIRST_SEGMENT_BYTES);
    let header = Header { sequence: 1, salt: salt(options.salt, 1), first_batch: 1, ..Header::default() };
    let file = begin(disk, "segment.tmp", Some(size), &header)?;
    Ok(Current { file, header, size, end: HEADER_BYTES as u64, index_max: 0 })
}

/// Makes a spare, or a new file of `size`, the segment that `header` describes. The name comes last: a file with a
/// segment's name has a sound header.
fn begin<D: Disk>(disk: &D, from: &str, size: Option<u64>, header: &Header) -> Result<D::File, Error> {
    let name = segment::name(header.sequence);
    let mut file = match size {
        Some(size) => disk.create(from, size),
        None => disk.open(from),
    }
    .map_err(at("create", &name))?;
    file.write_at(0, &header.encode()).map_err(at("write", &name))?;
    file.sync().map_err(at("sync", &name))?;
    disk.rename(from, &name).map_err(at("rename", &name))?;
    disk.sync_directory().map_err(at("sync", "."))?;
    Ok(file)
}

/// A salt for each segment out of the log's (the finaliser of SplitMix64).
fn salt(seed: u64, sequence: u64) -> u64 {
    crate::core::mix(seed ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn at(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> Error {
    let file = file.to_owned();
    move |source| Error::Disk { action, file, source }
}
