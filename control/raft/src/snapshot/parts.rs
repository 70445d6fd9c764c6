//! A snapshot's file on its way over the network: in parts, with pauses that leave room for the members' other work.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{Stream, unfold};

use super::Source;

/// How many bytes of a snapshot travel in one part.
const PART_BYTES: usize = 256 * 1024;
/// The least time from one part to the next: a snapshot takes at most 64 MiB/s from the members' other work.
const PART_PAUSE: Duration = Duration::from_millis(4);

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
    use futures::StreamExt;
    use tokio::time::Instant;

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
