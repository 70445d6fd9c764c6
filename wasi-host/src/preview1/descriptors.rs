//! What a program has open, by its numbers.

use std::collections::BTreeSet;
use std::sync::Arc;

use wasmtime_wasi::p2::bindings::filesystem::types::DescriptorFlags;

use super::call::Call;
use super::directories::Reading;
use super::errno::{Done, Errno};
use crate::files::OpenDescriptor;
use crate::linker::{Parts, State};
use crate::logs::LogStream;
use crate::net::{Conn, Listener};
use crate::stdin::Input;

/// A descriptor's number.
pub(super) type Fd = u32;

/// Something that is open. Each stands in the store's table, as components' handles do.
pub(super) enum Entry {
    Stdin,
    Output(LogStream),
    File { opened: OpenDescriptor, position: u64, flags: u32 },
    Dir { opened: OpenDescriptor, preopened: Option<String>, reading: Option<Box<Reading>> },
    Listener { listener: Arc<Listener>, flags: u32 },
    Conn { conn: Arc<Conn>, flags: u32 },
}

/// Types of files.
pub(super) const UNKNOWN: u8 = 0;
pub(super) const DIRECTORY: u8 = 3;
pub(super) const REGULAR: u8 = 4;
const SOCKET_STREAM: u8 = 6;

/// Flags of descriptors.
pub(super) const APPEND: u32 = 1;
pub(super) const DSYNC: u32 = 1 << 1;
pub(super) const NONBLOCK: u32 = 1 << 2;
pub(super) const RSYNC: u32 = 1 << 3;
pub(super) const SYNC: u32 = 1 << 4;

/// Rights. No call is refused for want of them: what a container may do its mounts say. Programs ask for them nevertheless.
pub(super) const FD_READ: u64 = 1 << 1;
pub(super) const FD_WRITE: u64 = 1 << 6;
const ALL_OF_FILES: u64 = 0x1ff | 0b111 << 21 | 1 << 27;
const ALL_OF_DIRS: u64 = 0x07ff_fe00 & !(1 << 19) & !(1 << 22);
const ALL_OF_SOCKETS: u64 = FD_READ | FD_WRITE | 1 << 3 | 1 << 21 | 0b111 << 27;

/// What a program's standard streams are.
pub(crate) struct Stdio {
    pub(crate) stdin: Input,
    pub(crate) stdout: LogStream,
    pub(crate) stderr: LogStream,
}

/// The numbers of what is open.
pub(super) struct Descriptors {
    /// The places in the store's table, by number.
    places: Vec<Option<u32>>,
    /// Numbers between others that are free.
    free: BTreeSet<Fd>,
    pub(super) stdin: Input,
    /// Until they stand in the table.
    outputs: Option<[LogStream; 2]>,
}

impl Descriptors {
    pub(super) fn new(stdio: Stdio) -> Descriptors {
        let Stdio { stdin, stdout, stderr } = stdio;
        let outputs = Some([stdout, stderr]);
        Descriptors { places: Vec::new(), free: BTreeSet::new(), stdin, outputs }
    }

    pub(super) fn place(&self, fd: Fd) -> Result<u32, Errno> {
        self.places.get(fd as usize).copied().flatten().ok_or(Errno::BADF)
    }

    pub(super) fn add(&mut self, place: u32) -> Fd {
        if let Some(fd) = self.free.pop_first() {
            self.places[fd as usize] = Some(place);
            return fd;
        }
        self.places.push(Some(place));
        (self.places.len() - 1) as Fd
    }

    pub(super) fn remove(&mut self, fd: Fd) -> Result<u32, Errno> {
        let place = self.places.get_mut(fd as usize).and_then(Option::take).ok_or(Errno::BADF)?;
        self.free.insert(fd);
        Ok(place)
    }

    fn put(&mut self, fd: Fd, place: u32) {
        self.free.remove(&fd);
        self.places[fd as usize] = Some(place);
    }
}

impl super::Preview1 {
    /// Opens what the program finds open: its standard streams, its listeners, its directories.
    pub(crate) fn begin(&mut self, state: &mut State, listeners: Vec<Listener>) -> wasmtime::Result<()> {
        let Some([stdout, stderr]) = self.descriptors.outputs.take() else { return Ok(()) };
        let files = Arc::clone(&state.parts().states.files);
        let stdio = [Entry::Stdin, Entry::Output(stdout), Entry::Output(stderr)];
        // As other runtimes hand them in: a program of one thread that waited in an accept could serve nobody meanwhile.
        let listeners = listeners
            .into_iter()
            .map(|listener| Entry::Listener { listener: Arc::new(listener), flags: NONBLOCK });
        let dirs = files.dirs().map(|(opened, path)| Entry::Dir {
            opened: Arc::clone(opened),
            preopened: Some(path.clone()),
            reading: None,
        });
        for entry in stdio.into_iter().chain(listeners).chain(dirs) {
            // Each time the table has grown where it has to.
            let Parts { table, .. } = state.parts();
            self.descriptors.add(table.push(entry)?.rep());
        }
        Ok(())
    }
}

