//! Carries one connection over one HTTP/2 stream.

use super::FRAME_BYTES_MAX;
use bytes::Bytes;
use coracle_wasi_host::net::{Conn, NetError};
use h2::{Reason, RecvStream, SendStream};
use std::future::poll_fn;
use std::net::Shutdown;
use std::task::{Poll, ready};

/// Carries bytes both ways until both have ended. A reset on one side becomes a reset on the other.
pub(super) async fn pump(conn: Conn, mut send: SendStream<Bytes>, mut receive: RecvStream) {
    let broken = {
        let up = carry_up(&conn, &mut send);
        let down = carry_down(&conn, &mut receive);
        tokio::pin!(up, down);
        // A break of either direction ends both; an end in order leaves the other one open.
        let both = async {
            tokio::select! {
                result = &mut up => {
                    result?;
                    down.await
                }
                result = &mut down => {
                    result?;
                    up.await
                }
            }
        };
        both.await.err()
    };
    match broken {
        None => {}
        Some(Broken::Pod) => send.send_reset(Reason::CANCEL),
        Some(Broken::Tunnel) => conn.reset(),
    }
}

/// Which side went away.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    Pod,
    Tunnel,
}

/// From the pod's connection into the tunnel.
async fn carry_up(conn: &Conn, send: &mut SendStream<Bytes>) -> Result<(), Broken> {
    loop {
        let read = poll_fn(|cx| {
            // While there is nothing to carry, a reset by the peer must still be heard.
            if send.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Broken::Tunnel));
            }
            loop {
                match conn.try_read(FRAME_BYTES_MAX as usize) {
                    Err(NetError::WouldBlock) => ready!(conn.poll_readable(cx)),
                    result => return Poll::Ready(result.map_err(|_| Broken::Pod)),
                }
            }
        });
        let mut bytes = read.await?;
        if bytes.is_empty() {
            return send.send_data(Bytes::new(), true).map_err(|_| Broken::Tunnel);
        }
        while !bytes.is_empty() {
            send.reserve_capacity(bytes.len());
            let granted = match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(granted)) => granted.min(bytes.len()),
                Some(Err(_)) | None => return Err(Broken::Tunnel),
            };
            send.send_data(bytes.split_to(granted), false).map_err(|_| Broken::Tunnel)?;
        }
    }
}

/// From the tunnel into the pod's connection. The window opens as the pod's pipe takes the bytes.
async fn carry_down(conn: &Conn, receive: &mut RecvStream) -> Result<(), Broken> {
    while let Some(bytes) = receive.data().await {
        let mut bytes = bytes.map_err(|_| Broken::Tunnel)?;
        while !bytes.is_empty() {
            let written = match conn.try_write_bytes(&mut bytes) {
                Err(NetError::WouldBlock) => {
                    poll_fn(|cx| conn.poll_writable(cx)).await;
                    continue;
                }
                result => result.map_err(|_| Broken::Pod)?,
            };
            receive.flow_control().release_capacity(written).map_err(|_| Broken::Tunnel)?;
        }
    }
    conn.shutdown(Shutdown::Write);
    Ok(())
}
