//! Handing a guest's response on: whole where its body is there at once, as a stream where it is not.
//!
//! A body that ends without the guest having to wait goes out with a content-length and in one piece, which is most
//! bodies and much the faster way. It is collected on the guest's own thread, between polls of the guest.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use wasmtime_wasi_http::WasiBody;

use super::Reply;
use super::guest_body::{GuestBodies, GuestBody};
use crate::executor;
use crate::ledger::{Account, Charge, HeldBytes, Holding};
use crate::net::{BoxError, empty_body, full_body};

/// Bytes of a body that are collected; a larger one is streamed from there.
const COLLECT_BYTES_MAX: usize = 256 << 10;

/// Times that a guest is polled in a row to write more of a body that is being collected.
const ROUNDS_MAX: usize = 16;

/// Times in a row that nothing comes before a guest is taken to wait. One poll of a 0.3 guest may do no more than set
/// the response's stream up.
const STUCK_MAX: u32 = 3;

/// Times that a guest may be made to give way to others while its response is kept back.
const PREEMPTED_MAX: u32 = 16;

/// Bytes that are collected without being counted, and the step in which more are.
const COLLECT_BYTES_FREE: usize = 4 << 10;
const COLLECT_BYTES_STEP: usize = 32 << 10;

/// Responses of one instance that are being collected, and the bodies of those that are streamed. It has to go before the
/// instance's store does.
pub(super) struct Deliveries {
    account: Arc<Account>,
    open: Mutex<Vec<Delivery>>,
    streamed: GuestBodies,
}

struct Delivery {
    head: http::response::Parts,
    body: WasiBody,
    collected: BytesMut,
    /// For what is collected.
    charge: Charge,
    /// Polls in a row that brought nothing.
    stuck: u32,
    is_head: bool,
    reply: Reply,
}

enum Progress {
    /// The body has ended: all of it is collected.
    Whole,
    /// More may follow at once.
    Advanced,
    /// Nothing came: the guest waits for something.
    Stuck,
    /// To be streamed from this frame or error on.
    Stream(Option<Result<Frame<Bytes>, BoxError>>),
}

impl Deliveries {
    /// What they collect is on this account.
    pub(super) fn new(account: &Arc<Account>) -> Deliveries {
        Deliveries { account: Arc::clone(account), open: Mutex::default(), streamed: GuestBodies::default() }
    }

    /// Begins to deliver a response to whoever holds the other end of `reply`.
    pub(super) fn begin(&self, response: Response<WasiBody>, is_head: bool, reply: Reply) {
        let (head, body) = response.into_parts();
        let charge = Charge::nothing(&self.account, Holding::Heap);
        let collected = BytesMut::new();
        self.open.lock().push(Delivery { head, body, collected, charge, stuck: 0, is_head, reply });
    }

    /// Polls `guest` to its end, delivering its responses meanwhile.
    pub(super) async fn drive<F: Future>(&self, guest: F) -> F::Output {
        let mut guest = std::pin::pin!(guest);
        let mut preempted = 0;
        std::future::poll_fn(|context| {
            executor::take_preempted();
            for _ in 0..ROUNDS_MAX {
                let polled = guest.as_mut().poll(context);
                if polled.is_pending() && executor::take_preempted() && preempted < PREEMPTED_MAX {
                    // It does not wait: its next turn shows whether the body ends by itself.
                    preempted += 1;
                    return Poll::Pending;
                }
                preempted = 0;
                let advanced = self.advance(context, polled.is_ready());
                if polled.is_ready() || !advanced {
                    return polled;
                }
            }
            self.advance(context, true);
            Poll::Pending
        })
        .await
    }

    /// Takes what the guest has written. Delivers what has ended or is stuck, or all where this is the last time.
    /// True where some body came on and may come on further.
    fn advance(&self, context: &mut Context<'_>, last: bool) -> bool {
        let mut open = self.open.lock();
        let mut advanced = false;
        let mut index = 0;
        while let Some(delivery) = open.get_mut(index) {
            match delivery.collect(context) {
                Progress::Whole => open.swap_remove(index).deliver_whole(),
                Progress::Stream(frame) => open.swap_remove(index).deliver_stream(frame, &self.streamed),
                Progress::Advanced if !last => {
                    advanced = true;
                    index += 1;
                }
                Progress::Advanced | Progress::Stuck => {
                    open.swap_remove(index).deliver_stream(None, &self.streamed);
                }
            }
        }
        advanced
    }
}

