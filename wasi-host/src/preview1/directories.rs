//! The entries of directories. A program asks for some at a time, and says from which on.

use std::future::poll_fn;
use std::sync::Arc;

use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, PathFlags};

use super::call::Call;
use super::descriptors::{Entry, Fd};
use super::errno::{Done, Errno};
use super::stat::kind;
use crate::files::{Listing, OpenDescriptor};

/// Bytes of an entry before its name.
const HEAD_BYTES: usize = 24;

/// Entries that every directory has, before those of its listing.
const DOTS: [&str; 2] = [".", ".."];

/// A listing under way, where a program may go on with it.
pub(super) struct Reading {
    listing: Listing,
    /// The number of the entry that comes next.
    next: u64,
    /// One that had no room.
    kept: Option<DirectoryEntry>,
}

pub(super) async fn fd_readdir(
    call: &mut Call<'_>,
    fd: Fd,
    buffer: u32,
    len: u32,
    cookie: u64,
    out: u32,
) -> Done {
    let dir = call.dir(fd)?;
    let Entry::Dir { reading, .. } = call.entry(fd)? else { return Err(Errno::BADF.into()) };
    let mut reading = reading.take();
    let (mut filled, mut number) = (0_u32, cookie);
    while filled < len {
        let Some(entry) = entry_at(call, &dir, &mut reading, number).await? else { break };
        let head = head(call, &dir, &entry, number).await?;
        filled +=
            put(call, buffer.checked_add(filled).ok_or(Errno::FAULT)?, len - filled, &head, &entry.name)?;
        // The last one may be there in part: it is asked for again.
        if let Some(reading) = &mut reading
            && filled == len
            && number >= DOTS.len() as u64
        {
            (reading.next, reading.kept) = (number, Some(entry));
        }
        number += 1;
    }
    if let Entry::Dir { reading: of, .. } = call.entry(fd)? {
        *of = reading;
    }
    Ok(call.write(out, &filled.to_le_bytes())?)
}

/// The entry of that number; none at the end. Who goes back begins the listing anew.
async fn entry_at(
    call: &mut Call<'_>,
    dir: &OpenDescriptor,
    reading: &mut Option<Box<Reading>>,
    number: u64,
) -> Done<Option<DirectoryEntry>> {
    if let Some(dot) = usize::try_from(number).ok().and_then(|number| DOTS.get(number)) {
        return Ok(Some(DirectoryEntry { type_: DescriptorType::Directory, name: (*dot).to_owned() }));
    }
    let mut now = match reading.take() {
        Some(now) if now.next <= number => now,
        _ => {
            let listing = call.files().list(Arc::clone(dir)).await?;
            Box::new(Reading { listing, next: DOTS.len() as u64, kept: None })
        }
    };
    loop {
        let entry = match now.kept.take() {
            Some(kept) => Some(kept),
            None => poll_fn(|context| now.listing.poll_next(context)).await.transpose()?,
        };
        let Some(entry) = entry else { return Ok(None) };
        now.next += 1;
        if now.next > number {
            *reading = Some(now);
            return Ok(Some(entry));
        }
    }
}

/// An entry as it lies before its name: where to go on after it, which file it is, how long its name is, and its type.
async fn head(
    call: &mut Call<'_>,
    dir: &OpenDescriptor,
    entry: &DirectoryEntry,
    number: u64,
) -> Done<[u8; HEAD_BYTES]> {
    // One that has been removed since is none any more.
    let of = if entry.name == ".." { "." } else { &entry.name };
    let hash = call.files().metadata_hash_at(Arc::clone(dir), PathFlags::empty(), of.to_owned()).await;
    let inode = hash.map_or(0, |hash| hash.lower);
    let name = u32::try_from(entry.name.len()).map_err(|_| Errno::OVERFLOW)?;
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&number.saturating_add(1).to_le_bytes());
    head[8..16].copy_from_slice(&inode.to_le_bytes());
    head[16..20].copy_from_slice(&name.to_le_bytes());
    head[20] = kind(entry.type_);
    Ok(head)
}

/// As much of an entry as there is room for.
fn put(call: &mut Call<'_>, at: u32, room: u32, head: &[u8], name: &str) -> Result<u32, Errno> {
    let entry = [head, name.as_bytes()].concat();
    let some = &entry[..entry.len().min(room as usize)];
    call.write(at, some)?;
    u32::try_from(some.len()).map_err(|_| Errno::OVERFLOW)
}
