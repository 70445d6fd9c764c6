//! The form of a snapshot: a header, the state in chunks with a CRC32C each, and a SHA-256 over all of it at the end.
//!
//! ```text
//! "CRCLSNP" form: '1'   header: length u32, crc u32, bytes
//! chunk:                length u32 (1..=CHUNK_BYTES_MAX), crc u32, bytes     any number of them
//! end:                  length 0 u32, crc 0 u32, SHA-256 of everything before it
//! ```
//!
//! Numbers are little-endian. The same form serves the member's own files, transfers between members and backups. Which
//! one is written the state says ([`super::Frozen::form`]), as what all members read is agreed on through it.

use std::io::{self, ErrorKind, Read, Write};
use std::ops::RangeInclusive;

use sha2::{Digest, Sha256};

use crate::wal::{Record, SnapshotMarker};

/// In front of the form.
const MAGIC: &[u8; 7] = b"CRCLSNP";

/// What every build reads.
pub const FIRST_FORM: u8 = b'1';

/// The forms that this build writes and reads. A new one has its `match` in [`Writer::of_form`] and [`Reader::open`].
pub const FORMS: RangeInclusive<u8> = FIRST_FORM..=b'1';

/// The length of a full chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// The longest header, in bytes.
const HEADER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The longest cluster id, in bytes.
const CLUSTER_ID_BYTES_MAX: usize = 1024;

/// Whose state it is, and as of which entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    pub cluster_id: String,
    pub marker: SnapshotMarker,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.cluster_id.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(self.cluster_id.as_bytes());
        Record::Snapshot(self.marker.clone()).encode(&mut bytes);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Header> {
        let (length, rest) = bytes.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let (id, rest) = rest.split_at_checked(length).filter(|_| length <= CLUSTER_ID_BYTES_MAX)?;
        Some(Header { cluster_id: String::from_utf8(id.to_vec()).ok()?, marker: decode_marker(rest)? })
    }
}

/// The marker as it travels in a message.
pub fn encode_marker(marker: &SnapshotMarker) -> Vec<u8> {
    let mut bytes = Vec::new();
    Record::Snapshot(marker.clone()).encode(&mut bytes);
    bytes
}

/// None where the bytes are no marker.
pub fn decode_marker(bytes: &[u8]) -> Option<SnapshotMarker> {
    let kind = Record::Snapshot(SnapshotMarker::default()).kind();
    match Record::decode(kind, bytes) {
        Some(Record::Snapshot(marker)) => Some(marker),
        _ => None,
    }
}

/// Writes a snapshot: the state goes in as to any writer, then [`Writer::finish`].
pub struct Writer<W> {
    out: W,
    hash: Sha256,
    chunk: Vec<u8>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// In the form that every build reads.
    pub fn new(out: W, header: &Header) -> io::Result<Writer<W>> {
        Writer::of_form(out, header, FIRST_FORM)
    }

    /// An error of kind `Unsupported` where this build does not know the form.
    pub fn of_form(out: W, header: &Header, form: u8) -> io::Result<Writer<W>> {
        check_form(form)?;
        let mut writer = Writer { out, hash: Sha256::new(), chunk: Vec::new(), written: 0 };
        writer.put(MAGIC)?;
        writer.put(&[form])?;
        writer.put_part(&header.encode())?;
        writer.chunk.reserve(CHUNK_BYTES_MAX);
        Ok(writer)
    }

    /// Closes the snapshot; answers what was written to and how many bytes.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.put_chunk()?;
        self.put(&[0; 8])?;
        let digest = self.hash.finalize();
        self.out.write_all(&digest)?;
        self.out.flush()?;
        Ok((self.out, self.written + digest.len() as u64))
    }

    fn put_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        self.put_part(&chunk)?;
        chunk.clear();
        self.chunk = chunk;
        Ok(())
    }

    fn put_part(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(&(bytes.len() as u32).to_le_bytes())?;
        self.put(&crc32c::crc32c(bytes).to_le_bytes())?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES_MAX - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES_MAX {
            self.put_chunk()?;
        }
        Ok(taken)
    }

    /// Chunks go out when they are full.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a snapshot: the state comes out as from any reader. Damage is an error of kind `InvalidData`, a form that this
/// build does not know one of kind `Unsupported`; the end of the state is only ever told when the checksum over everything
/// was right.
pub struct Reader<R> {
    input: R,
    hash: Sha256,
    header: Header,
    chunk: Vec<u8>,
    given: usize,
    ended: bool,
}