impl Delivery {
    fn collect(&mut self, context: &mut Context<'_>) -> Progress {
        let before = self.collected.len();
        loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(None) => return self.ended(),
                Poll::Pending => {
                    self.stuck = if self.collected.len() > before { 0 } else { self.stuck + 1 };
                    return if self.stuck < STUCK_MAX { Progress::Advanced } else { Progress::Stuck };
                }
                // What nobody reads may be as it is.
                Poll::Ready(Some(Err(_))) if self.is_bodiless() => return Progress::Whole,
                Poll::Ready(Some(Err(error))) => return Progress::Stream(Some(Err(Box::new(error)))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if self.has_room(data.len()) => self.collected.extend_from_slice(&data),
                    Ok(data) => return Progress::Stream(Some(Ok(Frame::data(data)))),
                    Err(trailers) => return Progress::Stream(Some(Ok(trailers))),
                },
            }
        }
    }

    /// Whether so many bytes more may be collected, and charges for them.
    fn has_room(&mut self, more: usize) -> bool {
        let wanted = self.collected.len() + more;
        let counted =
            if wanted <= COLLECT_BYTES_FREE { 0 } else { wanted.next_multiple_of(COLLECT_BYTES_STEP) };
        wanted <= COLLECT_BYTES_MAX && self.charge.try_set(counted as u64).is_ok()
    }

    /// All of the body is there. A guest that has announced more is not believed to be through.
    fn ended(&self) -> Progress {
        let announced =
            self.head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if self.is_bodiless() || announced.is_none_or(|bytes: usize| bytes == self.collected.len()) {
            return Progress::Whole;
        }
        let short = "the component's answer is not as long as it has announced";
        Progress::Stream(Some(Err(short.into())))
    }

    /// Nothing of the body is sent, whatever the headers say.
    fn is_bodiless(&self) -> bool {
        self.is_head || is_bodiless(self.head.status)
    }

    fn deliver_whole(self) {
        let hides_body = self.is_bodiless();
        let Delivery { mut head, collected, charge, reply, .. } = self;
        let headers = &mut head.headers;
        let is_told =
            headers.contains_key(TRANSFER_ENCODING) || hides_body && headers.contains_key(CONTENT_LENGTH);
        if !is_told && !is_bodiless(head.status) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(collected.len()));
        }
        let body = if hides_body { empty_body() } else { full_body(charged(collected, charge)) };
        // Whoever asked may have gone away.
        let _ = reply.send(Ok(Response::from_parts(head, body)));
    }

    fn deliver_stream(self, frame: Option<Result<Frame<Bytes>, BoxError>>, streamed: &GuestBodies) {
        let hides_body = self.is_bodiless();
        let Delivery { head, body, collected, charge, reply, .. } = self;
        let body = if hides_body {
            empty_body()
        } else {
            let account = Arc::clone(charge.account());
            let collected = (!collected.is_empty()).then(|| charged(collected, charge));
            Resumed { collected, frame, body: streamed.add(body), account }.boxed_unsync()
        };
        let _ = reply.send(Ok(Response::from_parts(head, body)));
    }
}

fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// What was collected, with the charge for it for as long as it waits anywhere.
fn charged(collected: BytesMut, charge: Charge) -> Bytes {
    if charge.amount() == 0 { collected.freeze() } else { HeldBytes::new(collected.freeze(), charge).into() }
}

/// A body whose beginning has been taken already.
struct Resumed {
    collected: Option<Bytes>,
    frame: Option<Result<Frame<Bytes>, BoxError>>,
    body: GuestBody,
    account: Arc<Account>,
}

impl Body for Resumed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(data) = self.collected.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let polled = match self.frame.take() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.body).poll_frame(context).map_err(|error| Box::new(error) as BoxError),
        };
        polled.map_ok(|frame| frame.map_data(|data| self.account.hold_bytes(data)))
    }

    fn is_end_stream(&self) -> bool {
        self.collected.is_none() && self.frame.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
