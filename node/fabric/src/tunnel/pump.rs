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
    let up = async {
        let result = carry_up(&conn, &mut send).await;
        if result.is_err() {
            send.send_reset(Reason::CANCEL);
        }
        result
    };
    let down = async {
        let result = carry_down(&conn, &mut receive).await;
        if result == Err(Broken::Tunnel) {
            conn.reset();
        }
        result
    };
    tokio::pin!(up, down);
    // A break of either direction ends both; an end in order leaves the other one open.
    tokio::select! {
        result = &mut up => if result.is_ok() {
            let _ = down.await;
        },
        result = &mut down => match result {
            Ok(()) => drop(up.await),
            // The pod's end hears no more, and may still speak; its tunnel stream cannot be closed by halves.
            Err(_) => {}
        },
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
            if let Poll::Ready(_) = send.poll_reset(cx) {
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
