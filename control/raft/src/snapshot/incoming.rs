//! A snapshot on its way from the leader: gathered in a file that gets its name when all of it is right.

use std::io::{self, Write};

use super::Look;
use super::files::{self, SnapshotFile};
use super::format::{Header, Reader};
use crate::wal::Disk;

/// Takes the bytes of a snapshot's file, in order.
pub struct Incoming<D: Disk> {
    disk: D,
    header: Header,
    file: SnapshotFile<D::File>,
    temporary: String,
    look: Option<Look>,
}

impl<D: Disk> Incoming<D> {
    /// Begins with nothing of the snapshot that is announced by `header`.
    pub fn create(disk: D, header: Header) -> io::Result<Incoming<D>> {
        Incoming::create_numbered(disk, header, 0)
    }

    /// The same beside others that were begun before, and perhaps still write.
    pub fn create_numbered(disk: D, header: Header, number: u64) -> io::Result<Incoming<D>> {
        let temporary = format!("incoming-{number}-{}.tmp", files::name(header.marker.index));
        let file = SnapshotFile::new(disk.create(&temporary, 0)?, 0);
        Ok(Incoming { disk, header, file, temporary, look: None })
    }

    /// Has the state looked at before it is kept.
    pub fn looked_at(mut self, look: Look) -> Incoming<D> {
        self.look = Some(look);
        self
    }

    /// How many bytes are there: where to go on after an interruption.
    pub fn offset(&self) -> u64 {
        self.file.offset()
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// All bytes are there: checks them, and keeps the file where they are what was announced. An error of kind
    /// `Unsupported` where they are whole, and this build cannot read them.
    pub fn finish(mut self) -> io::Result<()> {
        let checked = self.file.sync().and_then(|()| self.check());
        if checked.is_err() {
            let _ = self.disk.remove(&self.temporary);
            return checked;
        }
        files::keep(&self.disk, &self.temporary, &files::name(self.header.marker.index))
    }

    /// The rest will not arrive: what is there must not take room from others.
    pub fn discard(self) {
        // It is removed at the next start otherwise.
        let _ = self.disk.remove(&self.temporary);
    }

    fn check(&self) -> io::Result<()> {
        let written = SnapshotFile::new(self.disk.open(&self.temporary)?, 0);
        let mut reader = Reader::open(io::BufReader::new(written))?;
        let looked = self.look.as_ref().map_or(Ok(()), |look| look(&mut reader));
        // What is damaged says nothing of who wrote it.
        let found = reader.verify()?;
        looked?;
        if found != self.header {
            return Err(io::Error::other("the snapshot is another one than was announced"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::snapshot::Frozen;
    use crate::wal::{MemoryDisk, SnapshotMarker};

    struct State;

    impl Frozen for State {
        fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(&[5; 1000])
        }
    }

    #[test]
    fn a_snapshot_that_arrives_whole_is_kept() {
        let marker = SnapshotMarker { index: 3, term: 1, ..SnapshotMarker::default() };
        let header = Header { cluster_id: "c".to_owned(), marker };
        let (sender, receiver) = (MemoryDisk::new(), MemoryDisk::new());
        let length = files::write(&sender, &header, &State).expect("memory takes it");
        let mut bytes = Vec::new();
        files::source(&sender, 3, 0).expect("it is there").read_to_end(&mut bytes).expect("it reads");
        assert_eq!(bytes.len() as u64, length);

        let mut incoming = Incoming::create(receiver.clone(), header.clone()).expect("memory takes it");
        incoming.write(&bytes[..700]).expect("memory takes it");
        assert_eq!(incoming.offset(), 700);
        let mut rest = Vec::new();
        files::source(&sender, 3, 700).expect("it is there").read_to_end(&mut rest).expect("it reads");
        incoming.write(&rest).expect("memory takes it");
        incoming.finish().expect("it is what was announced");
        receiver.crash(|_| 0);
        assert!(files::exists(&receiver, 3).expect("it lists"));
        let mut state = Vec::new();
        files::open(&receiver, 3).expect("it opens").read_to_end(&mut state).expect("it is whole");
        assert_eq!(state, [5; 1000]);

        files::remove_before(&receiver, 4).expect("it removes");
        assert!(!files::exists(&receiver, 3).expect("it lists"));
    }

    #[test]
    fn what_does_not_arrive_takes_no_room() {
        let marker = SnapshotMarker { index: 3, term: 1, ..SnapshotMarker::default() };
        let header = Header { cluster_id: "c".to_owned(), marker };
        let disk = MemoryDisk::new();
        disk.set_capacity(Some(100));
        let mut incoming = Incoming::create(disk.clone(), header).expect("memory takes it");
        assert!(incoming.write(&[1; 101]).is_err());
        assert_eq!(disk.used(), 100);
        incoming.discard();
        assert_eq!((disk.used(), disk.list().expect("it lists")), (0, Vec::<String>::new()));
    }

    #[test]
    fn what_this_build_cannot_read_is_not_kept() {
        let marker = SnapshotMarker { index: 3, term: 1, ..SnapshotMarker::default() };
        let header = Header { cluster_id: "c".to_owned(), marker };
        let disk = MemoryDisk::new();
        files::write(&disk, &header, &State).expect("writes");
        let bytes = disk.read(&files::name(3)).expect("it is there");
        let look: Look = std::sync::Arc::new(|state| {
            let mut first = [0];
            state.read_exact(&mut first)?;
            assert_eq!(first, [5]);
            Err(io::Error::new(io::ErrorKind::Unsupported, "of a newer build"))
        });
        // Where the bytes are damaged nothing is said of builds.
        for (length, kind) in
            [(bytes.len(), io::ErrorKind::Unsupported), (bytes.len() - 1, io::ErrorKind::InvalidData)]
        {
            let receiver = MemoryDisk::new();
            let incoming = Incoming::create(receiver.clone(), header.clone()).expect("memory takes it");
            let mut incoming = incoming.looked_at(look.clone());
            incoming.write(&bytes[..length]).expect("memory takes it");
            assert_eq!(incoming.finish().map_err(|error| error.kind()), Err(kind));
            assert_eq!(receiver.list().expect("it lists"), Vec::<String>::new());
        }
    }

    #[test]
    fn what_was_not_announced_is_refused() {
        let marker = SnapshotMarker { index: 3, term: 1, ..SnapshotMarker::default() };
        let header = Header { cluster_id: "c".to_owned(), marker };
        let disk = MemoryDisk::new();
        files::write(&disk, &Header { cluster_id: "d".to_owned(), ..header.clone() }, &State)
            .expect("writes");
        let bytes = disk.read(&files::name(3)).expect("it is there");
        for bad in [&bytes[..], &bytes[..bytes.len() - 1]] {
            let receiver = MemoryDisk::new();
            let mut incoming = Incoming::create(receiver.clone(), header.clone()).expect("memory takes it");
            incoming.write(bad).expect("memory takes it");
            assert!(incoming.finish().is_err());
            assert_eq!(receiver.list().expect("it lists"), Vec::<String>::new());
        }
    }
}
