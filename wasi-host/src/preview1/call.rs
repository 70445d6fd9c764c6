//! One call of a program: its memory, its descriptors, and how it is told what came of it.

use std::sync::Arc;

use wasmtime::component::Resource;
use wasmtime::{Caller, Extern, Memory};

use super::Preview1;
use super::descriptors::{Entry, Fd};
use super::errno::{Done, Errno, Failure};
use crate::files::{Files, OpenDescriptor};
use crate::ledger::Charge;
use crate::linker::{Parts, State};

/// Bytes that one call moves at most; a program asks again for the rest.
pub(super) const TRANSFER_BYTES_MAX: usize = 64 << 10;

/// Vectors that one call may name, as on Linux.
const VECTORS_MAX: u32 = 1024;
const VECTOR_BYTES: u32 = 8;

/// Bytes of a path, as Linux has it.
const PATH_BYTES_MAX: u32 = 4096;

pub(super) struct Call<'a> {
    caller: Caller<'a, State>,
    memory: Memory,
}

/// What the guest is told, or the trap that it ends with.
pub(super) fn told(done: Done) -> wasmtime::Result<u32> {
    match done {
        Ok(()) => Ok(0),
        Err(Failure::Told(Errno(number))) => Ok(number.into()),
        Err(Failure::Trap(trap)) => Err(trap),
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(mut caller: Caller<'a, State>) -> wasmtime::Result<Call<'a>> {
        match caller.get_export("memory") {
            Some(Extern::Memory(memory)) => Ok(Call { caller, memory }),
            _ => Err(wasmtime::Error::msg(
                "the module exports no memory by the name `memory`, which WASI needs",
            )),
        }
    }

    // What it has open.

    pub(super) fn preview1(&mut self) -> &mut Preview1 {
        self.caller.data_mut().preview1()
    }

    pub(super) fn files(&mut self) -> Arc<Files> {
        Arc::clone(&self.caller.data_mut().parts().states.files)
    }

    pub(super) fn entry(&mut self, fd: Fd) -> Result<&mut Entry, Errno> {
        let place = self.preview1().descriptors.place(fd)?;
        let Parts { table, .. } = self.caller.data_mut().parts();
        table.get_mut(&Resource::new_borrow(place)).map_err(|_| Errno::BADF)
    }

    /// Opens it as the lowest number that is free.
    pub(super) fn open(&mut self, entry: Entry) -> Result<Fd, Errno> {
        let Parts { table, .. } = self.caller.data_mut().parts();
        let place = table.push(entry).map_err(|_| Errno::NFILE)?.rep();
        Ok(self.preview1().descriptors.add(place))
    }

    pub(super) fn close(&mut self, fd: Fd) -> Result<(), Errno> {
        let place = self.preview1().descriptors.remove(fd)?;
        let Parts { table, .. } = self.caller.data_mut().parts();
        let closed: Result<Entry, _> = table.delete(Resource::new_own(place));
        closed.map(drop).map_err(|_| Errno::BADF)
    }

    /// Has the container's account hold so many things of this call, as it holds what is open, until the charge is dropped.
    pub(super) fn hold(&mut self, things: u32) -> Result<Charge, Errno> {
        let Parts { meter, .. } = self.caller.data_mut().parts();
        meter.of_call(things).map_err(|_| Errno::NOMEM)
    }

    /// A file or directory.
    pub(super) fn opened(&mut self, fd: Fd) -> Result<OpenDescriptor, Errno> {
        match self.entry(fd)? {
            Entry::File { opened, .. } | Entry::Dir { opened, .. } => Ok(Arc::clone(opened)),
            _ => Err(Errno::BADF),
        }
    }

    /// A directory.
    pub(super) fn dir(&mut self, fd: Fd) -> Result<OpenDescriptor, Errno> {
        match self.entry(fd)? {
            Entry::Dir { opened, .. } => Ok(Arc::clone(opened)),
            Entry::File { .. } => Err(Errno::NOTDIR),
            _ => Err(Errno::BADF),
        }
    }

    // Its memory.

    pub(super) fn bytes(&self, at: u32, len: u32) -> Result<&[u8], Errno> {
        let at = at as usize;
        self.memory.data(&self.caller).get(at..at.saturating_add(len as usize)).ok_or(Errno::FAULT)
    }

    pub(super) fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), Errno> {
        let at = at as usize;
        let to = self.memory.data_mut(&mut self.caller).get_mut(at..at.saturating_add(bytes.len()));
        to.ok_or(Errno::FAULT)?.copy_from_slice(bytes);
        Ok(())
    }

    fn number(&self, at: u32) -> Result<u32, Errno> {
        let bytes = self.bytes(at, 4)?.try_into().map_err(|_| Errno::FAULT)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(super) fn path(&self, at: u32, len: u32) -> Result<String, Errno> {
        if len > PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let text = std::str::from_utf8(self.bytes(at, len)?).map_err(|_| Errno::ILSEQ)?;
        Ok(text.to_owned())
    }

    /// A directory, and a path in it.
    pub(super) fn at(&mut self, fd: Fd, path: u32, len: u32) -> Result<(OpenDescriptor, String), Errno> {
        Ok((self.dir(fd)?, self.path(path, len)?))
    }

    /// A vector of a list: where it begins and how long it is.
    fn vector(&self, vectors: u32, index: u32) -> Result<(u32, u32), Errno> {
        let at = vectors.checked_add(index * VECTOR_BYTES).ok_or(Errno::FAULT)?;
        Ok((self.number(at)?, self.number(at.checked_add(4).ok_or(Errno::FAULT)?)?))
    }

    /// As many of the bytes of the vectors as one call moves.
    pub(super) fn gather(&self, vectors: u32, count: u32) -> Result<Vec<u8>, Errno> {
        let mut gathered = Vec::new();
        for index in 0..within(count)? {
            let (at, len) = self.vector(vectors, index)?;
            let bytes = self.bytes(at, len)?;
            let left = TRANSFER_BYTES_MAX - gathered.len();
            gathered.extend_from_slice(&bytes[..bytes.len().min(left)]);
            if gathered.len() == TRANSFER_BYTES_MAX {
                break;
            }
        }
        Ok(gathered)
    }

    /// Bytes that the vectors have room for, as far as one call fills them.
    pub(super) fn room(&self, vectors: u32, count: u32) -> Result<usize, Errno> {
        let mut room = 0_usize;
        for index in 0..within(count)? {
            let (at, len) = self.vector(vectors, index)?;
            room = room.saturating_add(self.bytes(at, len)?.len());
        }
        Ok(room.min(TRANSFER_BYTES_MAX))
    }

    /// Fills the vectors with bytes that there is room for, and says how many they were.
    pub(super) fn scatter(
        &mut self,
        vectors: u32,
        count: u32,
        mut bytes: &[u8],
        out: u32,
    ) -> Result<(), Errno> {
        let all = bytes.len();
        for index in 0..within(count)? {
            let (at, len) = self.vector(vectors, index)?;
            let (now, later) = bytes.split_at(bytes.len().min(len as usize));
            self.write(at, now)?;
            bytes = later;
        }
        self.write_size(out, all - bytes.len())
    }

    pub(super) fn write_size(&mut self, at: u32, size: usize) -> Result<(), Errno> {
        let size = u32::try_from(size).map_err(|_| Errno::OVERFLOW)?;
        self.write(at, &size.to_le_bytes())
    }
}

fn within(count: u32) -> Result<u32, Errno> {
    if count <= VECTORS_MAX { Ok(count) } else { Err(Errno::INVAL) }
}
