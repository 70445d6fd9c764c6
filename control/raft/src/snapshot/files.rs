//! A member's snapshot files, beside its log.

use std::io::{self, Read, Write};

use super::format::{Header, Reader, Writer};
use super::{Frozen, Source};
use crate::error::Error;
use crate::wal::{Disk, DiskFile, SnapshotMarker};

/// How much is read and written at a time, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// The name of the file that holds the state as of entry `index`.
pub fn name(index: u64) -> String {
    format!("snapshot-{index:016x}.snap")
}

fn index_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("snapshot-")?.strip_suffix(".snap")?, 16).ok()
}

/// An open file, read or written from an offset on. Open files outlive their names.
pub struct SnapshotFile<F> {
    file: F,
    offset: u64,
}

impl<F: DiskFile> SnapshotFile<F> {
    pub fn new(file: F, offset: u64) -> SnapshotFile<F> {
        SnapshotFile { file, offset }
    }

    /// How far it was read or written.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

impl<F: DiskFile> Read for SnapshotFile<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let taken = self.file.read_at(self.offset, out)?;
        self.offset += taken as u64;
        Ok(taken)
    }
}

impl<F: DiskFile> Write for SnapshotFile<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a snapshot and returns when it is durable under its name: how long it is, in bytes.
pub fn write<D: Disk>(disk: &D, header: &Header, state: &dyn Frozen) -> io::Result<u64> {
    let name = name(header.marker.index);
    let temporary = format!("{name}.tmp");
    let written = (|| {
        let file = SnapshotFile::new(disk.create(&temporary, 0)?, 0);
        let out = io::BufWriter::with_capacity(BUFFER_BYTES, file);
        let mut writer = Writer::of_form(out, header, state.form())?;
        state.write_to(&mut writer)?;
        let (out, length) = writer.finish()?;
        out.into_inner()?.sync()?;
        keep(disk, &temporary, &name)?;
        Ok(length)
    })();
    if written.is_err() {
        let _ = disk.remove(&temporary);
    }
    written
}

/// Gives a synced file its final name.
pub fn keep<D: Disk>(disk: &D, temporary: &str, name: &str) -> io::Result<()> {
    disk.rename(temporary, name)?;
    disk.sync_directory()
}

/// The state as of entry `index`, to be read.
pub fn open<D: Disk>(disk: &D, index: u64) -> io::Result<Reader<io::BufReader<SnapshotFile<D::File>>>> {
    let file = SnapshotFile::new(disk.open(&name(index))?, 0);
    Reader::open(io::BufReader::with_capacity(BUFFER_BYTES, file))
}

/// The state that the log begins behind, for a member that starts or takes another's snapshot over.
pub fn open_for<D: Disk>(
    disk: &D,
    cluster_id: &str,
    marker: &SnapshotMarker,
) -> Result<Reader<io::BufReader<SnapshotFile<D::File>>>, Error> {
    let reader = open(disk, marker.index).map_err(|error| broken(marker.index, error))?;
    let header = reader.header();
    if header.cluster_id != cluster_id {
        return Err(Error::ForeignCluster {
            found: header.cluster_id.clone(),
            expected: cluster_id.to_owned(),
        });
    }
    if (header.marker.index, header.marker.term) != (marker.index, marker.term) {
        return Err(broken(marker.index, io::Error::other("it is of another entry than its name says")));
    }
    Ok(reader)
}

/// What a snapshot that cannot be read means to its member.
pub fn broken(index: u64, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::Unsupported {
        return Error::Newer { file: name(index), what: error.to_string() };
    }
    Error::Corrupt { file: name(index), offset: 0, what: error.to_string() }
}

/// The file's bytes from `offset` on, as they lie there.
pub fn source<D: Disk>(disk: &D, index: u64, offset: u64) -> io::Result<Source> {
    Ok(Box::new(SnapshotFile::new(disk.open(&name(index))?, offset)))
}

/// Whether the file is there. It is whole then.
pub fn exists<D: Disk>(disk: &D, index: u64) -> io::Result<bool> {
    let name = name(index);
    Ok(disk.list()?.contains(&name))
}

/// Removes the snapshots that lie before the one for `index`, which the log names.
pub fn remove_before<D: Disk>(disk: &D, index: u64) -> io::Result<()> {
    for name in disk.list()? {
        if index_of(&name).is_some_and(|found| found < index) {
            disk.remove(&name)?;
        }
    }
    Ok(())
}