impl<R: Read> Reader<R> {
    pub fn open(input: R) -> io::Result<Reader<R>> {
        let mut reader = Reader {
            input,
            hash: Sha256::new(),
            header: Header::default(),
            chunk: Vec::new(),
            given: 0,
            ended: false,
        };
        let mut magic = [0; MAGIC.len()];
        let mut form = [0];
        reader.fill(&mut magic)?;
        reader.fill(&mut form)?;
        if &magic != MAGIC {
            return Err(damaged("it is no snapshot of a Coracle cluster"));
        }
        check_form(form[0])?;
        let header = reader.take_part(HEADER_BYTES_MAX)?.unwrap_or_default();
        reader.header = Header::decode(&header).ok_or_else(|| damaged("its header cannot be read"))?;
        Ok(reader)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads to the end, for nothing but the checks.
    pub fn verify(mut self) -> io::Result<Header> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.header)
    }

    /// The bytes of a header or chunk; None at the end.
    fn take_part(&mut self, length_max: usize) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 8];
        self.fill(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        let (length, crc) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]));
        if length == 0 && crc == 0 {
            return Ok(None);
        }
        if length > length_max {
            return Err(damaged("a part of it is longer than any can be"));
        }
        let mut bytes = std::mem::take(&mut self.chunk);
        bytes.resize(length, 0);
        self.fill(&mut bytes)?;
        if crc32c::crc32c(&bytes) != crc {
            return Err(damaged("the checksum of a part does not match"));
        }
        Ok(Some(bytes))
    }

    fn take_end(&mut self) -> io::Result<()> {
        let expected = self.hash.clone().finalize();
        let mut found = [0; 32];
        self.fill(&mut found)?;
        if found != *expected {
            return Err(damaged("the checksum over all of it does not match"));
        }
        if self.input.read(&mut [0])? != 0 {
            return Err(damaged("something follows its end"));
        }
        self.ended = true;
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => damaged("it is cut off"),
            _ => error,
        })?;
        self.hash.update(bytes);
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while self.given == self.chunk.len() && !self.ended {
            self.given = 0;
            match self.take_part(CHUNK_BYTES_MAX)? {
                Some(chunk) => self.chunk = chunk,
                None => {
                    self.chunk.clear();
                    self.take_end()?;
                }
            }
        }
        let rest = &self.chunk[self.given..];
        let taken = rest.len().min(out.len());
        out[..taken].copy_from_slice(&rest[..taken]);
        self.given += taken;
        Ok(taken)
    }
}

fn check_form(form: u8) -> io::Result<()> {
    if FORMS.contains(&form) {
        return Ok(());
    }
    let (found, newest) = (form.escape_ascii(), FORMS.end().escape_ascii());
    let what = format!(
        "the snapshot has form {found}, this build knows forms up to {newest}: use the version that wrote it or a newer one"
    );
    Err(io::Error::new(ErrorKind::Unsupported, what))
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the snapshot is damaged: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let marker = SnapshotMarker { index: 7, term: 2, removed: vec![4], ..SnapshotMarker::default() };
        Header { cluster_id: "c1".to_owned(), marker }
    }

    fn written(state: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &header()).expect("memory takes it");
        writer.write_all(state).expect("memory takes it");
        let (bytes, length) = writer.finish().expect("memory takes it");
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<(Header, Vec<u8>)> {
        let mut reader = Reader::open(bytes)?;
        let mut state = Vec::new();
        reader.read_to_end(&mut state)?;
        Ok((reader.header().clone(), state))
    }

    #[test]
    fn a_state_of_any_length_survives_the_round() {
        for length in [0, 1, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX, 2 * CHUNK_BYTES_MAX + 5] {
            let state: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let bytes = written(&state);
            assert_eq!(read(&bytes).expect("it is whole"), (header(), state), "{length} bytes");
            assert_eq!(Reader::open(&bytes[..]).and_then(Reader::verify).expect("it is whole"), header());
        }
    }

    /// What members of other builds have and send. It changes only with another form.
    #[test]
    fn the_first_form_stays_as_it_is() {
        let digest = hex(&Sha256::digest(written(b"the state")));
        assert_eq!(digest, "2eb4e1a48abd13c1c3a204abc3a9ed49ec32f5f6e6a6033ca5257b612fa2cf9f");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_form_of_another_build_is_named_and_not_written() {
        let newer = FORMS.end() + 1;
        let refused = Writer::of_form(Vec::new(), &header(), newer).err().expect("this build cannot");
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        let mut bytes = written(b"the state");
        bytes[MAGIC.len()] = newer;
        let error = read(&bytes).expect_err("this build cannot");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("form 2, this build knows forms up to 1"), "{error}");
    }

    #[test]
    fn any_cut_or_flipped_bit_is_noticed() {
        let bytes = written(b"the state");
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        assert!(read(&[&bytes[..], b"x"].concat()).is_err());
    }
}
