//! Sockets: those that a program finds open, and the connections that it accepts there.

use std::future::poll_fn;
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;

use super::call::Call;
use super::descriptors::{Entry, Fd, NONBLOCK};
use super::errno::{Done, Errno};
use crate::net::{Conn, NetError};

/// How to receive.
const PEEK: u32 = 1;
const WAIT_ALL: u32 = 1 << 1;

/// What is shut down.
const READING: u32 = 1;
const WRITING: u32 = 1 << 1;

pub(super) async fn sock_accept(call: &mut Call<'_>, fd: Fd, flags: u32, out: u32) -> Done {
    let (listener, of) = match call.entry(fd)? {
        Entry::Listener { listener, flags } => (Arc::clone(listener), *flags),
        Entry::Conn { .. } => return Err(Errno::INVAL.into()),
        _ => return Err(Errno::NOTSOCK.into()),
    };
    let (conn, _) = if of & NONBLOCK != 0 { listener.try_accept()? } else { listener.accept().await? };
    let fd = call.open(Entry::Conn { conn: Arc::new(conn), flags: flags & NONBLOCK })?;
    Ok(call.write(out, &fd.to_le_bytes())?)
}

pub(super) async fn sock_recv(
    call: &mut Call<'_>,
    fd: Fd,
    vectors: u32,
    count: u32,
    flags: u32,
    out: u32,
    out_flags: u32,
) -> Done {
    if flags & (PEEK | WAIT_ALL) != 0 {
        return Err(Errno::NOTSUP.into());
    }
    let room = call.room(vectors, count)?;
    let (conn, flags) = connection(call, fd)?;
    let read = receive(&conn, room, flags).await?;
    call.scatter(vectors, count, &read, out)?;
    Ok(call.write(out_flags, &[0, 0])?)
}

pub(super) async fn sock_send(
    call: &mut Call<'_>,
    fd: Fd,
    vectors: u32,
    count: u32,
    _flags: u32,
    out: u32,
) -> Done {
    let bytes = call.gather(vectors, count)?;
    let (conn, flags) = connection(call, fd)?;
    let sent = send(&conn, &bytes, flags).await?;
    Ok(call.write_size(out, sent)?)
}

pub(super) async fn sock_shutdown(call: &mut Call<'_>, fd: Fd, how: u32) -> Done {
    let (conn, _) = connection(call, fd)?;
    conn.shutdown(match how {
        READING => Shutdown::Read,
        WRITING => Shutdown::Write,
        both if both == READING | WRITING => Shutdown::Both,
        _ => return Err(Errno::INVAL.into()),
    });
    Ok(())
}

fn connection(call: &mut Call<'_>, fd: Fd) -> Result<(Arc<Conn>, u32), Errno> {
    match call.entry(fd)? {
        Entry::Conn { conn, flags } => Ok((Arc::clone(conn), *flags)),
        Entry::Listener { .. } => Err(Errno::NOTCONN),
        _ => Err(Errno::NOTSOCK),
    }
}

/// At most so many bytes; none at the end.
pub(super) async fn receive(conn: &Conn, room: usize, flags: u32) -> Result<Bytes, NetError> {
    if room == 0 || flags & NONBLOCK != 0 {
        return conn.try_read(room);
    }
    poll_fn(|context| {
        loop {
            match conn.try_read(room) {
                Err(NetError::WouldBlock) => ready!(conn.poll_readable(context)),
                read => return Poll::Ready(read),
            }
        }
    })
    .await
}

/// How many of the bytes were taken: some, or none where there are none.
pub(super) async fn send(conn: &Conn, bytes: &[u8], flags: u32) -> Result<usize, NetError> {
    if bytes.is_empty() || flags & NONBLOCK != 0 {
        return conn.try_write(bytes);
    }
    poll_fn(|context| conn.poll_write_from(context, bytes)).await
}
