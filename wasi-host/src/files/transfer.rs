//! Bytes of open files, as streams read and write them. What is here blocks.

use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use super::{OpenDescriptor, Opened};

/// Bytes of one read or write of a stream.
pub(super) const TRANSFER_BYTES_MAX: usize = 64 << 10;

/// Where a stream writes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    At(u64),
    End,
}

impl Place {
    /// Where it goes on after this many bytes.
    pub(super) fn after(self, bytes: usize) -> Self {
        match self {
            Self::At(offset) => Self::At(offset.saturating_add(bytes as u64)),
            Self::End => Self::End,
        }
    }

    /// How long a file is after this many bytes, which was `before` long.
    pub(super) fn length(self, before: u64, bytes: u64) -> u64 {
        match self {
            _ if bytes == 0 => before,
            Self::At(offset) => before.max(offset.saturating_add(bytes)),
            Self::End => before.saturating_add(bytes),
        }
    }
}

fn file(opened: &Opened<Descriptor>) -> io::Result<&std::fs::File> {
    match &opened.inner {
        Some(Descriptor::File(file)) => Ok(&file.file),
        _ => Err(Errno::BADF.into()),
    }
}

/// Reads at most `size` bytes into `buffer`, whose content is overwritten; none at the end.
pub(super) fn read(
    opened: &OpenDescriptor,
    mut buffer: BytesMut,
    size: usize,
    offset: u64,
) -> io::Result<BytesMut> {
    let file = file(opened)?;
    buffer.resize(size.min(TRANSFER_BYTES_MAX), 0);
    loop {
        match file.read_at(&mut buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => {
                buffer.truncate(read?);
                return Ok(buffer);
            }
        }
    }
}

/// Writes all of `bytes`.
pub(super) fn write(opened: &OpenDescriptor, bytes: Bytes, place: Place) -> io::Result<()> {
    let file = file(opened)?;
    let len = bytes.len() as u64;
    let failed = |code| if code == ErrorCode::InsufficientSpace { Errno::NOSPC } else { Errno::IO };
    opened.account.reserve.admit(len).map_err(failed)?;
    opened.resize(|before| place.length(before, len), || write_all(file, bytes, place)).map_err(failed)?
}

fn write_all(file: &std::fs::File, mut bytes: Bytes, mut place: Place) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = match place {
            Place::At(offset) => file.write_at(&bytes, offset),
            Place::End => rustix::io::pwritev2(file, &[IoSlice::new(&bytes)], 0, ReadWriteFlags::APPEND)
                .map_err(io::Error::from),
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = bytes.split_off(written);
                place = place.after(written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