pub(super) async fn fd_close(call: &mut Call<'_>, fd: Fd) -> Done {
    Ok(call.close(fd)?)
}

pub(super) async fn fd_renumber(call: &mut Call<'_>, from: Fd, to: Fd) -> Done {
    let descriptors = &call.preview1().descriptors;
    descriptors.place(from)?;
    descriptors.place(to)?;
    if from == to {
        return Ok(());
    }
    call.close(to)?;
    let descriptors = &mut call.preview1().descriptors;
    let place = descriptors.remove(from)?;
    descriptors.put(to, place);
    Ok(())
}

pub(super) async fn fd_fdstat_get(call: &mut Call<'_>, fd: Fd, out: u32) -> Done {
    let (kind, flags, base, inheriting) = match call.entry(fd)? {
        Entry::Stdin => (UNKNOWN, 0, FD_READ, FD_READ),
        Entry::Output(_) => (UNKNOWN, 0, FD_WRITE, FD_WRITE),
        Entry::Listener { flags, .. } | Entry::Conn { flags, .. } => {
            (SOCKET_STREAM, *flags, ALL_OF_SOCKETS, ALL_OF_SOCKETS)
        }
        Entry::Dir { .. } => (DIRECTORY, 0, ALL_OF_DIRS, ALL_OF_DIRS | ALL_OF_FILES),
        Entry::File { opened, flags, .. } => {
            let (opened, flags) = (Arc::clone(opened), *flags);
            let may = call.files().get_flags(&opened)?;
            let not = |flag, right| if may.contains(flag) { 0 } else { right };
            let rights =
                ALL_OF_FILES & !not(DescriptorFlags::READ, FD_READ) & !not(DescriptorFlags::WRITE, FD_WRITE);
            (REGULAR, flags, rights, rights)
        }
    };
    let mut stat = [0; 24];
    stat[0] = kind;
    stat[2..4].copy_from_slice(&(flags as u16).to_le_bytes());
    stat[8..16].copy_from_slice(&base.to_le_bytes());
    stat[16..].copy_from_slice(&inheriting.to_le_bytes());
    Ok(call.write(out, &stat)?)
}

pub(super) async fn fd_fdstat_set_flags(call: &mut Call<'_>, fd: Fd, wanted: u32) -> Done {
    if wanted & (DSYNC | RSYNC | SYNC) != 0 {
        return Err(Errno::INVAL.into());
    }
    match call.entry(fd)? {
        Entry::File { flags, .. } => *flags = *flags & !(APPEND | NONBLOCK) | wanted,
        Entry::Listener { flags, .. } | Entry::Conn { flags, .. } => *flags = wanted,
        // They are what they are, whatever the flags say.
        Entry::Stdin | Entry::Output(_) => {}
        Entry::Dir { .. } => return Err(Errno::BADF.into()),
    }
    Ok(())
}

pub(super) async fn fd_fdstat_set_rights(call: &mut Call<'_>, fd: Fd, _base: u64, _inheriting: u64) -> Done {
    call.entry(fd)?;
    Err(Errno::NOTSUP.into())
}

/// Sockets are something else than directories, and what they are has no name: programs pass over them.
pub(super) async fn fd_prestat_get(call: &mut Call<'_>, fd: Fd, out: u32) -> Done {
    let (tag, len) = match call.entry(fd)? {
        Entry::Dir { preopened: Some(path), .. } => (0_u8, path.len()),
        Entry::Listener { .. } => (1, 0),
        _ => return Err(Errno::BADF.into()),
    };
    call.write(out, &[tag, 0, 0, 0])?;
    Ok(call.write_size(out.checked_add(4).ok_or(Errno::FAULT)?, len)?)
}

pub(super) async fn fd_prestat_dir_name(call: &mut Call<'_>, fd: Fd, out: u32, len: u32) -> Done {
    let Entry::Dir { preopened: Some(path), .. } = call.entry(fd)? else { return Err(Errno::NOTDIR.into()) };
    if path.len() > len as usize {
        return Err(Errno::NAMETOOLONG.into());
    }
    let path = path.clone();
    Ok(call.write(out, path.as_bytes())?)
}
