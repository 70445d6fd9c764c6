//! A snapshot's file on its way over the network: in parts, with pauses that leave room for the members' other work.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{Stream, unfold};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Source;
use crate::config::SNAPSHOT_STREAM_IDLE;

/// How many bytes of a snapshot travel in one part.
const PART_BYTES: usize = 256 * 1024;
/// The least time from one part to the next: a snapshot takes at most 64 MiB/s from the members' other work.
const PART_PAUSE: Duration = Duration::from_millis(4);

/// Parts that may wait for a receiver.
const PARTS_AHEAD: usize = 4;

/// As [`parts`], for a receiver that takes one at least each [`SNAPSHOT_STREAM_IDLE`]. One that does not is given up,
/// which it finds behind what is on its way to it: neither it nor the file is held for ever.
pub fn patient_parts(source: Source) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    // Room for the last word is kept from the beginning.
    let (sender, mut receiver) = mpsc::channel(PARTS_AHEAD + 1);
    tokio::spawn(async move {
        let Ok(last_word) = sender.clone().reserve_owned().await else { return };
        let mut parts = std::pin::pin!(parts(source));
        while let Some(part) = parts.next().await {
            match timeout(SNAPSHOT_STREAM_IDLE, sender.send(part)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    let error =
                        io::Error::new(io::ErrorKind::TimedOut, "the receiver took nothing for too long");
                    last_word.send(Err(error));
                    return;
                }
            }
        }
    });
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// What a source has, in order. After an error there is nothing more.
pub fn parts(source: Source) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    unfold(Some(source), async |source| {
        let mut source = source?;
        tokio::time::sleep(PART_PAUSE).await;
        let read = tokio::task::spawn_blocking(move || next_part(&mut source).map(|part| (part, source)));
        match read.await.unwrap_or_else(|_| Err(io::Error::other("this member is stopping"))) {
            Ok((part, source)) => (!part.is_empty()).then_some((Ok(part), Some(source))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Empty behind the end.
fn next_part(source: &mut Source) -> io::Result<Bytes> {
    let mut data = Vec::with_capacity(PART_BYTES);
    source.take(PART_BYTES as u64).read_to_end(&mut data)?;
    Ok(data.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn parts_are_whole_and_come_no_faster_than_the_limit() {
        let bytes: Vec<u8> = (0..8 * PART_BYTES + 7).map(|at| at as u8).collect();
        let begun = Instant::now();
        let parts: Vec<Bytes> =
            parts(Box::new(io::Cursor::new(bytes.clone()))).map(Result::unwrap).collect().await;
        assert_eq!(parts.iter().map(Bytes::len).max(), Some(PART_BYTES));
        assert_eq!(parts.concat(), bytes);
        let per_second = bytes.len() as f64 / begun.elapsed().as_secs_f64();
        assert!(per_second < 64.0 * 1024.0 * 1024.0, "{per_second} bytes a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_stands_still_holds_nothing() {
        struct Endless(#[allow(dead_code, reason = "it is held")] Arc<()>);
        impl Read for Endless {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                Ok(out.len())
            }
        }
        let open = Arc::new(());
        let mut slow = std::pin::pin!(patient_parts(Box::new(Endless(open.clone()))));
        for _ in 0..20 {
            sleep(SNAPSHOT_STREAM_IDLE / 2).await;
            assert!(slow.next().await.is_some_and(|part| part.is_ok()), "slow is not still");
        }
        sleep(SNAPSHOT_STREAM_IDLE * 2).await;
        assert_eq!(Arc::strong_count(&open), 1, "the file is closed");
        let left: Vec<_> = slow.map(|part| part.is_ok()).collect().await;
        assert_eq!(left.last(), Some(&false), "it is told that this is not the end: {left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_follows_a_disk_that_fails() {
        struct Failing(usize);
        impl Read for Failing {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("worn out"))?;
                out.fill(1);
                Ok(out.len())
            }
        }
        let parts: Vec<_> = parts(Box::new(Failing(1))).collect().await;
        assert_eq!(parts.iter().map(Result::is_ok).collect::<Vec<_>>(), [false], "{parts:?}");
    }
}
