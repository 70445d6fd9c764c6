//! Carries one connection over one HTTP/2 stream.

use super::FRAME_BYTES_MAX;
use crate::carry::{Broken, Taken, carry, something_to_read};
use bytes::{Bytes, BytesMut};
use coracle_wasi_host::net::{Conn, NetError, Unread};
use h2::{Reason, RecvStream, SendStream};
use std::future::poll_fn;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};
use tokio_util::sync::CancellationToken;

/// Pieces of fewer bytes are copied.
const SMALL_BYTES: usize = 8 * 1024;

/// An open stream.
pub(super) struct Stream {
    pub(super) send: SendStream<Bytes>,
    pub(super) receive: RecvStream,
}

/// Carries bytes both ways until both have ended. A reset on one side becomes a reset on the other. `pod` is cancelled
/// when this node's pod is taken off the network. What the pod has not taken yet is held as `unread`; where that has to make
/// room both sides are reset.
pub(super) async fn pump(conn: Conn, stream: Stream, unread: Unread, pod: CancellationToken) {
    let Stream { mut send, receive } = stream;
    let (taken, lost) = (Taken::default(), unread.lost().clone());
    let broken = {
        let up = carry_up(&conn, &mut send, &taken);
        let mut received = Received::new(receive, unread);
        let down = poll_fn(|cx| received.poll_carry_down(cx, &conn));
        tokio::select! {
            carried = carry(&conn, &pod, &taken, up, down) => carried.err(),
            () = lost.cancelled() => {
                conn.reset();
                Some(Broken::Pod(NetError::ConnectionReset))
            }
        }
    };
    match broken {
        None => {}
        Some(Broken::Pod(_)) => send.send_reset(Reason::CANCEL),
        Some(Broken::Far) => conn.reset(),
    }
}

/// From the pod's connection into the tunnel. What the other end has no room for stays in the pod's pipe, where it is on its
/// account and goes with it: a peer that reads nothing has this node hold nothing beside.
async fn carry_up(conn: &Conn, send: &mut SendStream<Bytes>, taken: &Taken) -> Result<(), Broken> {
    let account = conn.buffers();
    loop {
        // While there is nothing to carry, a reset by the peer must still be heard.
        something_to_read(conn, |cx| send.poll_reset(cx).map(|_| Broken::Far)).await?;
        // The end takes no room.
        let room = if conn.has_unread() { room(send).await? } else { FRAME_BYTES_MAX as usize };
        let bytes = match conn.try_read(room) {
            Err(NetError::WouldBlock) => continue,
            read => read.map_err(Broken::Pod)?,
        };
        if bytes.is_empty() {
            return send.send_data(Bytes::new(), true).map_err(|_| Broken::Far);
        }
        let length = bytes.len();
        // Until it is on the wire it is the pod's.
        let bytes = account.as_ref().map_or(bytes.clone(), |account| account.carried(bytes));
        send.send_data(bytes, false).map_err(|_| Broken::Far)?;
        taken.add(length);
    }
}

/// How much may be sent now, once it is anything.
async fn room(send: &mut SendStream<Bytes>) -> Result<usize, Broken> {
    send.reserve_capacity(FRAME_BYTES_MAX as usize);
    loop {
        match send.capacity() {
            0 => match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(Broken::Far),
            },
            room => return Ok(room.min(FRAME_BYTES_MAX as usize)),
        }
    }
}

/// What comes out of the tunnel, and what of it the pod's pipe has not taken yet.
struct Received {
    stream: RecvStream,
    /// Goes into the pipe next.
    first: Bytes,
    /// Whether that is a copy. What waits for the pipe must not keep the larger buffer that it was read into.
    is_copy: bool,
    /// Came while that did not fit; never more than the window. One copy of all, because pieces of a byte each would cost
    /// far more than their bytes.
    rest: BytesMut,
    /// Both, while they wait.
    unread: Unread,
    ended: bool,
}

impl Received {
    fn new(stream: RecvStream, unread: Unread) -> Self {
        Self { stream, first: Bytes::new(), is_copy: false, rest: BytesMut::new(), unread, ended: false }
    }

    /// Into the pod's connection, until the end. The window opens as the pod's pipe takes the bytes.
    fn poll_carry_down(&mut self, cx: &mut Context<'_>, conn: &Conn) -> Poll<Result<(), Broken>> {
        loop {
            if self.first.is_empty() && !self.rest.is_empty() {
                (self.first, self.is_copy) = (self.rest.split().freeze(), true);
            }
            if !self.first.is_empty() {
                match conn.try_write_bytes(&mut self.first) {
                    Ok(written) => {
                        let released = self.stream.flow_control().release_capacity(written);
                        released.map_err(|_| Broken::Far)?;
                        if self.unread.bytes() > 0 {
                            self.unread.set(self.first.len() + self.rest.len());
                        }
                        continue;
                    }
                    Err(NetError::WouldBlock) if conn.poll_writable(cx).is_ready() => continue,
                    Err(NetError::WouldBlock) if self.is_copy => {
                        self.unread.set(self.first.len() + self.rest.len());
                    }
                    Err(NetError::WouldBlock) => {
                        (self.first, self.is_copy) = (Bytes::copy_from_slice(&self.first), true);
                        self.unread.set(self.first.len() + self.rest.len());
                    }
                    Err(error) => return Poll::Ready(Err(Broken::Pod(error))),
                }
            }
            if self.ended {
                if !self.first.is_empty() {
                    return Poll::Pending;
                }
                conn.shutdown(Shutdown::Write);
                return Poll::Ready(Ok(()));
            }
            match ready!(self.stream.poll_data(cx)) {
                // A small piece would keep the larger buffer that it was read into.
                Some(Ok(bytes)) if self.first.is_empty() && bytes.len() < SMALL_BYTES => {
                    (self.first, self.is_copy) = (Bytes::copy_from_slice(&bytes), true);
                }
                Some(Ok(bytes)) if self.first.is_empty() => (self.first, self.is_copy) = (bytes, false),
                Some(Ok(bytes)) => {
                    self.rest.extend_from_slice(&bytes);
                    self.unread.set(self.first.len() + self.rest.len());
                }
                Some(Err(_)) => return Poll::Ready(Err(Broken::Far)),
                None => self.ended = true,
            }
        }
    }
}
