//! Bodies of requests and responses, with the patience that each is worth.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::pace::Pace;
use super::{CLIENT_BYTES_PER_SECOND_MIN, CLIENT_PATIENCE, InFlight, Place, RESPONSE_PATIENCE};
use crate::net::{BoxError, HttpBody, empty_body};

/// A request's body that fails where its client is too slow.
pub(super) fn paced(body: Incoming) -> HttpBody {
    if body.is_end_stream() {
        return empty_body();
    }
    let pace = Pace::new(CLIENT_PATIENCE, Some(CLIENT_BYTES_PER_SECOND_MIN));
    PacedBody { body, pace }.boxed_unsync()
}

struct PacedBody {
    body: Incoming,
    pace: Pace,
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        with_pace(&mut self.pace, context, polled, "the client sends its body too slowly")
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body that fails where its maker stands still. While it lasts its request is under way.
pub(super) struct ServedBody {
    body: HttpBody,
    pace: Pace,
    in_flight: Option<InFlight>,
    /// The place of a connection whose end is all that tells the body's end.
    by_its_end: Option<Place>,
    /// Why it is cut, once that is to be told.
    cut: Option<BoxError>,
}

impl ServedBody {
    pub(super) fn new(body: HttpBody, in_flight: Option<InFlight>, by_its_end: Option<Place>) -> Self {
        Self { body, pace: Pace::new(RESPONSE_PATIENCE, None), in_flight, by_its_end, cut: None }
    }
}

impl Body for ServedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(error) = self.cut.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let polled = with_pace(&mut self.pace, context, polled, "the response stood still for too long");
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.in_flight = None;
        }
        if let Poll::Ready(Some(Err(error))) = polled {
            // The client is to have what came before: hyper sends that when it has to wait, and not when it is told of the end.
            self.cut = Some(error);
            if let Some(place) = &self.by_its_end {
                place.break_off();
            }
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn with_pace<E: Into<BoxError>>(
    pace: &mut Pace,
    context: &mut Context<'_>,
    polled: Poll<Option<Result<Frame<Bytes>, E>>>,
    fault: &'static str,
) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    match polled {
        Poll::Ready(frame) => {
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            pace.moved(bytes);
            Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
        }
        Poll::Pending => {
            std::task::ready!(pace.poll_waiting(context));
            Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, fault).into())))
        }
    }
}
