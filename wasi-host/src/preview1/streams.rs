//! Reading and writing: files, standard streams and connections alike.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;

use super::call::Call;
use super::descriptors::{APPEND, Entry, Fd};
use super::errno::{Done, Errno};
use super::sockets;
use crate::files::OpenDescriptor;
use crate::stdin::Input;

/// From where a position is counted.
const FROM_BEGIN: u32 = 0;
const FROM_HERE: u32 = 1;
const FROM_END: u32 = 2;

pub(super) async fn fd_read(call: &mut Call<'_>, fd: Fd, vectors: u32, count: u32, out: u32) -> Done {
    let room = call.room(vectors, count)?;
    let read: Bytes = match call.entry(fd)? {
        Entry::File { opened, position, .. } => {
            let (opened, at) = (Arc::clone(opened), *position);
            let read = read_file(call, opened, room, at).await?;
            if let Entry::File { position, .. } = call.entry(fd)? {
                *position = at.saturating_add(read.len() as u64);
            }
            read.into()
        }
        Entry::Conn { conn, flags } => {
            let (conn, flags) = (Arc::clone(conn), *flags);
            sockets::receive(&conn, room, flags).await?
        }
        Entry::Stdin => match call.preview1().descriptors.stdin.clone() {
            Input::AtEnd => Bytes::new(),
            // It says nothing before its end.
            Input::Until(until) => {
                until.cancelled().await;
                Bytes::new()
            }
            Input::Sent(conn) => sockets::receive(&conn, room, 0).await?,
        },
        Entry::Dir { .. } => return Err(Errno::ISDIR.into()),
        Entry::Output(_) | Entry::Listener { .. } => return Err(Errno::BADF.into()),
    };
    Ok(call.scatter(vectors, count, &read, out)?)
}

pub(super) async fn fd_pread(
    call: &mut Call<'_>,
    fd: Fd,
    vectors: u32,
    count: u32,
    offset: u64,
    out: u32,
) -> Done {
    let room = call.room(vectors, count)?;
    let opened = seekable(call, fd)?;
    let read = read_file(call, opened, room, offset).await?;
    Ok(call.scatter(vectors, count, &read, out)?)
}

async fn read_file(call: &mut Call<'_>, opened: OpenDescriptor, room: usize, at: u64) -> Done<Vec<u8>> {
    let (read, _) = call.files().read(opened, room as u64, at).await?;
    Ok(read)
}

pub(super) async fn fd_write(call: &mut Call<'_>, fd: Fd, vectors: u32, count: u32, out: u32) -> Done {
    let bytes = call.gather(vectors, count)?;
    let written = match call.entry(fd)? {
        Entry::File { opened, position, flags } => {
            let (opened, at, appends) = (Arc::clone(opened), *position, *flags & APPEND != 0);
            let (written, after) = if appends {
                append(call, opened, bytes).await?
            } else {
                let written = call.files().write(opened, bytes, at).await?;
                (written, at.saturating_add(written))
            };
            if let Entry::File { position, .. } = call.entry(fd)? {
                *position = after;
            }
            usize::try_from(written).map_err(|_| Errno::OVERFLOW)?
        }
        Entry::Output(stream) => {
            let mut bytes: &[u8] = &bytes;
            let all = bytes.len();
            while !bytes.is_empty() {
                let taken = poll_fn(|context| stream.poll_take(context, bytes)).await;
                bytes = &bytes[taken..];
            }
            all
        }
        Entry::Conn { conn, flags } => {
            let (conn, flags) = (Arc::clone(conn), *flags);
            sockets::send(&conn, &bytes, flags).await?
        }
        _ => return Err(Errno::BADF.into()),
    };
    Ok(call.write_size(out, written)?)
}

pub(super) async fn fd_pwrite(
    call: &mut Call<'_>,
    fd: Fd,
    vectors: u32,
    count: u32,
    offset: u64,
    out: u32,
) -> Done {
    let bytes = call.gather(vectors, count)?;
    let opened = seekable(call, fd)?;
    // As on Linux: what is opened to append to knows no other place.
    let appends = matches!(call.entry(fd)?, Entry::File { flags, .. } if *flags & APPEND != 0);
    let written = if appends {
        append(call, opened, bytes).await?.0
    } else {
        call.files().write(opened, bytes, offset).await?
    };
    Ok(call.write_size(out, usize::try_from(written).map_err(|_| Errno::OVERFLOW)?)?)
}

/// How many bytes were written, and where the file ends then.
async fn append(call: &mut Call<'_>, opened: OpenDescriptor, bytes: Vec<u8>) -> Done<(u64, u64)> {
    let files = call.files();
    let written = files.append(Arc::clone(&opened), bytes).await?;
    Ok((written, files.stat(opened).await?.size))
}

pub(super) async fn fd_seek(call: &mut Call<'_>, fd: Fd, offset: i64, whence: u32, out: u32) -> Done {
    let opened = seekable(call, fd)?;
    let from = match whence {
        FROM_BEGIN => 0,
        FROM_HERE => position(call, fd)?,
        FROM_END => call.files().stat(opened).await?.size,
        _ => return Err(Errno::INVAL.into()),
    };
    let at = from.checked_add_signed(offset).ok_or(Errno::INVAL)?;
    if let Entry::File { position, .. } = call.entry(fd)? {
        *position = at;
    }
    Ok(call.write(out, &at.to_le_bytes())?)
}

pub(super) async fn fd_tell(call: &mut Call<'_>, fd: Fd, out: u32) -> Done {
    seekable(call, fd)?;
    let at = position(call, fd)?;
    Ok(call.write(out, &at.to_le_bytes())?)
}

fn position(call: &mut Call<'_>, fd: Fd) -> Done<u64> {
    match call.entry(fd)? {
        Entry::File { position, .. } => Ok(*position),
        _ => Err(Errno::BADF.into()),
    }
}

/// The file, where it is one: nothing else has places.
fn seekable(call: &mut Call<'_>, fd: Fd) -> Done<OpenDescriptor> {
    match call.entry(fd)? {
        Entry::File { opened, .. } => Ok(Arc::clone(opened)),
        Entry::Dir { .. } => Err(Errno::BADF.into()),
        _ => Err(Errno::SPIPE.into()),
    }
}
