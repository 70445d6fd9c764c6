//! Datagrams between nodes: one stream each way, dropped where the peer does not keep up.

use super::wire::{Datagram, datagrams_request};
use bytes::{Bytes, BytesMut};
use coracle_wasi_host::shares::{Certain, Permit};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use std::future::poll_fn;
use tokio::sync::mpsc;

/// Datagrams that wait for a peer.
pub(super) const WAITING_MAX: usize = 1024;

/// Those of a pod that wait whatever others send, beside them.
pub(super) const CERTAIN: Certain = Certain { each: 2, all: 512 };

/// Sends what comes out of `waiting` over a stream of its own, until the tunnel or the sender ends.
pub(super) async fn send_all(sender: SendRequest<Bytes>, mut waiting: mpsc::Receiver<(Datagram, Permit)>) {
    // The stream is opened by the first datagram: most pairs of nodes exchange none.
    let Some(first) = waiting.recv().await else { return };
    let Ok(mut sender) = sender.ready().await else { return };
    let Some(request) = datagrams_request() else { return };
    let Ok((_response, mut stream)) = sender.send_request(request, false) else { return };
    let mut next = Some(first);
    while let Some((datagram, place)) = next {
        if send_one(&mut stream, datagram.encode()).await.is_none() {
            return;
        }
        // Its pod may be gone before there is another one.
        drop(place);
        next = waiting.recv().await;
    }
}

async fn send_one(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Option<()> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let granted = poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?.min(bytes.len());
        stream.send_data(bytes.split_to(granted), false).ok()?;
    }
    Some(())
}

/// Hands what a peer sends to `deliver`, until the stream ends or makes no sense.
pub(super) async fn receive_all(mut stream: RecvStream, deliver: impl Fn(Datagram)) {
    let mut buffer = BytesMut::new();
    while let Some(Ok(bytes)) = stream.data().await {
        buffer.extend_from_slice(&bytes);
        loop {
            match Datagram::decode(&mut buffer) {
                Ok(Some(datagram)) => deliver(datagram),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if stream.flow_control().release_capacity(bytes.len()).is_err() {
            return;
        }
    }
}
