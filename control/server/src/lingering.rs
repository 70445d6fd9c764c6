//! The rest of bodies that nobody reads.
//!
//! Where a request is answered before its body has come, HTTP/2 resets the stream behind the answer. Clients are to take the
//! answer all the same (RFC 9113, 8.1), and some in use lose it. HTTP/1.1 closes the connection, and who still sends may hear
//! of that before it reads the answer (RFC 9112, 9.6). So the body is read on for a little while, and thrown away: by then
//! its client has seen that it is answered.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{runtime::Handle, time::timeout};

/// For so long, and so many bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// A body that lingers where it is dropped before its end.
pub struct Lingering<B: Body<Data = Bytes> + Send + Unpin + 'static> {
    body: Option<B>,
    lingers: bool,
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Lingering<B> {
    pub fn new(body: B, lingers: bool) -> Self {
        Self { body: Some(body), lingers }
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Body for Lingering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(B::size_hint).unwrap_or_default()
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Drop for Lingering<B> {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| self.lingers && !body.is_end_stream());
        if let (Some(rest), Ok(runtime)) = (rest, Handle::try_current()) {
            runtime.spawn(timeout(LINGER, throw_away(rest)));
        }
    }
}

async fn throw_away<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let mut left = LINGER_BYTES_MAX;
    loop {
        let bytes = poll_fn(|context| {
            let bytes = |frame: Frame<Bytes>| frame.data_ref().map_or(0, Bytes::len);
            Pin::new(&mut body).poll_frame(context).map(|frame| frame.and_then(Result::ok).map(bytes))
        });
        // At its end, or reset by its client, nobody is waited for.
        let Some(bytes) = bytes.await else { return };
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            // What is left of the time is the client's to read its answer in.
            None => std::future::pending::<()>().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tokio::time::Instant;

    use super::*;

    /// Frames of 64 KiB, of which so many are left, and no end where it is never to come.
    struct Frames {
        left: usize,
        read: Arc<AtomicUsize>,
        ends: bool,
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
            if self.left == 0 {
                return if self.ends { Poll::Ready(None) } else { Poll::Pending };
            }
            self.left -= 1;
            self.read.fetch_add(1, SeqCst);
            Poll::Ready(Some(Ok(Frame::data(vec![0; 64 * 1024].into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.left == 0 && self.ends
        }
    }

    impl Drop for Frames {
        fn drop(&mut self) {
            self.read.fetch_add(1_000, SeqCst);
        }
    }

    /// How many frames were read of a body that was dropped, and how long it was kept.
    async fn dropped(left: usize, ends: bool, lingers: bool) -> (usize, Duration) {
        let (read, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
        drop(Lingering::new(Frames { left, read: read.clone(), ends }, lingers));
        while read.load(SeqCst) < 1_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (read.load(SeqCst) - 1_000, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_on_for_a_while_and_not_for_long() {
        let (read, kept) = dropped(3, true, true).await;
        assert!(read == 3 && kept < LINGER, "{read} in {kept:?}");
        for (left, ends) in [(100, true), (0, false)] {
            let (read, kept) = dropped(left, ends, true).await;
            assert!(read <= 5 && kept >= LINGER && kept < 2 * LINGER, "{read} in {kept:?}");
        }
        assert_eq!(dropped(3, true, false).await, (0, Duration::ZERO));
        assert_eq!(dropped(0, true, true).await, (0, Duration::ZERO));
    }
}
