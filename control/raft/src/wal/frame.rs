//! Frames: what a segment is made of.
//!
//! A frame is a header of 16 bytes, a payload, and zeroes up to the next multiple of 8. All numbers are
//! little-endian.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | CRC32C over the segment's salt, the frame's offset in the segment, and everything from byte 4 to the payload's end |
//! | 4..8 | payload length |
//! | 8..16 | batch number, shifted left by 8, and the kind |
//!
//! Salt and offset bind a frame to its place: what an earlier life of a recycled segment left behind, or what
//! a client put into an entry, never passes for a frame. A batch is what one fsync made durable: its frames, then a
//! commit frame whose payload holds the batch's start, the number of its frames, and a CRC32C over all its bytes.

/// The alignment of frames, in bytes.
pub const ALIGNMENT: usize = 8;
/// The size of a frame's header, in bytes.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The size of a whole commit frame, in bytes.
pub const COMMIT_BYTES: usize = FRAME_HEADER_BYTES + 16;

/// The kind of the frame that ends a batch. Kinds of records are in `record`.
pub const KIND_COMMIT: u8 = 255;

/// A frame whose checksum is right.
#[derive(Debug)]
pub struct Frame<'a> {
    pub kind: u8,
    pub payload: &'a [u8],
    /// The offset behind the frame and its padding.
    pub end: usize,
}

/// The place of frames: which segment, and which batch.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub salt: u64,
    pub batch: u64,
}

/// Appends a frame to `out`, whose first byte lies at `base` in the segment.
pub fn push(out: &mut Vec<u8>, base: usize, place: Place, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    payload(out);
    let length = (out.len() - start - FRAME_HEADER_BYTES) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    out[start + 8..start + 16].copy_from_slice(&(place.batch << 8 | u64::from(kind)).to_le_bytes());
    let crc = checksum(place.salt, base + start, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

/// Appends the frame that makes the batch in `out` complete. The batch begins at `base` in the segment.
pub fn push_commit(out: &mut Vec<u8>, base: usize, place: Place, frames: u32) {
    let crc = crc32c::crc32c(out);
    push(out, base, place, KIND_COMMIT, |payload| {
        payload.extend_from_slice(&(base as u64).to_le_bytes());
        payload.extend_from_slice(&frames.to_le_bytes());
        payload.extend_from_slice(&crc.to_le_bytes());
    });
}

/// Whether `commit`, found at `offset`, completes the batch of `frames` frames that begins at `start`.
pub fn completes(commit: &Frame<'_>, segment: &[u8], start: usize, offset: usize, frames: u32) -> bool {
    let crc = crc32c::crc32c(&segment[start..offset]);
    let mut expected = [0; 16];
    expected[..8].copy_from_slice(&(start as u64).to_le_bytes());
    expected[8..12].copy_from_slice(&frames.to_le_bytes());
    expected[12..].copy_from_slice(&crc.to_le_bytes());
    commit.payload == expected
}

/// The frame at `offset` of a segment, or None where its bytes are no frame of one of `batches`.
pub fn parse<'a>(
    segment: &'a [u8],
    offset: usize,
    salt: u64,
    batches: std::ops::RangeInclusive<u64>,
) -> Option<Frame<'a>> {
    let header = segment.get(offset..offset.checked_add(FRAME_HEADER_BYTES)?)?;
    let mark = number(&header[8..16]);
    // The cheap checks come first: recovery looks at each offset behind a torn batch.
    if !batches.contains(&(mark >> 8)) {
        return None;
    }
    let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let payload_end = (offset + FRAME_HEADER_BYTES).checked_add(length)?;
    let checked = segment.get(offset + 4..payload_end)?;
    if header[..4] != checksum(salt, offset, checked).to_le_bytes() {
        return None;
    }
    let end = payload_end.next_multiple_of(ALIGNMENT);
    if end > segment.len() {
        return None;
    }
    Some(Frame { kind: mark as u8, payload: &segment[offset + FRAME_HEADER_BYTES..payload_end], end })
}

fn checksum(salt: u64, offset: usize, bytes: &[u8]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&salt.to_le_bytes());
    place[8..].copy_from_slice(&(offset as u64).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), bytes)
}

/// The little-endian number in the first 8 of `bytes`.
pub fn number(bytes: &[u8]) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(array)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { salt: 7, batch: 3 };

    #[test]
    fn a_frame_is_bound_to_its_place() {
        let mut bytes = vec![0; 64];
        let mut out = Vec::new();
        push(&mut out, 64, PLACE, 1, |payload| payload.extend_from_slice(b"hello"));
        assert_eq!(out.len() % ALIGNMENT, 0);
        bytes.extend_from_slice(&out);

        let frame = parse(&bytes, 64, 7, 3..=3).expect("the frame is intact");
        assert_eq!((frame.kind, frame.payload, frame.end), (1, &b"hello"[..], bytes.len()));

        assert!(parse(&bytes, 64, 8, 3..=3).is_none(), "another segment's salt");
        assert!(parse(&bytes, 64, 7, 4..=9).is_none(), "another batch");
        bytes.splice(0..0, [0; 8]);
        assert!(parse(&bytes, 72, 7, 3..=3).is_none(), "another offset");
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let mut out = Vec::new();
        push(&mut out, 0, PLACE, 1, |payload| payload.extend_from_slice(b"hello wal"));
        for bit in 0..(FRAME_HEADER_BYTES + 9) * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad, 0, 7, 0..=u64::MAX).is_none(), "bit {bit}");
        }
    }
}
