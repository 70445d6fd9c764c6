//! Snapshots as they come from another member or from a file.

use std::io::{self, Read, Write};

use arbitrary::{Arbitrary, Result, Unstructured};
use coracle_raft::snapshot::{Header, Reader, Writer};
use coracle_raft::wal::SnapshotMarker;
use coracle_store::{Store, StoreConfig};
use raft::eraftpb::ConfState;

#[derive(Arbitrary, Debug)]
enum Stream {
    /// Any bytes.
    Raw(Vec<u8>),
    /// A sound snapshot of any state, of which some bytes are other ones and the end may be missing.
    Harmed { state: Vec<u8>, chunk: u16, flips: Vec<(u16, u8)>, kept: u16 },
    /// Any bytes as the state in a sound snapshot.
    Store(Vec<u8>),
}

/// No stream makes the reader or the store panic, or reserve memory that it does not have; a stream that is not exactly
/// what was written is refused.
pub fn snapshot_stream(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    match input.arbitrary()? {
        Stream::Raw(bytes) => {
            read(&bytes).ok();
        }
        Stream::Harmed { state, chunk, flips, kept } => {
            let sound = write(&state, chunk.max(1).into());
            let mut bytes = sound.clone();
            for (at, bits) in flips {
                let length = bytes.len();
                bytes[usize::from(at) % length] ^= bits;
            }
            bytes.truncate(bytes.len() - usize::from(kept).min(bytes.len()));
            match read(&bytes) {
                Ok(found) => assert!(bytes == sound && found == state, "a harmed snapshot was taken"),
                Err(_) => assert!(bytes != sound, "a sound snapshot was refused"),
            }
        }
        Stream::Store(state) => {
            let bytes = write(&state, 4096);
            let mut reader = Reader::open(&bytes[..]).expect("a sound snapshot opens");
            let _ = Store::restore(&mut reader, StoreConfig::default());
            let _ = Store::restore(&mut &state[..], StoreConfig::default());
        }
    }
    Ok(())
}

fn header() -> Header {
    let conf_state = ConfState { voters: vec![1, 2, 3], learners: vec![4], ..ConfState::default() };
    let marker = SnapshotMarker { index: 9, term: 2, conf_state, removed: vec![5] };
    Header { cluster_id: "c".into(), marker }
}

fn write(state: &[u8], piece: usize) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &header()).expect("memory takes it");
    state.chunks(piece).for_each(|piece| writer.write_all(piece).expect("memory takes it"));
    writer.finish().expect("memory takes it").0
}

fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut reader = Reader::open(bytes)?;
    let mut state = Vec::new();
    reader.read_to_end(&mut state)?;
    assert_eq!(*reader.header(), header_of(bytes)?);
    Ok(state)
}

fn header_of(bytes: &[u8]) -> io::Result<Header> {
    Reader::open(bytes)?.verify()
}
