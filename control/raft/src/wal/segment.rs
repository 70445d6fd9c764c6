//! Segments: preallocated files of batches, each with a header that ties it to the one before.

use super::frame::{self, Frame, KIND_COMMIT, Place};
use super::record::Record;

/// The size of a segment's header, in bytes. The first batch begins behind it.
pub const HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"CRCLWAL1";

/// How far a batch number may be ahead of the expected one to count as a sign of later writes.
const BATCHES_AHEAD_MAX: u64 = 1 << 24;

/// The first bytes of a segment, synced before the file gets the segment's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Counts up from 1 without gaps.
    pub sequence: u64,
    /// Goes into the checksum of each frame.
    pub salt: u64,
    /// The number of the segment's first batch.
    pub first_batch: u64,
    /// Where the last batch of the segment before ends. 0 in the first segment.
    pub previous_end: u64,
    /// The index of the last entry before this segment. 0 where there is none.
    pub previous_index: u64,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        let fields = [self.sequence, self.salt, self.first_batch, self.previous_end, self.previous_index];
        for (field, place) in fields.iter().zip(bytes[8..].chunks_exact_mut(8)) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..56]);
        bytes[56..60].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None where the bytes are no header.
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        if &bytes[..8] != MAGIC || bytes[56..60] != crc32c::crc32c(&bytes[..56]).to_le_bytes() {
            return None;
        }
        let field = |at: usize| frame::number(&bytes[8 + 8 * at..]);
        Some(Header {
            sequence: field(0),
            salt: field(1),
            first_batch: field(2),
            previous_end: field(3),
            previous_index: field(4),
        })
    }
}

/// The file name of a segment.
pub fn name(sequence: u64) -> String {
    format!("{sequence:016x}.wal")
}

/// The sequence in a segment's file name, None for other names.
pub fn sequence(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// What the complete batches of a segment say.
#[derive(Debug)]
pub struct Scan {
    pub batches: Vec<Vec<Record>>,
    /// Where the last complete batch begins; `end` where there is none.
    pub last: usize,
    /// Where the last complete batch ends.
    pub end: usize,
    /// The number of the batch that comes next.
    pub next_batch: u64,
}

/// A sound batch that holds a record this build cannot read.
#[derive(Debug)]
pub struct Unreadable {
    pub offset: usize,
    pub kind: u8,
}

/// Reads the batches of a segment up to the first that is not complete.
pub fn scan(segment: &[u8], header: &Header) -> Result<Scan, Unreadable> {
    let mut scan =
        Scan { batches: Vec::new(), last: HEADER_BYTES, end: HEADER_BYTES, next_batch: header.first_batch };
    while let Some((frames, end)) = batch(segment, header.salt, scan.next_batch, scan.end) {
        let mut records = Vec::with_capacity(frames.len());
        for (offset, frame) in frames {
            let record =
                Record::decode(frame.kind, frame.payload).ok_or(Unreadable { offset, kind: frame.kind })?;
            records.push(record);
        }
        scan.batches.push(records);
        scan.last = scan.end;
        scan.end = end;
        scan.next_batch += 1;
    }
    Ok(scan)
}

type Batch<'a> = (Vec<(usize, Frame<'a>)>, usize);

fn batch(segment: &[u8], salt: u64, number: u64, start: usize) -> Option<Batch<'_>> {
    let mut frames = Vec::new();
    let mut offset = start;
    loop {
        let frame = frame::parse(segment, offset, salt, number..=number)?;
        let end = frame.end;
        if frame.kind == KIND_COMMIT {
            return frame::completes(&frame, segment, start, offset, frames.len() as u32)
                .then_some((frames, end));
        }
        frames.push((offset, frame));
        offset = end;
    }
}

/// The offset of a sound frame of a batch behind the one that should begin at `scan.end`.
///
/// A batch is written only when the one before is durable. So such a frame proves that the batch at `scan.end` was
/// complete once: it is no torn write, but corruption.
pub fn later_batch(segment: &[u8], header: &Header, scan: &Scan) -> Option<usize> {
    let later = scan.next_batch + 1..=scan.next_batch.saturating_add(BATCHES_AHEAD_MAX);
    (scan.end..segment.len())
        .step_by(frame::ALIGNMENT)
        .find(|offset| frame::parse(segment, *offset, header.salt, later.clone()).is_some())
}

/// Appends a batch of records that begins at `base` in the segment.
pub fn encode_batch<'a>(
    out: &mut Vec<u8>,
    base: usize,
    place: Place,
    records: impl Iterator<Item = std::borrow::Cow<'a, Record>>,
) {
    let mut frames = 0;
    for record in records {
        frame::push(out, base, place, record.kind(), |payload| record.encode(payload));
        frames += 1;
    }
    frame::push_commit(out, base, place, frames);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_headers_survive_the_round() {
        assert_eq!(sequence(&name(0x1f)), Some(0x1f));
        assert_eq!(sequence("spare-0000000000000001.wal"), None);
        let header = Header { sequence: 3, salt: 9, first_batch: 17, previous_end: 4096, previous_index: 44 };
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        bytes[20] ^= 1;
        assert_eq!(Header::decode(&bytes), None);
    }
}
