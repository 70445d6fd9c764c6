//! Streams a backup: this member's state, at least as new as everything acknowledged before the call.

use std::io::Read;

use coracle_api::Storage;
use coracle_proto::cluster::SnapshotChunk;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::storage::ReplicatedStorage;

/// Bytes in a message, and messages that may wait for a client that is slow.
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS_MAX: usize = 8;

pub type Chunks = ReceiverStream<Result<SnapshotChunk, Status>>;

pub async fn stream(storage: &ReplicatedStorage) -> Result<Chunks, Status> {
    storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let made = storage.raft().snapshot().await;
    let (marker, mut source) = made.map_err(|error| Status::unavailable(error.to_string()))?;
    tracing::info!(index = marker.index, "backup begun");
    let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut data = vec![0; CHUNK_BYTES];
            let chunk = match read_full(&mut source, &mut data) {
                Ok(0) => return,
                Ok(read) => {
                    data.truncate(read);
                    Ok(SnapshotChunk { data: data.into() })
                }
                Err(error) => Err(Status::internal(format!("the snapshot cannot be read: {error}"))),
            };
            let failed = chunk.is_err();
            // A client that has gone away wants no more of it.
            if chunks.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Fills the buffer unless the input ends before.
fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
