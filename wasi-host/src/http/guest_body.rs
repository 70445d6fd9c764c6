//! Bodies that guests make: one whose guest ends before it does is cut, and who reads it is told so.
//!
//! wasmtime-wasi-http's bodies end alike whether their guest has ended them or its store is gone. So each is asked once more
//! while the store is there: what has not ended by then never will.

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use wasmtime_wasi_http::{Error as WasiError, WasiBody};

/// Bodies known beyond which those that nobody reads any more are forgotten.
const KNOWN_MIN: usize = 16;

const CUT: &str = "the component ended before the body did";

thread_local! {
    /// A body was asked that a guest was given.
    static IS_GIVEN: Cell<bool> = const { Cell::new(false) };
}

/// A body that a guest is given. One of 0.3 may hand it on and ask no more of it: it does not end with the guest.
pub(super) struct GivenBody<B>(pub(super) B);

impl<B: Body<Data = Bytes, Error = WasiError> + Unpin> Body for GivenBody<B> {
    type Data = Bytes;
    type Error = WasiError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
        IS_GIVEN.set(true);
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// The bodies of one store that others read. They are cut when this goes, which has to be before the store.
#[derive(Default)]
pub(crate) struct GuestBodies {
    open: Mutex<Vec<Weak<Mutex<Source>>>>,
}

impl GuestBodies {
    /// The same body, as one that can be cut.
    pub(super) fn add(&self, body: WasiBody) -> GuestBody {
        let source =
            Arc::new(Mutex::new(Source { body, reader: None, left: VecDeque::new(), is_over: false }));
        let mut open = self.open.lock();
        if open.len() >= KNOWN_MIN {
            open.retain(|body| body.strong_count() > 0);
        }
        open.push(Arc::downgrade(&source));
        GuestBody(source)
    }

    /// Cuts all that have not ended.
    pub(crate) fn cut(&self) {
        for body in self.open.lock().drain(..) {
            if let Some(body) = body.upgrade() {
                body.lock().cut();
            }
        }
    }
}

impl Drop for GuestBodies {
    fn drop(&mut self) {
        self.cut();
    }
}

/// A body of a guest, for whoever reads it.
pub(super) struct GuestBody(Arc<Mutex<Source>>);

struct Source {
    body: WasiBody,
    reader: Option<Waker>,
    /// What there was yet when the guest ended.
    left: VecDeque<Result<Frame<Bytes>, WasiError>>,
    /// The body itself is asked no more.
    is_over: bool,
}

impl Source {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
        if let Some(frame) = self.left.pop_front() {
            return Poll::Ready(Some(frame));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Pending => match &mut self.reader {
                Some(reader) => reader.clone_from(context.waker()),
                None => self.reader = Some(context.waker().clone()),
            },
            Poll::Ready(None | Some(Err(_))) => self.is_over = true,
            Poll::Ready(Some(Ok(_))) => {}
        }
        polled
    }

    /// Takes what there still is, which is no more than its channel holds. Where that is not all the last of it is an error.
    fn cut(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        while !self.is_over {
            IS_GIVEN.set(false);
            let polled = Pin::new(&mut self.body).poll_frame(&mut context);
            let is_given = IS_GIVEN.get();
            match polled {
                Poll::Ready(Some(Ok(frame))) => self.left.push_back(Ok(frame)),
                Poll::Ready(Some(Err(error))) => self.end_with(Some(error)),
                Poll::Ready(None) => self.end_with(None),
                Poll::Pending if !is_given => self.end_with(Some(WasiError::InternalError(Some(CUT.into())))),
                Poll::Pending => {}
            }
            if is_given {
                break;
            }
        }
        // Who waits for more is told; and who waits for what goes on has to ask it again.
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn end_with(&mut self, error: Option<WasiError>) {
        self.left.extend(error.map(Err));
        self.is_over = true;
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = WasiError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
        self.0.lock().poll(context)
    }

    fn is_end_stream(&self) -> bool {
        let source = self.0.lock();
        source.left.is_empty() && (source.is_over || source.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use futures::channel::mpsc;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, WasiError>>;

    fn body() -> (Frames, WasiBody) {
        let (frames, body) = mpsc::unbounded();
        (frames, StreamBody::new(body).boxed_unsync())
    }

    fn send(frames: &Frames, text: &'static str) {
        frames.unbounded_send(Ok(Frame::data(Bytes::from_static(text.as_bytes())))).expect("it is read");
    }

    /// What a reader gets of it, and whether that is all.
    async fn read(mut body: impl Body<Data = Bytes, Error = WasiError> + Unpin) -> (String, bool) {
        let mut text = String::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return (text, false) };
            text += std::str::from_utf8(frame.data_ref().expect("no trailers")).expect("text");
        }
        (text, true)
    }

    #[tokio::test]
    async fn what_has_not_ended_with_its_guest_is_cut_and_the_rest_is_whole() {
        let bodies = GuestBodies::default();
        let (open, source) = body();
        let unfinished = bodies.add(source);
        send(&open, "so far");
        let (ended, source) = body();
        let whole = bodies.add(source);
        send(&ended, "all");
        ended.close_channel();
        drop(bodies);
        // As a store that goes drops what it holds.
        drop((open, ended));
        assert_eq!(read(unfinished).await, ("so far".into(), false));
        assert_eq!(read(whole).await, ("all".into(), true));
    }

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_waits_is_told_of_the_cut() {
        let bodies = GuestBodies::default();
        let (_open, source) = body();
        let mut waited = bodies.add(source);
        let woken = Arc::<Woken>::default();
        let waker = Arc::clone(&woken).into();
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut waited).poll_frame(&mut context).is_pending());
        bodies.cut();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        let cut = Pin::new(&mut waited).poll_frame(&mut context);
        assert!(matches!(cut, Poll::Ready(Some(Err(_)))));
        assert!(matches!(Pin::new(&mut waited).poll_frame(&mut context), Poll::Ready(None)));
    }

    #[tokio::test]
    async fn what_a_guest_was_given_and_hands_on_outlives_it() {
        let bodies = GuestBodies::default();
        let (frames, source) = body();
        let handed_on = bodies.add(GivenBody(source).boxed_unsync());
        send(&frames, "one ");
        drop(bodies);
        send(&frames, "two ");
        send(&frames, "three");
        drop(frames);
        assert_eq!(read(handed_on).await, ("one two three".into(), true));
    }

    #[test]
    fn bodies_that_nobody_reads_are_forgotten() {
        let bodies = GuestBodies::default();
        for _ in 0..10 * KNOWN_MIN {
            drop(bodies.add(body().1));
        }
        assert!(bodies.open.lock().len() <= KNOWN_MIN);
    }
}
