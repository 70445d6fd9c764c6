//! The entries of a directory, read a few at a time: how many there are costs the host nothing.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

use super::{Account, OpenDescriptor, Opened, not_done};
use crate::pool::Call;

/// Entries that are read ahead.
const ENTRIES_AHEAD: usize = 64;

/// An entry, or why it cannot be told.
type Entry = Result<DirectoryEntry, ErrorCode>;

/// A listing under way.
pub(crate) struct Listing {
    account: Arc<Account>,
    state: State,
}

enum State {
    /// What was read; where there is more, with the reader.
    Read(VecDeque<Entry>, Option<Opened<Reader>>),
    Reading(Call<Part>),
}

/// Entries, and the reader where there are more.
type Part = (VecDeque<Entry>, Option<Opened<Reader>>);

/// Where in the directory the reading is.
struct Reader {
    entries: Dir,
    /// For entries whose type the file system does not tell.
    of: OpenDescriptor,
}

impl Listing {
    /// Begins to read a directory.
    pub(super) async fn open(account: Arc<Account>, on: OpenDescriptor) -> FsResult<Self> {
        let of = Arc::clone(&account);
        let charge = account.one_more()?;
        let read = account.call(move || Ok(Opened::new(Reader::open(on)?, &of, Some(charge)).part()));
        let (entries, reader) = read.await.unwrap_or_else(|error| Err(not_done(error)))?;
        Ok(Self { account, state: State::Read(entries, reader) })
    }

    /// The next entry; none at the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Entry>> {
        loop {
            match &mut self.state {
                State::Read(entries, reader) => {
                    if let Some(entry) = entries.pop_front() {
                        return Poll::Ready(Some(entry));
                    }
                    let Some(reader) = reader.take() else { return Poll::Ready(None) };
                    self.state = State::Reading(self.account.call(move || reader.part()));
                }
                State::Reading(call) => {
                    let (entries, reader) = match ready!(Pin::new(call).poll(cx)) {
                        Ok(part) => part,
                        Err(error) => (VecDeque::from([Err(not_done(error))]), None),
                    };
                    self.state = State::Read(entries, reader);
                }
            }
        }
    }
}

#[cfg(test)]
impl Listing {
    /// Entries that are held.
    pub(super) fn ahead(&self) -> usize {
        match &self.state {
            State::Read(entries, _) => entries.len(),
            State::Reading(_) => 0,
        }
    }
}

impl Opened<Reader> {
    /// Reads some entries. The reader is closed at the end.
    fn part(mut self) -> Part {
        let mut entries = VecDeque::new();
        let Some(reader) = &mut self.inner else { return (entries, None) };
        while entries.len() < ENTRIES_AHEAD {
            match reader.next() {
                Some(entry) => entries.push_back(entry),
                None => return (entries, None),
            }
        }
        (entries, Some(self))
    }
}

impl Reader {
    fn open(of: OpenDescriptor) -> Result<Self, ErrorCode> {
        // Opened anew, so that each listing has a position of its own.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(directory(&of)?, c".", flags, Mode::empty());
        let entries = dir.and_then(Dir::new).map_err(io::Error::from)?;
        Ok(Self { entries, of })
    }

    fn next(&mut self) -> Option<Entry> {
        loop {
            let entry = match self.entries.read()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(io::Error::from(error).into())),
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match self.type_of(name) {
                    Ok(kind) => kind,
                    Err(error) => return Some(Err(error)),
                },
                known => known,
            };
            let name = name.to_str().map(str::to_owned).map_err(|_| ErrorCode::IllegalByteSequence);
            return Some(name.map(|name| DirectoryEntry { type_: descriptor_type(kind), name }));
        }
    }

    fn type_of(&self, name: &CStr) -> Result<FileType, ErrorCode> {
        let stat = rustix::fs::statat(directory(&self.of)?, name, AtFlags::SYMLINK_NOFOLLOW);
        Ok(FileType::from_raw_mode(stat.map_err(io::Error::from)?.st_mode))
    }
}

fn directory(of: &OpenDescriptor) -> Result<&File, ErrorCode> {
    match of.descriptor()? {
        Descriptor::Dir(dir) => Ok(&dir.dir),
        Descriptor::File(_) => Err(ErrorCode::NotDirectory),
    }
}

fn descriptor_type(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        _ => DescriptorType::Unknown,
    }
}
