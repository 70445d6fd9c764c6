//! Streams a backup: this member's state, at least as new as everything acknowledged before the call.

use std::{future::Future, pin::pin, time::Duration};

use coracle_api::Storage;
use coracle_proto::cluster::SnapshotChunk;
use coracle_raft::{
    SnapshotError, SnapshotMarker,
    snapshot::{Source, parts},
};
use coracle_storage::ReplicatedStorage;
use futures::StreamExt;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Messages that may wait for a client that is slow.
const CHUNKS_MAX: usize = 8;

/// How often a client is told that the snapshot is still being written.
const SIGN_PERIOD: Duration = Duration::from_secs(2);

/// For how long a client may take nothing.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(30);

pub type Chunks = ReceiverStream<Result<SnapshotChunk, Status>>;

/// Answers once this member is up to date; the snapshot is written while the client waits for the stream.
pub async fn stream(storage: &ReplicatedStorage) -> Result<Chunks, Status> {
    storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let raft = storage.raft().clone();
    Ok(chunks(async move { raft.snapshot().await }))
}

fn chunks(
    snapshot: impl Future<Output = Result<(SnapshotMarker, Source), SnapshotError>> + Send + 'static,
) -> Chunks {
    // Room for the last word is kept from the beginning.
    let (chunks, receiver) = mpsc::channel(CHUNKS_MAX + 1);
    tokio::spawn(async move {
        let Ok(last_word) = chunks.clone().reserve_owned().await else { return };
        if send(snapshot, &chunks).await == Err(Unsent::Still) {
            last_word.send(Err(Status::deadline_exceeded("the backup was not taken fast enough")));
        }
    });
    ReceiverStream::new(receiver)
}

/// Why not all was sent.
#[derive(Debug, PartialEq, Eq)]
enum Unsent {
    /// A client that has gone away wants no more of it.
    Gone,
    /// One that takes nothing must not hold the snapshot's file for ever.
    Still,
}

async fn give(
    chunks: &mpsc::Sender<Result<SnapshotChunk, Status>>,
    chunk: Result<SnapshotChunk, Status>,
) -> Result<(), Unsent> {
    match timeout(CLIENT_IDLE_MAX, chunks.send(chunk)).await {
        Ok(sent) => sent.map_err(|_| Unsent::Gone),
        Err(_) => Err(Unsent::Still),
    }
}

async fn send(
    snapshot: impl Future<Output = Result<(SnapshotMarker, Source), SnapshotError>>,
    chunks: &mpsc::Sender<Result<SnapshotChunk, Status>>,
) -> Result<(), Unsent> {
    let mut snapshot = pin!(snapshot);
    let made = loop {
        give(chunks, Ok(SnapshotChunk::default())).await?;
        if let Ok(made) = timeout(SIGN_PERIOD, &mut snapshot).await {
            break made;
        }
    };
    let (marker, source) = match made {
        Ok(made) => made,
        Err(error) => return give(chunks, Err(Status::unavailable(error.to_string()))).await,
    };
    tracing::info!(index = marker.index, "backup begun");
    let mut parts = pin!(parts(source));
    while let Some(part) = parts.next().await {
        let chunk = part.map(|data| SnapshotChunk { data });
        let broken = |error| Status::internal(format!("the snapshot cannot be read: {error}"));
        give(chunks, chunk.map_err(broken)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_hears_at_once_and_again_while_the_snapshot_is_written() {
        let begun = Instant::now();
        let mut chunks = chunks(async {
            sleep(Duration::from_secs(61)).await;
            let source: Source = Box::new(std::io::Cursor::new(vec![7; 300 * 1024]));
            Ok((SnapshotMarker::default(), source))
        });
        let first = chunks.next().await.unwrap().unwrap();
        assert!(first.data.is_empty() && begun.elapsed() < SIGN_PERIOD);
        let (mut bytes, mut last) = (Vec::new(), begun);
        while let Some(chunk) = chunks.next().await {
            assert!(last.elapsed() <= SIGN_PERIOD, "silent for {:?}", last.elapsed());
            last = Instant::now();
            bytes.extend_from_slice(&chunk.unwrap().data);
        }
        assert_eq!(bytes, vec![7; 300 * 1024]);
        assert!(begun.elapsed() >= Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let mut still = chunks(async move {
            let _alive = alive;
            std::future::pending().await
        });
        still.next().await.unwrap().unwrap();
        ended.await.expect_err("its task has ended");
        let mut last = None;
        while let Some(chunk) = still.next().await {
            last = Some(chunk.map_err(|status| status.code()).map(|_| ()));
        }
        assert_eq!(last, Some(Err(tonic::Code::DeadlineExceeded)));
    }

    #[tokio::test]
    async fn a_snapshot_that_is_there_already_comes_behind_the_first_sign() {
        for _ in 0..64 {
            let source: Source = Box::new(std::io::Cursor::new(vec![7]));
            let chunks = chunks(async { Ok((SnapshotMarker::default(), source)) });
            let lengths: Vec<usize> = chunks.map(|chunk| chunk.unwrap().data.len()).collect().await;
            assert_eq!(lengths, [0, 1]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_fails_is_told_and_who_has_gone_is_not_waited_for() {
        let mut failed = chunks(async { Err(SnapshotError::Failed("no room".into())) });
        let told = loop {
            match failed.next().await.unwrap() {
                Ok(chunk) => assert!(chunk.data.is_empty()),
                Err(status) => break status,
            }
        };
        assert!(told.message().contains("no room"), "{told}");
        assert!(failed.next().await.is_none());
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let mut gone = chunks(async move {
            let _alive = alive;
            std::future::pending().await
        });
        gone.next().await.unwrap().unwrap();
        drop(gone);
        ended.await.expect_err("its task has ended");
    }
}
