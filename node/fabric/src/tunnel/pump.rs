//! Carries one connection over one HTTP/2 stream.

use super::FRAME_BYTES_MAX;
use crate::carry::{Broken, Taken, carry, next_bytes};
use bytes::Bytes;
use coracle_wasi_host::net::{Conn, NetError};
use h2::{Reason, RecvStream, SendStream};
use std::future::poll_fn;
use std::net::Shutdown;
use tokio_util::sync::CancellationToken;

/// Carries bytes both ways until both have ended. A reset on one side becomes a reset on the other. `pod` is cancelled
/// when this node's pod is taken off the network.
pub(super) async fn pump(
    conn: Conn,
    mut send: SendStream<Bytes>,
    mut receive: RecvStream,
    pod: CancellationToken,
) {
    let taken = Taken::default();
    let broken = {
        let up = carry_up(&conn, &mut send, &taken);
        let down = carry_down(&conn, &mut receive);
        carry(&conn, &pod, &taken, up, down).await.err()
    };
    match broken {
        None => {}
        Some(Broken::Pod(_)) => send.send_reset(Reason::CANCEL),
        Some(Broken::Far) => conn.reset(),
    }
}

/// From the pod's connection into the tunnel.
async fn carry_up(conn: &Conn, send: &mut SendStream<Bytes>, taken: &Taken) -> Result<(), Broken> {
    loop {
        // While there is nothing to carry, a reset by the peer must still be heard.
        let interrupted = |cx: &mut std::task::Context<'_>| send.poll_reset(cx).map(|_| Broken::Far);
        let mut bytes = next_bytes(conn, FRAME_BYTES_MAX as usize, interrupted).await?;
        if bytes.is_empty() {
            return send.send_data(Bytes::new(), true).map_err(|_| Broken::Far);
        }
        while !bytes.is_empty() {
            send.reserve_capacity(bytes.len());
            let granted = match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(Ok(granted)) => granted.min(bytes.len()),
                Some(Err(_)) | None => return Err(Broken::Far),
            };
            send.send_data(bytes.split_to(granted), false).map_err(|_| Broken::Far)?;
            taken.add(granted);
        }
    }
}

/// From the tunnel into the pod's connection. The window opens as the pod's pipe takes the bytes.
async fn carry_down(conn: &Conn, receive: &mut RecvStream) -> Result<(), Broken> {
    while let Some(bytes) = receive.data().await {
        let mut bytes = bytes.map_err(|_| Broken::Far)?;
        while !bytes.is_empty() {
            let written = match conn.try_write_bytes(&mut bytes) {
                Err(NetError::WouldBlock) => {
                    poll_fn(|cx| conn.poll_writable(cx)).await;
                    continue;
                }
                result => result.map_err(Broken::Pod)?,
            };
            receive.flow_control().release_capacity(written).map_err(|_| Broken::Far)?;
        }
    }
    conn.shutdown(Shutdown::Write);
    Ok(())
}
